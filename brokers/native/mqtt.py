"""``pubsub.mqtt3`` as every other program on the server has it: MQTT 3.1.1, with the structured envelope as payload.

=============  ====================================================================================
ours           on MQTT
=============  ====================================================================================
topic          the topic of the same name; ``+``, ``#`` and ``$share/<group>/…`` are as the server has them
publish        QoS 1, done with PUBACK (QoS 2: PUBCOMP); over a broken connection it is sent again by the next
group          a session: its name is the client id, so one instance has it at a time
ack, reject    PUBACK, once every subscription that the topic fits has settled it
nack           kept unacknowledged, and handed over again by the same member
release        kept unacknowledged, for the next subscription to the topic, in this process or after it
ack_wait       none: a delivery is its member's until that leaves or dies (``Features.reassigns``)
headers        none in MQTT 3.1.1
=============  ====================================================================================

What the server sends before it is subscribed to, as it does with what an earlier process has not acknowledged, waits
for its subscription. What a connection has brought again is not handed over again.

Sources: OASIS, MQTT 3.1.1 (4.1 sessions, 4.4 redelivery under the same number, with DUP); mosquitto.conf(5).
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import ClassVar

from brokers.native._mqtt_session import Session, Source
from brokers.native._paho import Link
from brokers.native._topics import Delays, NativeSettings, NativeTopics
from brokers.shared.backoff import CONNECT_WAIT
from brokers.shared.limits import check_size
from brokers.shared.mqtt import UNCLEAN, MQTTServer, MQTTServerSettings, server_of
from brokers.shared.settings import CONNECT_SHARE, layout_setting, node_name
from brokers.shared.tls import TLSFiles
from mesh.address import Address
from mesh.broker import Message, SubscribeOptions
from mesh.errors import BadArgumentError, ConfigError
from mesh.features import Features, not_in_layout
from mesh.resources.settings import Kind, Setting, choice, ignored, refused, setting
from mesh.tasks import task_group
from mesh.values import parse_bool

__all__ = ["MQTTNativeSettings", "MQTTTopics"]

KEEP_ALIVE = 30
PATIENCE = 60.0


def _server(text: str) -> MQTTServer:
    try:
        return server_of(text, web=True)
    except ConfigError as error:
        raise ValueError(str(error)) from None


@dataclass(frozen=True, slots=True)
class MQTTNativeSettings(MQTTServerSettings, NativeSettings):
    """Settings of ``pubsub.mqtt3``."""

    ignored: ClassVar[tuple[Setting, ...]] = (
        *ignored("the mesh retries alike on every broker, see Resiliency", "backOffMaxRetries"),
        *refused(
            "a setting of 'layout: mesh' alone",
            *("sharedSubscriptions", "topicPrefix", "sessionExpiry", "mqttVersion", "maxInFlight"),
        ),
    )

    layout: str = layout_setting()
    url: MQTTServer = setting(  # noqa: RUF009 - a frozen value
        "url",
        "The server: `mqtt://user:password@host:port`, or `mqtts://…` with TLS; `tcp` and `ssl` mean the same. "
        "`ws://…` and `wss://…` are WebSockets.",
        Kind("URL of an MQTT server", _server),
        required=True,
        example="mqtt://localhost:1883",
    )
    consumer: str = setting(
        "consumerID",
        "The client id, and so the session and the group; the app id if not set. Two instances with one client id "
        "throw each other out: give each its own, as with `{podName}`, and name topics `$share/<group>/<topic>`.",
        default="",
        example="shop-{podName}",
    )
    qos: str = setting(
        "qos", "With which events are published; they are taken with 1. 0 is refused: it loses some.", choice("1", "2"),
        default="1",
    )  # fmt: skip


@dataclass(slots=True)
class _Other:
    """A session of another group than the component's."""

    session: Session
    stack: AsyncExitStack
    users: int = 0


