"""Logging in to NATS, with and without TLS, by URL and by component."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from urllib.parse import quote

import pytest

from brokers.native.jetstream import JetStreamTopics
from brokers.nats import NatsBroker
from brokers.nats._config import CREDENTIALS
from mesh import address
from mesh.broker import SubscribeOptions
from mesh.errors import BrokerError, BrokerUnavailableError, PublishRejectedError
from mesh.node.runtime import NodeSettings, Runtime
from mesh.registry import Registry
from tests.support.certificates import Authority
from tests.support.contract import Inbox, text
from tests.support.eventually import eventually
from tests.support.nats import NatsServer
from tests.support.nats_keys import Operator, Pair
from tests.support.security import TOPIC, component, nodes, refused, works

PASSWORD = "p@ss:w/rd?#é"


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("authority"))


@asynccontextmanager
async def running(directory: Path, config: str) -> AsyncIterator[str]:
    """A server; gives its host and port."""
    async with NatsServer(directory / "nats", config=config) as server:
        yield f"localhost:{server.port}"


def by_url(url: str) -> NatsBroker:
    return NatsBroker.from_url(url)


def by_component(**settings: str) -> NatsBroker:
    return NatsBroker.from_component(component("pubsub.jetstream", **settings))


def native(**settings: str) -> JetStreamTopics:
    return JetStreamTopics.from_component(component("pubsub.jetstream", createStream="true", **settings))


async def test_password(tmp_path: Path) -> None:
    async with running(tmp_path, f'authorization {{ user: "a@b", password: "{PASSWORD}" }}') as host:
        url = f"nats://a%40b:{quote(PASSWORD, safe='')}@{host}"
        await works(lambda: by_url(url))
        await works(lambda: by_component(natsURL=url))
        await works(lambda: native(natsURL=url))
        await refused(by_url(f"nats://a%40b:hush@{host}"), "Authorization Violation", "hush")
        await refused(by_url(f"nats://{host}"), "Authorization Violation")


async def test_token(tmp_path: Path) -> None:
    async with running(tmp_path, 'authorization { token: "to ken" }') as host:
        await works(lambda: by_url(f"nats://to%20ken@{host}"))
        await works(lambda: by_component(natsURL=f"nats://{host}", token="to ken"))
        await works(lambda: native(natsURL=f"nats://{host}", token="to ken"))
        await refused(native(natsURL=f"nats://{host}", token="hush"), "Authorization Violation", "hush")
        await refused(by_url(f"nats://hush@{host}"), "Authorization Violation", "hush")
        await refused(by_component(natsURL=f"nats://{host}", token="hush"), "Authorization Violation", "hush")


async def test_a_node_does_not_wait_for_wrong_credentials_to_become_right(tmp_path: Path) -> None:
    async with running(tmp_path, 'authorization { token: "right" }') as host:
        settings = NodeSettings("app", "default", f"nats://wrong@{host}", backbone_timeout=60.0)
        with pytest.raises(BrokerUnavailableError, match="Authorization Violation"):
            async with asyncio.timeout(10), Runtime(settings, Registry()):
                pytest.fail("entered")


async def test_nkey(tmp_path: Path) -> None:
    user, stranger = Pair.user(), Pair.user()
    for name, each in (("user", user), ("stranger", stranger)):
        (tmp_path / name).write_text(each.seed)
    async with running(tmp_path, f"authorization {{ users: [ {{ nkey: {user.public} }} ] }}") as host:
        await works(lambda: by_url(f"nats://{host}?nkey={tmp_path / 'user'}"))
        wrong = by_url(f"nats://{host}?nkey={tmp_path / 'stranger'}")
        await refused(wrong, "Authorization Violation", stranger.seed)


async def test_jwt_of_an_operator_s_account(tmp_path: Path) -> None:
    operator, another = Operator(), Operator()
    jwt, seed = operator.user()
    (tmp_path / "user.creds").write_text(CREDENTIALS.format(jwt=jwt, seed=seed))
    async with running(tmp_path, operator.config) as host:
        await works(lambda: by_url(f"nats://{host}?creds={tmp_path / 'user.creds'}"))
        await works(lambda: by_component(natsURL=f"nats://{host}", jwt=jwt, seedKey=seed))
        await works(lambda: native(natsURL=f"nats://{host}", jwt=jwt, seedKey=seed))
        other_jwt, other_seed = another.user()
        for wrong in ((other_jwt, other_seed), (jwt, other_seed)):
            broker = by_component(natsURL=f"nats://{host}", jwt=wrong[0], seedKey=wrong[1])
            await refused(broker, "Authorization Violation", *wrong)


async def test_tls(tmp_path: Path, authority: Authority) -> None:
    own = authority.issue("nats")
    config = f'tls {{ cert_file: "{own.certificate}", key_file: "{own.key}" }}\n'
    login = "authorization { user: u, password: secret }"
    async with running(tmp_path, config + login) as host:
        for scheme in ("tls", "nats"):
            await works(lambda url=f"{scheme}://u:secret@{host}?cacertfile={authority.path}": by_url(url))
        await works(lambda: by_url(f"tls://u:secret@{host}?verify=verify_none"))
        await works(lambda: by_component(natsURL=f"tls://u:secret@{host}?cacertfile={authority.path}"))
        await works(lambda: native(natsURL=f"tls://u:secret@{host}?cacertfile={authority.path}"))
        for scheme in ("tls", "nats"):  # The server asks for TLS in both cases.
            await refused(by_url(f"{scheme}://u:secret@{host}"), "unable to get local issuer", "secret")


async def test_certificate_of_another_name(tmp_path: Path, authority: Authority) -> None:
    own = authority.issue("elsewhere", "DNS:elsewhere.example")
    async with running(tmp_path, f'tls {{ cert_file: "{own.certificate}", key_file: "{own.key}" }}') as host:
        await refused(by_url(f"tls://{host}?cacertfile={authority.path}"), "Hostname mismatch")


async def test_server_without_tls_is_refused_before_it_hears_the_password(tmp_path: Path) -> None:
    heard: list[bytes] = []

    async def pretend(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b'INFO {"server_id":"x","version":"2.12.0","max_payload":1048576,"headers":true}\r\n')
        try:
            heard.append(await reader.read())
        except ConnectionError:
            heard.append(b"")
        finally:
            writer.close()

    async with await asyncio.start_server(pretend, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        await refused(by_url(f"tls://u:secret@127.0.0.1:{port}"), "secure connection not available", "secret")

        def over() -> None:
            assert heard == [b""]

        await eventually(over)


async def test_mutual_tls(tmp_path: Path, authority: Authority) -> None:
    own, user = authority.issue("nats"), authority.issue("user", "email:mesh@example.org")
    stranger = Authority(tmp_path / "strangers", "Stranger").issue("stranger")
    config = (
        f'tls {{ cert_file: "{own.certificate}", key_file: "{own.key}", ca_file: "{authority.path}"\n'
        "verify_and_map: true }\nauthorization { users: [ { user: mesh@example.org } ] }"
    )
    async with running(tmp_path, config) as host:
        url = f"tls://{host}?cacertfile={authority.path}"
        await works(lambda: by_url(f"{url}&certfile={user.certificate}&keyfile={user.key}"))
        paths = {"tls_client_cert": str(user.certificate), "tls_client_key": str(user.key)}
        await works(lambda: by_component(natsURL=url, **paths))
        texts = {"tls_client_cert": user.certificate.read_text(), "tls_client_key": user.key.read_text()}
        await works(lambda: by_component(natsURL=url, **texts))
        for wrong in (url, f"{url}&certfile={stranger.certificate}&keyfile={stranger.key}"):
            # Its alert may get lost, as the server hangs up on what we have begun to say.
            await refused(by_url(wrong), "(?i)certificate required|unknown ca|connection lost|eof|reset|broken pipe")


def _login(kind: str, directory: Path) -> tuple[str, str]:
    """Make the server's configuration, and a URL with a gap for the host."""
    match kind:
        case "password":
            return "authorization { user: u, password: secret }", "nats://u:secret@{host}"
        case "nkey":
            user = Pair.user()
            (directory / "user.nk").write_text(user.seed)
            return (
                f"authorization {{ users: [ {{ nkey: {user.public} }} ] }}",
                f"nats://{{host}}?nkey={directory}/user.nk",
            )
        case _:
            operator = Operator()
            jwt, seed = operator.user()
            (directory / "user.creds").write_text(CREDENTIALS.format(jwt=jwt, seed=seed))
            return operator.config, f"nats://{{host}}?creds={directory}/user.creds"


