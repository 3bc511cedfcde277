"""Request and reply over any broker: deadlines, streamed bodies, flow control.

An adapter only carries frames between live nodes; everything that makes them a call is here, once.

A small request is one frame, a small reply is one frame. A body that is large or of unknown length
follows its first frame in parts, in either direction, both at once if need be:

======== ============================== ==========================================================
frame    goes                           meaning
======== ============================== ==========================================================
(none)   to the address / to the caller a whole request / a whole reply
open     to the address                 a request whose body follows; the callee grants credit first
head     to the caller                  a reply whose body follows; ``reply_to`` is the callee's end
data     to the body's receiver         one part; ``mesh-seq`` counts from 0, so a lost part is noticed
end      to the body's receiver         the body is complete; with headers that are known only now
credit   to the body's sender           so many more bytes may be sent
abort    either way                     the stream is over, with the reason
ping     either way                     still here; sent when nothing else was for a while. It says how much
                                        was sent before it, so a lost last part or credit is noticed, too
taken    to the caller                  it runs, at an instance that the others do not know (``members.py``)
busy     to the caller                  not run: the callee has no room; the caller may go elsewhere
======== ============================== ==========================================================

What becomes of a call whose request or answer is lost with a connection stands in ``mesh/calls/members.py``.

The deadline is an absolute time in the header ``mesh-deadline``, so hosts that share a mesh must
agree on the time within the deadlines they use. It bounds the time until the reply begins; a
stream then lives as long as both sides give signs of life, and the receiver takes something. So does a call
whose caller watches (the header ``mesh-watched``), from the beginning: it may have a deadline in a distant future, and
still ends soon after either side has died.
"""

from __future__ import annotations

import asyncio
import itertools
import secrets
import time
from collections.abc import AsyncIterator, Coroutine, Mapping
from contextlib import asynccontextmanager, nullcontext
from functools import partial
from typing import TYPE_CHECKING, Any, Self, cast

import orjson

from mesh.address import Address, Kind
from mesh.broker import Broker, Frame, Message, not_allowed
from mesh.calls.asking import Asking, NotTakenError
from mesh.calls.comeback import Comeback
from mesh.calls.link import FRAME_HEADER, WINDOW_BYTES, Link, broken
from mesh.calls.malformed import MALFORMED, careful
from mesh.calls.members import Members
from mesh.calls.request import DEADLINE_HEADER, WATCHED_HEADER, Handler, Request, Serving
from mesh.calls.taken import TOKEN_PREFIX, Taken
from mesh.errors import (
    BrokerError,
    BrokerUnavailableError,
    DeadlineExceededError,
    MeshError,
    StreamBrokenError,
    UnprovenError,
)
from mesh.tasks import task_group
from mesh.trust.identity import ProveAgainError

if TYPE_CHECKING:
    from mesh.trust.guard import Guard, Session

__all__ = ["DEADLINE_HEADER", "Exchange", "Reply", "Request"]

PART_BYTES = 256 * 1024
HEADER_ROOM_BYTES = 32 * 1024
PING_INTERVAL = 5.0
SILENCE_LIMIT = 20.0
STALL_LIMIT = 300.0
ASK_AFTER = 1.0
TELL_WAIT = 2.0
MAX_TOLD = 1024
MAX_SERVED = 4096
MAX_ASKED = 64
_OF_AN_OPEN_STREAM = frozenset({"head", "data", "end", "credit", "ping"})


class Reply:
    """What came back. Leave it with ``aclose`` unless its stream was read to the end.

    Attributes:
        headers: The reply's headers.
        body: The whole body, or empty when ``streamed``.
        streamed: Whether the body comes through ``parts``.
    """

    __slots__ = ("_end", "_exchange", "_link", "body", "headers", "streamed")

    def __init__(self, exchange: Exchange, message: Message, link: Link | None) -> None:
        self._exchange = exchange
        self._link = self._end = link
        self.headers = message.headers
        self.body = message.body
        self.streamed = link is not None

    async def parts(self) -> AsyncIterator[bytes]:
        """Iterate over the body as it arrives.

        Raises:
            StreamBrokenError: The callee is gone or gave up.
        """
        if self._link is None:
            if self.body:
                yield self.body
            return
        while part := await self._link.read():
            yield part
        self._exchange.forget(self._link)

    @property
    def last(self) -> Mapping[str, str]:
        """Headers that came with the end of the body, once that was read."""
        return self.headers if self._end is None else self._end.end_headers

    async def aclose(self) -> None:
        """Give up what has not been read; the callee stops sending."""
        link, self._link = self._link, None
        if link is not None and self._exchange.forget(link) and not link.finished:
            link.abort("the caller went away")


