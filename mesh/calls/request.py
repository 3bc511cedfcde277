"""The callee's side of a call: one request, and those that are served at one address."""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Protocol, cast

from mesh.address import Kind
from mesh.broker import Frame, Message
from mesh.calls.comeback import Comeback
from mesh.calls.context import Context
from mesh.calls.link import FRAME_HEADER, MAX_REASON, PROVE, SEALED_HEADER, TAKEN, WINDOW_BYTES, Link, broken
from mesh.calls.members import LOST, Members
from mesh.calls.taken import TOKEN_PREFIX, Taken
from mesh.clusters import may_speak
from mesh.error_wire import to_wire
from mesh.errors import BrokerError, BrokerUnavailableError, StreamBrokenError, UnprovenError
from mesh.trust.identity import CrowdedError, Identity, ProveAgainError, ReplayedError

if TYPE_CHECKING:
    from mesh.trust.guard import Guard, Session

__all__ = ["DEADLINE_HEADER", "ERROR_HEADER", "NOTHING", "WATCHED_HEADER", "Handler", "Request", "Serving"]

logger = logging.getLogger(__name__)

DEADLINE_HEADER = "mesh-deadline"
WATCHED_HEADER = "mesh-watched"
ERROR_HEADER = "mesh-error"
NOTHING: Mapping[str, str] = MappingProxyType({})

Handler = Callable[["Request"], Awaitable[None]]


class Exchange(Context, Protocol):
    """What a request needs of its exchange.

    Attributes:
        taken: What is remembered of requests.
        comeback: Where to wait for a connection that is lost.
        expired: How many came too late.
        guard: Who proves and checks; None = nobody.
    """

    guard: Guard | None
    taken: Taken
    comeback: Comeback
    expired: int

    def link(self, peer: str, *, credit_bytes: int = 0, granted_bytes: int = 0) -> Link:
        """Open an end of a stream."""

    def forget(self, link: Link) -> bool:
        """Close an end; tell whether it was open."""


