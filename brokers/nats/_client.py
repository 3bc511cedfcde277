"""The connection: nats-py, with confirmed calls over one inbox that survive a reconnect."""

from __future__ import annotations

import asyncio
import itertools
import logging
import re
import secrets
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from datetime import datetime
from typing import cast

import msgspec
import nats.errors
import orjson
from nats.aio.msg import Msg
from nats.aio.subscription import Subscription
from nats.errors import UnexpectedEOF

from brokers.nats._overrides import NatsClient
from brokers.shared.errors import NotAdmittedError, cause_of, map_errors, unavailable
from brokers.shared.outage import Outage
from mesh.errors import BrokerError, BrokerUnavailableError, MessageTooLargeError, PublishRejectedError
from mesh.tasks import heeding_cancellation

__all__ = [
    "JSON",
    "TOO_MANY_CONSUMERS",
    "Answer",
    "Connection",
    "NoStreamError",
    "RightMissingError",
    "check_api",
    "error_code",
    "unix_time",
]

logger = logging.getLogger("brokers.nats")

RECONNECT_WAIT = 0.1
STARTING_WAIT = 0.1
LEAVE_WAIT = 1.0
CLOSE_WAIT = 5.0
NO_LEADER = 10008
TOO_MANY_CONSUMERS = 10026
IN_PROCESS = 10158
OVERDUE = 2.0
MAX_BUFFERED_BYTES = 16 * 1024 * 1024
# What the server says to wrong credentials; its protocol has no codes, these texts are the client's way, too.
REFUSALS = ("authorization violation", "authentication expired", "authentication revoked")
# What it says of a subject that may not be sent to, some time after; the client has it in small letters.
_REFUSED = re.compile(r'permissions violation for publish to "([^"]+)"')
# Then the connection is lost, but not yet reported; its return resolves what waits.
UNLESS_FULL = suppress(nats.errors.OutboundBufferLimitError)
JSON = dict[str, object]


class Answer(msgspec.Struct, frozen=True):
    """What came back for a call."""

    headers: Mapping[str, str]
    body: bytes

    @property
    def status(self) -> str | None:
        """Inline status (``404``, ``503``…)."""
        return self.headers.get("Status")


