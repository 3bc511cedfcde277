"""A place on this host where others post events: one socket for all applications that want them.

It listens while somebody takes the events. A request is answered when each who takes them has, or has not: so who posts
knows, and can post again.
"""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import aiohttp
from aiohttp import web

from mesh.blocks.binding_contract import BindingError, BindingEvent, Handle
from mesh.errors import MeshError
from mesh.resources.settings import whole
from mesh.tasks import task_group

__all__ = ["AT_ONCE", "MOST_BYTES", "PORT", "Answer", "Listener", "Place", "Posted", "metadata_of", "place_of"]

logger = logging.getLogger(__name__)

MOST_BYTES = 1024 * 1024
AT_ONCE = 100
PORT = whole(1, 65535)
_PATH = re.compile(r"/[^\s?#\x00-\x1f]*\Z")
MAX_CONNECTIONS = 1000
HEAD_SECONDS, BODY_SECONDS, KEPT_SECONDS, LAST_SECONDS = 15.0, 30.0, 15.0, 1.0
MAX_FIELDS, MAX_FIELD_BYTES = 64, 16 * 1024
# What the library says of requests that are none: anybody can send them, as many as they like.
_UNSAID = logging.Logger("bindings.listener", logging.CRITICAL)
# Who holds one of these is somebody; others are of this gateway, or of the connection.
_WITHHELD = frozenset(
    ("authorization", "connection", "content-length", "content-type", "cookie", "expect", "host", "keep-alive", "te")
) | {"proxy-authorization", "trailer", "transfer-encoding", "upgrade"}
_OWN = ("dapr-", "mesh-", "x-mesh-")
_NO_TEXT = re.compile("[\ud800-\udfff]")  # Bytes that are no UTF-8.


@dataclass(frozen=True, slots=True)
class Place:
    """Where it listens, and for how much.

    Attributes:
        host: The address.
        port: The port.
        path: Of the URL; another one is not there.
        most: Bytes of a body.
        at_once: Requests that are handled.
    """

    host: str
    port: int
    path: str
    most: int
    at_once: int


@dataclass(frozen=True, slots=True)
class Posted:
    """A request.

    Attributes:
        headers: Without regard to case.
        query: As it is, without the question mark.
        body: As it is.
    """

    headers: Mapping[str, str]
    query: str
    body: bytes


@dataclass(frozen=True, slots=True)
class Answer:
    """What is answered.

    Attributes:
        status: 200 to 299 where it was taken.
        body: For who posted.
        kind: The body's content type.
        headers: Further fields.
    """

    status: int
    body: bytes = b""
    kind: str = "text/plain"
    headers: Mapping[str, str] = field(default_factory=dict)


_NOT_TAKEN = Answer(503, b"not taken\n", headers={"Retry-After": "1"})


def _path(text: str) -> str | None:
    """Read the path of a URL; None where it is none."""
    path = text if text.startswith("/") else f"/{text}"
    return path if _PATH.match(path) else None


def place_of(settings: Any, problem: Callable[..., Exception]) -> Place:
    """Give the place that settings name; raises what ``problem`` makes."""
    path = _path(settings.path)
    if path is None:
        raise problem(f"is the path of a URL, without a query, not {settings.path!r}", "path")
    if settings.most < 1:
        raise problem("is a size of a byte or more", "maxBodySize")
    return Place(settings.address, settings.port, path, settings.most, settings.at_once)


Look = Callable[[Posted], BindingEvent | Answer]
"""Gives the event that a request is, or what it is answered without."""

Render = Callable[[Sequence[bytes]], Answer]
"""Gives what is answered to an event that all took, from what they answered."""


class _Taker:
    """One application; its events are handled in the task group of who reads for it.

    Attributes:
        left: Set when it takes nothing further: the task group may be at its end.
    """

    def __init__(self, handle: Handle, tasks: asyncio.TaskGroup) -> None:
        self._handle, self._tasks = handle, tasks
        self._handling: set[asyncio.Task[bytes | None]] = set()
        self.left = False

    async def take(self, event: BindingEvent) -> bytes | None:
        """Hand it over; None = it was not taken."""
        if self.left:
            return None
        task = self._tasks.create_task(self._handled(event), name="listener-event")
        self._handling.add(task)
        await asyncio.wait([task])
        self._handling.discard(task)
        return None if task.cancelled() else task.result()

    def give_up(self) -> None:
        """Handle no further."""
        for task in self._handling:
            task.cancel()

    async def _handled(self, event: BindingEvent) -> bytes | None:
        try:
            return await self._handle(event)
        except MeshError as error:
            logger.debug("an event was not taken: %s", error)
        return None


