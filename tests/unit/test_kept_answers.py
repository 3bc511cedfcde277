"""Answers of models that are given again: to whom, how long, and how many."""

from __future__ import annotations

from dataclasses import replace

import pytest

from mesh.blocks.conversation import (
    MAX_ANSWERS,
    MAX_ANSWERS_BYTES,
    Answers,
    Choice,
    Converse,
    Conversed,
    Said,
    Tool,
    cache_seconds,
)
from mesh.errors import ConfigError
from tests.support.nodes import component

ASKED = Converse((Said("user", ("a",)),))
YES = Conversed((Choice("yes"),))


class Clock:
    """Stands still until it is set."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


def test_the_same_is_what_is_equal_but_for_what_is_done_with_the_answer() -> None:
    assert Answers.key(ASKED) == Answers.key(replace(ASKED, scrub=True))
    others = [
        replace(ASKED, said=(Said("system", ("a",)),)),
        replace(ASKED, said=(Said("user", ("a", "")),)),
        replace(ASKED, temperature=0.0),
        replace(ASKED, tools=(Tool("f"),)),
        replace(ASKED, response_format={}),
        replace(ASKED, parameters={"model": "m"}),
        replace(ASKED, metadata={"a": "b"}),
    ]
    assert len({Answers.key(each) for each in (ASKED, *others)}) == len(others) + 1


def test_how_long() -> None:
    clock = Clock()
    answers = Answers(10.0, clock)
    answers.put(b"a", YES)
    clock.now = 9.9
    answers.put(b"b", YES)
    assert answers.get(b"a") == YES
    clock.now = 10.0
    assert (answers.get(b"a"), answers.get(b"b")) == (None, YES)
    answers.put(b"b", YES)
    clock.now = 19.95
    assert answers.get(b"b") == YES, "put again, it is kept as long again"


def test_how_many() -> None:
    """The oldest go; one that is larger than all may be is not kept."""
    answers = Answers(10.0, Clock())
    for number in range(MAX_ANSWERS + 1):
        answers.put(b"%d" % number, YES)
    assert (answers.get(b"0"), answers.get(b"1")) == (None, YES)
    large = Conversed((Choice("x" * (MAX_ANSWERS_BYTES // 2)),))
    for key in (b"a", b"b"):
        answers.put(key, large)
    assert (answers.get(b"1"), answers.get(b"a"), answers.get(b"b")) == (None, None, large)
    answers.put(b"c", Conversed((Choice("x" * MAX_ANSWERS_BYTES),)))
    assert (answers.get(b"b"), answers.get(b"c")) == (large, None)
    answers.put(b"d", YES)
    assert (answers.get(b"b"), answers.get(b"d")) == (large, YES)


@pytest.mark.parametrize(
    ("settings", "seconds"),
    [({}, 0.0), ({"responseCacheTTL": "10m"}, 600.0), ({"cacheTTL": "1s"}, 1.0), ({"cachettl": " "}, 0.0),
     ({"responseCacheTTL": "2s", "cacheTTL": "1s"}, 2.0)],
)  # fmt: skip
def test_the_setting(settings: dict[str, str], seconds: float) -> None:
    assert cache_seconds(component("m", "conversation.echo", **settings)) == seconds
    with pytest.raises(ConfigError, match="cacheTTL"):
        cache_seconds(component("m", "conversation.echo", cacheTTL="soon"))