@pytest.mark.parametrize("kind", ["password", "nkey", "creds"])
async def test_login_is_repeated_after_a_restart(kind: str, tmp_path: Path, authority: Authority) -> None:
    own = authority.issue("nats")
    config, url = _login(kind, tmp_path)
    tls = f'\ntls {{ cert_file: "{own.certificate}", key_file: "{own.key}" }}'
    async with NatsServer(tmp_path / "nats", config=config + tls) as server:
        where = url.format(host=f"localhost:{server.port}")
        where += f"{'&' if '?' in where else '?'}cacertfile={authority.path}"
        inbox = Inbox()
        async with (
            nodes(lambda: by_url(where), 2) as [one, other],
            other.subscribe(TOPIC, SubscribeOptions("g"), inbox),
        ):
            await one.publish(TOPIC, text("before"))
            await inbox.holds(1)
            await server.restart(kill=True)
            async with asyncio.timeout(30):
                await one.publish(TOPIC, text("after"))

            def both_came() -> None:  # At least once: "before" may come again, as its acknowledgement was lost.
                assert set(inbox.bodies) == {b"before", b"after"}

            await eventually(both_came)


async def test_what_a_user_of_a_stream_may_not_do_is_told(tmp_path: Path) -> None:
    """Publishing needs no more than the subject; what lacks a right is told at once, with the subject."""
    may = 'permissions { publish: ["orders", "only"], subscribe: ["_INBOX.>"] }'
    users = f"authorization {{ users: [ {{ user: app, password: x, {may} }}, {{ user: all, password: x }} ] }}"
    async with running(tmp_path, users) as host:
        async with native(natsURL=f"nats://all:x@{host}") as maker:
            await maker.publish(TOPIC, text("1"))
        async with asyncio.timeout(60), native(natsURL=f"nats://app:x@{host}") as broker:
            await broker.publish(TOPIC, text("2"))
            with pytest.raises(BrokerError, match="may not send to another"):
                await broker.publish(address.topic("test", "secured", "another"), text("3"))
            with pytest.raises(PublishRejectedError, match="no stream"):
                await broker.publish(address.topic("test", "secured", "only"), text("4"))
            with pytest.raises(BrokerError, match=r"may not send to \$JS\.API\.STREAM\.NAMES"):
                async with broker.subscribe(TOPIC, SubscribeOptions("g"), Inbox()):
                    pytest.fail("entered")


