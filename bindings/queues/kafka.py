"""``bindings.kafka``: records of topics of Apache Kafka.

The records of a partition are handed over one after the other, and each is committed once it was taken. A group that
is new has its position committed before its first record, so that what comes meanwhile is not skipped by a restart.

Source: Dapr 1.18, the Kafka binding.
"""

from __future__ import annotations

import asyncio
import logging
import re
import ssl
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass
from typing import Any, ClassVar
from urllib.parse import quote_plus

from aiokafka import ConsumerRebalanceListener
from aiokafka.coordinator.assignors.range import RangePartitionAssignor
from aiokafka.coordinator.assignors.roundrobin import RoundRobinPartitionAssignor
from aiokafka.coordinator.assignors.sticky.sticky_assignor import StickyPartitionAssignor
from aiokafka.errors import CommitFailedError, IllegalStateError, KafkaError, UnknownTopicOrPartitionError

from bindings.queues._access import hosts_of, tls_of
from bindings.queues._reading import first_error, growing, handed, reading_by
from brokers.clients.kafka import AIOKafkaConsumer, AIOKafkaProducer
from brokers.clients.msk import AWS_IAM, MSKSettings, iam_tokens, wrong_settings
from mesh.adapter import ComponentAdapter
from mesh.blocks.binding_contract import BindingError, BindingEvent, Invoke, Reading
from mesh.errors import MeshError
from mesh.resources.settings import (
    BOOLEAN,
    DURATION,
    VERBATIM,
    Kind,
    Setting,
    choice,
    ignored,
    lasting,
    refused,
    setting,
    whole,
)
from mesh.tasks import task_group
from mesh.values import parse_whole

__all__ = ["KafkaBinding"]

logger = logging.getLogger(__name__)

START_SECONDS, STOP_SECONDS, COMMIT_SECONDS, REQUEST_SECONDS = 30.0, 10.0, 10.0, 10.0
REVOKE_SECONDS = 5.0
REBALANCE_SECONDS = 30.0
LONGEST_WAIT = 5.0
AT_ONCE = 100
SESSION = lasting(24 * 3600.0)
NO_LIMIT_MS = 24 * 3600 * 1000  # Between two polls: how long an application takes is its own affair.
LEAST_LIMIT = 64 * 1024
MECHANISMS = {"PLAIN": "PLAIN", "PLAINTEXT": "PLAIN", "SHA-256": "SCRAM-SHA-256", "SHA-512": "SCRAM-SHA-512"}
MECHANISMS |= {name: name for name in ("SCRAM-SHA-256", "SCRAM-SHA-512")}
STRATEGIES = {"range": RangePartitionAssignor, "roundrobin": RoundRobinPartitionAssignor}
STRATEGIES |= {"sticky": StickyPartitionAssignor}
AUTH_TYPES = ("none", "password", "mtls", "certificate", AWS_IAM)

_library = logging.getLogger("aiokafka.cluster")
# It says many times a second that there is no such topic; the reading's error says it once.
_library.addFilter(lambda record: _library.isEnabledFor(logging.DEBUG))


def _topics(text: str) -> tuple[str, ...]:
    return tuple(filter(None, (each.strip() for each in text.split(","))))


def _pattern(text: str) -> re.Pattern[str]:
    try:
        return re.compile(text)
    except re.error as error:
        raise ValueError(f"is no regular expression: {error}") from None


