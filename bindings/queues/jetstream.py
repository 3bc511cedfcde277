"""``bindings.jetstream``: messages of a stream of NATS.

A reading is a durable pull consumer. Each message is acknowledged once it was taken, and the server is told that it is
at work while that takes; one that was not taken is given back, to come again after a while.
"""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any, ClassVar
from urllib.parse import unquote, urlsplit

import nats.errors
from nats.aio.client import Client, RawCredentials
from nats.aio.msg import Msg
from nats.js import JetStreamContext
from nats.js.api import AckPolicy, ConsumerConfig, DeliverPolicy
from nats.js.errors import NotFoundError

from bindings.queues._access import tls_of
from bindings.queues._reading import first_error, reading_by
from mesh.adapter import ComponentAdapter
from mesh.blocks.binding_contract import BindingError, BindingEvent, Invoke, Reading
from mesh.errors import MeshError
from mesh.registry import needs
from mesh.resources.settings import DURATION, VERBATIM, Kind, choice, setting, whole
from mesh.tasks import heeding_cancellation, task_group

__all__ = ["JetStreamBinding"]

logger = logging.getLogger(__name__)

CONNECT_SECONDS, CLOSE_SECONDS, CALL_SECONDS = 10.0, 5.0, 10.0
FETCH_SECONDS = 2.0  # Whoever leaves waits as long.
PING_SECONDS = 10
RECONNECT_SECONDS = 1
LONGEST_DELAY = 30.0
CREDENTIALS = """-----BEGIN NATS USER JWT-----
{jwt}
------END NATS USER JWT------

-----BEGIN USER NKEY SEED-----
{seed}
------END USER NKEY SEED------
"""
DEFAULT_PORT = 4222
SHAPE = "is nats://[user:password@]host[:port][,…], or tls://…"
_NO_NAME = re.compile(r"[^A-Za-z0-9_-]")
_FAILURES = (nats.errors.Error, OSError)


@dataclass(frozen=True, slots=True)
class Servers:
    """The servers of one cluster.

    Attributes:
        urls: Without credentials.
        user: Who we are; without a password it is a token.
        password: Its proof.
    """

    urls: tuple[str, ...]
    user: str | None = None
    password: str | None = field(default=None, repr=False)


def _servers(text: str) -> Servers:
    """Read URLs; their text may hold a password, so no error shows it. The client itself decodes no credentials."""
    urls, user, password = [], None, None
    for each in text.split(","):
        try:
            parts = urlsplit(each.strip())
            port = parts.port or DEFAULT_PORT
        except ValueError:
            raise ValueError(SHAPE) from None
        if parts.scheme not in ("nats", "tls") or not parts.hostname or parts.path.strip("/"):
            raise ValueError(SHAPE)
        host = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
        urls.append(f"{parts.scheme}://{host}:{port}")
        if parts.username:
            user, password = unquote(parts.username), None if parts.password is None else unquote(parts.password)
    return Servers(tuple(urls), user, password)


def _deliveries(text: str) -> int:
    return -1 if text == "-1" else whole(1).parse(text)  # type: ignore[return-value]


@dataclass(frozen=True, slots=True)
class JetStreamBindingSettings:
    """What is read of a component."""

    servers: Servers = setting(  # noqa: RUF009 - a frozen value
        "natsURL",
        "The servers: `nats://user:password@host:port`, several with commas between; `tls://…` with TLS.",
        Kind("URL of NATS", _servers),
        required=True,
        secret=True,
        example="nats://localhost:4222",
    )
    subject: str = setting(
        "subject", "The subject to read, with `*` and `>`, and to write to.", required=True, example="orders.*"
    )
    stream: str = setting(
        "streamName", "The stream; if not set, the one that has the subject.", default="", example="ORDERS"
    )
    durable: str = setting(
        "durableName",
        "The consumer, which is made if it is not there; if not set, each application has one, by its app id.",
        default="",
        example="shop",
    )
    policy: str = setting("deliverPolicy", "Where a new consumer begins.", choice("all", "last", "new"), default="all")
    ack_wait: float = setting(
        "ackWait", "Time after which a message comes again when its reader is gone.", DURATION, default=30.0
    )
    deliveries: int = setting(
        "maxDeliver",
        "How often a message is handed over at most; -1 = until it is taken.",
        Kind("whole number from 1 on, or -1", _deliveries),
        default=-1,
    )
    at_once: int = setting(
        "maxAckPending", "How many messages are at work at once, on all hosts.", whole(1), default=1000
    )
    concurrency: str = setting(
        "concurrency",
        "Whether a reader hands over one message at a time, or ten.",
        choice("parallel", "single"),
        default="parallel",
    )
    name: str = setting("name", "The connection's name in the server's reports.", default="brokermesh")
    token: str = setting("token", "The server's token, if it asks for one.", VERBATIM, default="", secret=True)
    jwt: str = setting("jwt", "A user's JWT; `seedKey` goes with it.", default="", secret=True)
    seed: str = setting("seedKey", "The private nkey of the user; `jwt` goes with it.", default="", secret=True)
    ca: str = setting("tls_ca_cert", "Whom to trust, a path or a PEM text.", default="", example="ca.pem")
    certificate: str = setting(
        "tls_client_cert", "The client's certificate, a path or a PEM text.", default="", example="client.pem"
    )
    key: str = setting("tls_client_key", "Its private key, a path or a PEM text.", VERBATIM, default="", secret=True)


