"""The rights that a broker prints for a store are those that its scans need, and of no other store."""

from __future__ import annotations

import asyncio
import shlex
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from redis.asyncio import Redis

from brokers.nats import NatsBroker, _sweep
from brokers.nats import broker as nats_broker
from brokers.nats._errors import RightMissingError
from brokers.nats._kv import NatsKeyValue
from brokers.redis import RedisBroker
from mesh import address
from mesh.broker import KeyValueProvider, Write
from mesh.errors import BrokerError, StateError
from mesh.rights import Rights
from tests.support.nats import NatsServer
from tests.support.redis_server import DURABLE, RedisServer

OWN, OTHER = address.store("prod", "mesh:timers"), address.store("prod", "another")
RIGHTS = Rights("prod", "shop", stores=(OWN,))


@asynccontextmanager
async def nats(home: Path, without: str = "none") -> AsyncIterator[NatsBroker]:
    """Connect with the printed rights."""
    lines = [each for each in NatsBroker.permissions(RIGHTS).splitlines() if not each.startswith("#")]
    user = "\n".join(each for each in lines if without not in each).replace("$PASSWORD", '"secret"')
    config = f"authorization {{ users: [\n{user},\n{{user: admin, password: secret}}\n] }}"
    async with NatsServer(home, config=config) as server:
        async with NatsBroker.from_url(f"nats://admin:secret@{server.address}") as admin:
            await admin.key_value(OTHER, dotted=True)
        async with NatsBroker.from_url(f"nats://shop:secret@{server.address}?inbox=shop") as broker:
            yield broker


@asynccontextmanager
async def redis(home: Path, without: str = "none") -> AsyncIterator[RedisBroker]:
    """Connect with the printed rights."""
    lines = [each for each in RedisBroker.permissions(RIGHTS).splitlines() if not each.startswith("#")]
    async with RedisServer(home, DURABLE) as server, Redis(port=server.port) as admin:
        for line in lines:
            if without not in line:
                await admin.execute_command(*shlex.split(line.replace(">PASSWORD", ">secret")))
        async with RedisBroker.from_url(f"redis://shop:secret@127.0.0.1:{server.port}?inbox=shop") as broker:
            yield broker


async def write_and_scan(broker: KeyValueProvider, name: str) -> list[str]:
    store = await broker.key_value(name, dotted=True)
    await store.apply([Write("t.a", b"1"), Write("t.b", b"2", ttl=100), Write("t.c", b"3")])
    await store.apply([Write("t.c", None)])
    return [key for key, _ in await store.scan("t.", "", 10)]


@pytest.mark.parametrize("connect", [nats, redis])
async def test_a_store_of_its_own_can_be_scanned(connect: object, tmp_path: Path) -> None:
    async with connect(tmp_path) as broker:  # type: ignore[operator]
        assert await write_and_scan(broker, OWN) == ["t.a", "t.b"]


async def test_redis_refuses_the_index_of_another_store(tmp_path: Path) -> None:
    async with redis(tmp_path) as broker:
        with pytest.raises(StateError, match="can't access"):
            await write_and_scan(broker, OTHER)
        other = await broker.key_value(OTHER, dotted=True)
        with pytest.raises(StateError, match="can't access"):
            await other.scan("t.", "", 10)


async def test_redis_needs_the_right_to_the_index(tmp_path: Path) -> None:
    async with redis(tmp_path, without="mesh.kv.index:") as broker:
        with pytest.raises(StateError, match="can't access"):
            await write_and_scan(broker, OWN)


@pytest.mark.parametrize("name", [OWN, OTHER])
async def test_nats_refuses_to_read_without_the_right(name: str, tmp_path: Path) -> None:
    """It says so to the connection and answers nothing, so the call is bounded by its caller."""
    right = f'"$JS.API.DIRECT.GET.KV_{address.encode_token(OWN)}"'
    async with nats(tmp_path, without=right) as broker:
        with pytest.raises((TimeoutError, BrokerError)):
            async with asyncio.timeout(1):
                await write_and_scan(broker, name)


async def swept(broker: NatsBroker, monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.setattr(_sweep, "SYNC_WAIT", 0.0)
    store = await broker.key_value(OWN, dotted=True)
    assert isinstance(store, NatsKeyValue)
    await store.apply([Write("t.a", None), Write("t.b", None), Write("t.c", b"1")])
    return await store.sweeper.sweep()


async def test_nats_lets_a_store_of_its_own_be_swept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with nats(tmp_path) as broker:
        assert await swept(broker, monkeypatch) >= 2


async def test_nats_names_the_right_to_sweep(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    right = f"$JS.API.STREAM.PURGE.KV_{address.encode_token(OWN)}"
    async with nats(tmp_path, without=right) as broker:
        with pytest.raises(RightMissingError) as refused:
            await swept(broker, monkeypatch)
        assert right in str(refused.value)
        store = await broker.key_value(OWN, dotted=True)
        assert len(await store.scan("t.", "", 10)) == 1


async def test_a_stream_of_an_earlier_version_is_used_without_the_right_to_change_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(nats_broker, "UPDATE_WAIT", 60.0)  # The server's refusal is heard.
    async with nats(tmp_path) as broker:
        await broker.key_value(OWN, dotted=True)
        monkeypatch.setattr(nats_broker, "EXPIRED_MARKER_NS", 10**9 * 3600)
        assert await write_and_scan(broker, OWN) == ["t.a", "t.b"]
    assert "cannot set subject_delete_marker_ttl" in caplog.text
    assert "may not send to $JS.API.STREAM.UPDATE.KV_" in caplog.text
