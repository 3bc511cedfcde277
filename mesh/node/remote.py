"""What a node tells others and does for them over the backbone: requests of its own API, and their answers.

A node is asked at its own address, which has its application's name in it: so nobody but that application answers
there, where identities are proven. What a request may be is the matter of whoever answers (``gateway/remote.py``).
"""

from __future__ import annotations

import asyncio
import itertools
import json
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from typing import TYPE_CHECKING, cast
from urllib.parse import unquote

import msgspec

from mesh import address
from mesh.broker import Message
from mesh.error_wire import read_error, to_wire
from mesh.errors import (
    BadArgumentError,
    DeadlineExceededError,
    MeshError,
    MessageTooLargeError,
    NoResponderError,
    PermissionDeniedError,
)
from mesh.event import required_headers
from mesh.host import ERROR_HEADER, decoded
from mesh.operation import Caller
from mesh.part import whole

if TYPE_CHECKING:
    from mesh.address import Address
    from mesh.calls.exchange import Exchange, Request
    from mesh.node.directory import Directory

__all__ = ["MAX_BODY_BYTES", "Answer", "Question", "Remote"]

logger = logging.getLogger(__name__)

MAX_BODY_BYTES = 4 * 1024 * 1024
MAX_SECONDS = 60.0
MAX_AT_ONCE = 32
MAX_SHOWN = 64
EVENT_TYPE = "mesh.node.asked"
FIND_SECONDS = 1.0
_ROOM_BYTES = 256 * 1024  # For what stands around a body.

Headers = tuple[tuple[str, str], ...]


class Question(msgspec.Struct, frozen=True):
    """A request of the HTTP API.

    Attributes:
        verb: ``GET``.
        path: As it would stand in a request line.
        query: The same, without its question mark.
        headers: Names and values.
        body: The whole body.
    """

    verb: str
    path: str
    query: str = ""
    headers: Headers = ()
    body: bytes = b""


class Answer(msgspec.Struct, frozen=True):
    """What it was answered: a status of HTTP, header fields, the whole body."""

    status: int
    headers: Headers = ()
    body: bytes = b""


Answering = Callable[[Caller, Question], Awaitable[Answer]]


class Remote:
    """Asks other nodes, and answers them.

    Attributes:
        node_id: This node.
    """

    def __init__(self, exchange: Exchange, directory: Directory, caller: Caller) -> None:
        """Use an entered exchange.

        Args:
            exchange: Carries questions and answers.
            directory: Knows whose a node is.
            caller: This node's application.
        """
        self._exchange, self._directory, self._caller = exchange, directory, caller
        self.node_id = whole(directory.node_id)
        self._apps: dict[str, str] = {}
        self._finding = asyncio.Lock()
        self._numbers = itertools.count(1)

    @asynccontextmanager
    async def answering(self, answer: Answering) -> AsyncIterator[None]:
        """Answer others while entered; leaving waits for what is in flight."""

        async def handle(request: Request) -> None:
            try:
                caller, asked = await self._read(request)
                async with asyncio.timeout(min(MAX_SECONDS, request.deadline - time.time())):
                    answered = await answer(caller, asked)
            except TimeoutError:
                return  # Nobody waits any more.
            except MeshError as error:
                await request.reply({ERROR_HEADER: json.dumps(to_wire(error))})
                return
            await request.reply({}, msgspec.msgpack.encode(answered))

        own = self._caller
        where = address.node(own.namespace, own.app_id, self.node_id)
        async with AsyncExitStack() as stack:
            try:
                serving = self._exchange.serve(where, self.node_id, handle, MAX_AT_ONCE, recoverable=False)
                await stack.enter_async_context(serving)
            except Exception as error:  # Rights of before there was such an address must not keep a node from its work.
                if isinstance(error, MeshError) and error.retryable:
                    raise
                text = "other nodes cannot ask this one, as it may not serve %s: %s; see mesh broker permissions"
                logger.warning(text, where, error)
            yield

    async def _read(self, request: Request) -> tuple[Caller, Question]:
        app_id = unquote(request.headers.get("ce-source", ""))
        request.check_caller(app_id)
        identity = request.caller
        if identity is not None and identity.namespace != self._caller.namespace:
            raise PermissionDeniedError(f"this node answers the namespace {self._caller.namespace} alone")
        caller = Caller(self._caller.namespace, app_id) if identity is None else Caller.proven_by(identity)
        asked = cast("Question", decoded(await _whole(request.parts()), Question))
        if len(asked.body) > MAX_BODY_BYTES:
            raise MessageTooLargeError(len(asked.body), MAX_BODY_BYTES)
        return caller, asked

    async def ask(self, node_id: str, asked: Question, deadline: float, app_id: str = "") -> Answer:
        """Ask a node; what it refuses is an answer, too.

        Args:
            node_id: Which one.
            asked: What.
            deadline: Unix time in seconds by which the answer must have come.
            app_id: Whose node it is; empty = every node is asked for that, unless it is known.

        Raises:
            BadArgumentError: The body is larger than ``MAX_BODY_BYTES``.
            NoResponderError: It is not there, or has too much to do; it did nothing.
            DeadlineExceededError: It did not answer in time; what it did is unknown.
            MeshError: It could not be asked, or proves nothing where that is wanted.
        """
        if len(asked.body) > MAX_BODY_BYTES:
            raise BadArgumentError(f"a body of {len(asked.body)} bytes; another node takes {MAX_BODY_BYTES}")
        limit = asyncio.timeout(deadline - time.time())
        try:
            async with limit:
                app_id = app_id or await self._app_of(node_id)
                return await self._ask(address.node(self._caller.namespace, app_id, node_id), asked, deadline)
        except NoResponderError as error:
            self._apps.pop(node_id, None)
            raise NoResponderError(f"node {node_id[:MAX_SHOWN]} of {app_id or '?'} is not reached: {error}") from error
        except TimeoutError:
            if not limit.expired():
                raise
            raise DeadlineExceededError(
                f"node {node_id[:MAX_SHOWN]} of {app_id or '?'} did not answer in time"
            ) from None

    async def _ask(self, where: Address, asked: Question, deadline: float) -> Answer:
        body, size = msgspec.msgpack.encode(asked), self._exchange.part_bytes
        headers = required_headers(
            f"{self._directory.node_id}-asks-{next(self._numbers)}", self._caller.app_id, EVENT_TYPE
        )
        at_once = len(body) <= size
        message = Message(headers, body if at_once else b"")
        reply = await self._exchange.request(where, message, deadline, None if at_once else _parts(body, size))
        try:
            if problem := reply.headers.get(ERROR_HEADER):
                raise read_error(problem)
            return cast("Answer", decoded(await _whole(reply.parts()), Answer))
        finally:
            await reply.aclose()

    async def _app_of(self, node_id: str) -> str:
        async with self._finding:  # Whoever waited finds the answer.
            if node_id not in self._apps:
                found = await self._directory.nodes(FIND_SECONDS)
                self._apps = {each.id: each.app_id for each in found}
        if not (app_id := self._apps.get(node_id, "")):
            raise NoResponderError("nobody says that it is there")
        return app_id


async def _parts(body: bytes, size: int) -> AsyncIterator[bytes]:
    for start in range(0, len(body), size):
        yield body[start : start + size]


async def _whole(parts: AsyncIterator[bytes]) -> bytes:
    found = bytearray()
    async for part in parts:
        found += part
        if len(found) > MAX_BODY_BYTES + _ROOM_BYTES:
            raise MessageTooLargeError(len(found), MAX_BODY_BYTES)
    return bytes(found)