class _Tries:
    """The tries of one request.

    Attributes:
        to: Where the next one goes: to all who serve the address, or to the one who can take it when it is made for it.
        asked: How often it was to be signed: each instance that has just begun asks for that once.
        refused: What has checked the last answer that it is to be signed, or sealed.
    """

    __slots__ = ("_address", "asked", "refused", "to")

    def __init__(self, address: Address) -> None:
        self.to: str | Address = address
        self._address = address
        self.asked = 0
        self.refused: Session | None = None

    def again(self, error: NotTakenError | ProveAgainError, session: Session | None) -> None:
        """Note why it did not run; raises ``UnprovenError`` when that was said too often."""
        if self.asked >= MAX_ASKED:
            raise UnprovenError("the callee takes no signature for a proof") from error
        self.to = self._address
        if isinstance(error, ProveAgainError):
            self.asked, self.refused, self.to = self.asked + 1, session, error.at or self._address


class Exchange:
    """Calls over one broker connection; enter it after the broker and leave it before."""

    def __init__(
        self,
        broker: Broker,
        *,
        ping_interval: float = PING_INTERVAL,
        silence_limit: float = SILENCE_LIMIT,
        stall_limit: float = STALL_LIMIT,
        ask_after: float = ASK_AFTER,
        guard: Guard | None = None,
    ) -> None:
        """Use a connected broker.

        Args:
            broker: Its inbox sink becomes this object's.
            ping_interval: Seconds until a stream on which nothing is sent gives a sign of life.
            silence_limit: Seconds without one until a stream is taken for broken.
            stall_limit: Seconds until a stream whose receiver takes nothing is given up.
            ask_after: Seconds until it is asked what became of a call.
            guard: Proves who this node is, and asks that of others (``mesh/trust``); None = nothing is proven.
        """
        self.broker = broker
        self.guard = guard
        self.inbox = broker.inbox
        self.monotonic = time.monotonic
        self.part_bytes = min(PART_BYTES, broker.features.max_message_bytes - HEADER_ROOM_BYTES)
        self.ping_interval = ping_interval
        self.silence_limit = silence_limit
        self.stall_limit = stall_limit
        self.ask_after = ask_after
        self.expired = self._telling = 0
        self.links: dict[str, Link] = {}
        self.taken = Taken()
        self.comeback = Comeback(broker.check)
        self._heard: dict[str, float] = {}  # When something came last, by node.
        self._prefix = f"{TOKEN_PREFIX}{secrets.token_hex(5)}"
        self._tokens = itertools.count()
        self._tasks: asyncio.TaskGroup | None = None
        self._working: list[asyncio.Task[None]] = []
        self._asking = Asking(self, self.links)
        self._serving: list[Serving] = []
        self._members: list[Members] = []
        self._numbers = itertools.count()

    async def __aenter__(self) -> Self:
        """Begin to receive."""
        self.broker.on_frame(careful(self._receive))
        on_restored = getattr(self.broker, "on_restored", None)  # Of a ``Restorable`` broker.
        if on_restored is not None:
            on_restored(self._ask_anew)
        self._tasks = asyncio.TaskGroup()
        await self._tasks.__aenter__()
        works = {"keep-alive": self._keep_alive(), "look": self._look_after_calls(), "comeback": self.comeback.look()}
        for name, work in works.items():
            self._working.append(self._tasks.create_task(work, name=f"exchange-{name}"))
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        """Fail what still waits."""
        for link in list(self.links.values()):
            link.fail(StreamBrokenError("this node is shutting down"))
            self.forget(link)
        self.broker.on_frame(_drop)
        tasks, self._tasks = self._tasks, None
        for work in self._working:
            work.cancel()
        if tasks is not None:
            await tasks.__aexit__(None, None, None)

    def link(self, peer: str, *, credit_bytes: int = 0, granted_bytes: int = 0) -> Link:
        """Open an end of a stream."""
        token = f"{self._prefix}{next(self._tokens):x}"
        link = self.links[token] = Link(self, token, peer, credit_bytes=credit_bytes, granted_bytes=granted_bytes)
        return link

    def forget(self, link: Link) -> bool:
        """Close an end; tell whether it was open."""
        if self.links.pop(link.token, None) is None:
            return False
        if link.upload is not None:
            link.upload.cancel()
        return True

    def _receive(self, frame: Frame) -> None:
        link, message = self.links.get(frame.token), frame.message
        session = None if link is None else link.session
        if session is not None and message is not None:
            message = session.open(f"{self.inbox}.{frame.token}", message)
            if message is None:
                return
            frame = frame if message is frame.message else Frame(message, frame.token, frame.reply_to)
        if frame.reply_to and link is not None:  # Whoever made up a token says nothing of the node that he names.
            self._heard[_node_of(frame.reply_to)] = self.monotonic()
        if link is not None:
            link.receive(frame)
            return
        if frame.message is None:
            if frame.refused:
                self._fail_refused(frame.refused)
            return
        for serving in self._serving:
            if serving.token == frame.token:
                serving.receive(frame, alone=True)
                return
        kind = frame.message.headers.get(FRAME_HEADER)
        if kind in _OF_AN_OPEN_STREAM:
            if frame.reply_to:  # Its other end is closed here; it need not wait for silence.
                self.tell(frame.reply_to, broken("the other side is gone"))
        elif kind == "told":
            self._asking.take(f"{self.inbox}.{frame.token}", frame.message)
        elif kind == "here":
            said = orjson.loads(frame.message.body)
            for members in self._members:
                if members.served == said["address"]:
                    members.hear_one(f"{self.inbox}.{frame.token}", frame.message, said)

    def _ask_anew(self) -> None:
        self._asking.ask_anew()
        for members in self._members:
            members.ask_again()

    def _fail_refused(self, to: str) -> None:
        """Fail the calls that wait at an address which the broker keeps from this node, if it is clear which one."""
        links = [link for link in self.links.values() if link.first is not None and link.served.text.lower() == to]
        if len({link.served for link in links}) == 1:
            for link in links:
                if not link.peer and not link.taken:
                    link.fail(not_allowed(link.served.label))

    def tell(self, to: str, message: Message, reply_to: str = "") -> None:
        """Send a frame without waiting for it; what cannot be sent soon is not."""
        self.soon(self.broker.send(to, message, reply_to))

    def soon(self, work: Coroutine[Any, Any, None]) -> None:
        """Do something small on the side, if it can be done soon."""
        if self._tasks is None or self._telling >= MAX_TOLD:
            work.close()
            return
        self._telling += 1
        self._tasks.create_task(self._tell(work), name="exchange-tell")

    async def _tell(self, work: Coroutine[Any, Any, None]) -> None:
        try:
            async with asyncio.timeout(TELL_WAIT):
                await work
        except (BrokerError, TimeoutError, *MALFORMED):
            return  # Whoever needs it asks, or finds out by silence; what was asked may be malformed.
        finally:
            self._telling -= 1

    async def _look_after_calls(self) -> None:
        """End what nobody waits for any more, and ask about what waits for long."""
        while True:
            await asyncio.sleep(self.ask_after / 2)
            for serving in self._serving:
                serving.stop_overdue()
            self.taken.age(self.monotonic())
            self._asking.ask()

    async def _keep_alive(self) -> None:
        while True:
            await asyncio.sleep(self.ping_interval)
            now = self.monotonic()
            for serving in self._serving:
                serving.show()
            links = [link for link in self.links.values() if link.streaming and (link.peer or link.watched)]
            nodes = {_node_of(link.peer) for link in links}
            self._heard = {node: heard_at for node, heard_at in self._heard.items() if node in nodes}
            for link in links:
                # A stream that waits behind others of the same node is not broken.
                if now - max(link.heard_at, self._heard.get(_node_of(link.peer), 0.0)) > self.silence_limit:
                    link.fail(StreamBrokenError(f"no sign of life for {self.silence_limit:g} s"))
                elif link.peer and now - link.sent_at >= self.ping_interval:
                    link.ping()

    async def request(
        self,
        address: Address,
        message: Message,
        deadline: float,
        body: AsyncIterator[bytes] | None = None,
        *,
        watched: bool = False,
    ) -> Reply:
        """Call whoever serves an address.

        Args:
            address: Whom to call.
            message: Headers, and the body unless it is streamed.
            deadline: Unix time in seconds by which the reply must have begun.
            body: A streamed one, read once a callee has granted credit; after ``NoResponderError`` it is as it was.
            watched: Whether the two sides watch each other from the beginning, as they do in a stream.

        Raises:
            NoResponderError: Nobody serves it now; it did not run.
            BrokerUnavailableError: There is no connection; it was not sent.
            DeadlineExceededError: The outcome is unknown.
            StreamBrokenError: It ended in the middle.
        """
        message = _asking_for(message, deadline, body is not None, watched)
        loop = asyncio.get_running_loop()
        task = cast("asyncio.Task[Any]", asyncio.current_task())
        tries = _Tries(address)
        while True:
            remaining = deadline - time.time()
            if remaining <= 0:
                raise DeadlineExceededError("the deadline passed before the call")
            link = self.link("", granted_bytes=WINDOW_BYTES)
            first = link.first = loop.create_future()
            link.served, link.sender, link.streaming, link.watched = address, task, watched, watched
            timer = loop.call_later(remaining, _expire, link)
            streamed = False
            try:
                await self._send(tries.to, self._proven(link, message, tries), link.address)
                link.sender = None
                if body is not None:
                    link.streaming = True
                    tasks = cast("asyncio.TaskGroup", self._tasks)
                    link.upload = tasks.create_task(_upload(link, body), name="exchange-upload")
                reply = cast("Message", (await first).message)
                streamed = reply.headers.get(FRAME_HEADER) == "head"
                return Reply(self, reply, link if streamed else None)
            except (NotTakenError, ProveAgainError) as error:  # It did not run, and never will under its token.
                tries.again(error, link.session)
            except asyncio.CancelledError:
                if link.sender is None or not isinstance(link.error, DeadlineExceededError) or task.uncancel() > 0:
                    if not link.peer:
                        self._asking.give_up(link)
                    raise
                raise link.error from None
            finally:
                timer.cancel()
                if not streamed:
                    self._end(link, first)

    async def _send(self, to: str | Address, message: Message, reply_to: str) -> None:
        """Send a request; raises ``BrokerUnavailableError`` only when it certainly was not, as callers try again."""
        try:
            await self.broker.send(to, message, reply_to)
        except BrokerUnavailableError as error:
            if isinstance(to, Address):
                raise
            raise StreamBrokenError("the connection to the broker broke off") from error

    def _proven(self, link: Link, message: Message, tries: _Tries) -> Message:
        """Prove a request, and note what its answers must prove."""
        if self.guard is None or link.served.kind is Kind.OPERATOR:
            return message
        signed, refused = tries.asked > 0, tries.refused
        sent, link.session = self.guard.ask(link.served, message, link.address, signed=signed, again=refused)
        return sent

    def _end(self, link: Link, first: asyncio.Future[Frame]) -> None:
        """Let go of a call whose answer is whole, or will not come."""
        uploading = link.upload is not None and not link.upload.done()
        self.forget(link)
        answered = first.done() and not first.cancelled() and first.exception() is None
        if link.peer and (uploading or not answered):
            link.abort("the caller went away")

    @asynccontextmanager
    async def _joined(self, members: Members) -> AsyncIterator[None]:
        self._members.append(members)  # Before it says anything: it is answered before the broker has confirmed that.
        try:
            async with members.joined():
                yield
        finally:
            self._members.remove(members)

    @asynccontextmanager
    async def serve(
        self,
        address: Address,
        group: str,
        handler: Handler,
        max_in_flight: int = MAX_SERVED,
        *,
        recoverable: bool = True,
    ) -> AsyncIterator[None]:
        """Serve an address; leaving waits for the handlers in flight.

        Args:
            address: What to serve.
            group: Instances of one group compete.
            handler: Answers one request; what it raises is the caller's broken stream.
            max_in_flight: Most requests at once; one more is answered ``busy``.
            recoverable: Whether a call whose request or answer gets lost with a connection is asked about. For that
                those who serve the address know each other, so one that every node serves goes without.
        """
        members = Members(self, self.taken, address, next(self._numbers))
        async with self._joined(members) if recoverable else nullcontext():
            try:
                async with task_group() as tasks:
                    # Whoever knows the token needs no right to send to the address: `prove` tells it to who has that.
                    token = f"serve-{secrets.token_hex(16)}"
                    serving = Serving(self, members, handler, max_in_flight, tasks, token)
                    self._serving.append(serving)
                    guard = None if address.kind is Kind.OPERATOR else self.guard
                    serve = partial(self.broker.serve, address, group, careful(serving.receive))
                    try:
                        async with serve() if guard is None else guard.standing.while_proven(address.label, serve):
                            yield
                    finally:
                        serving.leaving = True
            finally:  # Not before its handlers have ended: what is sent to it alone is refused until then.
                self._serving.remove(serving)


