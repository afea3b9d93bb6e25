"""Names in a data set are of one form; what has another is no name."""

import pytest
from pydantic import TypeAdapter, ValidationError

from ecgan.shards.files import names


@pytest.mark.parametrize("text", ["", "a.b", "a/b", "a b", "a\n", "..", "\u00e4", None, 7])
def test_what_is_no_key(text):
    assert names.is_key("view-00_x")
    assert not names.is_key(text)


@pytest.mark.parametrize("data_format", ["webdataset", "parquet", "folder"])
@pytest.mark.parametrize("number", [0, 7, 123456, 1234567])
def test_the_name_of_a_shard_says_what_it_was_made_of(data_format, number):
    name = names.shard_name(data_format, "val-2_x", number)
    assert names.shard_parts(name) == (data_format, "val-2_x", number)
    assert names.committed_number(names.commit_name(number).rpartition("/")[2]) == number


@pytest.mark.parametrize(
    "name",
    [
        *("", "train", "data/train-1.tar", "data/train-0000001.tar", "data/train-000000.tar\n"),
        *("../data/train-000000.tar", "/data/train-000000.tar", "data/../train-000000.tar"),
        *("data/../../x-000000.tar", "x/train-000000.tar", "data/tr.ain-000000.tar"),
        *("data/train-000000.parquet", "../train-000000", "data/train-\u0661\u0661\u0661111.tar"),
    ],
)
def test_other_names_are_none_of_a_shard(name):
    with pytest.raises(ValueError, match="expected a shard's name such as data/train"):
        names.shard_parts(name)


@pytest.mark.parametrize(
    "name", ["abc.json", "-1.json", "1.json", "000001.json.tmp", "0000001.json"]
)
def test_other_files_commit_nothing(name):
    assert names.committed_number(name) is None


@pytest.mark.parametrize(
    "parts",
    [("..", "a", "jpg"), ("train", "../a", "jpg"), ("train", "a", "py"), ("train", "", "jpg")],
)
def test_files_of_a_sample_are_made_of_checked_parts(parts):
    assert names.sample_files("train", "a-s000", "webp")[0] == "images/train/a-s000.webp"
    with pytest.raises(ValueError, match="expected"):
        names.sample_files(*parts)


def test_keys_of_long_layouts_stay_apart():
    """A name in a USTAR archive has at most 100 characters."""
    longest = "a" * 75
    assert names.sample_key(longest, 7) == f"{longest}-s007"
    others = [names.sample_key("a" * 300 + end, 7) for end in "xy"]
    assert len({*others}) == 2
    assert all(len(key) == 80 and names.is_key(key) and key.endswith("-s007") for key in others)
    with pytest.raises(ValueError, match="expected letters"):
        names.sample_key("../a", 0)


def test_a_split_has_a_short_name():
    split = TypeAdapter(names.Split)
    assert split.validate_python("train") == "train"
    for odd in ("a" * 61, "../a", ""):
        with pytest.raises(ValidationError):
            split.validate_python(odd)
