"""Bytes behind the values of an operation: what is framed, and what stands still."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import aclosing, nullcontext
from typing import Any

import pytest

from mesh.errors import DeadlineExceededError, EventError, MessageTooLargeError
from mesh.flow import MAX_VALUE_BYTES, Body, Flow, held_open, joined_to, parted, prefixed

SOON = 0.2


async def each(*parts: bytes, wait: float = 0.0) -> AsyncGenerator[bytes, None]:
    for part in parts:
        await asyncio.sleep(wait)
        yield part


async def read(parts: AsyncIterator[bytes]) -> list[bytes]:
    return [part async for part in parts]


@pytest.mark.parametrize("size", [1, 3, 5, 100])
@pytest.mark.parametrize("value", [b"", b"value", b"x" * 70])
@pytest.mark.parametrize("body", [(), (b"a",), (b"ab", b"", b"c")])
async def test_a_value_and_what_follows_it(value: bytes, body: Sequence[bytes], size: int) -> None:
    """However the bytes are cut on their way."""
    sent = b"".join(await read(joined_to(prefixed(value), Body(each(*body)))))
    got, rest = await parted(each(*(sent[at : at + size] for at in range(0, len(sent), size))))
    assert (got, b"".join(await read(rest))) == (value, b"".join(body))


@pytest.mark.parametrize("sent", [b"", b"\0", b"\0\0\0", b"\0\0\0\5abcd"])
async def test_no_value(sent: bytes) -> None:
    """What ends in it."""
    with pytest.raises(EventError):
        await parted(each(sent))


async def test_a_value_that_is_too_large() -> None:
    """Is not waited for, nor sent."""
    with pytest.raises(MessageTooLargeError):
        await parted(each((MAX_VALUE_BYTES + 1).to_bytes(4)))


async def test_what_stands_still_is_ended() -> None:
    """Before the first part, and between two."""

    async def never(_: object) -> Flow:
        await asyncio.Event().wait()
        raise AssertionError

    async def silent(_: object) -> Flow:
        return Flow("x", each(b"1", wait=60.0))

    for run in (never, silent):
        with pytest.raises(DeadlineExceededError, match=r"nothing moved for 0.2 s"):
            await held_open(run, None, None, nullcontext(), SOON)

    async def stops() -> AsyncGenerator[bytes, None]:
        yield b"1"
        await asyncio.Event().wait()

    async def half(_: object) -> Flow:
        return Flow("x", stops())

    async with aclosing(await held_open(half, None, None, nullcontext(), SOON)) as flow:
        assert flow.source is not None
        assert await anext(flow.source) == b"1"
        with pytest.raises(DeadlineExceededError):
            await anext(flow.source)


async def test_who_sends_slowly_is_waited_for() -> None:
    """The limit begins anew with each part, and the time that a part takes is its sender's."""
    body = Body(each(*(b"1",) * 4, wait=SOON * 1.5))
    got: list[bytes] = []

    async def take(_: object) -> Flow:
        async for part in body.parts():
            got.append(part)
            await asyncio.sleep(SOON / 4)
        return Flow("x", None)

    flow = await held_open(take, None, body, nullcontext(), SOON)
    assert (flow.result, flow.source, got) == ("x", None, [b"1"] * 4)


async def test_who_takes_no_part_is_ended() -> None:
    """Though there are some."""
    body = Body(each(*(b"1",) * 4))

    async def take(_: object) -> Flow:
        async for _part in body.parts():
            await asyncio.Event().wait()
        raise AssertionError

    with pytest.raises(DeadlineExceededError):
        await held_open(take, None, body, nullcontext(), SOON)
    assert body.begun


async def test_it_is_used_until_it_is_closed() -> None:
    """Read to the end, in part, or not at all; and where it failed, no longer."""
    told: list[str] = []

    class Used:
        def __enter__(self) -> None:
            told.append("used")

        def __exit__(self, *exc_info: object) -> None:
            told.append("left")

    async def source() -> AsyncGenerator[bytes, None]:
        try:
            yield b"1"
            yield b"2"
        finally:
            told.append("closed")

    async def give(_: object) -> Flow:
        return Flow("x", source())

    async def fail(_: object) -> Any:
        raise ValueError

    for count in range(4):
        told.clear()
        flow = await held_open(give, None, None, Used())
        assert flow.source is not None
        for _ in range(count):
            await anext(flow.source, None)
        assert "left" not in told
        await flow.aclose()
        await flow.aclose()
        assert told == ["used", "closed", "left"]
    told.clear()
    with pytest.raises(ValueError, match=r"^$"):
        await held_open(fail, None, None, Used())
    assert told == ["used", "left"]
