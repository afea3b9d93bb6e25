"""Commands in a mount namespace of their own, with another /dev/shm than this machine's."""

import shutil
import subprocess

import pytest


def with_shared_memory(options, then=""):
    """Beginning of a command that gets a new /dev/shm; it skips where that cannot be had.

    The command keeps the process that is started, so that signals reach it.

    Args:
        options: of the mount, such as ``size=64m``.
        then: what a shell does before the command.
    """
    if shutil.which("unshare") is None:
        pytest.skip("no unshare here (util-linux)")
    before = f"mount -t tmpfs -o {options} none /dev/shm"
    probe = subprocess.run(
        ["unshare", "-m", "sh", "-c", before], capture_output=True, text=True, check=False
    )
    if probe.returncode != 0:
        pytest.skip(f"no /dev/shm of its own can be mounted here: {probe.stderr.strip()}")
    return ["unshare", "-m", "sh", "-c", f'{before} && {then or "true"} && exec "$@"', "sh"]