class Request:
    """A request being served. Answer it once: ``reply``, or ``begin``, ``write``…, ``end``.

    Attributes:
        headers: The request's headers.
        body: The whole body, or empty when ``streamed``.
        streamed: Whether the body comes through ``parts``.
        deadline: Unix time in seconds at which the caller stops waiting for the reply to begin.
        answered: Whether an answer was begun.
        answer: The answer while it is kept: a whole one, the head of one that is being sent, or why there is none.
        streaming: Whether it is a stream, which the deadline does not end.
        stopped: Why its handler was ended from outside.
        session: What proves its answer, where its caller proves who it is.
    """

    __slots__ = (
        "_exchange",
        "_link",
        "_reply_to",
        "_task",
        "answer",
        "answered",
        "body",
        "deadline",
        "headers",
        "session",
        "stopped",
        "streamed",
        "streaming",
    )

    def __init__(
        self, exchange: Exchange, message: Message, reply_to: str, deadline: float, session: Session | None = None
    ) -> None:
        self._exchange = exchange
        self._reply_to = reply_to
        self.session = session
        self._link: Link | None = None
        self._task: asyncio.Task[None] | None = None
        self.answer: Message | None = None
        self.stopped: str | None = None
        self.streaming = False
        self.headers = message.headers
        self.body = message.body
        self.streamed = message.headers.get(FRAME_HEADER) == "open"
        self.deadline = deadline
        self.answered = False

    @property
    def caller(self) -> Identity | None:
        """Who asks, where that is proven."""
        return None if self.session is None else self.session.identity

    def check_caller(self, app_id: str, *, vouched: bool = False) -> None:
        """Refuse who says to be another one than it proves to be; raises ``UnprovenError``.

        Args:
            app_id: Who it says to be.
            vouched: Whether a bridge may say that of applications of its cluster.
        """
        who = self.caller
        if who is not None and who.app_id != app_id and not (vouched and may_speak(who.app_id, app_id)):
            raise UnprovenError(f"{who} asks in the name of app id {app_id[:MAX_REASON]}")

    def _sealed(self, message: Message) -> Message:
        return message if self.session is None else self.session.seal(message)

    def last_word(self) -> Message:
        """Give the answer again, or say that it is lost."""
        return self.answer or self._sealed(broken(LOST))

    async def parts(self) -> AsyncIterator[bytes]:
        """Iterate over the body as it arrives."""
        if not self.streamed:
            if self.body:
                yield self.body
            return
        link = self._open()
        if not link.granted:
            await link.grant(WINDOW_BYTES)
        while part := await link.read():
            yield part

    def _open(self) -> Link:
        if self._link is None:
            link = self._link = self._exchange.link(self._reply_to, credit_bytes=WINDOW_BYTES)
            link.session = self.session
            link.streaming = True
            link.on_broken = self._stop_broken
        return self._link

    def _stop_broken(self) -> None:
        if self.streaming or not self.answered:
            self.stop("the caller is gone")

    def work(self, task: asyncio.Task[None]) -> None:
        """Note who handles it."""
        self._task = task

    def stop(self, reason: str) -> None:
        """End its handler: nobody waits for what it does."""
        if self._task is not None:
            self.stopped = reason
            self._task.cancel()

    @property
    def end_address(self) -> str:
        """Where this end of its stream listens, if there is one."""
        return "" if self._link is None else self._link.address

    @property
    def whole_limit_bytes(self) -> int:
        """Largest body that ``reply`` takes."""
        return self._exchange.part_bytes

    async def reply(self, headers: Mapping[str, str], body: bytes = b"", last: Mapping[str, str] = NOTHING) -> None:
        """Answer in one frame, or in parts if the body is too large for one; ``last`` goes with the body's end."""
        if len(body) > self._exchange.part_bytes:
            await self.begin(headers)
            await self.write(body)
            await self.end(last)
            return
        message = self._sealed(Message({**headers, **last} if last else headers, body))
        self.answered = True
        self._exchange.taken.keep(self, message, by_of(self.session))
        while True:
            try:
                await self._exchange.broker.send(self._reply_to, message)
                return
            except BrokerUnavailableError:  # The work is done: its answer waits for the connection with the caller.
                if not await self._exchange.comeback.by(self.deadline):
                    raise

    async def busy(self) -> None:
        """Answer that it was not run, so that the caller tries elsewhere or later."""
        message = self._sealed(Message({FRAME_HEADER: "busy"}, b""))
        self.answered = True
        self._exchange.taken.keep(self, message, by_of(self.session))
        try:
            await self._exchange.broker.send(self._reply_to, message)
        except BrokerError:
            return  # The caller asks.

    async def begin(self, headers: Mapping[str, str]) -> None:
        """Begin a streamed answer."""
        link = self._open()
        self.streaming = True
        self.answered = True
        self.answer = link.message("head", headers)
        await link.send_message(self.answer)

    async def write(self, data: bytes) -> None:
        """Send some of the body; waits while the caller reads more slowly.

        Raises:
            StreamBrokenError: The caller went away.
        """
        await self._open().write(data)

    async def end(self, headers: Mapping[str, str] = NOTHING) -> None:
        """Say that the body is complete; with headers that are known only now."""
        await self._open().end(headers)

    def show(self) -> None:
        """Give the first sign of life to a caller that watches; the others follow as for every stream."""
        if self._link is None and not self.answered and WATCHED_HEADER in self.headers:
            self._open().ping()

    def tell_taken(self) -> None:
        """Let its caller know that it was taken, whatever others say."""
        self._exchange.tell(self._reply_to, self._sealed(Message({FRAME_HEADER: TAKEN}, b"")))

    def close(self, reason: str | None = None) -> None:
        """Let go of the stream; with a reason, or body left unread, tell the caller that it is over."""
        self._task = None
        link, self._link = self._link, None
        if self.streaming or not self.answered:
            self.answered = True
            self.answer = self._sealed(broken(reason or LOST))
        if reason is None and self.streamed and (link is None or not link.finished):
            reason = "the rest of the request body is not wanted"
        if reason is None and link is None:
            return
        if link is None:
            link = self._exchange.link(self._reply_to)
            link.session = self.session
        if self._exchange.forget(link) and reason is not None:
            link.abort(reason)


def by_of(session: Session | None) -> str:
    """Give what tells one caller's calls from another's."""
    return "" if session is None else session.by


