"""How the native layout reaches Pulsar: its client library, and what that does not do itself."""

from __future__ import annotations

import asyncio
import logging
import os
import secrets
import shutil
from collections import OrderedDict
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from tempfile import gettempdir
from typing import TYPE_CHECKING, Any, TypeVar
from weakref import WeakValueDictionary

import pulsar
import pulsar.asyncio
from pulsar import Result
from pulsar.asyncio import PulsarException

from brokers.native._pulsar_settings import COMPRESSIONS, PulsarSettings, Tokens, read
from brokers.shared.backoff import waits
from brokers.shared.errors import NotAdmittedError, unavailable
from brokers.shared.outage import Outage
from brokers.shared.settings import shown_hosts
from mesh.errors import PublishRejectedError
from mesh.resources.component import Component
from mesh.tasks import task_group

if TYPE_CHECKING:
    from brokers.native._pulsar_schemas import TopicSchema

__all__ = ["Client"]

logger = logging.getLogger("brokers.pulsar")

OPERATION_SECONDS = 10  # The library tries anew for so long, before it says what is wrong.
LOOK_SECONDS = 1.0
CLOSE_SECONDS = 5.0
MAX_PRODUCERS = 1000  # Beyond, the one that was used least recently is closed.
MAX_VERSIONS = 1000  # Of schemas; beyond, the one that was used least recently is asked for again.
HANG_UP_SECONDS = 0.3
PEM = "-----BEGIN"
UNWELCOME = frozenset((Result.AuthenticationError, Result.ErrorGettingAuthenticationData))
# What another attempt would not change; all else passes with a connection, or a broker that takes a topic over.
LASTING = UNWELCOME | {
    getattr(Result, name)
    for name in (
        *("AuthorizationError", "ChecksumError", "ConsumerAssignError", "ConsumerBusy", "CryptoError"),
        *("IncompatibleSchema", "InvalidConfiguration", "InvalidMessage", "InvalidTopicName", "InvalidUrl"),
        *("MessageTooBig", "NotAllowedError", "OperationNotSupported", "ProducerBlockedQuotaExceededError"),
        *("ProducerBlockedQuotaExceededException", "ProducerFenced", "SubscriptionNotFound", "TopicNotFound"),
        *("TopicTerminated", "UnsupportedVersionError"),
    )
}
_T = TypeVar("_T")


