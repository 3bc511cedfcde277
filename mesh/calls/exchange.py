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
end      to the body's receiver         the body is complete
credit   to the body's sender           so many more bytes may be sent
abort    either way                     the stream is over, with the reason
ping     either way                     still here; sent when nothing else was for a while. It says how much
                                        was sent before it, so a lost last part or credit is noticed, too
busy     to the caller                  not run: the callee has no room; the caller may go elsewhere
======== ============================== ==========================================================

The deadline is an absolute time in the header ``mesh-deadline``, so hosts that share a mesh must
agree on the time within the deadlines they use. It bounds the time until the reply begins; a
stream then lives as long as both sides give signs of life.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import secrets
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Self, cast

from mesh.address import Address
from mesh.broker import Broker, Frame, Message
from mesh.calls.link import FRAME_HEADER, REASON_HEADER, WINDOW_BYTES, Link
from mesh.errors import (
    BrokerError,
    BrokerUnavailableError,
    DeadlineExceededError,
    MeshError,
    StreamBrokenError,
)
from mesh.tasks import task_group

__all__ = ["DEADLINE_HEADER", "Exchange", "Reply", "Request"]

logger = logging.getLogger(__name__)

DEADLINE_HEADER = "mesh-deadline"

PART_BYTES = 256 * 1024
HEADER_ROOM_BYTES = 32 * 1024
PING_INTERVAL = 5.0
SILENCE_LIMIT = 20.0
MAX_SERVED = 4096
RECONNECT_WAIT = 0.1
_OF_AN_OPEN_STREAM = frozenset({"head", "data", "end", "credit", "ping"})

Handler = Callable[["Request"], Awaitable[None]]


class Reply:
    """What came back. Leave it with ``aclose`` unless its stream was read to the end.

    Attributes:
        headers: The reply's headers.
        body: The whole body, or empty when ``streamed``.
        streamed: Whether the body comes through ``parts``.
    """

    __slots__ = ("_exchange", "_link", "body", "headers", "streamed")

    def __init__(self, exchange: Exchange, message: Message, link: Link | None) -> None:
        self._exchange = exchange
        self._link = link
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

    async def aclose(self) -> None:
        """Give up what has not been read; the callee stops sending."""
        link, self._link = self._link, None
        if link is not None and self._exchange.forget(link) and not link.finished:
            await link.abort("the caller went away")


class Request:
    """A request being served. Answer it once: ``reply``, or ``begin``, ``write``…, ``end``.

    Attributes:
        headers: The request's headers.
        body: The whole body, or empty when ``streamed``.
        streamed: Whether the body comes through ``parts``.
        deadline: Unix time in seconds at which the caller stops waiting for the reply to begin.
    """

    __slots__ = ("_exchange", "_link", "_reply_to", "answered", "body", "deadline", "headers", "streamed")

    def __init__(self, exchange: Exchange, message: Message, reply_to: str, deadline: float) -> None:
        self._exchange = exchange
        self._reply_to = reply_to
        self._link: Link | None = None
        self.headers = message.headers
        self.body = message.body
        self.streamed = message.headers.get(FRAME_HEADER) == "open"
        self.deadline = deadline
        self.answered = False

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
            self._link = self._exchange.link(self._reply_to, WINDOW_BYTES)
            self._link.streaming = True
        return self._link

    @property
    def whole_limit_bytes(self) -> int:
        """Largest body that ``reply`` takes."""
        return self._exchange.part_bytes

    async def reply(self, headers: Mapping[str, str], body: bytes = b"") -> None:
        """Answer in one frame, or in parts if the body is too large for one."""
        if len(body) > self._exchange.part_bytes:
            await self.begin(headers)
            await self.write(body)
            await self.end()
            return
        self.answered = True
        message = Message(headers, body)
        while True:
            try:
                await self._exchange.broker.send(self._reply_to, message)
                return
            except BrokerUnavailableError:  # The work is done: its answer waits for the connection with the caller.
                if time.time() + RECONNECT_WAIT >= self.deadline:
                    raise
            await asyncio.sleep(RECONNECT_WAIT)

    async def busy(self) -> None:
        """Answer that it was not run, so that the caller tries elsewhere or later."""
        self.answered = True
        try:
            await self._exchange.broker.send(self._reply_to, Message({FRAME_HEADER: "busy"}, b""))
        except BrokerError:
            return  # The caller finds out by its deadline.

    async def begin(self, headers: Mapping[str, str]) -> None:
        """Begin a streamed answer."""
        link = self._open()
        self.answered = True
        await link.send("head", headers)

    async def write(self, data: bytes) -> None:
        """Send some of the body; waits while the caller reads more slowly.

        Raises:
            StreamBrokenError: The caller went away.
        """
        await self._open().write(data)

    async def end(self) -> None:
        """Say that the body is complete."""
        await self._open().end()

    async def close(self, reason: str | None = None) -> None:
        """Let go of the stream; with a reason, or body left unread, tell the caller that it is over."""
        link, self._link = self._link, None
        if reason is None and self.streamed and (link is None or not link.finished):
            reason = "the rest of the request body is not wanted"
        if reason is None and link is None:
            return
        if link is None:
            link = self._exchange.link(self._reply_to, 0)
        if self._exchange.forget(link) and reason is not None:
            await link.abort(reason)


