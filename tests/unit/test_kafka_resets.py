"""aiokafka's connections, on the event loop of a gateway."""

from __future__ import annotations

import asyncio

import pytest
import uvloop
from aiokafka.errors import KafkaConnectionError
from aiokafka.protocol.metadata import MetadataRequest

from brokers.clients.kafka import AIOKafkaConnection


def test_a_write_just_after_a_reset_ends_the_connection_alone() -> None:
    """uvloop's own error would end the consumer or producer that writes."""

    async def write() -> None:
        async def hang_up(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            writer.close()

        async with await asyncio.start_server(hang_up, "127.0.0.1", 0) as server:
            port = server.sockets[0].getsockname()[1]
            connection = AIOKafkaConnection("127.0.0.1", port)
            _, connection._writer = await asyncio.open_connection("127.0.0.1", port)
            connection._writer.transport.abort()
            with pytest.raises(KafkaConnectionError, match="is lost"):
                connection.send(MetadataRequest([]))

    uvloop.run(write())
