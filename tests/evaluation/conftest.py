"""The real data set, judge and samples that the tests of an evaluation share."""

import shutil

import pytest

from tests.helpers.segmenters import save_segmenter
from tests.helpers.tiny import write_pairs


@pytest.fixture(scope="session")
def world(tmp_path_factory):
    """A real data set, a judge, and the validation pairs again as a plain folder of samples."""
    root = tmp_path_factory.mktemp("evaluate")
    write_pairs(root / "real", num_train=4, num_val=3)
    for path in root.glob("real/*/val/*.png"):  # names of their own: keys tell splits apart
        path.rename(path.with_name(path.name.replace("scene", "view")))
    save_segmenter(root / "judge", seed=0)
    for folder in ("images", "labels"):
        shutil.copytree(root / "real" / folder / "val", root / "samples" / folder)
    return root
