"""Calls between nodes that prove who they are, with a node on the same broker that may send anything."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path

import orjson
import pytest

from mesh.broker import Message
from mesh.calls.exchange import Request
from mesh.calls.request import ERROR_HEADER
from mesh.errors import StreamBrokenError, UnprovenError
from tests.support.contract import Place
from tests.support.eventually import eventually
from tests.support.hostile import Mesh, Tapped

pytestmark = [pytest.mark.on("memory", "nats", "kafka"), pytest.mark.costly]

PIECES = [bytes([number]) * 50_000 for number in range(4)]


def soon() -> float:
    return time.time() + 60


@pytest.fixture(autouse=True)
def _blocking() -> None:
    """Let the test itself read and write certificates."""


@pytest.fixture
async def mesh(place: Place, tmp_path: Path) -> AsyncIterator[Mesh]:
    namespace = f"hostile{os.getpid()}-{place.number}"
    async with Mesh(tmp_path / "trust", place.backend.broker, namespace).running() as mesh:
        yield mesh


async def echo(request: Request) -> None:
    await request.begin({})
    async for part in request.parts():
        await request.write(part)
    await request.end()


async def echoed(mesh: Mesh) -> tuple[bytes, bool]:
    """Send the pieces there and back; give what came, and whether it broke off."""

    async def upload() -> AsyncIterator[bytes]:
        for each in PIECES:
            yield each

    got = b""
    try:
        reply = await mesh.caller.request(mesh.stock, Message({}, b""), soon(), upload())
        async for part in reply.parts():
            got += part
    except StreamBrokenError:
        return got, True
    return got, False


async def works(mesh: Mesh) -> None:
    reply = await mesh.caller.request(mesh.stock, Message({}, b"honest"), soon())
    assert b"".join([part async for part in reply.parts()]) == b"honest"


def _is(number: int, expected: int) -> None:
    assert number == expected


async def test_what_is_recorded_altered_or_made_up_is_not_run(mesh: Mesh) -> None:
    ran: list[tuple[bytes, str]] = []

    async def note(request: Request) -> None:
        ran.append((request.body, str(request.caller and request.caller.app_id)))
        await request.reply({}, request.body)

    counts = mesh.counts
    async with mesh.callee.serve(mesh.stock, "stock", note):
        for _ in range(2):  # Once by a signature, and once by a secret.
            assert (await mesh.caller.request(mesh.stock, Message({}, b"one"), soon())).body == b"one"
        sent = [each for each in mesh.caller_broker.sent if each[0] == mesh.stock]
        for to, message, reply_to in sent:
            await mesh.evil.send(to, message, reply_to)
        await eventually(lambda: _is(counts["request", "replayed"], len(sent)))
        plain = {"mesh-deadline": str(int(soon() * 1000))}
        await mesh.evil.send(mesh.stock, Message(plain, b"two"), mesh.evil.inbox)
        await eventually(lambda: _refused(mesh))
        mesh.caller_broker.held = lambda message: message.body == b"three"
        async with asyncio.TaskGroup() as tasks:
            call = tasks.create_task(mesh.caller.request(mesh.stock, Message({}, b"three"), soon()))
            to, message, reply_to = await mesh.caller_broker.kept.get()
            for forged in (
                Message({}, b"forged"),
                Message({"mesh-frame": "busy"}, b""),
                mesh.callee_broker.sent[-1][1],
            ):
                await mesh.evil.send(reply_to, forged, mesh.evil.inbox)
            await mesh.evil.send(to, Message(message.headers, b"four"), reply_to)
            await eventually(lambda: _is(counts["request", "invalid"], 1))
            await mesh.evil.send(to, message, reply_to)
            assert (await call).body == b"three"
    assert ran == [(b"one", "shop"), (b"one", "shop"), (b"three", "shop")]


def _refused(mesh: Mesh) -> None:
    answers = [each.message.headers for each in mesh.evil.got if each.message is not None]
    assert [orjson.loads(each[ERROR_HEADER])["code"] for each in answers] == [UnprovenError.code]


class Attack:
    """Does something to the second of four pieces."""

    def __init__(self, does: Callable[[Message, list[Message]], Sequence[Message]]) -> None:
        self._does = does
        self._pieces: list[Message] = []

    def __call__(self, message: Message) -> Sequence[Message]:
        if message.headers.get("mesh-frame") != "data":
            return (message,)
        self._pieces.append(message)
        return self._does(message, self._pieces)


def altered(message: Message, pieces: list[Message]) -> Sequence[Message]:
    return (Message(message.headers, b"x" * len(message.body)),) if len(pieces) == 2 else (message,)


def altered_besides(message: Message, pieces: list[Message]) -> Sequence[Message]:
    other = {**message.headers, "mesh-seq": str(len(pieces))}
    return Message(message.headers, b"x"), Message(other, message.body), message


def reordered(message: Message, pieces: list[Message]) -> Sequence[Message]:
    return () if len(pieces) == 2 else (message, pieces[1]) if len(pieces) == 3 else (message,)


def dropped(message: Message, pieces: list[Message]) -> Sequence[Message]:
    return () if len(pieces) == 2 else (message,)


def last_dropped(message: Message, pieces: list[Message]) -> Sequence[Message]:
    return () if len(pieces) == 4 else (message,)


def sent_again(message: Message, pieces: list[Message]) -> Sequence[Message]:
    return (message, message) if len(pieces) == 2 else (message,)


@pytest.mark.parametrize("way", ["to the callee", "to the caller"])
async def test_pieces_of_a_stream_arrive_as_they_were_sent_or_it_breaks(mesh: Mesh, way: str) -> None:
    """One that comes twice may be left out."""
    tapped: Tapped = mesh.caller_broker if way == "to the callee" else mesh.callee_broker
    async with mesh.callee.serve(mesh.stock, "stock", echo):
        await works(mesh)
        for attack in (altered, reordered, dropped, last_dropped, sent_again):
            tapped.made_of = Attack(attack)
            got, is_broken = await echoed(mesh)
            assert is_broken or attack is sent_again
            assert got == b"".join(PIECES)[: len(got) if is_broken else None]
            tapped.made_of = lambda message: (message,)
            await works(mesh)
        mesh.counts.clear()
        tapped.made_of = Attack(altered_besides)
        assert await echoed(mesh) == (b"".join(PIECES), False)
        assert mesh.counts["answer", "invalid"] == 8
