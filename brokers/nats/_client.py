"""The connection: nats-py, with confirmed calls over one inbox that survive a reconnect."""

from __future__ import annotations

import asyncio
import itertools
import logging
import ssl
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import cast
from urllib.parse import urlsplit

import nats.errors
import orjson
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.aio.subscription import Subscription
from nats.protocol.command import hpub_cmd

from mesh.errors import BrokerError, BrokerUnavailableError, PublishRejectedError

__all__ = ["Answer", "Connection", "redact"]

logger = logging.getLogger("brokers.nats")

RECONNECT_WAIT = 0.1
STARTING_WAIT = 0.1
LEAVE_WAIT = 1.0
CLOSE_WAIT = 5.0
FLUSH_WAIT = 10.0
PING = b"PING\r\n"
MAX_BUFFERED_BYTES = 16 * 1024 * 1024
JSON = dict[str, object]


class _Client(Client):
    """nats-py, where its own way would cost us the connection, a cancellation or half our budget.

    ``tests/unit/test_nats_client.py`` checks that the installed client still calls each of these.
    """

    async def _send_ping(self, future: asyncio.Future[bool] | None = None) -> None:
        """Send a PING after what waits to be sent; the client's own overtakes it, so that it flushes nothing."""
        self._pongs.append(future or asyncio.get_running_loop().create_future())
        await self._send_command(PING)
        await self._flush_pending()

    async def _process_pong(self) -> None:
        """Survive a cancelled flush: its answer would otherwise raise, and silently end the read loop."""
        if self._pongs and self._pongs[0].done():
            self._pongs[0] = asyncio.get_running_loop().create_future()
        await super()._process_pong()

    async def _flush_pending(self, force_flush: bool = False) -> None:
        """Pass on a cancellation, which the client's own swallows where it waits."""
        if not force_flush and self._flush_queue is not None and not self._flush_queue.full():
            await super()._flush_pending()
            return
        with _heeding_cancellation():
            await super()._flush_pending(force_flush)

    async def flush(self, timeout: float = FLUSH_WAIT) -> None:  # noqa: ASYNC109 - the client's own signature
        """Wait for the server to have had everything; ``wait_for``, in the client's own, loses cancellations."""
        if not self.is_connected:
            raise nats.errors.ConnectionClosedError
        pong: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        try:
            async with asyncio.timeout(timeout):
                await self._send_ping(pong)
                await pong
        except TimeoutError:
            raise nats.errors.FlushTimeoutError from None

    async def _attempt_reconnect(self) -> None:
        """Drop a dead socket at once: closing it in order waits for a peer that does not read any more."""
        self._pending = [command for command in self._pending if command != PING]  # Nobody waits for their answers.
        self._pending_data_size = sum(map(len, self._pending))
        self.abort()
        await super()._attempt_reconnect()

    def abort(self) -> None:
        """Drop the socket, with what waits in it."""
        writer = getattr(self._transport, "_io_writer", None)  # A WebSocket has none.
        if writer is not None:
            writer.transport.abort()

    async def _close(self, status: int, do_cbs: bool = True) -> None:
        """Flush only what can be: without a connection, uvloop raises where asyncio writes into the void."""
        if not self.is_connected:
            self._pending, self._pending_data_size = [], 0
        await super()._close(status, do_cbs)

    def abandon(self) -> None:
        """Let go of everything, where a close in good order is not to be had."""
        self.abort()
        for subscription in list(self._subs.values()):
            self.forget_subscription(subscription)

    def fail_flushes(self) -> None:
        """End every flush that waits: its answer will not come over a new connection."""
        for pong in self._pongs:
            if not pong.done():
                pong.set_exception(nats.errors.UnexpectedEOF())

    async def drain_subscription(self, subscription: Subscription) -> None:
        """Unsubscribe, and return when the callback has had all that the server sent before."""
        await self._send_unsubscribe(subscription._id)
        if self.is_connected:
            await self.flush()
        await subscription._pending_queue.join()

    def forget_subscription(self, subscription: Subscription) -> None:
        """Leave nothing of it behind."""
        subscription._closed = True
        subscription._stop_processing()
        self._remove_sub(subscription._id)

    async def _send_publish(
        self, subject: str, reply: str, payload: bytes, payload_size: int, headers: dict[str, str] | None
    ) -> None:
        """Write the headers as they are; the client's own looks at each for what ours never hold."""
        if not headers:
            await super()._send_publish(subject, reply, payload, payload_size, None)
            return
        block = "NATS/1.0\r\n" + "".join([f"{name}: {value}\r\n" for name, value in headers.items()]) + "\r\n"
        lines = len(headers) + 2
        if block.count("\r") != lines or block.count("\n") != lines:  # A line break within: the client repairs it.
            await super()._send_publish(subject, reply, payload, payload_size, headers)
            return
        await self._send_command(hpub_cmd(subject, reply, block.encode(), payload))
        if self._flush_queue is not None and self._flush_queue.empty():
            await self._flush_pending()

    # The client's own spends 2 µs a header on checks that the server has made.
    @staticmethod
    def _parse_header_lines(raw: bytes) -> dict[str, str]:
        headers = {}
        for line in raw.decode("utf-8", "replace").split("\r\n"):
            name, colon, value = line.partition(":")
            if colon:
                headers[name] = value.strip()
        return headers


