"""The connection: nats-py, with confirmed calls over one inbox that survive a reconnect."""

from __future__ import annotations

import asyncio
import itertools
import logging
import ssl
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import cast
from urllib.parse import urlsplit

import nats.errors
import orjson
from nats.aio.client import Client
from nats.aio.msg import Msg

from mesh.errors import BrokerError, BrokerUnavailableError, PublishRejectedError

__all__ = ["Answer", "Connection", "redact"]

logger = logging.getLogger("brokers.nats")

RECONNECT_WAIT = 0.1
STARTING_WAIT = 0.1
MAX_BUFFERED_BYTES = 16 * 1024 * 1024
JSON = dict[str, object]


class _Client(Client):
    """nats-py with a header parser that does only what NATS headers need.

    The client's own spends 2 µs a header on checks that the server has made; half of a delivery's
    budget. ``tests/unit/test_nats_client.py`` holds this against the installed client's.
    """

    @staticmethod
    def _parse_header_lines(raw: bytes) -> dict[str, str]:
        headers = {}
        for line in raw.decode("utf-8", "replace").split("\r\n"):
            name, colon, value = line.partition(":")
            if colon:
                headers[name] = value.strip()
        return headers


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
        self.client: Client = _Client()
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
        self._on_reconnect: list[Callable[[], None]] = []
        self._last_error = ""

    async def open(self, connect_wait: float) -> None:
        """Connect.

        Raises:
            BrokerUnavailableError: Not within ``connect_wait`` seconds.
        """
        self.closed = asyncio.get_running_loop().create_future()
        options = {
            "max_reconnect_attempts": -1,
            "reconnect_time_wait": RECONNECT_WAIT,
            "pending_size": MAX_BUFFERED_BYTES,
            "error_cb": self._note_error,
            "disconnected_cb": self._note_disconnect,
            "reconnected_cb": self._note_reconnect,
            "closed_cb": self._note_close,
            **self._options,
        }
        try:
            async with asyncio.timeout(connect_wait):
                await self.client.connect(self._servers, **options)  # type: ignore[arg-type]  # options are ours
        except TimeoutError:
            await self.close()
            reason = f": {self._last_error}" if self._last_error else ""
            raise BrokerUnavailableError(f"no NATS server answers at {self.shown}{reason}") from None
        except (nats.errors.Error, OSError, ValueError) as error:
            await self.close()
            raise BrokerUnavailableError(f"cannot connect to NATS at {self.shown}: {error}") from error
        self._inbox = self.client.new_inbox()
        await self.client.subscribe(f"{self._inbox}.*", cb=self._answer)
        self.connected.set()

    async def close(self) -> None:
        """Flush and close; idempotent."""
        self.connected.clear()
        if not self.client.is_closed:
            await self.client.close()
        self._fail_waiting()

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

    async def _note_reconnect(self) -> None:
        self.reconnects += 1
        self._last_error = ""
        logger.warning("NATS at %s is back", self.shown)
        self.connected.set()
        self._fail_waiting()
        for callback in self._on_reconnect:
            callback()

    async def _note_close(self) -> None:
        self.connected.clear()
        self._fail_waiting()
        if self.closed is not None and not self.closed.done():
            self.closed.set_result(None)

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
                if self.client.is_closed:
                    raise self._unavailable()
                await self.connected.wait()
            token = str(next(self._tokens))
            waiting = self._waiting[token] = loop.create_future()
            try:
                await self.send(subject, body, headers, f"{self._inbox}.{token}")
                answer = await waiting
            finally:
                del self._waiting[token]
            if answer is None:
                if self.client.is_closed or not repeat:
                    raise self._unavailable()
                continue
            if answer.status == "503":  # JetStream is still starting behind the server.
                await asyncio.sleep(STARTING_WAIT)
                continue
            return answer

    async def api(self, subject: str, request: JSON | None = None) -> JSON:
        """Call the JetStream API; give its JSON answer, errors included."""
        body = b"" if request is None else orjson.dumps(request)
        answer = await self.call(f"$JS.API.{subject}", body)
        return cast("JSON", orjson.loads(answer.body))

    async def store(self, subject: str, body: bytes, headers: dict[str, str] | None, *, repeat: bool = True) -> JSON:
        """Publish into a stream; return its PubAck.

        Raises:
            PublishRejectedError: The server said no; ``args[1]`` is its error.
        """
        answer = await self.call(subject, body, headers, repeat=repeat)
        ack = cast("JSON", orjson.loads(answer.body))
        if "error" in ack:
            error = cast("JSON", ack["error"])
            raise StoreRefusedError(str(error.get("description")), cast("int", error.get("err_code", 0)))
        return ack


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
