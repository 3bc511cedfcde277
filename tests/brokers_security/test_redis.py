"""Logging in to Redis, with and without TLS and Sentinel, by URL and by component."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from urllib.parse import quote

import pytest
from redis.asyncio import Redis

from brokers.redis import RedisBroker, RedisConfig
from mesh.broker import Delivery, SubscribeOptions, Topology, Write
from mesh.errors import BrokerError, PublishRejectedError, StateError
from tests.support.certificates import Authority
from tests.support.contract import Inbox, text
from tests.support.eventually import eventually
from tests.support.processes import free_port
from tests.support.redis_server import DURABLE, RedisSentinel, RedisServer
from tests.support.security import TOPIC, component, nodes, refused, works

PASSWORD = "p@ss:w/rd?#"
ESCAPED = quote(PASSWORD, safe="")


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("authority"))


def by_url(url: str) -> RedisBroker:
    return RedisBroker.from_url(url)


def by_component(**settings: str) -> RedisBroker:
    return RedisBroker.from_component(component("pubsub.redis", **settings))


async def test_password(tmp_path: Path) -> None:
    async with RedisServer(tmp_path, (*DURABLE, "--requirepass", PASSWORD)) as server:
        host = f"127.0.0.1:{server.port}"
        await works(lambda: by_url(f"redis://:{ESCAPED}@{host}/1"))
        await works(lambda: by_component(redisHost=host, redisPassword=PASSWORD))
        await refused(by_url(f"redis://:hush@{host}"), "invalid username-password", "hush")
        await refused(by_component(redisHost=host, redisPassword="hush"), "invalid username-password", "hush")
        await refused(by_url(f"redis://{host}"), "Authentication required")


async def test_acl_user(tmp_path: Path) -> None:
    user = ("--user", "mesh", "on", f">{PASSWORD}", "~mesh*", "&mesh*", "+@all", "-@admin", "-@dangerous", "+info")
    async with RedisServer(tmp_path, (*DURABLE, "--requirepass", "other", *user, "+client|unblock")) as server:
        host = f"127.0.0.1:{server.port}"
        await works(lambda: by_url(f"redis://mesh:{ESCAPED}@{host}"))
        await works(lambda: by_component(redisHost=host, redisUsername="mesh", redisPassword=PASSWORD))
        await refused(by_url(f"redis://mesh:hush@{host}"), "invalid username-password", "hush")
        await refused(by_url(f"redis://hush:{ESCAPED}@{host}"), "invalid username-password", PASSWORD, ESCAPED)


async def test_what_an_acl_user_may_not_do_is_an_error_of_ours(tmp_path: Path) -> None:
    """Whatever the server refuses while it is in use stays within the contract."""
    async with RedisServer(tmp_path, (*DURABLE, "--requirepass", "other")) as server:
        host = f"127.0.0.1:{server.port}"
        async with (
            Redis(host="127.0.0.1", port=server.port, password="other") as admin,
            by_url(f"redis://:other@{host}") as broker,
        ):
            await broker.declare(Topology(TOPIC.space))
            store = await broker.key_value("s")
            await admin.acl_setuser("default", enabled=True, categories=["-@scripting", "-@keyspace", "-@pubsub"])
            with pytest.raises(PublishRejectedError, match="permissions"):
                await broker.publish(TOPIC, text("x"))
            with pytest.raises(StateError, match="permissions"):
                await store.apply([Write("k", b"v")])
            with pytest.raises(StateError, match="permissions"):
                await anext(aiter(store.keys()))
            serving, told = broker.serve(TOPIC, "g", Inbox()), broker.listen(TOPIC, Inbox())
            for work in (broker.subscribe(TOPIC, SubscribeOptions("g"), nothing), serving, told):
                with pytest.raises(BrokerError, match="permissions"):
                    async with work:
                        pytest.fail("entered")
            for sending in (broker.send(TOPIC, text("x")), broker.broadcast(TOPIC, text("x"))):
                with pytest.raises(BrokerError, match="permissions"):
                    await sending
            with pytest.raises(BrokerError, match="permissions"):
                await broker.declare(Topology("mesh.default.pubsub.other"))


async def nothing(delivery: Delivery) -> None:
    """Do nothing."""


@asynccontextmanager
async def over_tls(directory: Path, authority: Authority, *options: str) -> AsyncIterator[str]:
    """A server with a port for TLS; gives its host and port."""
    own, port = authority.issue("redis"), free_port()
    files = ("--tls-cert-file", own.certificate, "--tls-key-file", own.key, "--tls-ca-cert-file", authority.path)
    async with RedisServer(directory, (*DURABLE, *map(str, files), "--tls-port", str(port), *options)):
        yield f"localhost:{port}"


async def test_tls(tmp_path: Path, authority: Authority) -> None:
    async with over_tls(tmp_path, authority, "--tls-auth-clients", "no", "--requirepass", PASSWORD) as host:
        url = f"rediss://:{ESCAPED}@{host}"
        await works(lambda: by_url(f"{url}?cacertfile={authority.path}"))
        await works(lambda: by_url(f"{url}?verify=verify_none"))
        settings = {"redisHost": host, "redisPassword": PASSWORD, "enableTLS": "true"}
        await works(lambda: by_component(**settings, caCert=authority.text))
        await works(lambda: by_component(**settings, insecureSkipTLSVerify="true"))
        await refused(by_url(url), "certificate verify failed", PASSWORD)
        await refused(by_component(**settings), "certificate verify failed", PASSWORD)


async def test_mutual_tls(tmp_path: Path, authority: Authority) -> None:
    user = authority.issue("mesh")
    stranger = Authority(tmp_path / "strangers", "Stranger").issue("stranger")
    async with over_tls(tmp_path / "redis", authority, "--tls-auth-clients", "yes") as host:
        url = f"rediss://{host}?cacertfile={authority.path}"
        await works(lambda: by_url(f"{url}&certfile={user.certificate}&keyfile={user.key}"))
        settings = {"redisHost": host, "enableTLS": "true", "caCert": authority.text}
        texts = {"clientCert": user.certificate.read_text(), "clientKey": user.key.read_text()}
        await works(lambda: by_component(**settings, **texts))
        for wrong in (url, f"{url}&certfile={stranger.certificate}&keyfile={stranger.key}"):
            # Its alert may get lost, as the server hangs up on what we have begun to say.
            await refused(by_url(wrong), "not reachable")


class Watched:
    """A primary with a replica, and three Sentinels that watch them; each has a password."""

    def __init__(self, directory: Path) -> None:
        login = (*DURABLE, "--requirepass", PASSWORD, "--masterauth", PASSWORD)
        self.primary = RedisServer(directory / "primary", login)
        of = ("--replicaof", "127.0.0.1", str(self.primary.port), "--repl-diskless-sync-delay", "0")
        self.replica = RedisServer(directory / "replica", (*login, *of))
        lines = (
            "requirepass watch",
            "sentinel sentinel-pass watch",
            f"sentinel monitor main 127.0.0.1 {self.primary.port} 2",
            f'sentinel auth-pass main "{PASSWORD}"',
            "sentinel down-after-milliseconds main 500",
            "sentinel failover-timeout main 3000",
        )
        self.sentinels = [RedisSentinel(directory / f"sentinel{number}", lines) for number in range(3)]
        self.hosts = ",".join(f"127.0.0.1:{sentinel.port}" for sentinel in self.sentinels)


async def _asked(server: RedisServer, password: str, *command: str) -> object:
    async with Redis(port=server.port, password=password, decode_responses=True) as client:
        return await client.execute_command(*command)


@pytest.fixture
async def watched(tmp_path: Path) -> AsyncIterator[Watched]:
    watched = Watched(tmp_path)
    async with watched.primary, watched.replica, watched.sentinels[0], watched.sentinels[1], watched.sentinels[2]:

        async def know_each_other() -> None:
            for sentinel in watched.sentinels:
                found = await _asked(sentinel, "watch", "SENTINEL", "MASTER", "main")
                assert isinstance(found, dict)
                assert (found["num-slaves"], found["num-other-sentinels"]) == ("1", "2"), found
                replicas = await _asked(sentinel, "watch", "SENTINEL", "REPLICAS", "main")
                assert isinstance(replicas, list)
                assert replicas[0]["master-link-status"] == "ok", replicas

        await eventually(know_each_other, within=40.0)
        yield watched


async def test_failover_by_sentinels(watched: Watched) -> None:
    url = f"redis://:{ESCAPED}@{watched.hosts}?sentinel_master=main&sentinel_password=watch"
    settings = {"redisHost": watched.hosts, "failover": "true", "sentinelMasterName": "main"}
    settings |= {"redisPassword": PASSWORD, "sentinelPassword": "watch"}
    await works(lambda: by_component(**settings))
    inbox = Inbox()
    async with nodes(lambda: by_url(url), 2) as [one, other], other.subscribe(TOPIC, SubscribeOptions("g"), inbox):
        stored = [f"{number}" for number in range(20)]
        for body in stored:
            await one.publish(TOPIC, text(body))

        async def is_copied() -> None:
            assert await _asked(watched.primary, PASSWORD, "WAIT", "1", "100") == 1

        await eventually(is_copied)
        await watched.primary.kill()
        async with asyncio.timeout(30):
            await one.publish(TOPIC, text("after", id="after"))

        def all_there() -> None:
            assert {*inbox.bodies} >= {body.encode() for body in (*stored, "after")}

        await eventually(all_there, within=40.0)
    await watched.primary.start()  # It takes itself for the primary, until a Sentinel tells it otherwise.
    await works(lambda: by_url(url))


async def test_sentinels_that_refuse_or_do_not_know(tmp_path: Path) -> None:
    lines = ("requirepass watch", "sentinel monitor main 127.0.0.1 1 2")
    async with RedisSentinel(tmp_path, lines) as sentinel:
        url = f"redis://:secret@127.0.0.1:{sentinel.port}?sentinel_master=main"
        await refused(by_url(f"{url}&sentinel_password=hush"), "invalid username-password", "hush", "secret")
        await refused(by_url(url), "Authentication required", "secret")
        config = RedisConfig.from_url(f"{url.replace('main', 'other')}&sentinel_password=watch")
        unknown = RedisBroker(replace(config, connect_wait=0.5))
        await refused(unknown, "no Sentinel knows of a primary 'other'", "secret", "watch")
