"""SIGKILL at random moments: ten in CI; a hundred by hand, see tests/kills.py."""

import pytest

from tests import kills


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_a_data_set_that_was_killed_again_and_again_is_the_same_to_the_byte(tmp_path):
    found = kills.run(tmp_path, 10, seed=1, kills_of_a_set=5, ray_share=0.5)
    assert len(found) == 10
    assert sum(kill.is_midway for kill in found) >= 5, found
    assert {kill.executor for kill in found} == {"here", "ray"}
