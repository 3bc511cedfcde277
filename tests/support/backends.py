"""The brokers that the contract suite runs against; a new one is a class here and a line in `BACKENDS`."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Protocol
from urllib.parse import urlsplit

import pytest

from bindings.pluggable.pubsub import PluggableBroker
from brokers.embedded import EmbeddedBroker
from brokers.embedded_server import ServerAddress, join, read_status
from brokers.kafka import KafkaBroker, KafkaConfig
from brokers.memory import MemoryBroker, MemoryHub
from brokers.mqtt import MQTTBroker, MQTTConfig
from brokers.native._jetstream import JetStreamSettings
from brokers.native._topics import NativeTopics
from brokers.native.jetstream import JetStreamTopics
from brokers.native.kafka import KafkaTopics
from brokers.native.mqtt import MQTTNativeSettings, MQTTTopics
from brokers.native.rabbitmq import RabbitMQTopics
from brokers.native.redis import RedisTopics
from brokers.nats import NatsBroker, NatsConfig
from brokers.rabbitmq import RabbitMQBroker, RabbitMQConfig
from brokers.redis import RedisBroker, RedisConfig
from brokers.shared.mqtt import server_of
from mesh.broker import Broker, Features
from mesh.resources.component import Component, MetadataEntry
from tests.support.artemis_server import PASSWORD, USER, ArtemisServer
from tests.support.eventually import eventually
from tests.support.kafka_server import MAKES_TOPICS, KafkaServer
from tests.support.mqtt_server import UNBOUNDED, MQTTServer
from tests.support.nats import NatsServer, find_nats_server
from tests.support.pluggable_server import PluggableServer, contract_broker, pluggable
from tests.support.proxy import Proxy
from tests.support.pulsar_server import PulsarServer
from tests.support.rabbitmq_server import RabbitMQServer
from tests.support.redis_server import RedisServer
from tests.support.server import NotInstalledError, Server

__all__ = ["BACKENDS", "Backend", "component_of", "features_of", "skip_unless_chosen"]


START_WITHIN = 30.0  # Kafka answers late while the machine is busy.


def skip_unless_chosen(config: pytest.Config, broker: str) -> None:
    """Skip tests of one broker when others were chosen."""
    chosen = config.getoption("--broker")
    if chosen and broker not in chosen:
        pytest.skip("another broker was chosen")


def component_of(kind: str, settings: Mapping[str, str]) -> Component:
    """Make a component of a type, with texts as its settings."""
    return Component("pubsub", kind, tuple(MetadataEntry(name, value) for name, value in settings.items()))


class Backend(Protocol):
    """A running broker server.

    Attributes:
        url: As for ``backbone``; another process reaches it by this and ``environ``.
        environ: What such a process needs in its environment.
        port: Where it listens, for an adapter behind a proxy; None when there can be none.
        native: Whether its adapters have the native layout.
        member_url: What ``tests/support/member.py`` is told.
    """

    url: str
    environ: Mapping[str, str]
    port: int | None
    native: bool

    @property
    def member_url(self) -> str: ...

    def broker(self) -> Broker:
        """Build an adapter; not entered yet."""

    def broker_through(self, port: int) -> Broker:
        """Build an adapter that reaches the server through a proxy's port, and is quick to notice silence."""

    def unreachable(self, port: int) -> Broker:
        """Build an adapter for a port where nobody is, that gives up soon."""

    def proxy(self) -> Proxy:
        """Make a proxy for other processes; one at a time."""

    def url_through(self, proxy: Proxy) -> str:
        """Give the URL by which another process reaches the server through an entered proxy."""

    async def restart(self, *, kill: bool) -> None:
        """Restart the server on its port and store: in good order, or by ``kill -9``."""

    async def stop(self) -> None:
        """End the server by ``kill -9``, until ``start``."""

    async def start(self) -> None:
        """Start it again on its port and store."""


class _Portless:
    """What no adapter reaches by a port."""

    url: str
    environ: Mapping[str, str] = {}
    port = None
    native = False

    @property
    def member_url(self) -> str:
        return self.url

    def broker_through(self, port: int) -> Broker:
        raise NotImplementedError

    def unreachable(self, port: int) -> Broker:
        raise NotImplementedError

    def proxy(self) -> Proxy:
        raise NotImplementedError

    def url_through(self, proxy: Proxy) -> str:
        raise NotImplementedError

    async def restart(self, *, kill: bool) -> None:
        raise NotImplementedError

    async def stop(self) -> None:
        raise NotImplementedError

    async def start(self) -> None:
        raise NotImplementedError


