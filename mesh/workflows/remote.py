"""Activities on other nodes: those that this node's instances have there, and those of others that run here.

Each node with workers of an application serves an address of its own, and the table of owners tells who is there
(``READY`` members). A node asks one of them at a time, and waits for as long as the activity runs: each side notices
the end of the other. One that has no room refuses (``busy``), and nothing has run.
"""

from __future__ import annotations

import itertools
import json
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from urllib.parse import unquote

import msgspec

from mesh import address
from mesh.broker import Message
from mesh.calls.exchange import Exchange, Request
from mesh.error_wire import read_error, to_wire
from mesh.errors import (
    AppFailedError,
    AppUnreachableError,
    BrokerUnavailableError,
    EventError,
    MeshError,
    NoResponderError,
    PermissionDeniedError,
)
from mesh.event import required_headers
from mesh.host import joined
from mesh.operation import Caller
from mesh.ownership.asking import Owners
from mesh.ownership.table import Standing
from mesh.workflows import propagation
from mesh.workflows.access import denied
from mesh.workflows.events import Failure
from mesh.workflows.operations import PREFIX
from mesh.workflows.peers import Peer
from mesh.workflows.worker import TaskResult, TaskWork

__all__ = ["KIND", "Allows", "Remote"]

logger = logging.getLogger(__name__)

KIND = "workflows."
EVENT_TYPE = "mesh.workflow.activity"
ERROR_HEADER = "mesh-error"
BUSY_SECONDS = 0.5  # That a node is left alone after it had no room, or was not there.
LONG_SECONDS = 365 * 86400.0  # An activity may take as long as it likes; both sides watch each other.
MAX_LEFT_ALONE = 1000
_WORK = msgspec.msgpack.Decoder(TaskWork)
_RESULT = msgspec.msgpack.Decoder(TaskResult)
_MALFORMED = msgspec.DecodeError, UnicodeDecodeError, RecursionError

Allows = Callable[[str, str], bool]
"""Whether another application may have an activity run here: its app id, and the activity's name."""