class _Client(Client):
    """nats-py, where its own way would cost us what we read, or a secret."""

    async def _process_headers(self, headers: bytes) -> dict[str, str] | None:
        """Have no headers in a message that cannot be read: the client's own ends its reader by it, silently."""
        try:
            return await super()._process_headers(headers)
        except (IndexError, ValueError):
            return None

    async def _process_info(self, info: dict[str, Any], initial_connection: bool = False) -> None:
        """Have TLS where it is asked for; the client's own goes by the server, or by who speaks in its place."""
        if initial_connection and self.options.get("tls") is not None:
            if not (info.get("tls_required") or info.get("tls_available")):
                raise nats.errors.SecureConnWantedError
            info["tls_required"] = True
        await super()._process_info(info, initial_connection)


class JetStreamBinding(ComponentAdapter):
    """A stream of NATS."""

    title = "Reads and writes streams of NATS (JetStream)."
    tested = "nats-server 2.12 and later"
    settings: ClassVar[type[JetStreamBindingSettings]] = JetStreamBindingSettings
    operations = ("create",)

    def __init__(self, settings: JetStreamBindingSettings) -> None:
        """Prepare."""
        super().__init__(settings)
        self._options: dict[str, Any] = {}
        self._connecting = asyncio.Lock()
        self._client: Client | None = None

    async def _enter(self) -> None:
        """Read certificates; the server is connected to when it is needed."""
        settings: JetStreamBindingSettings = self._settings
        if bool(settings.jwt) != bool(settings.seed):
            raise self._problem("jwt and seedKey go together", "jwt" if settings.jwt else "seedKey")
        self._options = {"name": settings.name}
        if settings.jwt:
            try:
                import nkeys  # noqa: F401 - the client imports it when it connects
            except ModuleNotFoundError as error:
                raise needs("NATS with a JWT", "nkeys") from error
            credentials = CREDENTIALS.format(jwt=settings.jwt, seed=settings.seed)
            self._options["user_credentials"] = RawCredentials(credentials)
        servers = settings.servers
        if servers.password is not None:
            self._options |= {"user": servers.user, "password": servers.password}
        elif token := settings.token or servers.user:
            self._options["token"] = token
        given = settings.ca, settings.certificate, settings.key
        if any(given) or any(each.startswith("tls://") for each in settings.servers.urls):
            try:
                self._options["tls"] = await asyncio.to_thread(tls_of, *given)
            except ValueError as error:
                raise self._problem(str(error), "tls_client_cert") from None
        self._stack.push_async_callback(self._close)

    async def _close(self) -> None:
        client, self._client = self._client, None
        if client is not None:
            with suppress(TimeoutError, *_FAILURES):
                async with asyncio.timeout(CLOSE_SECONDS):
                    await client.close()

    @contextmanager
    def _errors(self, what: str) -> Iterator[None]:
        try:
            yield
        except NotFoundError as error:
            raise BindingError(f"NATS: {what}: {error.description or 'no stream has the subject'}") from error
        except nats.errors.NoRespondersError as error:
            raise BindingError(f"NATS: {what}: no stream has the subject", retryable=True) from error
        except TimeoutError:
            raise BindingError(f"NATS does not answer in time: {what}", retryable=True) from None
        except _FAILURES as error:
            raise BindingError(f"NATS: {what}: {error}", retryable=True) from error

    async def _connected(self) -> JetStreamContext:
        """Give the connection, made when it is needed first; it comes back by itself after that."""
        settings: JetStreamBindingSettings = self._settings
        async with self._connecting:
            if self._client is None or self._client.is_closed:
                client = _Client()

                async def failed(error: Exception) -> None:
                    if self._client is not client:
                        raise error  # The first connection; the client itself would try for ever.
                    logger.debug("binding %s: NATS: %s", self._component and self._component.name, error)

                try:
                    async with asyncio.timeout(CONNECT_SECONDS):
                        await client.connect(
                            list(settings.servers.urls),
                            max_reconnect_attempts=-1,
                            reconnect_time_wait=RECONNECT_SECONDS,
                            ping_interval=PING_SECONDS,
                            error_cb=failed,
                            **self._options,
                        )
                except BaseException:
                    await client.close()
                    raise
                self._client = client
            return self._client.jetstream(timeout=CALL_SECONDS)

    # Out

    async def invoke(self, asked: Invoke) -> None:
        """Write a message; the stream has it then."""
        settings: JetStreamBindingSettings = self._settings
        subject = asked.metadata.get("subject") or settings.subject
        if not subject or any(character in subject for character in "*> \t\r\n"):
            raise BindingError(f"the subject {subject!r} is one to read; metadata name one to write to as subject")
        headers = {name: value for name, value in asked.metadata.items() if name != "subject"}
        for name, value in headers.items():
            if not name.isascii() or any(character in name + value for character in "\r\n") or ":" in name:
                raise BindingError(f"the metadata {name!r} cannot be written as a header")
        with self._errors(f"nothing is written to {subject}"):
            stream = await self._connected()
            await stream.publish(subject, asked.data, headers=headers or None)

    # In

    @asynccontextmanager
    async def reading(self, reading: Reading) -> AsyncIterator[None]:
        """Take what the consumer has while it is entered."""
        async with reading_by(lambda *events: self._read(reading, *events)):
            yield

    async def _read(self, reading: Reading, connected: asyncio.Event, stopping: asyncio.Event) -> None:
        settings: JetStreamBindingSettings = self._settings
        durable = settings.durable or _NO_NAME.sub("_", f"{reading.component}-{reading.app_id}")
        with self._errors(f"{settings.subject} is not read"), first_error():
            context = await self._connected()
            stream = settings.stream or await context.find_stream_name_by_subject(settings.subject)
            ack_wait = await self._consumer(context, stream, durable)
            async with task_group() as tasks:
                count = 1 if settings.concurrency == "single" else 10
                for _ in range(count):
                    worker = _Worker(context, stream, durable, reading, ack_wait)
                    tasks.create_task(worker.run(stopping), name="jetstream-work")
                connected.set()

    async def _consumer(self, context: JetStreamContext, stream: str, durable: str) -> float:
        """Make the consumer, unless it is there: then it is used as it is; give its time to acknowledge."""
        settings: JetStreamBindingSettings = self._settings
        try:
            info = await context.consumer_info(stream, durable)
        except NotFoundError:
            wanted = ConsumerConfig(
                durable_name=durable,
                filter_subject=settings.subject,
                deliver_policy=DeliverPolicy(settings.policy),
                ack_policy=AckPolicy.EXPLICIT,
                ack_wait=settings.ack_wait,
                max_deliver=settings.deliveries,
                max_ack_pending=settings.at_once,
            )
            info = await context.add_consumer(stream, wanted)
        return info.config.ack_wait or settings.ack_wait