class MemoryBackend(_Portless):
    """No server: the brokers of one hub."""

    url = "memory:"

    def __init__(self) -> None:
        self._hub = MemoryHub()

    def broker(self) -> Broker:
        return MemoryBroker(self._hub)


class ServerBackend:
    """What runs as a process of its own, and has a port.

    Attributes:
        receiving: What a client says on the connection by which it receives frames; None if it has but one.
    """

    environ: Mapping[str, str] = {}
    receiving: bytes | None = None
    native = False

    def __init__(self, server: Server) -> None:
        self._server = server
        self.url = server.url
        self.port = server.port

    def proxy(self) -> Proxy:
        return Proxy(self.port)

    @property
    def member_url(self) -> str:
        return self.url

    def url_through(self, proxy: Proxy) -> str:
        return self.url.replace(f":{self.port}", f":{proxy.port}")

    async def restart(self, *, kill: bool) -> None:
        await self._server.restart(kill=kill)

    async def stop(self) -> None:
        await self._server.kill()

    async def start(self) -> None:
        await self._server.start()


class NativeBackend(ServerBackend):
    """A server whose topics are as everybody has them.

    Attributes:
        type: Of the component.
        adapter: Of the type.
        quick: Settings of one that is quick to notice silence.
        stranger: Settings of one that gives up soon, and whose password is ``secret``.
    """

    native = True
    type: str
    adapter: type[NativeTopics]
    quick: Mapping[str, str] = {}
    stranger: Mapping[str, str] = {}

    def settings(self, port: int) -> Mapping[str, str]:
        """Give those that say where it is."""
        raise NotImplementedError

    @property
    def member_url(self) -> str:
        return f"component:{json.dumps([self.type, dict(self.settings(self.port))])}"

    def _broker(self, port: int, more: Mapping[str, str]) -> Broker:
        return self.adapter.from_component(component_of(self.type, {**self.settings(port), **more}))

    def broker(self) -> Broker:
        return self._broker(self.port, {})

    def broker_through(self, port: int) -> Broker:
        return self._broker(port, self.quick)

    def unreachable(self, port: int) -> Broker:
        return self._broker(port, self.stranger)


class NatsBackend(ServerBackend):
    """A nats-server."""

    def broker(self) -> Broker:
        return NatsBroker.from_url(self.url)

    def broker_through(self, port: int) -> Broker:
        return NatsBroker(NatsConfig((f"nats://127.0.0.1:{port}",), ping_interval=0.3))

    def unreachable(self, port: int) -> Broker:
        return NatsBroker(NatsConfig((f"nats://127.0.0.1:{port}",), user="user", password="secret", connect_wait=0.3))


class NativeNatsBackend(NativeBackend):
    """A nats-server, with subjects as everybody has them; the streams are made."""

    type, adapter = "pubsub.jetstream", JetStreamTopics

    def settings(self, port: int) -> Mapping[str, str]:
        return {"natsURL": f"nats://127.0.0.1:{port}", "createStream": "true"}

    def broker_through(self, port: int) -> Broker:
        quick = NatsConfig((f"nats://127.0.0.1:{port}",), ping_interval=0.3)
        return JetStreamTopics(JetStreamSettings(creates=True), quick)

    def unreachable(self, port: int) -> Broker:
        away = NatsConfig((f"nats://127.0.0.1:{port}",), user="user", password="secret", connect_wait=0.3)
        return JetStreamTopics(JetStreamSettings(), away)


class _KafkaServerBackend(ServerBackend):
    def proxy(self) -> Proxy:
        """Make one whose port the server tells of as its own."""
        assert isinstance(self._server, KafkaServer)
        return Proxy(self._server.proxied_port, self._server.proxy_port)


class KafkaBackend(_KafkaServerBackend):
    """Apache Kafka."""

    def broker(self) -> Broker:
        return KafkaBroker(KafkaConfig((("127.0.0.1", self.port),), connect_wait=START_WITHIN))

    def broker_through(self, port: int) -> Broker:
        hosts = (("127.0.0.1", port),)
        quick = KafkaConfig(hosts, request_timeout=1.0, session_timeout=2.0, partitions=4, connect_wait=START_WITHIN)
        return KafkaBroker(quick)

    def unreachable(self, port: int) -> Broker:
        return KafkaBroker(KafkaConfig((("127.0.0.1", port),), username="user", password="secret", connect_wait=0.3))


