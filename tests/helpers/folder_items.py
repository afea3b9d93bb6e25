"""Items of a folder in one call."""

from ecgan.data.datasets import DataFolder


def items_for(dataset, root, split, **options):
    return DataFolder(dataset, root).items_for(split, **options)


def index(dataset, root, split, **options):
    return DataFolder(dataset, root).index(split, **options)


def splits(dataset, root):
    return DataFolder(dataset, root).splits()
