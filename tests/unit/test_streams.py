"""How many streams a node has, and how they end."""

from __future__ import annotations

import asyncio
from contextlib import ExitStack

import pytest

from mesh.errors import StreamEndedError
from mesh.streams import MAX_STREAMS, Streams


async def test_so_many_and_no_more() -> None:
    streams = Streams()
    with ExitStack() as held:
        for _ in range(MAX_STREAMS):
            held.enter_context(streams.one())
        with pytest.raises(StreamEndedError, match="1000 streams"), streams.one():
            pass
    with streams.one():
        pass


async def test_draining_waits_for_those_that_are_open() -> None:
    """And there is no other one from then on."""
    streams = Streams()
    ended = []

    async def hold() -> None:
        with streams.one():
            await streams.ending.wait()
            with pytest.raises(StreamEndedError, match="this gateway ends"), streams.one():
                pass
            await asyncio.sleep(0)
            ended.append(True)

    async with asyncio.TaskGroup() as tasks:
        async with streams.drained():
            for _ in range(3):
                tasks.create_task(hold())
            await asyncio.sleep(0)
        assert ended == [True] * 3
