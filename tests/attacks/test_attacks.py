"""A share of all attacks, as they are tried for docs/reliability.md."""

import subprocess
import sys

import pytest

from tests.attacks.__main__ import AREAS


@pytest.mark.slow
@pytest.mark.parametrize("flags", [[], ["-O"]], ids=["asserts", "no asserts"])
def test_attacks_are_held(flags):
    seed = str(len(flags))
    areas = [area for area in AREAS if area != "faults"]
    _require_held(
        *flags, "-m", "tests.attacks", "--share", "0.04", "--seed", seed, "--areas", *areas
    )


@pytest.mark.slow
def test_faults_of_one_command_are_held():
    _require_held("-m", "tests.attacks", "--areas", "faults", "--only", "data cache: ")


def _require_held(*words):
    command = [sys.executable, *words]
    done = subprocess.run(  # a try that hangs is stopped by itself and is a line of the output
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False
    )
    assert done.returncode == 0, done.stdout
