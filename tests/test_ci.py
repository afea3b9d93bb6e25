"""Tests of .ci/: of the script, on commands that only say that they were called; of oldest.py."""

import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).parents[1]

# Makes an environment as `python3 -m venv` does, of the programs beside it
PYTHON = """\
#!/bin/sh
echo "python3 $*" >>"$CALLS"
case "$*" in
"-m venv "*)
    mkdir -p "$3/bin" "$3/lib/python3.11/site-packages"
    cp "$STUBS"/* "$3/bin"
    ;;
*sysconfig*) echo somewhere ;;
*pytest*)
    echo "1 passed in 0.01s"
    exec "$STUBS/fails" "python3 $*"
    ;;
esac
"""
PROGRAM = """\
#!/bin/sh
echo "${0##*/} $*" >>"$CALLS"
[ "${0##*/} $1" != "ecgan demo" ] || mkdir -p ecgan-demo/samples ecgan-demo/report
[ "${0##*/} $1" != "ecgan ${SLOW:-}" ] || sleep 30
exec "$STUBS/fails" "${0##*/} $*"
"""
FAILS = """\
#!/bin/sh
case "$1" in *"${FAILS:-nothing fails}"*) exit 1 ;; esac
"""


def _run(tmp_path: Path, fails: str = "") -> tuple[int, str, list[Path]]:
    """Exit status, the commands called, and what is left of the folder for temporary files."""
    stubs, scratch, calls = tmp_path / "stubs", tmp_path / "scratch", tmp_path / "calls"
    for folder in (stubs, scratch):
        folder.mkdir()
    texts = dict.fromkeys(("pip", "ruff", "lint-imports", "pyright", "pytest", "ecgan"), PROGRAM)
    texts |= {"python": PYTHON, "python3": PYTHON, "fails": FAILS, "chromedriver": PROGRAM}
    for name, text in texts.items():
        (stubs / name).write_text(text)
        (stubs / name).chmod(0o755)
    surroundings = {"STUBS": str(stubs), "CALLS": str(calls), "TMPDIR": str(scratch)}
    if fails:
        surroundings |= {"FAILS": fails, "SLOW": "" if "demo" in fails else "demo"}
    path = f"{stubs}{os.pathsep}/usr/bin{os.pathsep}/bin"
    status = subprocess.run(
        ["bash", ROOT / ".ci" / "run"],
        env={"PATH": path, "ECGAN_CAMVID": "", **surroundings},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        timeout=60,
        check=False,
    ).returncode
    return status, calls.read_text(), list(scratch.iterdir())


def test_ci_passes_where_everything_passes(tmp_path):
    status, calls, left = _run(tmp_path)
    assert status == 0, calls
    assert "pytest -n 2" in calls.splitlines()
    assert not left


@pytest.mark.parametrize(
    "fails",
    ["pyright", "-m slow and not long", "test_import_datumaro", "tests/shards", "ecgan demo"],
)
def test_ci_fails_where_a_step_fails(tmp_path, fails):
    status, calls, left = _run(tmp_path, fails)
    assert status == 1, calls
    assert "pytest -n 2" not in calls.splitlines()
    assert not left


def test_the_oldest_versions_are_those_of_the_project():
    """Read by another parser; upper bounds and exceptions allow each of them."""
    printed = subprocess.run(
        [sys.executable, ROOT / ".ci" / "oldest.py"], capture_output=True, text=True, check=True
    ).stdout.split()
    oldest = dict(line.split("==") for line in printed)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    names = set()
    texts = [t for extra in ("eval", "hed", "interop", "s3", "test") for t in extras[extra]]
    for text in project["dependencies"] + texts:
        requirement = Requirement(text)
        if requirement.name not in {"torch", "torchvision", "ecgan"}:
            names.add(requirement.name)
            assert oldest[requirement.name] in requirement.specifier
            assert f">={oldest[requirement.name]}" in str(requirement.specifier).split(",")
    assert names == set(oldest)
