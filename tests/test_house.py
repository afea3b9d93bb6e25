"""Limits of the source tree, so that it stays easy to find one's way in."""

from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("ecgan", "ecgan_cli")
MAX_LINES = 500  # of a source file
MAX_MODULES = 9  # of a folder, beside __init__.py and __main__.py
MAX_README_LINES = 150
MAX_COLUMNS = 120  # of README and docs/

# Exceptions, each with its reason. Empty is best.
LONG_FILES: dict[str, str] = {}
WIDE_FOLDERS: dict[str, str] = {}


def _sources():
    return sorted(path for name in PACKAGES for path in (ROOT / name).rglob("*.py"))


def test_source_files_are_short():
    lengths = {
        path.relative_to(ROOT).as_posix(): len(path.read_text().splitlines()) for path in _sources()
    }
    too_long = {name: lines for name, lines in lengths.items() if lines > MAX_LINES}
    assert set(too_long) == set(LONG_FILES), too_long


def test_folders_hold_few_modules():
    modules: dict[str, int] = {}
    for path in _sources():
        if path.name not in {"__init__.py", "__main__.py"}:
            folder = path.parent.relative_to(ROOT).as_posix()
            modules[folder] = modules.get(folder, 0) + 1
    too_wide = {name: count for name, count in modules.items() if count > MAX_MODULES}
    assert set(too_wide) == set(WIDE_FOLDERS), too_wide


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