@contextmanager
def _heeding_cancellation() -> Iterator[None]:
    """Raise a cancellation that arrived within and was swallowed there."""
    task = asyncio.current_task()
    before = task.cancelling() if task is not None else 0
    yield
    if task is not None and task.cancelling() > before:
        raise asyncio.CancelledError


@dataclass(frozen=True, slots=True)
class Answer:
    """What came back for a call."""

    headers: Mapping[str, str]
    body: bytes

    @property
    def status(self) -> str | None:
        """Inline status (``404``, ``503``…)."""
        return self.headers.get("Status")


def redact(url: str) -> str:
    """Show where a URL points without its credentials."""
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.hostname}:{parts.port or 4222}"


class Connection:
    """One connection to NATS."""

    def __init__(self, servers: list[str], options: Mapping[str, object], tls: ssl.SSLContext | None) -> None:
        self.client = _Client()
        self.shown = ", ".join(redact(server) for server in servers)
        self._servers = servers
        self._options = dict(options)
        if tls is not None:
            self._options["tls"] = tls
        self.connected = asyncio.Event()
        self.closed: asyncio.Future[None] | None = None
        self.reconnects = 0
        self._tokens = itertools.count()
        self._waiting: dict[str, asyncio.Future[Answer | None]] = {}
        self._inbox = ""
        self._resolved = asyncio.Event()  # Connected, or closed for good.
        self._on_reconnect: list[Callable[[], None]] = []
        self._last_error = ""

    async def open(self, connect_wait: float, ping_interval: float) -> None:
        """Connect.

        Args:
            connect_wait: Seconds to try.
            ping_interval: Seconds between signs of life; after two that the server missed, it reconnects.

        Raises:
            BrokerUnavailableError: Not within ``connect_wait`` seconds.
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
            async with asyncio.timeout(connect_wait):
                with _heeding_cancellation():
                    await self.client.connect(self._servers, **options)  # type: ignore[arg-type]  # options are ours
        except TimeoutError:
            await self.close()
            reason = f": {self._last_error}" if self._last_error else ""
            raise BrokerUnavailableError(f"no NATS server answers at {self.shown}{reason}") from None
        except (nats.errors.Error, OSError, ValueError) as error:
            await self.close()
            raise BrokerUnavailableError(f"cannot connect to NATS at {self.shown}: {error}") from error
        except BaseException:
            await self.close()
            raise
        self._inbox = self.client.new_inbox()
        await self.client.subscribe(f"{self._inbox}.*", cb=self._answer)
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
        try:
            await self.client.flush()
        except nats.errors.Error as error:
            raise self._unavailable(error) from error

    async def subscribe(
        self, subject: str, callback: Callable[[Msg], Awaitable[None]], queue: str = ""
    ) -> Subscription:
        """Subscribe; active on the server when this returns, or gone when it raises."""
        try:
            subscription = await self.client.subscribe(subject, queue=queue, cb=callback)
        except nats.errors.Error as error:
            raise self._unavailable(error) from error
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
        text = str(error) or type(error).__name__
        if text != self._last_error:
            self._last_error = text
            logger.warning("NATS at %s: %s", self.shown, text)

    async def _note_disconnect(self) -> None:
        if self.connected.is_set():
            logger.warning("lost NATS at %s; reconnecting", self.shown)
        self.connected.clear()
        self._resolved.clear()
        self.client.fail_flushes()

    async def _note_reconnect(self) -> None:
        self.reconnects += 1
        self._last_error = ""
        logger.warning("NATS at %s is back", self.shown)
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

    def _fail_waiting(self) -> None:
        """Tell every waiting call that its answer may have been lost."""
        for waiting in list(self._waiting.values()):
            if not waiting.done():
                waiting.set_result(None)

    async def _answer(self, message: Msg) -> None:
        waiting = self._waiting.get(message.subject.rpartition(".")[2])
        if waiting is not None and not waiting.done():
            waiting.set_result(Answer(message.headers or {}, message.data))

    async def send(self, subject: str, body: bytes, headers: dict[str, str] | None = None, reply: str = "") -> None:
        """Send without confirmation.

        Raises:
            BrokerUnavailableError: There is no connection.
        """
        try:
            await self.client.publish(subject, body, reply, headers)
        except nats.errors.Error as error:
            raise self._unavailable(error) from error

    def _unavailable(self, error: Exception | None = None) -> BrokerUnavailableError:
        reason = f": {error}" if error is not None and str(error) else ""
        return BrokerUnavailableError(f"NATS at {self.shown} is not reachable{reason}")

    async def call(
        self, subject: str, body: bytes, headers: dict[str, str] | None = None, *, repeat: bool = True
    ) -> Answer:
        """Send and wait for the answer; the caller bounds it in time.

        Args:
            subject: Where to.
            body: The request.
            headers: Its headers.
            repeat: After a reconnect, send again; else raise, since the outcome is unknown.

        Raises:
            BrokerUnavailableError: The connection is closed, or broke and ``repeat`` is off.
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
            try:
                try:
                    await self.client.publish(subject, body, f"{self._inbox}.{token}", headers)
                except nats.errors.OutboundBufferLimitError:
                    pass  # The connection is lost, but not yet reported; its return resolves the future.
                except nats.errors.Error as error:
                    raise self._unavailable(error) from error
                answer = await waiting
            finally:
                del self._waiting[token]
            if answer is not None:
                return answer
            if self.client.is_closed or not repeat:
                raise self._unavailable()

    async def api(self, subject: str, request: JSON | None = None) -> JSON:
        """Call the JetStream API; give its JSON answer, errors included."""
        body = b"" if request is None else orjson.dumps(request)
        while True:
            answer = await self.call(f"$JS.API.{subject}", body)
            if answer.status != "503":
                return cast("JSON", orjson.loads(answer.body))
            await asyncio.sleep(STARTING_WAIT)  # JetStream is still starting behind the server.

    async def store(self, subject: str, body: bytes, headers: dict[str, str] | None, *, repeat: bool = True) -> JSON:
        """Publish into a stream; return its PubAck.

        Raises:
            PublishRejectedError: The server said no; ``args[1]`` is its error.
        """
        while (answer := await self.call(subject, body, headers, repeat=repeat)).status == "503":
            await self._check_stored(subject)
            await asyncio.sleep(STARTING_WAIT)
        ack = cast("JSON", orjson.loads(answer.body))
        if "error" in ack:
            error = cast("JSON", ack["error"])
            raise StoreRefusedError(str(error.get("description")), cast("int", error.get("err_code", 0)))
        return ack

    async def _check_stored(self, subject: str) -> None:
        """Tell a stream that is still starting from one that does not exist."""
        found = await self.api("STREAM.NAMES", {"subject": subject})
        if "error" not in found and not found.get("streams"):
            raise PublishRejectedError(f"no stream on NATS at {self.shown} takes {subject}: it was never declared")


class StoreRefusedError(PublishRejectedError):
    """A PublishRejectedError that keeps the server's error code."""

    def __init__(self, description: str, err_code: int) -> None:
        self.err_code = err_code
        super().__init__(f"NATS refused to store it: {description}")


def check_api(answer: JSON, what: str) -> JSON:
    """Return a JetStream API answer, or raise its error."""
    if "error" in answer:
        error = cast("JSON", answer["error"])
        raise BrokerError(f"{what}: {error.get('description')}")
    return answer
