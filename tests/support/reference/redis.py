"""A stand-in of the reference sidecar on Redis streams, made from what was seen of it alone, on a client of its own."""

from __future__ import annotations

import asyncio
import json
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

from tests.support.reference.envelope import enveloped

__all__ = ["Resp", "Sidecar"]


class Resp:
    """A connection that speaks Redis's protocol, one command after the other."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._reader: asyncio.StreamReader
        self._writer: asyncio.StreamWriter

    async def __aenter__(self) -> Resp:
        self._reader, self._writer = await asyncio.open_connection("127.0.0.1", self._port)
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        self._writer.close()

    async def __call__(self, *words: str | bytes | int) -> Any:
        parts = [each if isinstance(each, bytes) else str(each).encode() for each in words]
        said = b"".join(b"$%d\r\n%b\r\n" % (len(each), each) for each in parts)
        self._writer.write(b"*%d\r\n%b" % (len(parts), said))
        return await self._reply()

    async def _reply(self) -> Any:
        line = (await self._reader.readuntil(b"\r\n"))[:-2]
        kind, rest = line[:1], line[1:]
        match kind:
            case b"+":
                return rest
            case b"-":
                raise RuntimeError(rest.decode())
            case b":":
                return int(rest)
            case b"$":
                size = int(rest)
                return None if size < 0 else (await self._reader.readexactly(size + 2))[:-2]
            case _:
                return None if rest == b"-1" else [await self._reply() for _ in range(int(rest))]


class Sidecar:
    """One sidecar beside one application."""

    def __init__(self, port: int, app_id: str, pubsub: str = "predis") -> None:
        """Prepare.

        Args:
            port: Of the server.
            app_id: Of the application; group and consumer have its name.
            pubsub: The component's name.
        """
        self._port, self._app_id, self._pubsub = port, app_id, pubsub

    async def publish(self, topic: str, data: object, **metadata: str) -> str:
        """Publish JSON; give the event's id."""
        identity = str(uuid.uuid4())
        body = enveloped(identity, self._app_id, self._pubsub, topic, data)
        async with Resp(self._port) as redis:
            beside = json.dumps(metadata, separators=(",", ":"), sort_keys=True)
            await redis("XADD", topic, "*", "metadata", beside, "data", body)
        return identity

    @asynccontextmanager
    async def subscribed(self, topic: str, app: Callable[[bytes], Awaitable[None]]) -> AsyncIterator[None]:
        """Hand events to an application; acknowledged are also those that it refuses."""
        async with Resp(self._port) as redis:
            try:
                await redis("XGROUP", "CREATE", topic, self._app_id, "0", "MKSTREAM")
            except RuntimeError as error:
                assert str(error).startswith("BUSYGROUP"), error

            stopping = False

            async def work() -> None:
                while not stopping:
                    asking = ("GROUP", self._app_id, self._app_id, "COUNT", 10, "BLOCK", 50, "STREAMS", topic, ">")
                    for _, entries in await redis("XREADGROUP", *asking) or ():
                        for entry, fields in entries:
                            found = dict(zip(fields[::2], fields[1::2], strict=True))
                            try:
                                await app(found[b"data"])
                            finally:
                                await redis("XACK", topic, self._app_id, entry)

            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(work())
                try:
                    yield
                finally:
                    stopping = True  # It drains: what it has is handed over and acknowledged.