class Connection:
    """One connection to NATS."""

    def __init__(self, servers: list[str], options: Mapping[str, object], api: str = "$JS.API") -> None:
        """Prepare; ``open`` connects.

        Args:
            servers: Their URLs, without credentials.
            options: The client's.
            api: What the subjects of the JetStream API begin with.
        """
        self.prefix = api
        self.client = NatsClient()
        self.shown = ", ".join(servers)
        self._servers = servers
        self._options = options
        self.connected = asyncio.Event()
        self.closed: asyncio.Future[None] | None = None
        self.reconnects = 0
        self._tokens = itertools.count()
        self._waiting: dict[str, asyncio.Future[Answer | None]] = {}
        self._once: set[str] = set()  # Those of them that must not be sent again.
        self._refusable: dict[str, str] = {}  # Those that a refusal ends as well, and their subjects.
        self._parts: dict[str, list[Answer]] = {}  # Of those with many answers, what has come.
        self._inbox = ""
        self._resolved = asyncio.Event()  # Connected, or closed for good.
        self._on_reconnect: list[Callable[[], None]] = []
        self._last_error = ""
        self._failures = 0
        self.on_refused: Callable[[str], None] | None = None  # Takes subjects that may not be sent to.
        self.errors = errors_of(f"NATS at {self.shown}")
        self.outage = Outage(logger, "NATS", self.shown)

    async def open(self, connect_wait: float, ping_interval: float) -> None:
        """Connect, or find that no server is there; each is asked once.

        Args:
            connect_wait: Seconds until a server that says nothing is given up.
            ping_interval: Seconds between signs of life; after two that the server missed, it reconnects.

        Raises:
            BrokerUnavailableError: None lets us in.
        """
        self.closed = asyncio.get_running_loop().create_future()
        options = {
            "max_reconnect_attempts": -1,
            "reconnect_time_wait": RECONNECT_WAIT,
            "pending_size": MAX_BUFFERED_BYTES,
            "ping_interval": ping_interval,
            "error_cb": self._note_error,
            "disconnected_cb": self._note_disconnect,
            "reconnected_cb": self._note_reconnect,
            "closed_cb": self._note_close,
            **self._options,
        }
        try:
            with self.errors:
                async with asyncio.timeout(connect_wait):
                    with heeding_cancellation():
                        await self.client.connect(self._servers, **options)  # type: ignore[arg-type]  # options are ours
                self._inbox = self.client.new_inbox()
                self.client.take_answers(await self.client.subscribe(f"{self._inbox}.*", cb=_nothing), self._answer)
        except BaseException:
            await self.close()
            raise
        self.connected.set()
        self._resolved.set()

    async def close(self) -> None:
        """Flush and close; idempotent."""
        self.connected.clear()
        try:
            async with asyncio.timeout(CLOSE_WAIT):
                await self.client.close()
        except (TimeoutError, OSError, RuntimeError):  # uvloop's error for writing to a socket that is closed.
            self.client.abandon()
            logger.warning("closed NATS at %s without a flush", self.shown)
        self._resolved.set()
        self._fail_waiting()

    async def flush(self) -> None:
        """Return when the server has had everything that was sent.

        Raises:
            BrokerUnavailableError: There is no connection.
        """
        if not self.connected.is_set():
            raise self._unavailable()
        with self.errors:
            await self.client.flush()

    async def subscribe(
        self, subject: str, callback: Callable[[Msg], Awaitable[None]], queue: str = ""
    ) -> Subscription:
        """Subscribe; active on the server when this returns, or gone when it raises."""
        with self.errors:
            subscription = await self.client.subscribe(subject, queue=queue, cb=callback)
        try:
            await self.flush()
        except BaseException:
            await self.leave(subscription)
            raise
        return subscription

    async def leave(self, subscription: Subscription) -> None:
        """Unsubscribe; what the server sent before still reaches the callback, even if this is cancelled."""
        try:
            await self._drain(subscription)
        except asyncio.CancelledError:
            with suppress(TimeoutError):
                async with asyncio.timeout(LEAVE_WAIT):
                    await self._drain(subscription)
            raise
        finally:
            self.client.forget_subscription(subscription)

    async def _drain(self, subscription: Subscription) -> None:
        if not self.client.is_closed:
            with suppress(nats.errors.Error):  # The server has forgotten it with the connection.
                await self.client.drain_subscription(subscription)

    def on_reconnect(self, callback: Callable[[], None]) -> None:
        """Call back after each reconnect."""
        self._on_reconnect.append(callback)

    def forget_reconnect(self, callback: Callable[[], None]) -> None:
        """Stop calling back."""
        self._on_reconnect.remove(callback)

    async def _note_error(self, error: Exception) -> None:
        if not self._inbox:  # The first connection; the client itself would try for ever.
            self._failures += 1
            ours = self.errors.translate(error)
            if ours is not None and (self._failures >= len(self._servers) or not ours.retryable):
                raise ours from error
        text = cause_of(error)
        if (refused := _REFUSED.search(text)) is not None:
            self._note_refused(refused[1])
        if text == self._last_error:
            return
        self._last_error = text
        # What ends the connection is told once, as the cause; so is that it does not come back yet.
        told = self._inbox and (not self.connected.is_set() or isinstance(error, OSError | UnexpectedEOF))
        logger.log(logging.DEBUG if told else logging.WARNING, "NATS at %s: %s", self.shown, text)

    def _note_refused(self, subject: str) -> None:
        if self.on_refused is not None:
            self.on_refused(subject)
        calls = {call: asked for call, asked in self._refusable.items() if asked.lower() == subject}
        if calls:
            asked = next(iter(calls.values()))
            self.give_up(
                frozenset(calls), RightMissingError(f"the user of NATS at {self.shown} may not send to {asked}")
            )

    async def _note_disconnect(self) -> None:
        if self.connected.is_set():
            self.outage.lost(self.client.lost_because)
        self.connected.clear()
        self._resolved.clear()
        self.client.fail_flushes()

    async def _note_reconnect(self) -> None:
        self.reconnects += 1
        self._last_error = ""
        self.outage.back()
        self.connected.set()
        self._resolved.set()
        self._fail_waiting()
        for callback in self._on_reconnect:
            callback()

    async def _note_close(self) -> None:
        self.connected.clear()
        self._resolved.set()
        self._fail_waiting()
        if self.closed is not None and not self.closed.done():
            self.closed.set_result(None)

    @property
    def waiting(self) -> frozenset[str]:
        """The calls that wait for their answers now; none is named twice."""
        return frozenset(self._waiting)

    def give_up(self, calls: frozenset[str], error: BrokerError) -> None:
        """Fail what still waits of these."""
        for call in calls:
            waiting = self._waiting.get(call)
            if waiting is not None and not waiting.done():
                waiting.set_exception(error)

    @property
    def clustered(self) -> bool:
        """Whether the server is one of several."""
        return self.client.clustered

    def repeat(self, calls: frozenset[str]) -> None:
        """Send again what still waits of these, as after a reconnect, where that may be done."""
        for call in calls - self._once:
            waiting = self._waiting.get(call)
            if waiting is not None and not waiting.done():
                waiting.set_result(None)

    async def repeat_overdue(self) -> None:
        """Repeat what is overdue, for ever: a member of a cluster that ends takes along what it has not answered."""
        before: frozenset[str] = frozenset()
        while True:
            await asyncio.sleep(OVERDUE)
            waiting = self.waiting if self.clustered else frozenset()
            self.repeat(before & waiting)
            before = waiting

    def _fail_waiting(self) -> None:
        """Tell every waiting call that its answer may have been lost."""
        for waiting in list(self._waiting.values()):
            if not waiting.done():
                waiting.set_result(None)

    def _answer(self, subject: bytes, headers: Mapping[str, str], body: bytes) -> None:
        token = subject.rpartition(b".")[2].decode()
        waiting = self._waiting.get(token)
        if waiting is not None and not waiting.done():
            answer = Answer(headers, body)
            parts = self._parts.get(token) if self._parts else None
            if parts is None or answer.status is not None:
                waiting.set_result(answer)
            else:
                parts.append(answer)

    async def send(self, subject: str, body: bytes, headers: dict[str, str] | None = None, reply: str = "") -> None:
        """Send without confirmation.

        Raises:
            BrokerUnavailableError: There is no connection.
            MessageTooLargeError: Over the server's limit.
        """
        if not self.connected.is_set():
            raise self._unavailable()
        with self.errors:
            try:
                await self.client.publish(subject, body, reply, headers)
            except nats.errors.MaxPayloadError:
                size = len(body) + sum([len(name) + len(value) + 4 for name, value in (headers or {}).items()])
                raise MessageTooLargeError(size, self.client.max_payload) from None

    def _unavailable(self) -> BrokerUnavailableError:
        return unavailable(f"NATS at {self.shown}")

    async def gather(self, subject: str, body: bytes) -> tuple[list[Answer], Answer]:
        """Send and wait for many answers; gives them, and the one with a status that ends them."""
        parts: list[Answer] = []
        end = await self.call(subject, body, parts=parts)
        return parts, end

    async def call(
        self,
        subject: str,
        body: bytes,
        headers: dict[str, str] | None = None,
        *,
        repeat: bool = True,
        refusable: bool = False,
        parts: list[Answer] | None = None,
    ) -> Answer:
        """Send and wait for the answer; the caller bounds it in time.

        Args:
            subject: Where to.
            body: The request.
            headers: Its headers.
            repeat: After a reconnect, send again; else raise, since the outcome is unknown.
            refusable: Raise once the server says that it may not be sent; else there is no answer then.
            parts: Takes the answers before the one that has a status.

        Raises:
            BrokerUnavailableError: The connection is closed, or broke and ``repeat`` is off.
            RightMissingError: The user may not send there, and ``refusable`` is on.
        """
        loop = asyncio.get_running_loop()
        while True:
            if not self.connected.is_set():
                await self._resolved.wait()
                if self.client.is_closed:
                    raise self._unavailable()
            token = str(next(self._tokens))
            waiting: asyncio.Future[Answer | None] = loop.create_future()
            self._waiting[token] = waiting
            if not repeat:
                self._once.add(token)
            if refusable:
                self._refusable[token] = subject
            if parts is not None:
                parts.clear()
                self._parts[token] = parts
            try:
                with self.errors, UNLESS_FULL:
                    await self.client.publish(subject, body, f"{self._inbox}.{token}", headers)
                answer = await waiting
            finally:
                del self._waiting[token]
                if not repeat:
                    self._once.discard(token)
                if refusable:
                    self._refusable.pop(token, None)
                if parts is not None:
                    self._parts.pop(token, None)
            if answer is not None:
                return answer
            if self.client.is_closed or not repeat:
                raise self._unavailable()

    async def api(self, subject: str, request: JSON | None = None, *, refusable: bool = False) -> JSON:
        """Call the JetStream API; give its JSON answer, errors included; see `call`."""
        body = b"" if request is None else orjson.dumps(request)
        while True:
            answer = await self.call(f"{self.prefix}.{subject}", body, refusable=refusable)
            if answer.status != "503":
                found = cast("JSON", orjson.loads(answer.body))
                if error_code(found) != NO_LEADER:
                    return found
            await asyncio.sleep(STARTING_WAIT)  # JetStream is still starting behind the server, or elects its leader.

    async def store(
        self,
        subject: str,
        body: bytes,
        headers: dict[str, str] | None,
        *,
        repeat: bool = True,
        refusable: bool = False,
    ) -> JSON:
        """Publish into a stream; return its PubAck; see `call`.

        Raises:
            NoStreamError: No stream takes it.
            PublishRejectedError: The server said no; ``args[1]`` is its error.
        """
        while True:
            answer = await self.call(subject, body, headers, repeat=repeat, refusable=refusable)
            if answer.status == "503":
                await self._check_stored(subject, refusable=refusable)
            else:
                ack = cast("JSON", orjson.loads(answer.body))
                if "error" not in ack:
                    return ack
                error = cast("JSON", ack["error"])
                code = cast("int", error.get("err_code", 0))
                if code != IN_PROCESS or not repeat:
                    raise StoreRefusedError(str(error.get("description")), code)
            await asyncio.sleep(STARTING_WAIT)  # The stream is still starting, or storing what was sent before.

    async def store_batch(self, messages: Sequence[tuple[str, bytes, Mapping[str, str]]]) -> int:
        """Publish several as one; gives the sequence of the last, before which the others are, one behind the other.

        Raises:
            PublishRejectedError: The server said no, and stored nothing.
            BrokerUnavailableError: The connection broke; the outcome is unknown.
        """
        batch = secrets.token_hex(12)
        for number, (subject, body, told) in enumerate(messages[:-1], 1):
            await self.send(subject, body, {**told, "Nats-Batch-Id": batch, "Nats-Batch-Sequence": str(number)})
        subject, body, told = messages[-1]
        headers = {**told, "Nats-Batch-Id": batch, "Nats-Batch-Sequence": str(len(messages)), "Nats-Batch-Commit": "1"}
        return cast("int", (await self.store(subject, body, headers, repeat=False))["seq"])

    async def _check_stored(self, subject: str, *, refusable: bool) -> None:
        """Tell a stream that is still starting from one that does not exist."""
        try:
            found = await self.api("STREAM.NAMES", {"subject": subject}, refusable=refusable)
        except RightMissingError as error:
            raise NoStreamError(f"no stream on NATS at {self.shown} takes {subject} now, and {error}") from None
        if "error" not in found and not found.get("streams"):
            raise NoStreamError(f"no stream on NATS at {self.shown} takes {subject}: it was never declared")


