"""One end of a streamed call: parts under credit, counted, with signs of life.

The frames and what they mean stand in ``mesh/calls/exchange.py``.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from mesh.broker import Frame, Message
from mesh.errors import (
    BrokerUnavailableError,
    NoResponderError,
    StreamBrokenError,
)
from mesh.trust.identity import ProveAgainError

if TYPE_CHECKING:
    from mesh.address import Address
    from mesh.calls.context import Context
    from mesh.calls.waiting import Waiting
    from mesh.trust.guard import Session

__all__ = [
    "CREDIT_HEADER",
    "FRAME_HEADER",
    "MAX_REASON",
    "PROVE",
    "REASON_HEADER",
    "SEALED_HEADER",
    "SEQUENCE_HEADER",
    "TAKEN",
    "WINDOW_BYTES",
    "Link",
    "broken",
]

FRAME_HEADER = "mesh-frame"
SEQUENCE_HEADER = "mesh-seq"
CREDIT_HEADER = "mesh-credit"
GRANTED_HEADER = "mesh-granted"
PROVE = "prove"
SEALED_HEADER = "mesh-sealed"
TAKEN = "taken"
REASON_HEADER = "mesh-reason"
WINDOW_BYTES = 2 * 1024 * 1024
MAX_REASON = 200


class Link:
    """One end of a call, and of its streams: sends one body under credit, receives another.

    Attributes:
        first: What the caller waits for; None at other ends.
        sender: The caller's task while it sends; its deadline ends that, too.
        served: Whom the call goes to, at the caller's end.
        waiting: What was asked about it meanwhile, at the caller's end.
        on_broken: Called when it ends with an error while nobody waits for it.
        taken: Whether its callee says that it took it, though who else serves knows nothing of that one.
        watched: Whether its silence ends it also before the other end is known.
        end_headers: What came with the frame that ended what it receives.
        session: Proves what it sends, and checks what comes; None = nobody asks for that.
    """

    __slots__ = (
        "_consumed",
        "_credit",
        "_credit_waiter",
        "_credited",
        "_ended",
        "_error",
        "_exchange",
        "_expected",
        "_expected_bytes",
        "_granted",
        "_parts",
        "_parts_waiter",
        "_received_end",
        "_sending",
        "_sequence",
        "born",
        "end_headers",
        "first",
        "heard_at",
        "on_broken",
        "peer",
        "sender",
        "sent_at",
        "served",
        "session",
        "streaming",
        "taken",
        "token",
        "upload",
        "waiting",
        "watched",
    )

    def __init__(
        self, exchange: Context, token: str, peer: str, *, credit_bytes: int = 0, granted_bytes: int = 0
    ) -> None:
        """Prepare.

        Args:
            exchange: Whose it is.
            token: Its name there.
            peer: The other end, if it is known.
            credit_bytes: How much it may send without being asked.
            granted_bytes: How much the other end may.
        """
        self._exchange = exchange
        self.token = token
        self.peer = peer
        self.first: asyncio.Future[Frame] | None = None
        self.upload: asyncio.Task[None] | None = None
        self.streaming = self.watched = self.taken = False
        self.end_headers: Mapping[str, str] = {}
        self.born = self.heard_at = self.sent_at = exchange.monotonic()
        self.sender: asyncio.Task[Any] | None = None
        self.served: Address
        self.session: Session | None = None
        self.waiting: Waiting | None = None
        self.on_broken: Callable[[], None] | None = None
        self._credit = credit_bytes
        self._credit_waiter: asyncio.Future[None] | None = None
        self._credited = 0
        self._granted = 0
        self._sending = 0
        self._sequence = 0
        self._ended = False
        self._expected = 0
        self._expected_bytes = granted_bytes
        self._consumed = 0
        self._parts: deque[bytes] = deque()
        self._parts_waiter: asyncio.Future[None] | None = None
        self._received_end = False
        self._error: Exception | None = None

    def receive(self, frame: Frame) -> None:
        """Take a frame for this end; called by the inbox sink."""
        message = frame.message
        first = self.first
        if message is None:
            gone = StreamBrokenError("the other side is gone") if self.peer else None
            self.fail(gone or NoResponderError("nobody serves this address"))
            return
        kind = message.headers.get(FRAME_HEADER)
        if kind is None or kind == "head":
            if first is not None and not first.done():
                if kind == "head":
                    self.peer = frame.reply_to
                    self.streaming = True
                    self.heard_at = self._exchange.monotonic()
                first.set_result(frame)
            return
        self.heard_at = self._exchange.monotonic()
        if kind == PROVE:
            self._receive_prove(frame.reply_to)
            return
        if frame.reply_to:
            self.peer = frame.reply_to
        if kind == "data":
            self._receive_part(message)
        elif kind == "credit":
            self._receive_credit(message)
        elif kind == "end":
            if int(message.headers[SEQUENCE_HEADER]) != self._expected:
                self.fail(StreamBrokenError("a part of the stream was lost"))
                return
            self._received_end = True
            self.end_headers = message.headers
            wake(self._parts_waiter)
        elif kind == "ping":
            self._compare(message)
        elif kind == "abort":
            self.fail(StreamBrokenError(message.headers.get(REASON_HEADER, "the other side gave up")[:MAX_REASON]))
        elif kind == "busy":
            self.fail(NoResponderError("every instance is busy"))
        elif kind == TAKEN:
            self.taken = True

    def _receive_prove(self, at: str) -> None:
        session = self.session
        if session is None:
            return  # Nothing was proven, so whoever says that has made it up.
        # Where the next try goes is heard of who is proven alone, and only for what nobody else can open.
        to_one = session.seals and session.peer is not None
        self.fail(ProveAgainError("the callee asks for a signature", at if to_one else ""))

    def _receive_credit(self, message: Message) -> None:
        credit = int(message.headers[CREDIT_HEADER])
        if self.session is not None and GRANTED_HEADER in message.headers:
            credit = int(message.headers[GRANTED_HEADER]) - self._credited  # One that comes again adds nothing.
        if credit > 0:
            self._credit += credit
            self._credited += credit
            wake(self._credit_waiter)

    def _receive_part(self, message: Message) -> None:
        if int(message.headers[SEQUENCE_HEADER]) != self._expected:
            self.fail(StreamBrokenError("a part of the stream was lost"))
            return
        self._expected += 1
        self._expected_bytes -= len(message.body)
        if self._expected_bytes < 0:
            self.fail(StreamBrokenError("the other side sent more than it was granted"))
        elif message.body:
            self._parts.append(message.body)
            wake(self._parts_waiter)

    def _compare(self, message: Message) -> None:
        sent, granted = int(message.headers[SEQUENCE_HEADER]), int(message.headers[CREDIT_HEADER])
        received = self._expected + self._received_end
        if self.session is not None and sent <= received and granted <= self._credited:
            return  # Perhaps somebody sends an earlier one again.
        if sent != received or granted != self._credited:
            self.fail(StreamBrokenError("a part of the stream was lost"))

    def fail(self, error: Exception) -> None:
        """End this end with an error, for whoever waits on it."""
        if self._error is not None:
            return
        self._error = error
        if self.first is not None and not self.first.done():
            self.first.set_exception(error)
            self.first.exception()  # Whoever waited may be gone.
        waits = wake(self._parts_waiter) | wake(self._credit_waiter) or self._sending > 0
        if not waits and self.on_broken is not None:
            self.on_broken()

    async def send(self, kind: str, headers: Mapping[str, str] | None = None, body: bytes = b"") -> None:
        """Send a frame to the other end."""
        await self.send_message(self.message(kind, headers, body))

    def message(self, kind: str, headers: Mapping[str, str] | None = None, body: bytes = b"") -> Message:
        """Make a frame for the other end."""
        return self._sealed(Message({FRAME_HEADER: kind, **(headers or {})}, body))

    def _sealed(self, message: Message) -> Message:
        return message if self.session is None else self.session.seal(message)

    async def send_message(self, message: Message) -> None:
        """Send what was made for the other end."""
        self.sent_at = self._exchange.monotonic()
        self._sending += 1
        try:
            await self._exchange.broker.send(self.peer, message, self.address)
        finally:
            self._sending -= 1

    async def _send_part(self, kind: str, headers: Mapping[str, str], body: bytes = b"") -> None:
        """Send what the stream cannot do without.

        Raises:
            StreamBrokenError: There is no connection. ``BrokerUnavailableError`` would say that nothing was sent,
                and the call would be made again with what is left of its body.
        """
        try:
            await self.send(kind, headers, body)
        except BrokerUnavailableError as error:
            broken = StreamBrokenError("the connection to the broker broke off")
            self.fail(broken)
            raise broken from error
        if self._error is not None:
            raise self._error

    def ping(self) -> None:
        """Say soon that this end is here, and what it has sent by then."""
        self.sent_at = self._exchange.monotonic()
        self._exchange.soon(self._ping())

    async def _ping(self) -> None:
        if not self._sending:
            sent = {SEQUENCE_HEADER: str(self._sequence + self._ended), CREDIT_HEADER: str(self._granted)}
            await self._exchange.broker.send(self.peer, self.message("ping", sent), self.address)

    async def ready(self) -> None:
        """Wait until something may be sent."""
        while self._credit <= 0 and self._error is None:
            self._credit_waiter = asyncio.get_running_loop().create_future()
            try:
                async with asyncio.timeout(self._exchange.stall_limit if self._sequence else None):
                    await self._credit_waiter
            except TimeoutError:
                self.abort(f"the receiver took nothing for {self._exchange.stall_limit:g} s")
        if self._error is not None:
            raise self._error

    async def write(self, data: bytes) -> None:
        """Send some of the body; waits for credit."""
        view = memoryview(data)
        while view:
            await self.ready()
            part = view[: min(self._exchange.part_bytes, self._credit)]
            self._credit -= len(part)
            sequence, self._sequence = self._sequence, self._sequence + 1
            await self._send_part("data", {SEQUENCE_HEADER: str(sequence)}, bytes(part))
            view = view[len(part) :]

    async def end(self, headers: Mapping[str, str]) -> None:
        """Say that the body is complete, and what is known only now."""
        if self._error is not None:
            raise self._error
        self._ended = True
        await self._send_part("end", {**headers, SEQUENCE_HEADER: str(self._sequence)})

    def abort(self, reason: str) -> None:
        """Tell the other side that nothing more comes, if that can be done soon; else it finds out by silence."""
        self.fail(StreamBrokenError(reason))
        if self.peer:
            self._exchange.tell(self.peer, self._sealed(broken(reason)), self.address)

    async def grant(self, size_bytes: int) -> None:
        """Let the other side send more."""
        self._granted += size_bytes
        self._expected_bytes += size_bytes
        await self._send_part("credit", {CREDIT_HEADER: str(size_bytes), GRANTED_HEADER: str(self._granted)})

    async def read(self) -> bytes:
        """Give the next part; empty at the end."""
        while not self._parts:
            if self._received_end:
                return b""
            if self._error is not None:
                raise self._error
            self._parts_waiter = asyncio.get_running_loop().create_future()
            await self._parts_waiter
        part = self._parts.popleft()
        self._consumed += len(part)
        if self._consumed >= WINDOW_BYTES // 4 and not self._received_end:
            granted, self._consumed = self._consumed, 0
            try:
                await self.grant(granted)
            except StreamBrokenError:  # Perhaps of an end that is closed, as all of it has come by now.
                if not self._received_end:
                    raise
        return part

    @property
    def address(self) -> str:
        """Where this end listens."""
        return f"{self._exchange.inbox}.{self.token}"

    @property
    def error(self) -> Exception | None:
        """What it ended with."""
        return self._error

    @property
    def granted(self) -> bool:
        """Whether the other side may send already."""
        return self._granted > 0

    @property
    def finished(self) -> bool:
        """Whether nothing more can come."""
        return self._error is not None or self._received_end


def broken(reason: str) -> Message:
    """Make the frame that ends a stream."""
    return Message({FRAME_HEADER: "abort", REASON_HEADER: reason.encode("ascii", "replace").decode()[:MAX_REASON]}, b"")


def wake(waiter: asyncio.Future[None] | None) -> bool:
    """Let a waiter go on; tell whether there was one."""
    if waiter is None or waiter.done():
        return False
    waiter.set_result(None)
    return True
