"""Bulk deliveries: when a batch goes, and what its answer does to each entry."""

from __future__ import annotations

import asyncio

import orjson
import pytest

from mesh.application import Headers, Kind
from mesh.blocks.batch import Batcher, folded, judge_bulk
from mesh.delivery import SUCCESS, Attempt, Outcome
from mesh.errors import AppFailedError, AppUnreachableError, HandlerFailedError
from tests.support.eventually import eventually


class Posts:
    """An application that answers batches."""

    def __init__(self, failure: Exception | None = None) -> None:
        self.batches: list[list[object]] = []
        self.failure = failure

    async def __call__(self, path: str, headers: Headers, body: bytes, kind: Kind) -> tuple[int, bytes]:
        entries = orjson.loads(body)["entries"]
        self.batches.append([entry["event"] for entry in entries])
        if self.failure is not None:
            raise self.failure
        statuses = [{"entryId": entry["entryId"], "status": "SUCCESS"} for entry in entries]
        return 200, orjson.dumps({"statuses": statuses})


def calls(
    tasks: asyncio.TaskGroup, batcher: Batcher, *bodies: bytes, path: str = "/p", topic: str = "t"
) -> list[asyncio.Task[Attempt]]:
    return [tasks.create_task(batcher.call(path, topic, body, {}, raw=False)) for body in bodies]


async def test_a_full_batch_goes_at_once() -> None:
    """And the rest when its time has come."""
    posts = Posts()
    async with Batcher("p", 2, 0.02, posts) as batcher, asyncio.TaskGroup() as tasks:
        made = calls(tasks, batcher, b"1", b"2", b"3")
    assert posts.batches == [[1, 2], [3]]
    assert [call.result() for call in made] == [SUCCESS] * 3


async def test_routes_and_topics_are_not_mixed() -> None:
    """A batch has one of each."""
    posts = Posts()
    async with Batcher("p", 2, 0.01, posts) as batcher, asyncio.TaskGroup() as tasks:
        calls(tasks, batcher, b"1", path="/a")
        calls(tasks, batcher, b"2", path="/b")
        calls(tasks, batcher, b"3", path="/a", topic="u")
    assert sorted(posts.batches) == [[1], [2], [3]]


async def test_an_unreachable_application_raises_for_each() -> None:
    """So that each delivery waits for it."""
    async with Batcher("p", 2, 60.0, Posts(AppUnreachableError("down"))) as batcher:
        made = [asyncio.ensure_future(batcher.call("/p", "t", b"1", {}, raw=False)) for _ in range(2)]
        await asyncio.wait(made)
    assert all(isinstance(call.exception(), AppUnreachableError) for call in made)


async def test_an_error_reaches_each_and_ends_no_other_batch() -> None:
    """Whatever it is."""
    posts = Posts(ValueError("surprise"))
    async with Batcher("p", 2, 60.0, posts) as batcher:
        made = [asyncio.ensure_future(batcher.call("/p", "t", b"1", {}, raw=False)) for _ in range(2)]
        await asyncio.wait(made)
        assert [repr(call.exception()) for call in made] == ["ValueError('surprise')"] * 2
        posts.failure = None
        made = [asyncio.ensure_future(batcher.call("/p", "t", b"2", {}, raw=False)) for _ in range(2)]
        await asyncio.wait(made)
        assert [call.result() for call in made] == [SUCCESS] * 2


async def test_a_batch_that_nobody_waits_for_is_given_up() -> None:
    """Once each of its deliveries was released, and not before; else it would hold up the end for ever."""
    begun, ended = asyncio.Event(), asyncio.Event()

    async def stalled(path: str, headers: Headers, body: bytes, kind: Kind) -> tuple[int, bytes]:
        begun.set()
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()
        raise AssertionError

    async with asyncio.timeout(5), Batcher("p", 2, 60.0, stalled) as batcher:
        first, second = (asyncio.ensure_future(batcher.call("/p", "t", b"1", {}, raw=False)) for _ in range(2))
        await begun.wait()
        first.cancel()
        await asyncio.wait([first])
        assert not ended.is_set()
        second.cancel()
        await ended.wait()


