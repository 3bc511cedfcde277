"""What an application says of its actor types."""

from __future__ import annotations

import orjson
import pytest

from mesh.actors.settings import read_settings
from mesh.application_config import MAX_PROBLEMS


@pytest.mark.parametrize(
    ("body", "told"),
    [
        (b"", []),
        (b" \n", []),
        (b"null", []),
        (b"{}", []),
        (b"<html>", ["the answer is no JSON (", "so no actors are hosted"]),
        (b"\xff", ["the answer is no JSON ("]),
        (b"[1]", ["the answer must be an object, and is [1]"]),
        (b'"thing"', ["the answer must be an object, and is 'thing'"]),
        (b'{"entities": "thing"}', ["entities must be an array of names, and is 'thing'"]),
        (b'{"entities": {"thing": 1}}', ["entities must be an array of names"]),
        (b'{"entities": [1]}', ["entities[0]: a name must be a string, not 1; it is not hosted"]),
        (b'{"entities": [], "entitiesConfig": {}}', ["entitiesConfig must be an array of objects, and is {}"]),
    ],
)
def test_an_answer_that_hosts_nothing(body: bytes, told: list[str]) -> None:
    """What is garbage is told, once and by its field; an application without actors is not bothered."""
    settings, problems = read_settings(body)
    assert not settings.types
    assert len(problems) == bool(told)
    assert all(text in problems[0] for text in told)


def test_what_is_told_is_bounded() -> None:
    names: list[object] = [["x" * 1000]] * 1000
    _, problems = read_settings(orjson.dumps({"entities": [*names, "thing"]}))
    assert len(problems) == MAX_PROBLEMS + 1
    assert max(map(len, problems)) < 200
