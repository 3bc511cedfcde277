"""A port of a pod, as one of this machine: each connection is a stream through the API server.

Source: the Kubernetes API, ``pods/portforward`` over WebSocket (``v4.channel.k8s.io``): the first message of each
channel is its port, channel 0 carries bytes, channel 1 an error.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

import aiohttp

from bindings.kubernetes.api import Cluster

__all__ = ["forwarding"]

logger = logging.getLogger(__name__)

PROTOCOL = "v4.channel.k8s.io"
DATA, FAILURE = 0, 1
BLOCK_BYTES = 64 * 1024
_HEADS = 2  # One message of each channel that only says which port it is of.


@asynccontextmanager
async def forwarding(cluster: Cluster, namespace: str, pod: str, port: int, here: int) -> AsyncIterator[int]:
    """Listen on this machine alone, and forward; give the port.

    Args:
        cluster: Where the pod is.
        namespace: Its namespace.
        pod: Its name.
        port: Its port.
        here: Of this machine; 0 picks a free one.
    """

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            path = f"/api/v1/namespaces/{namespace}/pods/{pod}/portforward"
            async with cluster.websocket(path, {"ports": str(port)}, PROTOCOL) as stream:
                await _passed(stream, reader, writer)
        except Exception as error:  # noqa: BLE001 - the connection ends, and is said to; others go on.
            logger.warning("a connection to %s ended: %s", pod, error)
        finally:
            writer.close()
            with suppress(OSError):
                await writer.wait_closed()

    server = await asyncio.start_server(connected, "127.0.0.1", here)
    async with server:
        yield server.sockets[0].getsockname()[1]


async def _passed(
    stream: aiohttp.ClientWebSocketResponse, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
) -> None:
    async def out() -> None:
        while block := await reader.read(BLOCK_BYTES):
            await stream.send_bytes(bytes([DATA]) + block)
        await stream.close()

    sending = asyncio.ensure_future(out())
    heads = 0
    try:
        async for message in stream:
            if message.type is not aiohttp.WSMsgType.BINARY:
                break
            if heads < _HEADS:
                heads += 1
                continue
            if message.data[0] == FAILURE:
                raise ConnectionError(message.data[1:].decode(errors="replace"))
            writer.write(message.data[1:])
            await writer.drain()
    finally:
        sending.cancel()
        with suppress(asyncio.CancelledError, OSError, aiohttp.ClientError):
            await sending