class Client:
    """The library's client, and what it lacks: what it loses is told, and what fails meanwhile is done again.

    Attributes:
        settings: What the component says.
        shown: Where it points.
    """

    def __init__(
        self,
        settings: PulsarSettings,
        scheme: str,
        hosts: tuple[tuple[str, int], ...],
        connect_wait: float,
        schemas: Mapping[str, TopicSchema],
    ) -> None:
        """Prepare.

        Args:
            settings: Of the component.
            scheme: Of the URL.
            hosts: Of brokers, or of proxies before them.
            connect_wait: Seconds that the first attempt to connect may take.
            schemas: Of topics, by their full names.
        """
        self.settings, self._hosts, self._connect_wait = settings, hosts, connect_wait
        self._schemas = schemas
        self._versions: OrderedDict[tuple[str, int], Any] = OrderedDict()
        self.shown = f"{scheme}://{shown_hosts(hosts)}"
        self.outage = Outage(logger, "Pulsar", self.shown)
        self._client: Any = None
        self._open = False
        self._crypto: Any = None
        self._producers: OrderedDict[tuple[str, bool], Any] = OrderedDict()  # And whether each message goes alone.
        self._locks: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()
        self._consumers: set[Any] = set()

    @classmethod
    def from_component(cls, component: Component) -> Client:
        """Read the settings; raises ``ConfigError`` with every one that is wrong, located."""
        return cls(*read(component))

    def _made(self, directory: Path) -> Any:
        """Make the library's client; it reads files."""
        found = self.settings

        def file_of(name: str, text: str | None) -> str:
            if text is None or PEM not in text:
                return text or ""
            directory.mkdir(0o700, exist_ok=True)
            path = directory / name
            path.touch(0o600)
            path.write_text(text)
            return str(path)

        login = found.token if found.token else Tokens(found) if found.token_url or found.credentials else None
        if found.public_key or found.private_key:
            keys = file_of("public", found.public_key), file_of("private", found.private_key)
            self._crypto = pulsar.CryptoKeyReader(*keys)
        return pulsar.asyncio.Client(
            self.shown,
            authentication=None if login is None else pulsar.AuthenticationToken(login),
            operation_timeout_seconds=OPERATION_SECONDS,
            connection_timeout_ms=int(self._connect_wait * 1000),
            tls_trust_certs_file_path=file_of("ca", found.ca) or None,
            tls_validate_hostname=True,
            listener_name=found.listener,
            stats_interval_in_seconds=0,
            logger=pulsar.FileLogger(pulsar.LoggerLevel.Error, os.devnull),  # Else it writes to standard output.
        )

    @asynccontextmanager
    async def connected(self) -> AsyncIterator[None]:
        """Connect, and close.

        Raises:
            BrokerUnavailableError: There is nobody, or it does not let this node in.
        """
        async with _directory() as directory:
            self._client = await asyncio.to_thread(self._made, directory)
            try:
                await self._first()
                async with task_group() as tasks:
                    watching = tasks.create_task(self._watch(), name="pulsar-watch")
                    self._open = True
                    try:
                        yield
                    finally:
                        self._open = False
                        watching.cancel()
            finally:
                with suppress(TimeoutError, PulsarException):
                    async with asyncio.timeout(CLOSE_SECONDS):
                        await self._client.close()

    async def _first(self) -> None:
        try:
            async with asyncio.timeout(self._connect_wait):
                await self.ask()
        except (PulsarException, TimeoutError) as error:
            made = unavailable(f"Pulsar at {self.shown}", await self._why(error))
            refused = isinstance(error, PulsarException) and error.error() in UNWELCOME
            raise (NotAdmittedError(str(made)) if refused else made) from error

    async def _why(self, error: Exception) -> Exception:
        """Say why nobody answered: the library tries until its time is over, and has forgotten it then."""
        host, port = self._hosts[0]
        try:
            async with asyncio.timeout(HANG_UP_SECONDS):
                reader, writer = await asyncio.open_connection(host, port)
                try:
                    if not await reader.read(1):
                        return ConnectionError("it hangs up")
                finally:
                    writer.close()
        except TimeoutError:
            return error
        except OSError as refused:
            return refused
        return error

    async def ask(self) -> None:
        """Ask the broker for something; raises what the library raises."""
        try:
            await self._client.get_topic_partitions(self.settings.topic("mesh-check"))
        except PulsarException as error:
            if error.error() not in LASTING - UNWELCOME:  # That it is not for us to know is an answer too.
                raise

    async def _watch(self) -> None:
        """Look for connections that are lost, and back."""
        while True:
            await asyncio.sleep(LOOK_SECONDS)
            away = [each for each in (*self._producers.values(), *self._consumers) if not _is_connected(each)]
            if away:
                self.outage.lost("it does not answer", self)
            else:
                self.outage.back(self)

    async def until_done(self, ask: Callable[[], Awaitable[_T]]) -> _T:
        """Do something until it is done, or refused for good; the caller bounds it in time.

        Raises:
            BrokerUnavailableError: The client was closed.
            PulsarException: It is refused.
        """
        key = object()
        try:
            for wait in waits():
                try:
                    result = await ask()
                except PulsarException as error:
                    if error.error() in LASTING:
                        raise
                    if error.error() not in (Result.ProducerQueueIsFull, Result.MemoryBufferIsFull):
                        self.outage.lost(error, key)
                else:
                    self.outage.back(key)
                    return result
                if not self._open:
                    break
                await asyncio.sleep(wait)
        finally:
            self.outage.forget(key)
        raise unavailable(f"Pulsar at {self.shown}")

    async def producer(self, topic: str, *, alone: bool = False) -> Any:
        """Give a topic's producer; made when it is asked for first, or was lost for good.

        Args:
            topic: Whose.
            alone: Whether each message goes by itself whatever the settings say.
        """
        found = self.settings
        key = topic, found.unbatched or alone
        if (known := self._producers.get(key)) is not None:
            self._producers.move_to_end(key)
            return known
        lock = self._locks.setdefault(topic, asyncio.Lock())
        async with lock:
            if key in self._producers:
                return self._producers[key]
            made = await self._client.create_producer(
                topic,
                schema=self._schemas.get(topic),
                batching_enabled=not (found.unbatched or alone),
                batching_type=pulsar.BatchingType.KeyBased,  # Of several keys in one, key_shared heeds the first alone.
                batching_max_messages=found.batch_messages,
                batching_max_allowed_size_in_bytes=found.batch_size,
                batching_max_publish_delay_ms=max(1, int(found.batch_delay * 1000)),
                compression_type=COMPRESSIONS[found.compression],
                encryption_key=found.keys,
                crypto_key_reader=self._crypto,
            )
            self._producers[key] = made
        if len(self._producers) > MAX_PRODUCERS:
            await self._closed(self._producers.popitem(last=False)[1])
        return made

    async def send(self, topic: str, body: bytes, **more: Any) -> None:
        """Send once; raises what the library raises."""
        # What is delayed overtakes the batch of its producer: a broker that deduplicates then takes that for a repeat.
        alone = more.get("deliver_at") is not None
        producer = await self.producer(topic, alone=alone)
        try:
            await producer.send(body, **more)
        except PulsarException as error:
            if error.error() in (Result.AlreadyClosed, Result.ProducerNotInitialized):
                self._producers.pop((topic, self.settings.unbatched or alone), None)
            raise

    async def partitions(self, topic: str) -> list[str]:
        """Give the names of a topic's partitions; its own, if it has none."""
        return list(await self._client.get_topic_partitions(topic))

    def written(self, topic: str, body: bytes) -> bytes:
        """Give what is sent to a topic.

        Raises:
            PublishRejectedError: It is not of the topic's schema.
        """
        schema = self._schemas.get(topic)
        try:
            return body if schema is None else schema.written(body)
        except (ValueError, RecursionError) as error:
            raise PublishRejectedError(f"the event is not of the schema of {topic}: {error}") from error

    async def body(self, topic: str, found: Any) -> bytes:
        """Give a message's payload; JSON for Avro, and what cannot be read as it is."""
        body: bytes = found.data()
        schema = self._schemas.get(topic)
        version = found._message.int_schema_version()  # The text that the library gives of it is no number.
        if schema is None or not schema.is_avro or version < 0:
            return body
        try:
            return schema.read(body, await self._version(topic, version))
        except (PulsarException, ValueError, RecursionError) as error:
            logger.warning("an event of %s cannot be read by version %d of its schema: %s", topic, version, error)
            return body

    async def _version(self, topic: str, version: int) -> Any:
        """Give a version of a topic's schema: one that wrote a message, which need not be ours."""
        key = topic, version
        if key not in self._versions:
            text = await self.until_done(lambda: self._schema_text(topic, version))
            self._versions[key] = self._schemas[topic].parse(text)
            if len(self._versions) > MAX_VERSIONS:
                self._versions.popitem(last=False)
        self._versions.move_to_end(key)
        return self._versions[key]

    async def _schema_text(self, topic: str, version: int) -> str:
        ask = self._client._client.get_schema_info  # The asyncio classes do not have it.
        try:
            return str((await asyncio.to_thread(ask, topic, version)).schema())
        except pulsar.PulsarException as error:
            raise PulsarException(getattr(Result, type(error).__name__, Result.UnknownError)) from error

    async def consumer(self, name: str, topic: str, group: str, options: Mapping[str, Any]) -> Any:
        """Take part in a group, on one partition of a topic; raises what the library raises."""
        made = await self._client.subscribe(
            name,
            group,
            schema=self._schemas.get(topic),
            # Where brokers keep what was acknowledged of a batch, only the rest of it comes again.
            batch_index_ack_enabled=True,
            replicate_subscription_state_enabled=self.settings.replicate,
            crypto_key_reader=self._crypto,
            **options,
        )
        self._consumers.add(made)
        return made

    async def leave(self, consumer: Any) -> None:
        """Close a consumer; what it has not settled goes to others."""
        self._consumers.discard(consumer)
        await self._closed(consumer)

    async def _closed(self, each: Any) -> None:
        with suppress(PulsarException, TimeoutError):
            async with asyncio.timeout(CLOSE_SECONDS):
                await each.close()


@asynccontextmanager
async def _directory() -> AsyncIterator[Path]:
    """Name a directory for keys, which the library reads from files; it is made when there are some."""
    path = Path(gettempdir(), f"brokermesh-{secrets.token_hex(16)}")
    try:
        yield path
    finally:
        await asyncio.to_thread(shutil.rmtree, path, ignore_errors=True)


def _is_connected(each: Any) -> bool:
    """Tell whether a producer or a consumer is; the library's asyncio classes do not say so of consumers."""
    inner = getattr(each, "_producer", None) or each._consumer
    return bool(inner.is_connected())