class NativeKafkaBackend(NativeBackend, _KafkaServerBackend):
    """Apache Kafka, which makes topics when they are asked for."""

    type, adapter = "pubsub.kafka", KafkaTopics

    def settings(self, port: int) -> Mapping[str, str]:
        return {"brokers": f"127.0.0.1:{port}", "authType": "none", "initialOffset": "oldest", "sessionTimeout": "4s"}

    quick = MappingProxyType({"sessionTimeout": "2s", "readTimeout": "1s"})
    stranger = MappingProxyType(
        {
            "authType": "password",
            "saslUsername": "user",
            "saslPassword": "secret",
            "disableTls": "true",
            "dialTimeout": "300ms",
        }
    )


class EmbeddedBackend(_Portless):
    """The embedded server of a MESH_HOME of its own; while it runs, a proxy reaches it as any NATS server."""

    url = "embedded:"

    def __init__(self, home: Path) -> None:
        self._home = home
        self.environ: Mapping[str, str] = {"MESH_HOME": str(home)}

    def broker(self) -> Broker:
        return EmbeddedBroker(self._home)

    def proxy(self) -> Proxy:
        port = urlsplit(self._status().url).port
        assert port is not None
        return Proxy(port)

    def url_through(self, proxy: Proxy) -> str:
        return f"nats://{self._status().token}@127.0.0.1:{proxy.port}"

    def _status(self) -> ServerAddress:
        status = read_status(self._home)
        assert status is not None, "the embedded server does not run"
        return status

    async def restart(self, *, kill: bool) -> None:
        """End nats-server; its supervisor starts it again."""
        before = self._status()
        os.kill(before.pid, signal.SIGKILL if kill else signal.SIGTERM)

        async def is_another() -> None:
            now = await asyncio.to_thread(self._status)
            assert now.pid != before.pid

        await eventually(is_another, within=40.0)


class RedisBackend(ServerBackend):
    """A redis-server."""

    receiving = b"brokermesh-frames"

    def broker(self) -> Broker:
        return RedisBroker.from_url(self.url)

    def broker_through(self, port: int) -> Broker:
        return RedisBroker(RedisConfig("127.0.0.1", port, ping_interval=0.3))

    def unreachable(self, port: int) -> Broker:
        return RedisBroker(RedisConfig("127.0.0.1", port, username="user", password="secret", connect_wait=0.3))


class NativeRedisBackend(NativeBackend):
    """A redis-server, with topics as everybody has them."""

    type, adapter = "pubsub.redis", RedisTopics

    def settings(self, port: int) -> Mapping[str, str]:
        return {"redisHost": f"127.0.0.1:{port}"}

    quick = MappingProxyType({"readTimeout": "1s", "dialTimeout": "1s"})
    stranger = MappingProxyType(
        {"redisUsername": "user", "redisPassword": "secret", "dialTimeout": "300ms", "readTimeout": "300ms"}
    )


class RabbitMQBackend(ServerBackend):
    """A RabbitMQ server."""

    receiving = b"(consuming)"

    def broker(self) -> Broker:
        return RabbitMQBroker.from_url(self.url)

    def broker_through(self, port: int) -> Broker:
        return RabbitMQBroker(RabbitMQConfig((("127.0.0.1", port),), heartbeat=1, max_backoff=0.2))

    def unreachable(self, port: int) -> Broker:
        hosts = (("127.0.0.1", port),)
        return RabbitMQBroker(RabbitMQConfig(hosts, user="user", password="secret", connect_wait=0.3))


class NativeRabbitMQBackend(NativeBackend):
    """A RabbitMQ server, with topics as everybody has them."""

    type, adapter = "pubsub.rabbitmq", RabbitMQTopics

    def settings(self, port: int) -> Mapping[str, str]:
        return {"hostname": f"127.0.0.1:{port}", "consumerID": "g"}

    quick = MappingProxyType({"heartBeat": "1s", "reconnectWaitSeconds": "200ms"})

    def unreachable(self, port: int) -> Broker:
        return self._broker(port, {"connectionString": f"amqp://user:secret@127.0.0.1:{port}?connection_timeout=300"})