class _Refusing(asyncio.Protocol):
    """Ends a connection that is one too many."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """End it."""
        transport.close()


class Listener:
    """Answers requests at a place."""

    def __init__(self, place: Place, look: Look, render: Render) -> None:
        """Prepare; `joined` opens it."""
        self._place, self._look, self._render = place, look, render
        self._takers: list[_Taker] = []
        self._opening = asyncio.Lock()
        self._open: _Socket | None = None

    @asynccontextmanager
    async def joined(self, handle: Handle) -> AsyncIterator[None]:
        """Have events handled while this is entered.

        Left, it takes no further ones and waits for those that are being handled.

        Raises:
            BindingError: It cannot listen.
        """
        async with task_group() as tasks:
            taker = _Taker(handle, tasks)
            async with self._opening:
                if self._open is None:
                    self._open = await _Socket(self._place, self._answer).start()
                self._takers.append(taker)
            try:
                yield
            except BaseException:
                taker.give_up()
                await self._leave(taker, at_once=True)
                raise
            await self._leave(taker, at_once=False)

    async def _leave(self, taker: _Taker, *, at_once: bool) -> None:
        taker.left = True
        self._takers.remove(taker)
        if self._takers or self._open is None:
            return
        opened, self._open = self._open, None
        await opened.stop(at_once=at_once)

    async def _answer(self, posted: Posted) -> Answer:
        looked = self._look(posted)
        if isinstance(looked, Answer):
            return looked
        takers = [*self._takers]
        async with asyncio.TaskGroup() as tasks:
            taking = [tasks.create_task(each.take(looked), name="listener-take") for each in takers]
        answers = [each.result() for each in taking]
        taken = [each for each in answers if each is not None]
        if not taken or len(taken) < len(answers):
            return _NOT_TAKEN
        return self._render(taken)


class _Socket:
    """What listens, from the first that wants events to the last."""

    def __init__(self, place: Place, answer: Callable[[Posted], Awaitable[Answer]]) -> None:
        self._place, self._answer = place, answer
        self._busy = 0
        self._idle = asyncio.Event()
        self._idle.set()
        self._silent: set[web.RequestHandler] = set()
        self._reading: set[asyncio.Timeout] = set()
        self._stopping = False
        self._server = web.Server(
            self._handle,
            access_log=None,
            auto_decompress=False,
            keepalive_timeout=KEPT_SECONDS,
            lingering_time=1.0,
            logger=_UNSAID,
        )
        self._listening: asyncio.Server

    async def start(self) -> _Socket:
        """Listen."""
        place, loop = self._place, asyncio.get_running_loop()
        try:
            self._listening = await loop.create_server(self._connected, place.host, place.port, reuse_address=True)
        except OSError as error:
            why = error.strerror or error
            raise BindingError(f"cannot listen on {place.host}:{place.port}: {why}", retryable=True) from error
        return self

    def _connected(self) -> asyncio.Protocol:
        if len(self._server.connections) >= MAX_CONNECTIONS:
            return _Refusing()
        made = self._server()
        self._silent.add(made)
        asyncio.get_running_loop().call_later(HEAD_SECONDS, self._look_at, made)
        return made

    def _look_at(self, connection: web.RequestHandler) -> None:
        if connection in self._silent:  # It has asked for nothing yet.
            self._silent.discard(connection)
            connection.force_close()

    async def stop(self, *, at_once: bool) -> None:
        """Take no more, and answer what is being handled unless that is to be given up."""
        self._stopping = True
        self._listening.close()
        for limit in self._reading:  # What is not there yet is not waited for.
            if not limit.expired():
                limit.reschedule(0.0)
        try:
            if not at_once:
                await self._idle.wait()
        finally:
            # An answer may still be written; zero would be no limit.
            await self._server.shutdown(0.01 if at_once else LAST_SECONDS)

    async def _handle(self, request: web.BaseRequest) -> web.StreamResponse:
        self._silent.discard(request.protocol)
        self._busy += 1
        self._idle.clear()
        try:
            answer = await self._answered(request)
        except Exception:  # One request's failure is its own.
            logger.exception("a request to %s failed", self._place.path)
            answer = Answer(500)
        finally:
            self._busy -= 1
            if not self._busy:
                self._idle.set()
        response = web.Response(
            status=answer.status, body=answer.body, headers=answer.headers, content_type=answer.kind
        )
        if answer.status >= 400:
            response.force_close()  # What is left of its body is not read.
        return response

    async def _answered(self, request: web.BaseRequest) -> Answer:
        place = self._place
        if request.path != place.path:
            return Answer(404, b"not found\n")
        if request.method != "POST":
            return Answer(405, b"post it\n", headers={"Allow": "POST"})
        if self._busy > place.at_once:
            return Answer(429, b"too many at once\n", headers={"Retry-After": "1"})
        if (request.content_length or 0) > place.most:
            return Answer(413, b"too large\n")
        body = bytearray()
        try:
            async with self._in_time():
                async for part in request.content.iter_any():
                    body += part
                    if len(body) > place.most:
                        return Answer(413, b"too large\n")
        except TimeoutError:
            return _NOT_TAKEN if self._stopping else Answer(408, b"too slow\n")
        except (OSError, aiohttp.ClientError, web.RequestPayloadError):
            return Answer(400, b"broken off\n")
        return await self._answer(Posted(request.headers, request.rel_url.raw_query_string, bytes(body)))

    @asynccontextmanager
    async def _in_time(self) -> AsyncIterator[None]:
        async with asyncio.timeout(0.0 if self._stopping else BODY_SECONDS) as limit:
            self._reading.add(limit)
            try:
                yield
            finally:
                self._reading.discard(limit)


def metadata_of(posted: Posted, *withheld: str) -> dict[str, str]:
    """Give the header fields of a request that an application may have, each as it was given first; bounded."""
    names = {name.lower() for name in withheld} | _WITHHELD
    found: dict[str, str] = {}
    left = MAX_FIELD_BYTES
    given = {"contentType": posted.headers.get("Content-Type", ""), "query": posted.query}
    for name, value in (*given.items(), *posted.headers.items()):
        lowered = name.lower()
        left -= len(name) + len(value)
        known = lowered in names or lowered in found or lowered.startswith(_OWN)
        if known or not value or _NO_TEXT.search(value):
            left += len(name) + len(value)
        elif left < 0 or len(found) >= MAX_FIELDS:
            break
        else:
            found[lowered if name not in given else name] = value
    return found