class Exchange:
    """Calls over one broker connection; enter it after the broker and leave it before."""

    def __init__(
        self, broker: Broker, *, ping_interval: float = PING_INTERVAL, silence_limit: float = SILENCE_LIMIT
    ) -> None:
        """Use a connected broker.

        Args:
            broker: Its inbox sink becomes this object's.
            ping_interval: Seconds until a stream on which nothing is sent gives a sign of life.
            silence_limit: Seconds without one until a stream is taken for broken.
        """
        self.broker = broker
        self.inbox = broker.inbox
        self.monotonic = time.monotonic
        self.part_bytes = min(PART_BYTES, broker.features.max_message_bytes - HEADER_ROOM_BYTES)
        self.ping_interval = ping_interval
        self.silence_limit = silence_limit
        self.expired = 0
        self._links: dict[str, Link] = {}
        self._heard: dict[str, float] = {}  # When something came last, by node.
        self._tokens = itertools.count(secrets.randbits(24))
        self._tasks: asyncio.TaskGroup | None = None
        self._keeping: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        """Begin to receive."""
        self.broker.on_frame(self._receive)
        self._tasks = asyncio.TaskGroup()
        await self._tasks.__aenter__()
        self._keeping = self._tasks.create_task(self._keep_alive(), name="exchange-keep-alive")
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        """Fail what still waits."""
        for link in list(self._links.values()):
            link.fail(StreamBrokenError("this node is shutting down"))
            self.forget(link)
        self.broker.on_frame(_drop)
        if self._keeping is not None and self._tasks is not None:
            self._keeping.cancel()
            await self._tasks.__aexit__(None, None, None)

    def link(self, peer: str, credit_bytes: int) -> Link:
        """Open an end of a stream."""
        token = f"{next(self._tokens):x}"
        link = self._links[token] = Link(self, token, peer, credit_bytes)
        return link

    def forget(self, link: Link) -> bool:
        """Close an end; tell whether it was open."""
        if self._links.pop(link.token, None) is None:
            return False
        if link.upload is not None:
            link.upload.cancel()
        return True

    def _receive(self, frame: Frame) -> None:
        if frame.reply_to:
            self._heard[_node_of(frame.reply_to)] = self.monotonic()
        link = self._links.get(frame.token)
        if link is not None:
            link.receive(frame)
            return
        kind = frame.message.headers.get(FRAME_HEADER) if frame.message is not None else None
        if kind in _OF_AN_OPEN_STREAM and frame.reply_to and self._tasks is not None:
            self._tasks.create_task(self._disown(frame.reply_to), name="exchange-disown")

    async def _disown(self, peer: str) -> None:
        """Answer an end whose other end is closed here, so that it need not wait for silence."""
        try:
            async with asyncio.timeout(self.silence_limit):
                message = Message({FRAME_HEADER: "abort", REASON_HEADER: "the other side is gone"}, b"")
                await self.broker.send(peer, message)
        except (BrokerError, TimeoutError):
            return  # It finds out by silence.

    async def _keep_alive(self) -> None:
        while True:
            await asyncio.sleep(self.ping_interval)
            now = self.monotonic()
            links = [link for link in self._links.values() if link.streaming and link.peer]
            nodes = {_node_of(link.peer) for link in links}
            self._heard = {node: heard_at for node, heard_at in self._heard.items() if node in nodes}
            for link in links:
                # A stream that waits behind others of the same node is not broken.
                if now - max(link.heard_at, self._heard.get(_node_of(link.peer), 0.0)) > self.silence_limit:
                    link.fail(StreamBrokenError(f"no sign of life for {self.silence_limit:g} s"))
                elif now - link.sent_at >= self.ping_interval:
                    try:
                        await link.ping()
                    except BrokerError:
                        continue  # The connection is being restored; silence is judged above.

    async def request(
        self, address: Address, message: Message, deadline: float, body: AsyncIterator[bytes] | None = None
    ) -> Reply:
        """Call whoever serves an address.

        Args:
            address: Whom to call.
            message: Headers, and the body unless it is streamed.
            deadline: Unix time in seconds by which the reply must have begun.
            body: A streamed body. It is only read once a callee has granted credit, so after
                ``NoResponderError`` the call can be repeated.

        Raises:
            NoResponderError: Nobody serves it now; it did not run.
            BrokerUnavailableError: There is no connection; it was not sent.
            DeadlineExceededError: The outcome is unknown.
            StreamBrokenError: It ended in the middle.
        """
        remaining = deadline - time.time()
        if remaining <= 0:
            raise DeadlineExceededError("the deadline passed before the call")
        loop = asyncio.get_running_loop()
        link = self.link("", 0)
        first = link.first = loop.create_future()
        headers = {**message.headers, DEADLINE_HEADER: str(int(deadline * 1000))}
        if body is not None:
            headers[FRAME_HEADER] = "open"
        timer = loop.call_later(remaining, _expire, first)
        streamed = answered = False
        try:
            await self.broker.send(address, Message(headers, message.body), f"{self.inbox}.{link.token}")
            if body is not None:
                link.streaming = True
                tasks = cast("asyncio.TaskGroup", self._tasks)
                link.upload = tasks.create_task(_upload(link, body), name="exchange-upload")
            reply = cast("Message", (await first).message)
            answered = True
            streamed = reply.headers.get(FRAME_HEADER) == "head"
            return Reply(self, reply, link if streamed else None)
        finally:
            timer.cancel()
            if not streamed:
                uploading = link.upload is not None and not link.upload.done()
                self.forget(link)
                if link.peer and (uploading or not answered):
                    await link.abort("the caller went away")

    @asynccontextmanager
    async def serve(
        self, address: Address, group: str, handler: Handler, max_in_flight: int = MAX_SERVED
    ) -> AsyncIterator[None]:
        """Serve an address; leaving waits for the handlers in flight.

        Args:
            address: What to serve.
            group: Instances of one group compete.
            handler: Answers one request; what it raises is the caller's broken stream.
            max_in_flight: Most requests at once; one more is answered ``busy``.
        """
        async with task_group() as tasks:
            running = 0

            async def run(request: Request) -> None:
                nonlocal running
                reason: str | None = "the request was not answered"
                try:
                    await handler(request)
                    reason = None if request.answered else reason
                except StreamBrokenError as error:
                    reason = str(error)
                except Exception as error:  # One request's failure must not end the others.
                    logger.exception("request failed: %s", address.label)
                    reason = repr(error)
                finally:
                    running -= 1
                    await request.close(reason)

            def receive(frame: Frame) -> None:
                nonlocal running
                if frame.message is None or not frame.reply_to:
                    return
                deadline = int(frame.message.headers.get(DEADLINE_HEADER, "0")) / 1000
                if deadline <= time.time():
                    self.expired += 1
                    return
                request = Request(self, frame.message, frame.reply_to, deadline)
                if running >= max_in_flight:
                    tasks.create_task(request.busy(), name="exchange-busy")
                    return
                running += 1
                tasks.create_task(run(request), name="exchange-serve")

            async with self.broker.serve(address, group, receive):
                yield


async def _upload(link: Link, body: AsyncIterator[bytes]) -> None:
    """Send a request's body while its caller waits for the reply, or reads it already."""
    try:
        await link.ready()  # Before the body is touched: without a callee, the call can be made again.
        async for part in body:
            await link.write(part)
        await link.end()
    except MeshError as error:
        link.fail(error)
    except Exception as error:  # noqa: BLE001 - the body is the caller's code: whatever it raises ends its call only
        await link.abort(f"the request body broke off: {error!r}")


def _node_of(peer: str) -> str:
    """Give the inbox of the node that an end of a stream is on."""
    return peer.rpartition(".")[0]


def _expire(first: asyncio.Future[Frame]) -> None:
    if not first.done():
        first.set_exception(DeadlineExceededError("no reply within the deadline"))


def _drop(frame: Frame) -> None:
    """Ignore frames that arrive after their calls ended."""
