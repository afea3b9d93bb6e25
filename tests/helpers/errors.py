"""Messages of refused calls."""

import pytest

from ecgan.errors import UserError


def message(call, *args, **kwargs):
    """Message of the UserError that a call raises."""
    with pytest.raises(UserError) as error:
        call(*args, **kwargs)
    return str(error.value)