class MQTTTopics(NativeTopics):
    """A connection to an MQTT server."""

    title = "Topics of an MQTT server, as every other program there has them."
    tested = "Mosquitto 2.0"
    told_group = True
    settings = MQTTNativeSettings
    layouts: ClassVar[Mapping[str, str]] = {"mesh": "brokers.mqtt:MQTTBroker"}
    _settings: MQTTNativeSettings

    features = Features(
        name="mqtt",
        max_message_bytes=16 * 1024 * 1024,
        shared=True,
        release_counts=True,
        retention=False,
        reassigns=False,
        frames=False,
        own_wildcards=True,
        competing=False,
        delay=True,
        layout="native",
        headers=False,
        both_lack=("ordering", "delay", "wildcard"),
        publish_metadata=("retain",),
    )

    def __init__(
        self,
        settings: MQTTNativeSettings,
        *,
        keep_alive: int = KEEP_ALIVE,
        wait: float = CONNECT_WAIT,
        patience: float = PATIENCE,
    ) -> None:
        """Prepare; entering connects.

        Args:
            settings: Those of the component.
            keep_alive: Seconds without a sign of life until one is asked for.
            wait: Seconds that an attempt to connect may take.
            patience: Seconds that a message waits for a subscription to its topic while it holds up others.
        """
        super().__init__(settings)
        self._keep_alive, self._wait, self._patience = keep_alive, wait, patience
        self._tls: ssl.SSLContext | None = None
        self._onlooker = False
        self._main: Session
        self._tasks: asyncio.TaskGroup
        self._opening = asyncio.Lock()
        self._others: dict[str, _Other] = {}

    def as_onlooker(self) -> None:
        """Connect under a client id that nobody has, as who has it would be thrown out; its session leaves nothing."""
        self._onlooker = True

    async def _enter(self) -> None:
        settings = self._settings
        files = TLSFiles(settings.ca, settings.certificate, settings.key)
        if settings.url.secure:
            if (settings.certificate is None) != (settings.key is None):
                raise self._problem("clientCert and clientKey go together", "clientCert")
            try:
                self._tls = await asyncio.to_thread(files.context)
            except ConfigError as error:
                raise self._problem(str(error), "caCert" if settings.ca else "clientCert") from None
        elif files != TLSFiles():
            raise self._problem("certificates need a url that begins with mqtts:// (or ssl://)", "url")
        if self._component is not None:
            self._wait = min(self._wait, self._component.init_timeout * CONNECT_SHARE)
        self._tasks = await self._stack.enter_async_context(task_group())
        # Without a group it only publishes, and leaves nothing behind.
        group = "" if self._onlooker else settings.consumer
        self._main = await self._stack.enter_async_context(
            self._open(group or node_name(), settings.clean or not group)
        )

    @asynccontextmanager
    async def _open(self, client_id: str, clean: bool) -> AsyncIterator[Session]:
        server = self._settings.url
        link = Link(server, client_id, self._tls, clean=clean, keep_alive=self._keep_alive, wait=self._wait)
        session = Session(server, client_id, link, clean=clean)
        await link.open()
        works = (link.supervise(session.restored), session.insist(), session.tidy(self._patience))
        running = [self._tasks.create_task(work, name="mqtt-session") for work in works]
        try:
            yield session
        finally:
            for each in running:
                each.cancel()
            await link.close()

    @asynccontextmanager
    async def _session(self, group: str) -> AsyncIterator[Session]:
        """Give the session of a group; one that is not the component's lasts as long as somebody subscribes for it."""
        if group == self._settings.consumer:
            yield self._main
            return
        async with self._opening:
            other = self._others.get(group)
            if other is None:
                stack = AsyncExitStack()
                session = await stack.enter_async_context(self._open(group, self._settings.clean))
                other = self._others[group] = _Other(session, stack)
            other.users += 1
        try:
            yield other.session
        finally:
            other.users -= 1
            if not other.users:
                del self._others[group]
                await other.stack.aclose()

    async def check(self) -> None:
        """Have the server answer."""
        await self._main.link.check()

    async def publish(self, address: Address, message: Message) -> None:
        """Publish; the server confirms it."""
        topic, retain = address.label, self._settings.retain
        check_size(message.body, message.headers, self.features.max_message_bytes)
        if message.headers:
            raise not_in_layout(self.features, "headers", "headers")
        if UNCLEAN.search(topic) or topic.startswith("$"):  # That of the server, which may end the connection for it.
            raise BadArgumentError(f"MQTT has no such topic to publish to: {topic!r}")
        for name, value in message.metadata.items():
            if name.casefold() == "retain":
                try:
                    retain = parse_bool(value, words=True)
                except ValueError as error:
                    raise BadArgumentError(f"the metadata 'retain' is {error}") from None
        await self._main.link.publish(topic, message.body, int(self._settings.qos), retain=retain)

    @asynccontextmanager
    async def _joined(self, address: Address, options: SubscribeOptions) -> AsyncIterator[Source]:
        async with self._session(options.group) as session, Delays() as delays:
            source = Source(session, address, delays)
            try:
                await session.join(source)
                yield source
            finally:
                await source.stop()
                await session.part(source)
