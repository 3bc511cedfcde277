"""The components on Redis with passwords, ACL users and TLS."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from redis.asyncio import Redis

from bindings.redis.configuration import RedisConfigurationStore
from bindings.redis.state import RedisStateStore
from mesh.errors import StateError
from mesh.store import Item, Stored
from tests.support.certificates import Authority
from tests.support.nodes import component
from tests.support.processes import free_port
from tests.support.redis_server import DURABLE, RedisServer

PASSWORD = "p@ss:w/rd?#"


def made(adapter: Any, **settings: str) -> Any:
    return adapter.from_component(component("c", "", **settings))


async def works(**settings: str) -> None:
    async with made(RedisStateStore, **settings) as store:
        await store.write([Item("obs||k", b"1")])
        assert isinstance(await store.get("obs||k", strong=True), Stored)


async def refused(text: str, **settings: str) -> None:
    with pytest.raises(StateError, match=text) as raised:
        await works(**settings)
    assert PASSWORD not in str(raised.value)


async def test_passwords_and_users(tmp_path: Path) -> None:
    user = ("--user", "mesh", "on", f">{PASSWORD}", "~obs*", "+@all", "-@admin", "-@dangerous")
    async with RedisServer(tmp_path, (*DURABLE, "--requirepass", PASSWORD, *user)) as server:
        host = {"redisHost": f"127.0.0.1:{server.port}"}
        await works(**host, redisPassword=PASSWORD, redisDB="1")
        await works(**host, redisUsername="mesh", redisPassword=PASSWORD)
        await refused("WRONGPASS", **host, redisUsername="mesh", redisPassword="hush")
        async with made(RedisStateStore, **host, redisUsername="mesh", redisPassword=PASSWORD) as store:
            with pytest.raises(StateError, match="NOPERM"):
                await store.write([Item("obs||k", b"2"), Item("other||k", b"1")])
            assert (await store.get("obs||k", strong=True)).value == b"1"


async def test_tls(tmp_path: Path) -> None:
    authority = Authority(tmp_path / "authority")
    own, user, port = authority.issue("redis"), authority.issue("mesh"), free_port()
    stranger = Authority(tmp_path / "strangers", "Stranger").issue("stranger")
    files = ("--tls-cert-file", own.certificate, "--tls-key-file", own.key, "--tls-ca-cert-file", authority.path)
    options = (*DURABLE, *map(str, files), "--tls-port", str(port), "--tls-auth-clients")
    settings: Mapping[str, str] = {"redisHost": f"localhost:{port}", "enableTLS": "true"}
    async with RedisServer(tmp_path / "one", (*options, "no")):
        await works(**settings, caCert=authority.text)
        await works(**settings, insecureSkipTLSVerify="true")
        await refused("certificate verify failed", **settings)
    async with RedisServer(tmp_path / "both", (*options, "yes")):
        trusted = {**settings, "caCert": str(authority.path)}
        await works(**trusted, clientCert=user.certificate.read_text(), clientKey=user.key.read_text())
        await works(**trusted, clientCert=str(user.certificate), clientKey=str(user.key))
        await refused("localhost", **trusted, clientCert=str(stranger.certificate), clientKey=str(stranger.key))


async def test_a_server_that_lets_nobody_configure_it(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Is listened to all the same: it may have been configured by somebody else; who must be is told."""
    options = (*DURABLE, "--user", "default", "on", "nopass", "~*", "&*", "+@all", "-config")
    async with RedisServer(tmp_path, (*options, "--notify-keyspace-events", "Kg$xe")) as server:
        with caplog.at_level(logging.WARNING):
            async with (
                made(RedisConfigurationStore, redisHost=f"127.0.0.1:{server.port}") as store,
                Redis(port=server.port) as raw,
                store.watch(["c"], {}) as changed,
            ):
                changed.clear()
                await raw.set("c", "1")
                await changed.wait()
        [told] = [record.getMessage() for record in caplog.records]
        assert "notify-keyspace-events" in told
        assert "Kg$xe" in told