class MQTTBackend(ServerBackend):
    """Mosquitto; topics are apart by their spaces, as those of other brokers are."""

    def __init__(self, server: Server) -> None:
        super().__init__(server)
        self.url = f"{server.url}?topicPrefix={{space}}/"

    def broker(self) -> Broker:
        return MQTTBroker.from_url(self.url)

    def broker_through(self, port: int) -> Broker:
        return MQTTBroker(MQTTConfig("127.0.0.1", port, prefix="{space}/", ping_interval=0.3))

    def unreachable(self, port: int) -> Broker:
        return MQTTBroker(MQTTConfig("127.0.0.1", port, username="user", password="secret", connect_wait=0.3))


class NativeMQTTBackend(NativeBackend):
    """Mosquitto, with topics as everybody has them; sessions outlive a test, and hold what it has left."""

    type, adapter = "pubsub.mqtt3", MQTTTopics

    def settings(self, port: int) -> Mapping[str, str]:
        return {"url": f"tcp://127.0.0.1:{port}"}

    def broker_through(self, port: int) -> Broker:
        return MQTTTopics(MQTTNativeSettings(url=server_of(f"tcp://127.0.0.1:{port}")), keep_alive=1)

    def unreachable(self, port: int) -> Broker:
        return MQTTTopics(MQTTNativeSettings(url=server_of(f"tcp://user:secret@127.0.0.1:{port}")), wait=0.3)


class PluggableBackend(_Portless):
    """A component of a third party; topics are apart by their spaces, as those of other brokers are."""

    def __init__(self, server: PluggableServer) -> None:
        self._server = server
        self.url = f"pluggable:{server.path}"

    def broker(self) -> Broker:
        return contract_broker(self._server.path)

    async def restart(self, *, kill: bool) -> None:
        await self._server.restart(kill=kill)


@asynccontextmanager
async def _pluggable(directory: Path) -> AsyncIterator[Backend]:
    async with pluggable(directory / "component", services=("PubSub",)) as server:
        yield PluggableBackend(server)


@asynccontextmanager
async def _memory(directory: Path) -> AsyncIterator[Backend]:
    yield MemoryBackend()


@asynccontextmanager
async def _server(
    make: Callable[[Path], Server], wrap: Callable[[Server], Backend], directory: Path
) -> AsyncIterator[Backend]:
    async with make(directory / "server") as server:
        yield wrap(server)


@asynccontextmanager
async def _embedded(directory: Path) -> AsyncIterator[Backend]:
    if find_nats_server() is None:
        raise NotInstalledError("nats-server is not installed")
    async with join(directory / "home"):  # It would end with the first test otherwise.
        yield EmbeddedBackend(directory / "home")


BACKENDS = {
    "memory": _memory,
    "nats": partial(_server, NatsServer, NatsBackend),
    "nats-native": partial(_server, NatsServer, NativeNatsBackend),
    "embedded": _embedded,
    "redis": partial(_server, RedisServer, RedisBackend),
    "redis-native": partial(_server, RedisServer, NativeRedisBackend),
    "rabbitmq": partial(_server, RabbitMQServer, RabbitMQBackend),
    "rabbitmq-native": partial(_server, RabbitMQServer, NativeRabbitMQBackend),
    "kafka": partial(_server, KafkaServer, KafkaBackend),
    "kafka-native": partial(_server, partial(KafkaServer, config=MAKES_TOPICS), NativeKafkaBackend),
    "mqtt": partial(_server, MQTTServer, MQTTBackend),
    "mqtt-native": partial(_server, partial(MQTTServer, settings=UNBOUNDED), NativeMQTTBackend),
    "pluggable": _pluggable,
}
_FEATURES: dict[str, Features] = {
    "memory": MemoryBroker().features,
    "nats": NatsBroker(NatsConfig(())).features,
    "nats-native": JetStreamTopics.features,
    "embedded": EmbeddedBroker(Path()).features,
    "redis": RedisBroker(RedisConfig()).features,
    "redis-native": RedisTopics.features,
    "rabbitmq": RabbitMQBroker.features,
    "rabbitmq-native": RabbitMQTopics.features,
    "kafka": KafkaBroker(KafkaConfig(())).features,
    "kafka-native": replace(KafkaTopics.features, retention=True),
    "mqtt": MQTTBroker.features,
    "mqtt-native": MQTTTopics.features,
    "pluggable": PluggableBroker.features,
}