@dataclass(frozen=True, slots=True)
class KafkaBindingSettings(MSKSettings):
    """What is read of a component."""

    ignored: ClassVar[tuple[Setting, ...]] = (
        *ignored("it is agreed with the broker", "version"),
        *ignored("a call is tried until its deadline", "producerRetryMax"),
        *ignored("a record waits for all replicas", "producerRequiredAcks", anyway=("all", "-1")),
        *ignored(
            "what is fetched is bounded by bytes, and the times are fixed",
            *("channelBufferSize", "consumerFetchMin", "consumerFetchDefault", "dialTimeout", "readTimeout"),
            *("writeTimeout", "clientConnectionTopicMetadataRefreshInterval", "clientConnectionKeepAliveInterval"),
        ),
        *refused(
            "OpenID Connect",
            *("oidcTokenEndpoint", "oidcClientID", "oidcClientSecret", "oidcScopes", "oidcExtensions"),
            *("oidcClientAssertionCert", "oidcClientAssertionKey", "oidcResource", "oidcAudience"),
        ),
        *refused(
            "Avro with a schema registry",
            *("schemaRegistryURL", "schemaRegistryAPIKey", "schemaRegistryAPISecret", "schemaCachingEnabled"),
            *("useAvroJson", "schemaLatestVersionCacheTTL"),
        ),
        *MSKSettings.ignored,
    )

    brokers: tuple[str, ...] = setting(
        "brokers",
        "Host and port of some brokers of the cluster, separated by commas.",
        Kind("host:port, or several with commas between", lambda text: hosts_of(text, 9092)),
        required=True,
        default=(),
        example="localhost:9092",
    )
    topics: tuple[str, ...] = setting(
        "topics",
        "The topics to read, separated by commas; without any nothing is read.",
        Kind("names, separated by commas", _topics),
        default=(),
        example="orders",
    )
    publish_topic: str = setting("publishTopic", "The topic that `create` writes to.", default="", example="orders")
    group: str = setting(
        "consumerGroup",
        "The consumer group; if not set, each application is one, by its app id.",
        default="",
        aliases=("consumerID",),
        example="shop",
    )
    initial: str = setting(
        "initialOffset", "Where a new group begins: `newest` or `oldest`.", choice("newest", "oldest"), default="newest"
    )
    retry: bool = setting(
        "consumeRetryEnabled",
        "Whether a record that the application refuses is handed over again until it is taken; with `false` it is "
        "passed over.",
        BOOLEAN,
        default=True,
    )
    interval: float = setting(
        "consumeRetryInterval", "Time before the second attempt; it grows to 5 s.", DURATION, default=0.1
    )
    auth: str = setting(
        "authType",
        "How to log in: `none`; `password`, by SASL and over TLS unless `disableTls`; `mtls` or `certificate`; "
        "`awsiam`, to Amazon MSK as an identity of AWS. If not set, `password` when there is a `saslUsername`.",
        default="",
        example="password",
    )
    auth_required: bool = setting(
        "authRequired", "An older way to say `password` in `authType`.", BOOLEAN, default=False
    )
    username: str = setting("saslUsername", "The user of SASL.", default="", example="shop")
    password: str = setting("saslPassword", "Its password.", VERBATIM, default="", secret=True)
    mechanism: str = setting(
        "saslMechanism", "`PLAIN`, `SCRAM-SHA-256` or `SCRAM-SHA-512`, also without `SCRAM-`.", default="PLAIN"
    )
    ca: str = setting("caCert", "Whom to trust, a PEM text or a path; then TLS is used.", default="", example="ca.pem")
    certificate: str = setting(
        "clientCert", "The client's certificate, a PEM text or a path.", default="", example="client.pem"
    )
    key: str = setting("clientKey", "Its private key, a PEM text or a path.", VERBATIM, default="", secret=True)
    unverified: bool = setting("skipVerify", "Whether to accept any certificate.", BOOLEAN, default=False)
    without_tls: bool = setting("disableTls", "Whether to do without TLS.", BOOLEAN, default=False)
    client_id: str = setting("clientID", "The connection's name in the broker's reports.", default="brokermesh")
    limit: int | None = setting(
        "maxMessageBytes",
        "The largest record, from 64 KiB on; smaller values are not applied. 1,000,000.",
        whole(),
        example="1000000",
    )
    compression: str = setting(
        "compression", "Of what is written.", choice("none", "gzip", "snappy", "lz4", "zstd"), default="none"
    )
    strategy: str = setting(
        "consumerGroupRebalanceStrategy",
        "How partitions are given out; all members of a group must say the same.",
        choice("range", "roundrobin", "sticky"),
        default="range",
    )
    session: float = setting(
        "sessionTimeout",
        "Time until the partitions of a reader that died go to others.",
        SESSION,
        default=10.0,
    )
    heartbeat: float = setting("heartbeatInterval", "Time between signs of life of a reader.", SESSION, default=3.0)
    escape: bool = setting("escapeHeaders", "Whether values of headers are URL-encoded.", BOOLEAN, default=False)
    excluded: re.Pattern[str] | None = setting(  # noqa: RUF009 - a frozen value
        "excludeHeaderMetaRegex",
        "Metadata that match are not written as headers.",
        Kind("regular expression", _pattern),
        example="^traceparent$",
    )