async def test_the_rights_that_the_page_names_are_enough(tmp_path: Path) -> None:
    """For an application that publishes to one subject of a stream, and reads it."""
    stream = ("STREAM.NAMES", "STREAM.INFO.S", "STREAM.MSG.GET.S")
    consumer = ("CONSUMER.INFO.S.*", "CONSUMER.CREATE.S.*.orders", "CONSUMER.MSG.NEXT.S.*")
    subjects = ["orders", "$JS.ACK.S.>", *(f"$JS.API.{each}" for each in (*stream, *consumer))]
    quoted = ", ".join(f'"{each}"' for each in subjects)
    may = f'permissions {{ publish: [{quoted}], subscribe: ["_INBOX.>"] }}'
    users = f"authorization {{ users: [ {{ user: app, password: x, {may} }}, {{ user: all, password: x }} ] }}"
    async with running(tmp_path, users) as host:
        async with native(natsURL=f"nats://all:x@{host}", streamName="S") as maker:
            await maker.publish(TOPIC, text("1"))
        for more in ({}, {"streamName": "S"}):
            inbox = Inbox()
            options = SubscribeOptions(f"g{len(more)}")
            async with asyncio.timeout(60), native(natsURL=f"nats://app:x@{host}", **more) as broker:
                async with broker.subscribe(TOPIC, options, inbox):
                    await broker.publish(TOPIC, text("2"))
                    await inbox.holds(2)
                assert (await broker.backlog(TOPIC, options)).waiting == 0


async def test_an_account_without_jetstream_is_told(tmp_path: Path) -> None:
    accounts = "accounts { A { users: [ { user: u, password: x } ] } }"
    async with running(tmp_path, accounts) as host:
        with pytest.raises(BrokerError, match="JetStream on NATS at"):
            async with native(natsURL=f"nats://u:x@{host}"):
                pytest.fail("entered")