async def test_an_application_that_breaks_off_failed_each() -> None:
    """It may have handled them; they come again."""
    async with Batcher("p", 2, 60.0, Posts(AppFailedError("gone"))) as batcher, asyncio.TaskGroup() as tasks:
        made = calls(tasks, batcher, b"1", b"2")
    assert [call.result() for call in made] == [Attempt(Outcome.RETRY, "gone", broken=True)] * 2


async def test_an_application_that_says_that_it_failed() -> None:
    """By a status that policies can look at."""
    posts = Posts(HandlerFailedError("NOT_FOUND", 5))
    async with Batcher("p", 2, 60.0, posts) as batcher, asyncio.TaskGroup() as tasks:
        made = calls(tasks, batcher, b"1", b"2")
    assert [call.result() for call in made] == [Attempt(Outcome.RETRY, "NOT_FOUND", 5)] * 2


async def test_a_released_entry_is_not_sent() -> None:
    """What was cancelled while it waited goes to another instance, so it must not run here, too."""
    posts = Posts()
    async with Batcher("p", 10, 0.02, posts) as batcher, asyncio.TaskGroup() as tasks:
        first, second = calls(tasks, batcher, b"1", b"2")
        await asyncio.sleep(0)
        first.cancel()
        await second
    assert posts.batches == [[2]]


async def test_a_batch_of_released_entries_is_no_call() -> None:
    """Nothing is left to say."""
    posts = Posts()
    async with Batcher("p", 10, 0.01, posts) as batcher, asyncio.TaskGroup() as tasks:
        (only,) = calls(tasks, batcher, b"1")
        await asyncio.sleep(0)
        only.cancel()

        def flushed() -> None:
            assert not batcher._waiting

        await eventually(flushed)
    assert posts.batches == []


MISSING = "the application's answer has no status for this entry"


@pytest.mark.parametrize(
    ("status", "answer", "outcome"),
    [
        (200, b'{"statuses":[{"entryId":"1","status":"SUCCESS"}]}', Outcome.SUCCESS),
        (202, b'{"Statuses":[{"EntryID":"1","Status":"DROP"}]}', Outcome.DROP),
        (200, b'{"statuses":[{"entryId":"1","status":"RETRY"}]}', Outcome.RETRY),
        (200, b'{"statuses":[{"entryId":"1","status":""}]}', Outcome.RETRY),
        (200, b'{"statuses":[{"entryId":"1"}]}', Outcome.RETRY),
        (200, b'{"statuses":[{"status":"SUCCESS"},{"entryId":"1","status":"SUCCESS"}]}', Outcome.SUCCESS),
        (200, b'{"statuses":[1,null,{"entryId":"1","status":"SUCCESS"}]}', Outcome.SUCCESS),
        (200, b'{"statuses":[{"entryId":"2","status":"SUCCESS"}]}', Outcome.RETRY),
        (200, b'{"statuses":{}}', Outcome.RETRY),
        (200, b'{"statuses":[]}', Outcome.RETRY),
        (200, b"[]", Outcome.RETRY),
        (200, b"", Outcome.RETRY),
        (200, b"{", Outcome.RETRY),
        (404, b'{"statuses":[{"entryId":"1","status":"SUCCESS"}]}', Outcome.DROP),
        (301, b'{"statuses":[{"entryId":"1","status":"SUCCESS"}]}', Outcome.RETRY),
        (500, b'{"statuses":[{"entryId":"1","status":"SUCCESS"}]}', Outcome.RETRY),
    ],
)
def test_judge(status: int, answer: bytes, outcome: Outcome) -> None:
    """Every shape of answer."""
    results, default = judge_bulk(status, answer)
    assert results.get("1", default).outcome is outcome
    if status >= 300:
        assert default.status == status


@pytest.mark.parametrize("value", [None, 1, "x", [], [{}]])
def test_nothing_to_fold(value: object) -> None:
    """What is no object has no members."""
    assert folded(value) == {}