class KafkaBinding(ComponentAdapter):
    """Topics of Apache Kafka."""

    title = "Reads and writes topics of Apache Kafka."
    tested = "Apache Kafka 3.9"
    settings: ClassVar[type[KafkaBindingSettings]] = KafkaBindingSettings
    operations = ("create",)

    def __init__(self, settings: KafkaBindingSettings) -> None:
        """Prepare."""
        super().__init__(settings)
        self._shown = ",".join(settings.brokers)
        self._options: dict[str, Any] = {}
        self._starting = asyncio.Lock()
        self._producer: AIOKafkaProducer | None = None

    async def _enter(self) -> None:
        """Read certificates; the cluster is connected to when it is needed."""
        settings: KafkaBindingSettings = self._settings
        auth = settings.auth.lower()
        auth = auth or ("password" if settings.username or settings.auth_required else "none")
        mechanism = MECHANISMS.get(settings.mechanism.upper())
        if auth not in AUTH_TYPES:
            raise self._problem(f"is one of {', '.join(AUTH_TYPES)}, not {auth!r}", "authType")
        if auth == "password" and not settings.username:
            raise self._problem("saslUsername is missing", "saslUsername")
        if auth in ("mtls", "certificate") and not settings.certificate:
            raise self._problem(f"{auth!r} needs clientCert and clientKey", "authType")
        if mechanism is None:
            raise self._problem(f"is one of {', '.join(MECHANISMS)}", "saslMechanism")
        tls = None if settings.without_tls else await self._tls(auth)
        protocol = ("SASL_" if auth in ("password", AWS_IAM) else "") + ("PLAINTEXT" if tls is None else "SSL")
        self._options = {
            "bootstrap_servers": list(settings.brokers),
            "client_id": settings.client_id,
            "security_protocol": protocol,
            "ssl_context": tls,
            "request_timeout_ms": int(REQUEST_SECONDS * 1000),
        }
        if auth == "password":
            self._options |= {
                "sasl_mechanism": mechanism,
                "sasl_plain_username": settings.username,
                "sasl_plain_password": settings.password,
            }
        elif auth == AWS_IAM:
            for name, message in wrong_settings(settings):
                raise self._problem(message, name)
            self._options |= {"sasl_mechanism": "OAUTHBEARER", "sasl_oauth_token_provider": iam_tokens(settings)}
        self._stack.push_async_callback(self._stop_writing)

    async def _tls(self, auth: str) -> ssl.SSLContext | None:
        settings: KafkaBindingSettings = self._settings
        if auth == "none" and not (settings.ca or settings.certificate):
            return None
        given = settings.ca, settings.certificate, settings.key
        try:
            return await asyncio.to_thread(tls_of, *given, verify=not settings.unverified)
        except ValueError as error:
            raise self._problem(str(error), "caCert" if settings.ca else "clientCert") from None

    @contextmanager
    def _errors(self, what: str) -> Iterator[None]:
        try:
            yield
        except TimeoutError:
            raise BindingError(f"Kafka at {self._shown} does not answer in time: {what}", retryable=True) from None
        except UnknownTopicOrPartitionError as error:
            raise BindingError(f"Kafka at {self._shown}: {what}: there is no such topic", retryable=True) from error
        except (KafkaError, OSError) as error:
            again = getattr(error, "retriable", True)
            raise BindingError(f"Kafka at {self._shown}: {what}: {error!r}", retryable=again) from error

    # Out

    async def invoke(self, asked: Invoke) -> None:
        """Write a record; all replicas that are in sync have it then."""
        settings: KafkaBindingSettings = self._settings
        topic, metadata = settings.publish_topic, asked.metadata
        if not topic:
            raise BindingError("the setting publishTopic is missing")
        number, key = metadata.get("partitionNumber"), metadata.get("partitionKey") or metadata.get("__key")
        try:
            partition = None if number is None else parse_whole(number)
        except ValueError as error:
            raise BindingError(f"partitionNumber {error}") from None
        with self._errors(f"nothing is written to {topic}"):
            producer = await self._writing()
            if partition is not None and partition not in await producer.partitions_for(topic):
                raise BindingError(f"partitionNumber: {topic} has no partition {partition}")
            await producer.send_and_wait(
                topic,
                asked.data,
                key=None if key is None else key.encode(),
                partition=partition,
                headers=self._headers(metadata),
            )

    def _headers(self, metadata: Mapping[str, str]) -> list[tuple[str, bytes]]:
        settings: KafkaBindingSettings = self._settings
        excluded = settings.excluded
        return [
            (name, (quote_plus(value) if settings.escape else value).encode())
            for name, value in metadata.items()
            if excluded is None or not excluded.search(name)
        ]

    async def _writing(self) -> AIOKafkaProducer:
        """Give what writes, connected when it is needed first."""
        settings: KafkaBindingSettings = self._settings
        async with self._starting:
            if self._producer is None:
                limit = settings.limit or 0
                producer = AIOKafkaProducer(
                    **self._options,
                    acks="all",
                    compression_type=None if settings.compression == "none" else settings.compression,
                    max_request_size=limit if limit >= LEAST_LIMIT else 1_000_000,
                )
                try:
                    async with asyncio.timeout(START_SECONDS):
                        await producer.start()
                except BaseException:
                    await producer.stop()
                    raise
                self._producer = producer
            return self._producer

    async def _stop_writing(self) -> None:
        producer, self._producer = self._producer, None
        if producer is not None:
            with suppress(TimeoutError, KafkaError):
                async with asyncio.timeout(STOP_SECONDS):
                    await producer.stop()

    # In

    @asynccontextmanager
    async def reading(self, reading: Reading) -> AsyncIterator[None]:
        """Take part in the consumer group while it is entered."""
        settings: KafkaBindingSettings = self._settings
        if not settings.topics:
            logger.warning("binding %s: nothing is read, as the setting topics is missing", reading.component)
            yield
            return
        async with reading_by(lambda *events: self._read(reading, *events)):
            yield

    async def _read(self, reading: Reading, connected: asyncio.Event, stopping: asyncio.Event) -> None:
        settings: KafkaBindingSettings = self._settings
        consumer = AIOKafkaConsumer(
            **self._options,
            group_id=settings.group or reading.app_id,
            enable_auto_commit=False,
            auto_offset_reset="latest" if settings.initial == "newest" else "earliest",
            session_timeout_ms=int(settings.session * 1000),
            heartbeat_interval_ms=int(min(settings.heartbeat, settings.session / 3) * 1000),
            rebalance_timeout_ms=int(REBALANCE_SECONDS * 1000),
            max_poll_interval_ms=NO_LIMIT_MS,
            partition_assignment_strategy=(STRATEGIES[settings.strategy],),
        )
        try:
            with self._errors(f"{', '.join(settings.topics)}: not read"), first_error():
                async with task_group() as tasks:
                    member = _Member(consumer, reading, settings, tasks)
                    consumer.subscribe(settings.topics, listener=member)
                    async with asyncio.timeout(START_SECONDS):
                        await consumer.start()
                        await member.hold()
                    polling = tasks.create_task(member.poll(), name="kafka-poll")
                    connected.set()
                    await stopping.wait()
                    polling.cancel()
                    member.round.set()
        finally:
            with suppress(TimeoutError, KafkaError):
                async with asyncio.timeout(STOP_SECONDS):
                    await consumer.stop()