class Serving:
    """The handlers of what is served at one address.

    Attributes:
        members: Those who serve it as well.
        token: By which this node alone is sent what is sealed to it; a secret of those who may send to the address.
        leaving: Whether it only ends what it has begun.
    """

    def __init__(
        self,
        exchange: Exchange,
        members: Members,
        handler: Handler,
        max_in_flight: int,
        tasks: asyncio.TaskGroup,
        token: str,
    ) -> None:
        self.token = token
        self.leaving = False
        self._exchange = exchange
        self.members = members
        self._handler = handler
        self._max_in_flight = max_in_flight
        self._tasks = tasks
        self._running: set[Request] = set()

    @property
    def _stays(self) -> bool:
        """Whether this node may be asked alone."""
        guard = self._exchange.guard
        return not self.leaving and (guard is None or guard.standing.proven.is_set())

    def receive(self, frame: Frame, *, alone: bool = False) -> None:
        """Take a request, unless it is expired, known already, or one too many.

        Args:
            frame: What came.
            alone: Whether it was sent to this node alone. If that serves no longer, its caller asks at the address.
        """
        message = frame.message
        if message is None or not frame.reply_to:
            return
        deadline = int(message.headers.get(DEADLINE_HEADER, "0")) / 1000
        now = time.time()
        exchange = self._exchange
        if deadline <= now:
            exchange.expired += 1
            return
        came, session, crowded = message, None, False
        guard = None if self.members.at.kind is Kind.OPERATOR else exchange.guard
        if guard is not None:
            try:
                message, session = guard.taken(self.members.served, message, frame.reply_to)
            except ReplayedError:
                return  # It was answered.
            except CrowdedError as error:
                session, crowded = error.session, True
            except (ProveAgainError, UnprovenError) as error:
                self._refuse(guard, message, frame.reply_to, error)
                return
            if alone and not self._stays:
                gone = ProveAgainError("this node serves no longer")
                self._refuse(guard, came, frame.reply_to, gone)
                return
        elif SEALED_HEADER in message.headers:
            exchange.tell(frame.reply_to, Message({FRAME_HEADER: PROVE}, b""))  # Nobody can seal to this node.
            return
        token = frame.reply_to.rpartition(".")[2]
        request = Request(exchange, message, frame.reply_to, deadline, session)
        if token.startswith(TOKEN_PREFIX) and not exchange.taken.add(token, request, by_of(session)):
            return
        if crowded or len(self._running) >= self._max_in_flight:
            self._tasks.create_task(request.busy(), name="exchange-busy")
            return
        if self.members.is_unknown:
            request.tell_taken()
        self._running.add(request)
        task = self._tasks.create_task(self._run(request), name="exchange-serve")
        task.add_done_callback(lambda _: self._ended(request))
        request.work(task)

    def _refuse(self, guard: Guard, message: Message, reply_to: str, error: ProveAgainError | UnprovenError) -> None:
        """Say why it is refused."""
        headers, at = {FRAME_HEADER: PROVE}, ""
        if isinstance(error, UnprovenError):
            headers = {ERROR_HEADER: json.dumps(to_wire(error))}
        elif SEALED_HEADER in message.headers and self._stays:
            at = f"{self._exchange.inbox}.{self.token}"
        self._exchange.tell(reply_to, guard.refusal(self.members.served, message, reply_to, headers), at)

    def _ended(self, request: Request) -> None:
        """Send back a request whose task was cancelled before its first step, as all are when serving is cancelled."""
        if request in self._running:
            self._running.discard(request)
            self._exchange.soon(request.busy())

    async def _run(self, request: Request) -> None:
        reason: str | None = "the request was not answered"
        try:
            await self._handler(request)
            reason = None if request.answered else reason
        except StreamBrokenError as error:
            reason = str(error)
        except asyncio.CancelledError:
            task = cast("asyncio.Task[None]", asyncio.current_task())
            if request.stopped is None or task.uncancel() > 0:
                raise
            reason = request.stopped
        except BrokerUnavailableError as error:
            logger.warning("could not answer a request to %s: %s", self.members.label, error)
            reason = repr(error)
        except Exception as error:  # One request's failure must not end the others.
            logger.exception("request failed: %s", self.members.label)
            reason = repr(error)
        finally:
            self._running.discard(request)
            request.close(reason)
            request.headers, request.body = {}, b""  # It is remembered for a while.

    def show(self) -> None:
        """Let those know who watch that their requests are in hand."""
        for request in self._running:
            request.show()

    def stop_overdue(self) -> None:
        """End what has not begun to answer by its deadline: its caller has stopped waiting."""
        now = time.time()
        for request in self._running:
            if request.deadline < now and not request.streaming:
                request.stop("no answer within the deadline")
