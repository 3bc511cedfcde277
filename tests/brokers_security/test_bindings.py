"""Logging in to brokers outside of the mesh by bindings, with and without TLS: each writes what it reads."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any

import nats
import pytest
import pytest_asyncio

from mesh.blocks.binding_contract import BindingError, BindingEvent, Reading
from mesh.errors import MeshError
from mesh.registry import Registry
from tests.support.bindings import call
from tests.support.bindings.queues import make_topic
from tests.support.certificates import Authority
from tests.support.eventually import eventually
from tests.support.kafka_server import KafkaServer
from tests.support.mqtt_server import MQTTServer, tls_settings
from tests.support.nats import NatsServer
from tests.support.nats_keys import Operator
from tests.support.processes import free_port
from tests.support.rabbitmq_server import RabbitMQServer
from tests.support.security import component
from tests.support.sharing import entered

PASSWORD = "p@ss:w/rd?#"
QUOTED = "p%40ss%3Aw%2Frd%3F%23"


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("authority"))


@pytest.fixture(scope="module")
def client(authority: Authority) -> Mapping[str, str]:
    own = authority.issue("mesh")
    return {"clientCert": own.certificate.read_text(), "clientKey": str(own.key), "caCert": authority.text}


def made(kind: str, settings: Mapping[str, str]) -> AbstractAsyncContextManager[Any]:
    adapter = Registry().load(kind).from_component(component(kind, **settings))  # type: ignore[attr-defined]
    return entered(adapter)


async def works(kind: str, settings: Mapping[str, str]) -> None:
    """What is written is read."""
    got: list[bytes] = []

    async def handle(event: BindingEvent) -> bytes:
        got.append(event.data)
        return b""

    def there() -> None:
        assert b"x" in got

    async with made(kind, settings) as adapter, adapter.reading(Reading("in", "app", handle)):
        await adapter.invoke(call("create", b"x"))
        await eventually(there, 40.0)


async def refused(kind: str, settings: Mapping[str, str], secret: str = PASSWORD) -> None:
    """Calls and readings fail, and tell no password."""

    async def handle(event: BindingEvent) -> bytes:
        return b""

    async with made(kind, settings) as adapter:
        with pytest.raises(BindingError) as caught:
            await adapter.invoke(call("create", b"x"))
        assert secret not in str(caught.value)
        with pytest.raises(MeshError) as read:
            async with adapter.reading(Reading("in", "app", handle)):
                await asyncio.Event().wait()
        assert secret not in str(read.value)


# Kafka


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def kafka(authority: Authority, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[KafkaServer]:
    directory = tmp_path_factory.mktemp("kafka")
    own = authority.issue("kafka")
    (directory / "own.pem").write_text(own.key.read_text() + own.certificate.read_text())
    login = "org.apache.kafka.common.security.scram.ScramLoginModule"
    lines = (
        "ssl.keystore.type=PEM",
        f"ssl.keystore.location={directory / 'own.pem'}",
        "ssl.truststore.type=PEM",
        f"ssl.truststore.location={authority.path}",
        "listener.name.mutual.ssl.client.auth=required",
        "listener.name.login.sasl.enabled.mechanisms=SCRAM-SHA-512",
        f"listener.name.login.scram-sha-512.sasl.jaas.config={login} required;",
    )
    listeners = {"LOGIN": "SASL_SSL", "MUTUAL": "SSL"}
    config = "\n".join(lines) + "\n"
    async with KafkaServer(directory / "kafka", config, listeners, {"mesh": PASSWORD}) as server:
        await make_topic(f"127.0.0.1:{server.port}", "t")
        yield server


async def test_kafka(kafka: KafkaServer, client: Mapping[str, str]) -> None:
    common = {"topics": "t", "publishTopic": "t", "initialOffset": "oldest"}
    login = {
        **common,
        "brokers": f"127.0.0.1:{kafka.listeners['LOGIN']}",
        "authType": "password",
        "saslUsername": "mesh",
        "saslPassword": PASSWORD,
        "saslMechanism": "SHA-512",
        "caCert": client["caCert"],
    }
    mutual = {**common, "brokers": f"127.0.0.1:{kafka.listeners['MUTUAL']}", "authType": "mtls", **client}
    await works("bindings.kafka", login)
    await works("bindings.kafka", mutual)
    await works(
        "bindings.kafka", {name: text for name, text in mutual.items() if name != "caCert"} | {"skipVerify": "1"}
    )
    await refused("bindings.kafka", {**login, "saslPassword": "secret"}, "secret")


async def test_rabbitmq(authority: Authority, client: Mapping[str, str], tmp_path: Path) -> None:
    own, directory = authority.issue("rabbitmq"), tmp_path / "server"
    directory.mkdir()
    port = free_port()
    config = "\n".join(
        (
            f"listeners.ssl.1 = 127.0.0.1:{port}",
            f"ssl_options.cacertfile = {authority.path}",
            f"ssl_options.certfile = {own.certificate}",
            f"ssl_options.keyfile = {own.key}",
            "ssl_options.verify = verify_peer",
            "ssl_options.fail_if_no_peer_cert = true",
        )
    )
    async with RabbitMQServer(directory, config + "\n"):
        settings = {"host": f"amqps://guest:guest@127.0.0.1:{port}", "queueName": "q", "durable": "true"}
        await works("bindings.rabbitmq", {**settings, **client})
        await refused("bindings.rabbitmq", {**settings, "caCert": client["caCert"]})
        await refused("bindings.rabbitmq", settings)
        wrong = {**settings, **client, "host": f"amqps://guest:secret@127.0.0.1:{port}"}
        await refused("bindings.rabbitmq", wrong, "secret")


async def test_mqtt(authority: Authority, client: Mapping[str, str], tmp_path: Path) -> None:
    own = authority.issue("mosquitto")
    async with MQTTServer(tmp_path / "server", tls_settings(authority, own)) as server:
        settings = {"url": f"ssl://127.0.0.1:{server.port}", "topic": "t", "consumerID": "me"}
        await works("bindings.mqtt3", {**settings, **client})
        await refused("bindings.mqtt3", {**settings, "caCert": client["caCert"]})
        await refused("bindings.mqtt3", settings)


async def test_jetstream(authority: Authority, client: Mapping[str, str], tmp_path: Path) -> None:
    own = authority.issue("nats")
    tls = f'tls {{ cert_file: "{own.certificate}", key_file: "{own.key}", ca_file: "{authority.path}", verify: true }}'
    users = f'authorization {{ user: mesh, password: "{PASSWORD}" }}'
    async with NatsServer(tmp_path / "server", config=f"{tls}\n{users}\n") as server:
        settings = {
            "natsURL": f"tls://mesh:{QUOTED}@127.0.0.1:{server.port}",
            "subject": "s",
            "tls_ca_cert": client["caCert"],
            "tls_client_cert": client["clientCert"],
            "tls_client_key": client["clientKey"],
        }
        async with made("bindings.jetstream", settings) as adapter:
            context = await adapter._connected()
            await context.add_stream(name="S", subjects=["s"])
        await works("bindings.jetstream", settings)
        await refused(
            "bindings.jetstream", {**settings, "natsURL": f"tls://mesh:secret@127.0.0.1:{server.port}"}, "secret"
        )
        without = {name: text for name, text in settings.items() if not name.startswith("tls_client")}
        await refused("bindings.jetstream", without)


async def test_jetstream_token(tmp_path: Path) -> None:
    async with NatsServer(tmp_path / "server", config=f'authorization {{ token: "{PASSWORD}" }}\n') as server:
        connection = await nats.connect(server.url, token=PASSWORD)
        await connection.jetstream().add_stream(name="S", subjects=["s"])
        await connection.close()
        settings = {"natsURL": server.url, "subject": "s", "token": PASSWORD}
        await works("bindings.jetstream", settings)
        await refused("bindings.jetstream", {**settings, "token": "secret"}, "secret")


async def test_jetstream_jwt(tmp_path: Path) -> None:
    operator = Operator()
    jwt, seed = operator.user()
    async with NatsServer(tmp_path / "server", config=operator.config) as server:
        settings = {"natsURL": server.url, "subject": "s", "jwt": jwt, "seedKey": seed}
        async with made("bindings.jetstream", settings) as adapter:
            context = await adapter._connected()
            await context.add_stream(name="S", subjects=["s"])
        await works("bindings.jetstream", settings)
        other_jwt, other_seed = Operator().user()
        await refused("bindings.jetstream", {**settings, "jwt": other_jwt, "seedKey": other_seed}, other_seed)