async def _nothing(_: Msg) -> None:
    """Take nothing: the client wants a callback, and its messages go elsewhere."""


def errors_of(server: str) -> map_errors:
    """Give what becomes of the client's errors, about a server by its kind and address."""

    def lost(error: Exception) -> BrokerUnavailableError:
        final = isinstance(error, nats.errors.SecureConnWantedError)
        if final or any(each in str(error).lower() for each in REFUSALS):
            return NotAdmittedError(f"{server} is not reachable: {error}")
        return unavailable(server, error)

    def rejected(error: Exception) -> PublishRejectedError:
        return PublishRejectedError(f"{server} cannot take it: {error}")

    no_such_message = (nats.errors.BadHeaderError, nats.errors.BadSubjectError, nats.errors.MaxPayloadError)
    connecting = (OSError, ValueError)  # The latter for one that speaks another protocol.
    return map_errors(
        {nats.errors.Error: lost, **dict.fromkeys(connecting, lost), **dict.fromkeys(no_such_message, rejected)}
    )


class RightMissingError(BrokerError):
    """The user may not send to a subject; nothing was done."""


class NoStreamError(PublishRejectedError):
    """No stream has the subject; nothing was stored."""


class StoreRefusedError(PublishRejectedError):
    """A PublishRejectedError that keeps the server's error code."""

    def __init__(self, description: str, err_code: int) -> None:
        self.err_code = err_code
        super().__init__(f"NATS refused to store it: {description}")


def error_code(answer: JSON) -> object:
    """Give the code of a JetStream API answer's error; None where it is none."""
    return cast("JSON", answer.get("error") or {}).get("err_code")


def check_api(answer: JSON, what: str) -> JSON:
    """Return a JetStream API answer, or raise its error."""
    if "error" in answer:
        error = cast("JSON", answer["error"])
        raise BrokerError(f"{what}: {error.get('description')}")
    return answer


def unix_time(text: str) -> float:
    """Read a time of the server's, which has up to nine digits behind the point."""
    whole, _, fraction = text.rstrip("Z").partition(".")
    return datetime.fromisoformat(f"{whole}+00:00").timestamp() + float(f"0.{fraction or 0}")
