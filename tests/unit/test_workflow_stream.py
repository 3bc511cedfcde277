"""A worker over a stream: how much of its work is written at once, and how much of it is held."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from mesh.errors import AppUnreachableError
from mesh.workflows.actions import Answer
from mesh.workflows.events import TurnStarted
from mesh.workflows.stream import BATCH_BYTES, MAX_WAITING_BYTES, NOTHING, Handed, Known, StreamWorker
from mesh.workflows.worker import Ref, TaskResult, TaskWork, TurnWork


class Line:
    """A connection that stays."""

    def __init__(self) -> None:
        self.gone: asyncio.Future[None] = asyncio.get_running_loop().create_future()


class Wire:
    """Messages of one size."""

    ping = b"ping"

    def __init__(self, size: int) -> None:
        self.size, self.written = size, 0

    def turn(self, work: TurnWork, token: str, known: Known) -> tuple[bytes, Known]:
        self.written += 1
        return token.encode().ljust(self.size), known

    def task(self, work: TaskWork, token: str) -> bytes:
        return self.turn(turn("i"), token, NOTHING)[0]


def turn(id_: str, number: int = 1) -> TurnWork:
    return TurnWork(Ref(0, id_), "app", "order", "x1", 1, number, (), (TurnStarted(0.0),))


def worker(line: Line, handed: Handed, wire: Wire) -> StreamWorker:
    return StreamWorker("test", line, handed, wire, max_turns=10, max_tasks=10, remembers=False, pinged=False)


async def settled() -> None:
    for _ in range(3):
        await asyncio.sleep(0)


async def read(outgoing: AsyncIterator[bytes]) -> bytes:
    return await anext(outgoing)


async def test_what_waits_is_written_together() -> None:
    """Up to a size; in order."""
    handed, wire, line = Handed(), Wire(BATCH_BYTES // 4), Line()
    given = worker(line, handed, wire)
    async with asyncio.TaskGroup() as tasks:
        for number in range(5):
            tasks.create_task(given.turn(turn(f"i{number}")))
        await settled()
        outgoing = given.outgoing()
        first, second = await read(outgoing), await read(outgoing)
        assert (len(first), len(second)) == (4 * wire.size, wire.size)
        for number in range(5):
            item = handed.take("", line, f"i{number}", None)
            assert item is not None
            item.resolve(Answer())
    assert handed == Handed()


async def test_a_worker_that_does_not_read() -> None:
    """What waits for it is bounded: the rest is not even written."""
    handed, wire, line = Handed(), Wire(1024 * 1024), Line()
    given = worker(line, handed, wire)
    held = MAX_WAITING_BYTES // wire.size + 1

    async def refused(work: TurnWork) -> None:
        with pytest.raises(AppUnreachableError):
            await given.turn(work)

    async with asyncio.TaskGroup() as tasks:
        for number in range(20):
            tasks.create_task(refused(turn(f"i{number}")))
        await settled()
        assert wire.written == held
        given.end()
    assert wire.written == held
    assert handed == Handed()


async def test_two_for_one_place() -> None:
    """An id that is used again: what was handed out first is answered first, by who gives no tokens back."""
    handed, line = Handed(), Line()
    given = worker(line, handed, Wire(30))
    async with asyncio.TaskGroup() as tasks:
        turned = [tasks.create_task(given.turn(turn("i", number))) for number in (1, 2)]
        await settled()
        await read(given.outgoing())
        for status in ("first", "second"):
            item = handed.take("", line, "i", None)
            assert item is not None
            item.resolve(Answer(custom_status=status))
    assert [each.result().custom_status for each in turned] == ["first", "second"]


async def test_work_that_is_cancelled() -> None:
    """Whether it was read or not, nothing is left of it; an answer to it is nobody's."""
    handed, line = Handed(), Line()
    given = worker(line, handed, Wire(30))
    work = TaskWork("app", "i", "order", 1, 1, 1, "charge", "key", "app", 0.0)
    async with asyncio.TaskGroup() as tasks:
        read_one = tasks.create_task(given.task(work))
        await settled()
        outgoing = given.outgoing()
        await read(outgoing)
        waiting = tasks.create_task(given.turn(turn("j")))
        await settled()
        read_one.cancel()
        waiting.cancel()
    assert handed == Handed()
    async with asyncio.TaskGroup() as tasks:
        kept = tasks.create_task(given.task(work))
        await settled()
        assert len(await read(outgoing)) == 30, "nothing of what was cancelled"
        item = handed.take("", line, "i", 1)
        assert item is not None
        item.resolve(TaskResult("1"))
    assert kept.result() == TaskResult("1")