class _Worker:
    """Takes one message after the other."""

    def __init__(self, context: JetStreamContext, stream: str, durable: str, reading: Reading, ack_wait: float) -> None:
        self._context, self._stream, self._durable = context, stream, durable
        self._reading, self._ack_wait = reading, ack_wait

    async def run(self, stopping: asyncio.Event) -> None:
        """Work until it is told to stop; what it asked for by then is waited for: it may be on its way."""
        source = await self._context.pull_subscribe_bind(self._durable, self._stream)
        try:
            while not stopping.is_set():
                try:
                    with heeding_cancellation():  # The client would lose one that comes together with a message.
                        [message] = await source.fetch(1, timeout=FETCH_SECONDS)
                except nats.errors.TimeoutError:
                    continue
                await self._hand(message)
        finally:
            with suppress(*_FAILURES):
                await source.unsubscribe()

    async def _hand(self, message: Msg) -> None:
        event = BindingEvent(message.data, _told(message))
        async with task_group() as tasks:
            working = tasks.create_task(self._tell(message), name="jetstream-tell")
            try:
                await self._reading.handle(event)
            except MeshError as error:
                logger.debug("binding %s: a message was not taken: %s", self._reading.component, error)
                count = message.metadata.num_delivered
                await message.nak(delay=min(2.0 ** min(count - 1, 10), LONGEST_DELAY))
            else:
                await message.ack()
            working.cancel()

    async def _tell(self, message: Msg) -> None:
        """Say that it is at work, as long as that takes."""
        while True:
            await asyncio.sleep(self._ack_wait / 3)
            with suppress(*_FAILURES), heeding_cancellation():
                await message.in_progress()


def _told(message: Msg) -> Mapping[str, str]:
    sequence = message.metadata.sequence
    return {**(message.headers or {}), "subject": message.subject, "sequence": str(sequence.stream)}