# Their clients need not be there: one is built with a C compiler.
with suppress(ModuleNotFoundError):
    from brokers.native.pulsar import PulsarTopics

    class NativePulsarBackend(NativeBackend):
        """A standalone Pulsar."""

        type, adapter = "pubsub.pulsar", PulsarTopics
        patient = True  # Its client's keep-alive is 30 s.

        def settings(self, port: int) -> Mapping[str, str]:
            return {"host": f"127.0.0.1:{port}"}

        stranger = MappingProxyType({"token": "secret", "dialTimeout": "500ms"})

    BACKENDS["pulsar-native"] = partial(_server, PulsarServer, NativePulsarBackend)
    _FEATURES["pulsar-native"] = PulsarTopics.features

with suppress(ModuleNotFoundError):
    from brokers.native.amqp import AMQPTopics

    class NativeAMQPBackend(NativeBackend):
        """ActiveMQ Artemis."""

        type, adapter = "pubsub.solace.amqp", AMQPTopics

        def settings(self, port: int) -> Mapping[str, str]:
            return {"url": f"amqp://127.0.0.1:{port}", "username": USER, "password": PASSWORD}

        quick = MappingProxyType({"idleTimeout": "1s", "dialTimeout": "1s"})
        stranger = MappingProxyType({"username": "user", "password": "secret", "dialTimeout": "300ms"})

    BACKENDS["amqp-native"] = partial(_server, ArtemisServer, NativeAMQPBackend)
    _FEATURES["amqp-native"] = AMQPTopics.features

with suppress(ModuleNotFoundError):
    from brokers.native._eventhubs_member import Pace
    from brokers.native.eventhubs import EventHubsTopics
    from tests.support.azure_servers import AzuriteServer, EventHubsServer, blob_connection

    class NativeEventHubsBackend(NativeBackend):
        """A server that answers as Event Hubs does, beside one that does so as blobs."""

        type, adapter = "pubsub.azure.eventhubs", EventHubsTopics
        stranger = MappingProxyType({"connectionString": EventHubsServer.at(1, "secret")})

        def __init__(self, server: Server, blobs: Server) -> None:
            super().__init__(server)
            self._blobs = blobs

        def settings(self, port: int) -> Mapping[str, str]:
            notes = {"storageConnectionString": blob_connection(self._blobs.port), "storageContainerName": "notes"}
            return {"connectionString": EventHubsServer.at(port), **notes}

        def _broker(self, port: int, more: Mapping[str, str]) -> Broker:
            made = super()._broker(port, more)
            assert isinstance(made, EventHubsTopics)
            made.pace = Pace(look=0.3, expires=3.0)
            return made

    @asynccontextmanager
    async def _event_hubs(directory: Path) -> AsyncIterator[Backend]:
        blobs = partial(AzuriteServer, service="blob")
        async with (
            _server(blobs, lambda server: server, directory / "blobs") as notes,  # type: ignore[arg-type, return-value]
            _server(EventHubsServer, lambda server: NativeEventHubsBackend(server, notes), directory) as backend,  # type: ignore[arg-type]
        ):
            yield backend

    BACKENDS["eventhubs-native"] = _event_hubs
    _FEATURES["eventhubs-native"] = EventHubsTopics.features


with suppress(ModuleNotFoundError):
    from brokers.native.servicebus import ServiceBusTopics
    from tests.support.azure_servers import ServiceBusServer

    class _Topics(ServiceBusTopics):
        features = replace(ServiceBusTopics.features, retention=False)

    class NativeServiceBusBackend(NativeBackend):
        """A stand-in for Azure Service Bus; it makes a subscription when it is first read."""

        type, adapter = "pubsub.azure.servicebus.topics", _Topics

        def settings(self, port: int) -> Mapping[str, str]:
            return {"connectionString": ServiceBusServer.at(port), "lockRenewalInSec": "1"}

    BACKENDS["servicebus-native"] = partial(
        _server, partial(ServiceBusServer, lock_seconds=5.0), NativeServiceBusBackend
    )
    _FEATURES["servicebus-native"] = _Topics.features


def features_of(name: str) -> Features:
    """Tell what a broker declares; its limits may differ once connected."""
    return _FEATURES[name]
