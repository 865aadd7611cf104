"""What the package has once, or not at all. ``python tests/counts.py`` prints these counts with their places."""

from __future__ import annotations

import pytest
from counts import COUNTS


@pytest.mark.parametrize("what", COUNTS)
def test_there_are_no_more(what: str) -> None:
    places, most = COUNTS[what]
    found = places()
    assert len(found) <= most, "\n".join(found)
    assert found or not most
