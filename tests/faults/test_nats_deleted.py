"""What was deleted or has expired on a single NATS server stays so when it is killed: it reads its files anew then."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from brokers.nats import NatsBroker
from brokers.nats import broker as nats_broker
from mesh.address import encode_token
from mesh.broker import KeyValue, Write
from tests.support.eventually import eventually
from tests.support.nats import NatsServer

NAME = "ns.store"
STREAM = f"KV_{encode_token(NAME)}"


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[NatsServer]:
    async with NatsServer(tmp_path) as found:
        yield found


async def gone(store: KeyValue, key: str) -> None:
    assert await store.get(key, strong=True) is None


@pytest.mark.parametrize("dotted", [False, True])
async def test_what_is_gone_stays_gone(server: NatsServer, dotted: bool) -> None:
    """The last message of a subject goes with its time; the one that it took the place of was never taken back."""
    async with NatsBroker.from_url(server.url) as broker:
        store = await broker.key_value(NAME, dotted=dotted)
        await store.apply([Write(key, b"1") for key in ("deleted", "expired", "kept")])
        await store.apply([Write("deleted", b"2"), Write("expired", b"2", ttl=1), Write("fresh", b"1", ttl=1)])
        await store.apply([Write("deleted", None)])
        await server.restart(kill=True)
        await gone(store, "deleted")

        async def no_message() -> None:  # But for markers: the server has taken away what is over.
            for key in ("expired", "fresh"):
                found = await store._read_leader(key)  # type: ignore[attr-defined]
                assert found is None or "Nats-Marker-Reason" in found[1]

        await eventually(no_message)
        for _ in range(2):
            await server.forget_index()
            for key in ("deleted", "expired", "fresh"):
                await gone(store, key)
            assert [key async for key in store.keys("")] == ["kept"]


async def test_markers_outlive_what_they_stand_for(server: NatsServer) -> None:
    async with NatsBroker.from_url(server.url) as broker:
        store = await broker.key_value(NAME)
        await store.apply([Write("a", b"1"), Write("b", b"1")])
        await store.apply([Write("a", None)])
        await store.apply([Write("b", b"2", ttl=1)])
        info = await broker._connection.api(f"STREAM.INFO.{STREAM}")
        assert info["config"]["subject_delete_marker_ttl"] == nats_broker.EXPIRED_MARKER_NS  # type: ignore[index]
        marker = await store._read_leader("a")  # type: ignore[attr-defined]
        assert "Nats-TTL" not in marker[1]


async def test_a_stream_of_an_earlier_version_is_given_the_markers(server: NatsServer) -> None:
    async with NatsBroker.from_url(server.url) as broker:
        store = await broker.key_value(NAME)
        config = dict((await broker._connection.api(f"STREAM.INFO.{STREAM}"))["config"])  # type: ignore[call-overload]
        config["subject_delete_marker_ttl"] = 0
        assert "error" not in await broker._connection.api(f"STREAM.UPDATE.{STREAM}", config)
        await store.apply([Write("a", b"1")])
        await broker._connection.store(f"$KV.{encode_token(NAME)}.a", b"", {"KV-Write": "DEL", "Nats-TTL": "1s"})
        await broker.key_value(NAME)

        async def over() -> None:
            found = await store._read_leader("a")  # type: ignore[attr-defined]
            assert found is not None
            assert "Nats-Marker-Reason" in found[1]

        await eventually(over)
        await server.forget_index()
        await gone(store, "a")