class _Member(ConsumerRebalanceListener):  # type: ignore[misc]  # the library has no types
    """A member of the consumer group.

    Attributes:
        round: Set when the partitions of now are given up.
    """

    def __init__(
        self, consumer: AIOKafkaConsumer, reading: Reading, settings: KafkaBindingSettings, tasks: asyncio.TaskGroup
    ) -> None:
        self._consumer, self._reading, self._settings, self._tasks = consumer, reading, settings, tasks
        self._places = asyncio.Semaphore(AT_ONCE)
        self._working: dict[Any, asyncio.Task[None]] = {}
        self._new: set[Any] = set()
        self.round = asyncio.Event()

    async def on_partitions_revoked(self, revoked: object) -> None:
        """Finish the records that are at work, if that does not take long."""
        self.round.set()
        self._new.clear()
        working = [*self._working.values()]
        if working:
            _, late = await asyncio.wait(working, timeout=REVOKE_SECONDS)
            for task in late:
                task.cancel()
            if late:
                await asyncio.wait(late)
        self.round = asyncio.Event()

    async def on_partitions_assigned(self, assigned: set[Any]) -> None:
        """Note what is new."""
        self._new = set(assigned)

    async def hold(self) -> None:
        """Commit where a partition begins that nothing is committed of: else a restart would skip what comes."""
        new, self._new = self._new, set()
        for partition in new:
            with suppress(IllegalStateError, CommitFailedError):  # Another member has it now.
                if await self._consumer.committed(partition) is None:
                    await self._consumer.commit({partition: await self._consumer.position(partition)})
        for topic in self._settings.topics:
            if not self._consumer.partitions_for_topic(topic):
                raise UnknownTopicOrPartitionError(topic)

    async def poll(self) -> None:
        """Fetch, and have each partition's records handed over; a partition that is at work is paused."""
        while True:
            if self._new:
                await self.hold()
            found = await self._consumer.getmany(timeout_ms=500, max_records=AT_ONCE)
            if self._new:  # Partitions were given out meanwhile, and what was found may be of these: it is read again.
                for partition, records in found.items():
                    self._consumer.seek(partition, records[0].offset)
                continue
            round_of = self.round
            for partition, records in found.items():
                try:
                    self._consumer.pause(partition)
                except IllegalStateError:  # Another member has it now.
                    continue
                work = self._work(partition, records, round_of)
                self._working[partition] = self._tasks.create_task(work, name="kafka-work")

    async def _work(self, partition: Any, records: Sequence[Any], round_of: asyncio.Event) -> None:
        try:
            for record in records:
                if not await self._hand(record, round_of):
                    return
                await self._commit(partition, record.offset + 1)
                if round_of.is_set():
                    return
            with suppress(IllegalStateError):
                self._consumer.resume(partition)
        finally:
            if self._working.get(partition) is asyncio.current_task():
                del self._working[partition]

    async def _hand(self, record: Any, round_of: asyncio.Event) -> bool:
        waits = growing(self._settings.interval, max(LONGEST_WAIT, self._settings.interval))
        async with self._places:
            return await handed(self._reading, self._event(record), round_of, waits, self._passed_over)

    def _passed_over(self, error: MeshError) -> bool:
        """Tell whether the application itself has refused a record that is not to come again."""
        return not self._settings.retry and isinstance(error, BindingError) and not error.retryable

    async def _commit(self, partition: Any, offset: int) -> None:
        try:
            async with asyncio.timeout(COMMIT_SECONDS):
                await self._consumer.commit({partition: offset})
        except (CommitFailedError, IllegalStateError, TimeoutError) as error:  # The next commit, or it comes again.
            logger.debug("binding %s: %s is not committed: %r", self._reading.component, partition, error)

    def _event(self, record: Any) -> BindingEvent:
        escape = self._settings.escape
        told = {name: (value or b"").decode(errors="replace") for name, value in record.headers}
        told = {name: quote_plus(value) if escape else value for name, value in told.items()}
        if record.key is not None:
            told["__key"] = record.key.decode(errors="replace")
        told |= {
            "__topic": record.topic,
            "__partition": str(record.partition),
            "__offset": str(record.offset),
            "__timestamp": str(record.timestamp),
        }
        return BindingEvent(record.value or b"", told)
