"""Logging in to Kafka, with and without TLS, by URL and by component."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from urllib.parse import quote

import pytest
import pytest_asyncio

from brokers.kafka import KafkaBroker, KafkaConfig
from brokers.native.kafka import KafkaTopics
from tests.support.certificates import Authority
from tests.support.kafka_server import KafkaServer
from tests.support.security import component, reaches, refused, works

PASSWORD = "p@ss:w/rd?#"
LOGIN = f"mesh:{quote(PASSWORD, safe='')}@"
LISTENERS = {"SASL": "SASL_PLAINTEXT", "SASLTLS": "SASL_SSL", "TLS": "SSL", "MUTUAL": "SSL"}
MECHANISMS = {"PLAIN": "PLAIN", "SCRAM-SHA-256": "SHA-256", "SCRAM-SHA-512": "SHA-512"}


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("authority"))


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def server(authority: Authority, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[KafkaServer]:
    directory = tmp_path_factory.mktemp("kafka")
    own = authority.issue("kafka")
    (directory / "own.pem").write_text(own.key.read_text() + own.certificate.read_text())
    async with KafkaServer(directory / "kafka", _config(authority, directory), LISTENERS, {"mesh": PASSWORD}) as server:
        yield server


def _config(authority: Authority, directory: Path) -> str:
    lines = [
        "ssl.keystore.type=PEM",
        f"ssl.keystore.location={directory / 'own.pem'}",
        "ssl.truststore.type=PEM",
        f"ssl.truststore.location={authority.path}",
        "listener.name.mutual.ssl.client.auth=required",
    ]
    package = "org.apache.kafka.common.security"
    for name in ("sasl", "sasltls"):
        lines += [
            f"listener.name.{name}.sasl.enabled.mechanisms={','.join(MECHANISMS)}",
            f"listener.name.{name}.plain.sasl.jaas.config={package}.plain.PlainLoginModule required "
            f'username="kafka" password="unused" user_mesh="{PASSWORD}";',
            *(
                f"listener.name.{name}.{each.lower()}.sasl.jaas.config={package}.scram.ScramLoginModule required;"
                for each in MECHANISMS
                if each != "PLAIN"
            ),
        ]
    return "\n".join(lines) + "\n"


def by_url(server: KafkaServer, listener: str, login: str = "", **options: object) -> KafkaBroker:
    scheme = "kafkas" if LISTENERS[listener].endswith("SSL") else "kafka"
    query = "&".join(f"{name}={value}" for name, value in {"partitions": 2, **options}.items())
    return KafkaBroker.from_url(f"{scheme}://{login}127.0.0.1:{server.listeners[listener]}?{query}")


def by_component(server: KafkaServer, listener: str, **settings: str) -> KafkaBroker:
    brokers = f"127.0.0.1:{server.listeners[listener]}"
    config = KafkaConfig.from_component(component("pubsub.kafka", brokers=brokers, **settings))
    return KafkaBroker(replace(config, partitions=2))


@pytest.mark.parametrize("mechanism", MECHANISMS)
async def test_password(server: KafkaServer, mechanism: str) -> None:
    await reaches(lambda: by_url(server, "SASL", LOGIN, mechanism=mechanism))
    settings = {"authType": "password", "saslUsername": "mesh", "saslMechanism": MECHANISMS[mechanism]}
    await works(lambda: by_component(server, "SASL", saslPassword=PASSWORD, disableTls="true", **settings))
    await refused(by_url(server, "SASL", "mesh:hush@", mechanism=mechanism), "Authentication", "hush")
    await refused(by_component(server, "SASL", saslPassword="hush", disableTls="true", **settings), "Authent", "hush")


@pytest.mark.parametrize("mechanism", MECHANISMS)
async def test_password_over_tls(server: KafkaServer, authority: Authority, mechanism: str) -> None:
    await works(lambda: by_url(server, "SASLTLS", LOGIN, mechanism=mechanism, cacertfile=authority.path))
    settings = {"authType": "password", "saslUsername": "mesh", "saslMechanism": MECHANISMS[mechanism]}
    await reaches(lambda: by_component(server, "SASLTLS", saslPassword=PASSWORD, caCert=authority.text, **settings))
    wrong = by_url(server, "SASLTLS", "mesh:hush@", mechanism=mechanism, cacertfile=authority.path)
    await refused(wrong, "Authentication", "hush")
    await refused(by_url(server, "SASLTLS", LOGIN, mechanism=mechanism), "unable to get local issuer", PASSWORD)


async def test_tls(server: KafkaServer, authority: Authority) -> None:
    await works(lambda: by_url(server, "TLS", cacertfile=authority.path))
    await reaches(lambda: by_url(server, "TLS", verify="verify_none"))
    await works(lambda: by_component(server, "TLS", authType="none", caCert=authority.text))
    await refused(by_url(server, "TLS"), "unable to get local issuer certificate")
    await refused(by_component(server, "TLS", authType="password", saslUsername="u", saslPassword="hush"), "issuer")


async def test_the_native_layout_logs_in_alike(server: KafkaServer, authority: Authority) -> None:
    """What reads, writes and asks does; what is wrong is told at the start."""

    def native(listener: str, **settings: str) -> KafkaTopics:
        brokers = f"127.0.0.1:{server.listeners[listener]}"
        return KafkaTopics.from_component(component("pubsub.kafka", brokers=brokers, **settings))

    user = authority.issue("mesh")
    texts = {"clientCert": user.certificate.read_text(), "clientKey": user.key.read_text(), "caCert": authority.text}
    login = {"authType": "password", "saslUsername": "mesh", "saslMechanism": "SHA-512", "caCert": authority.text}
    for made in (native("SASLTLS", saslPassword=PASSWORD, **login), native("MUTUAL", authType="mtls", **texts)):
        async with made:
            await made.check()
    await refused(native("SASLTLS", saslPassword="hush", **login), "Authent", "hush")
    await refused(native("TLS", authType="password", saslUsername="u", saslPassword="hush"), "issuer", "hush")


async def test_mutual_tls(server: KafkaServer, authority: Authority, tmp_path: Path) -> None:
    user = authority.issue("mesh")
    stranger = Authority(tmp_path / "strangers", "Stranger").issue("stranger")
    files = {"certfile": user.certificate, "keyfile": user.key, "cacertfile": authority.path}
    await works(lambda: by_url(server, "MUTUAL", **files))
    texts = {"clientCert": user.certificate.read_text(), "clientKey": user.key.read_text(), "caCert": authority.text}
    await works(lambda: by_component(server, "MUTUAL", authType="mtls", **texts))
    await reaches(lambda: by_component(server, "MUTUAL", authType="certificate", **texts))
    files = {"certfile": stranger.certificate, "keyfile": stranger.key, "cacertfile": authority.path}
    for options in (files, {"cacertfile": authority.path}):
        await refused(by_url(server, "MUTUAL", **options), "ALERT")
