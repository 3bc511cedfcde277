"""What an MQTT client keeps in mind about its connection, against a server that answers when it is told to."""

from __future__ import annotations

import asyncio

import pytest
from mqtt5 import PublishPacket

from brokers.mqtt import MQTTConfig
from brokers.mqtt._client import Client, Identity
from brokers.mqtt._outbox import MAX_BYTES, MAX_WAITING, Outbox
from brokers.mqtt._wire import Wire
from mesh.errors import BrokerUnavailableError

CONNACK, PINGREQ, PINGRESP = b"\x20\x03\x00\x00\x00", b"\xc0\x00", b"\xd0\x00"


def _ignore(wire: Wire, unit: PublishPacket) -> None:
    """No message comes here."""


async def _nothing(present: bool) -> None:
    """Nothing to do after connecting."""


async def test_sign_of_life_is_an_answer_to_its_own_question() -> None:
    """Not to an earlier one: that says nothing of what was sent in between."""
    asked, answer = asyncio.Semaphore(0), asyncio.Semaphore(0)

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"me")
        writer.write(CONNACK)
        for _ in range(2):
            await reader.readuntil(PINGREQ)
            asked.release()
        for _ in range(2):
            await answer.acquire()
            writer.write(PINGRESP)
            await writer.drain()
        await reader.read()
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        port = server.sockets[0].getsockname()[1]
        client = Client(MQTTConfig("127.0.0.1", port), Identity("me"), _ignore, _nothing)
        await client.open()
        async with asyncio.timeout(10), asyncio.TaskGroup() as tasks:
            tasks.create_task(client.supervise())
            await asyncio.sleep(0)  # It asks as soon as it begins.
            check = tasks.create_task(client.check())
            await asked.acquire()
            await asked.acquire()
            answer.release()
            done, _ = await asyncio.wait([check], timeout=0.1)
            assert not done
            answer.release()
            await check
            client.close()


async def test_packet_id_of_what_waits_is_not_given_again() -> None:
    """However many were given up meanwhile: an answer would confirm the wrong one."""
    outbox = Outbox()
    given: list[int] = []

    def write(packet_id: int) -> bytes:
        given.append(packet_id)
        return b""

    kept = outbox.post(write)
    for _ in range(61_000):
        await outbox.room()
        outbox.post(write).cancel()
    assert given.count(given[0]) == 1
    assert len(set(given[-MAX_WAITING:])) == MAX_WAITING
    outbox.close(BrokerUnavailableError("closed"))
    with pytest.raises(BrokerUnavailableError):
        await kept


async def test_bytes_under_way_are_bounded() -> None:
    """Whoever publishes waits while too much has no answer, however few messages that are."""
    outbox = Outbox()
    large = MAX_BYTES // 4 + 1
    kept = []
    for _ in range(4):
        await outbox.room()
        kept.append(outbox.post(lambda packet_id: bytes(large)))
    waiting = asyncio.ensure_future(outbox.room())
    await asyncio.sleep(0)
    assert not waiting.done()
    kept[0].cancel()  # Its publisher has given up: the next to look finds room.
    await outbox.room()
    outbox.post(lambda packet_id: b"small")
    outbox.close(BrokerUnavailableError("closed"))
    await waiting
