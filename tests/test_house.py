"""Limits of the source tree, so that it stays easy to find one's way in."""

from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
MAX_README_LINES = 150
MAX_COLUMNS = 120  # of README and docs/


def test_the_readme_is_short():
    assert len((ROOT / "README.md").read_text().splitlines()) <= MAX_README_LINES


@pytest.mark.parametrize("name", ["README.md", "CONTRIBUTING.md", "CHANGELOG.md", "docs"])
def test_documents_have_short_lines(name):
    path = ROOT / name
    files = sorted(path.glob("*.md")) if path.is_dir() else [path]
    assert files
    long = [
        f"{file.name}:{number} ({len(line)})"
        for file in files
        for number, line in enumerate(file.read_text().splitlines(), 1)
        if len(line) > MAX_COLUMNS
    ]
    assert not long