class Remote:
    """Other nodes, as one node reaches them, and is reached."""

    def __init__(self, exchange: Exchange, owners: Owners, caller: Caller, allows: Allows) -> None:
        """Prepare.

        Args:
            exchange: Calls over the backbone.
            owners: Knows who is there.
            caller: This node's application.
            allows: Whether another application may.
        """
        self._exchange, self._owners, self._caller, self._allows = exchange, owners, caller, allows
        self._left_alone: dict[str, float] = {}  # Until when, by node.
        self._numbers = itertools.count(1)

    # Elsewhere

    async def peer(self, app: str) -> Peer | None:
        """Give a node of an application that runs activities, which is not this one; None = there is none.

        Raises:
            AppUnreachableError: None of them has room now.
            MeshError: The table of owners cannot be read.
        """
        table = await self._owners.table(KIND + app)
        there = [
            Peer(app, session, each.node)
            for session, each in table.members.items()
            if each.standing is Standing.READY and each.app_id == app and each.node != self._owners.node
        ]
        if not there:
            return None
        now = time.monotonic()
        free = [each for each in there if self._left_alone.get(each.node, 0.0) <= now]
        if not free:
            raise AppUnreachableError(f"the nodes of {app} have no room")
        return free[next(self._numbers) % len(free)]

    async def task(self, peer: Peer, work: TaskWork) -> TaskResult:
        """Have another node run an activity; raises as ``Worker.task`` does."""
        to = address.work(self._caller.namespace, peer.app, peer.node)
        headers = required_headers(f"{self._owners.node}-w{next(self._numbers)}", self._caller.app_id, EVENT_TYPE)
        message, stream = self._written(work, headers)
        asked = self._exchange.request(to, message, time.time() + LONG_SECONDS, stream, watched=True)
        try:
            reply = await self._owners.watched(KIND + peer.app, peer.session, to, asked)
        except NoResponderError:
            self._leave_alone(peer.node, BUSY_SECONDS)
            raise AppUnreachableError(f"a node of {peer.app} has no room, or has gone") from None
        except BrokerUnavailableError as error:
            raise AppUnreachableError(str(error)) from error
        except MeshError as error:
            raise AppFailedError(f"a node of {peer.app} did not say what came of it: {error}") from error
        try:
            answer = await joined(reply.parts())
        except MeshError as error:
            raise AppFailedError(f"a node of {peer.app} broke off: {error}") from error
        finally:
            await reply.aclose()
        if (problem := reply.headers.get(ERROR_HEADER)) is not None:
            raise _told_by(peer.app, read_error(problem))
        try:
            return _RESULT.decode(answer)
        except _MALFORMED as error:
            raise AppFailedError(f"a node of {peer.app} answered what cannot be read: {error}") from error

    def _written(self, work: TaskWork, headers: dict[str, str]) -> tuple[Message, AsyncIterator[bytes] | None]:
        """Write an activity. Nothing keeps what was large of it once that is sent: it may take long."""
        body = msgspec.msgpack.encode(work)
        work.inherited = None
        if len(body) <= self._exchange.part_bytes:
            return Message(headers, body), None
        return Message(headers, b""), _once(body)

    def _leave_alone(self, node: str, seconds: float) -> None:
        now = time.monotonic()
        if len(self._left_alone) >= MAX_LEFT_ALONE:
            self._left_alone = {each: until for each, until in self._left_alone.items() if until > now}
        self._left_alone[node] = now + seconds

    # Here

    @asynccontextmanager
    async def serve(self, run: Callable[[TaskWork], Awaitable[TaskResult]]) -> AsyncIterator[None]:
        """Run what other nodes ask for, while entered; leaving waits for it.

        Args:
            run: Runs an activity; raises as ``Worker.task`` does.
        """

        async def handle(request: Request) -> None:
            try:
                work = await self._work(request)
            except MeshError as error:
                await request.reply({ERROR_HEADER: json.dumps(to_wire(error))})
                return
            try:
                denied = self._denied(work)
                result = await run(work) if denied is None else denied
            except AppUnreachableError as error:
                logger.debug("activity %r of %s is not taken: %s", work.name, work.owner, error)
                await request.busy()
            except MeshError as error:
                await request.reply({ERROR_HEADER: json.dumps(to_wire(error))})
            else:
                await request.reply({}, msgspec.msgpack.encode(result))

        own = address.work(self._caller.namespace, self._caller.app_id, self._owners.node)
        async with self._exchange.serve(own, self._owners.node, handle):
            yield

    async def _work(self, request: Request) -> TaskWork:
        """Read what another node asks for.

        Raises:
            PermissionDeniedError: It is not for this application, or asks for another one than its own.
            UnprovenError: It is not who it says.
            EventError: It cannot be read.
            BadArgumentError: What the instance hands on cannot.
        """
        app_id = unquote(request.headers.get("ce-source", ""))
        request.check_caller(app_id)
        if request.caller is not None and request.caller.namespace != self._caller.namespace:
            raise PermissionDeniedError(f"activities run here for the namespace {self._caller.namespace} alone")
        try:
            work = _WORK.decode(await joined(request.parts()))
        except _MALFORMED as error:
            raise EventError(f"malformed activity: {error}") from error
        if work.owner != app_id or work.app != self._caller.app_id:
            raise PermissionDeniedError(f"{app_id[:100]} asks in the name of {work.owner[:100]}, for {work.app[:100]}")
        if work.inherited is not None:
            propagation.check(work.inherited, app_id)
        return work

    def _denied(self, work: TaskWork) -> TaskResult | None:
        if work.name.startswith(PREFIX):  # Else it would be asked for again and again.
            text = f"operations of the mesh are run for {work.owner} alone, not by another application"
            return TaskResult(None, Failure("PermissionDenied", text, final=True))
        if work.owner == self._caller.app_id or self._allows(work.owner, work.name):
            return None
        text = denied(work.owner, "activity", "schedule", work.name)
        return TaskResult(None, Failure("PermissionDenied", text, final=True))


def _told_by(app: str, error: MeshError) -> MeshError:
    """Give what another node answered, as a worker would."""
    if isinstance(error, (AppFailedError, AppUnreachableError)):
        return error
    return AppFailedError(f"a node of {app}: {error}")


async def _once(body: bytes) -> AsyncIterator[bytes]:
    yield body
