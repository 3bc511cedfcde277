"""What a stream makes of events that were written to its client, and of those that were not."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable

import orjson
import pytest

from mesh.blocks.event_stream import EventStream
from mesh.errors import AppFailedError, AppUnreachableError


def rendered(path: str, body: bytes, proven: str | None) -> tuple[str, bytes]:
    return orjson.loads(body)["id"], body


async def handed(stream: EventStream, identity: str) -> tuple[int, bytes]:
    return await stream.post("/", (), orjson.dumps({"id": identity}))


async def test_the_end_of_a_stream() -> None:
    """Only what was written may have been worked on; the rest is given back as never tried."""
    stream = EventStream(rendered)
    async with asyncio.TaskGroup() as tasks:
        written = tasks.create_task(_error_of(handed(stream, "a")))
        await asyncio.sleep(0)
        await anext(stream.outgoing())
        waiting = tasks.create_task(_error_of(handed(stream, "b")))
        second = tasks.create_task(_error_of(handed(stream, "a")))
        await asyncio.sleep(0)
        stream.end()
    assert isinstance(written.result(), AppFailedError)
    assert isinstance(waiting.result(), AppUnreachableError)
    assert isinstance(second.result(), AppUnreachableError)
    assert isinstance(await _error_of(handed(stream, "c")), AppUnreachableError)
    with pytest.raises(asyncio.CancelledError):
        await stream.until_reachable()


async def test_an_attempt_that_is_over_before_it_was_written() -> None:
    """Nothing of it is written, however slowly the client reads."""
    stream = EventStream(rendered)
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.01):
            await handed(stream, "late")
    async with asyncio.TaskGroup() as tasks:
        answered = tasks.create_task(handed(stream, "next"))
        await asyncio.sleep(0)
        assert orjson.loads(await anext(stream.outgoing())) == {"id": "next"}
        stream.processed("late", b"late")
        stream.processed("next", b"")
    assert answered.result() == (200, b"")


async def _error_of(call: Awaitable[object]) -> Exception | None:
    try:
        await call
    except (AppFailedError, AppUnreachableError) as error:
        return error
    return None
