"""An application on HTTP/2 without TLS, in the process of the test."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Self

from httpunk.exceptions import HTTPunkError
from httpunk.h2.server import ServerRequest

from gateway.http2.server import HTTP2Connections
from tests.http.harness import Got
from tests.support.recorder import Recorder

__all__ = ["H2App"]

Answer = Callable[[ServerRequest], Awaitable[None]]


class H2App(Recorder[Got]):
    """Records what it gets, and answers as told by path; else with nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.answers: dict[str, Answer] = {}
        self.port = 0
        self._connections: HTTP2Connections
        self._listening: asyncio.Server

    def answer(self, path: str, status: int = 200, body: bytes = b"", **headers: str) -> None:
        """Answer a path always in one way."""

        async def answer(request: ServerRequest) -> None:
            fields = [(name.replace("_", "-"), value) for name, value in headers.items()]
            await request.respond(status, headers=fields, body=body)

        self.answers[path] = answer

    async def _handle(self, request: ServerRequest, _peer: object) -> None:
        target = request.path or ""
        fields = [(name, value.decode()) for name, value in request.headers.items()]
        got = Got(request.method or "", target, fields, b"")
        answer = self.answers.get(got.path)
        with suppress(HTTPunkError):  # The gateway went away.
            if answer is None or not hasattr(answer, "reads"):
                got.body = await request.read()
            self.got.append(got)
            if answer is None:
                await request.respond(200 if got.path != "/dapr/subscribe" else 404)
            else:
                await answer(request)

    async def start(self) -> None:
        self._connections = HTTP2Connections(self._handle, 16 * 1024)
        loop = asyncio.get_running_loop()
        self._listening = await loop.create_server(self._connections, "127.0.0.1", self.port, reuse_address=True)
        self.port = int(self._listening.sockets[0].getsockname()[1])

    async def stop(self, grace: float = 0) -> None:
        """Accept nothing more; calls that are open may go on for so long."""
        self._listening.close()
        await self._connections.drain(grace)

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self.stop()