def _asking_for(message: Message, deadline: float, streamed: bool, watched: bool) -> Message:
    headers = {**message.headers, DEADLINE_HEADER: str(int(deadline * 1000))}
    if streamed:
        headers[FRAME_HEADER] = "open"
    if watched:
        headers[WATCHED_HEADER] = "1"
    return Message(headers, message.body)


async def _upload(link: Link, body: AsyncIterator[bytes]) -> None:
    """Send a request's body while its caller waits for the reply, or reads it already."""
    try:
        await link.ready()  # Before the body is touched: without a callee, the call can be made again.
        async for part in body:
            await link.write(part)
        await link.end({})
    except MeshError as error:
        link.fail(error)
    except Exception as error:  # noqa: BLE001 - the body is the caller's code: whatever it raises ends its call only
        link.abort(f"the request body broke off: {error!r}")


def _node_of(peer: str) -> str:
    """Give the inbox of the node that an end of a stream is on."""
    return peer.rpartition(".")[0]


def _expire(link: Link) -> None:
    unheard = link.session is not None and link.session.unheard
    more = ": what came is not proven, so the other side may have no identity" if unheard else ""
    link.fail(DeadlineExceededError(f"no reply within the deadline{more}"))
    if link.sender is not None:
        link.sender.cancel()


def _drop(frame: Frame) -> None:
    """Ignore frames that arrive after their calls ended."""
