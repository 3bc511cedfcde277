"""The times that workers over HTTP are told."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mesh.workflows.events import FOREVER, TurnStarted
from mesh.workflows.json_turn import FIRST, event_json


def told(at: float) -> str:
    return event_json(TurnStarted(at)).decode().split('"now":"')[1].split('"')[0]


@given(st.floats(FIRST, FOREVER) | st.floats(1.7e9, 1.7e9 + 10) | st.integers(-5000, 5000).map(lambda ms: ms / 1000))
def test_a_time_is_what_datetime_makes_of_it(at: float) -> None:
    assert told(at) == datetime.fromtimestamp(at, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


@pytest.mark.parametrize(
    ("at", "text"),
    [
        (-1e300, "0001-01-01T00:00:00.000Z"),
        (1e300, "9999-12-31T23:59:59.000Z"),
        (0.9999999, "1970-01-01T00:00:01.000Z"),
        (-0.0000001, "1970-01-01T00:00:00.000Z"),
    ],
)
def test_times_at_the_edges(at: float, text: str) -> None:
    assert told(at) == text
