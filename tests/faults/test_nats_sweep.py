"""Sweeps of a store on NATS: markers go, all else stays as it was known, whoever writes and whenever it is killed."""

from __future__ import annotations

import asyncio
import os
import random
import time
from collections.abc import AsyncIterator
from contextlib import suppress
from pathlib import Path
from typing import cast

import pytest

from brokers.nats import NatsBroker, _sweep
from brokers.nats import broker as nats_broker
from brokers.nats._kv import NatsKeyValue
from mesh.address import encode_token
from mesh.broker import Write
from mesh.errors import BrokerError, ConflictError, StateError
from tests.support.eventually import eventually
from tests.support.nats import NatsServer

NAME = "ns.store"
SEEDS = int(os.environ.get("SWEEP_SEEDS", "1"))
STREAM = f"KV_{encode_token(NAME)}"


@pytest.fixture
async def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[NatsServer]:
    monkeypatch.setattr(_sweep, "SYNC_WAIT", 0.1)
    monkeypatch.setattr(_sweep, "CLAIM_SECONDS", 0.0)  # Any number at once.
    async with NatsServer(tmp_path) as found:
        yield found


async def opened(broker: NatsBroker, *, dotted: bool = False) -> NatsKeyValue:
    return cast("NatsKeyValue", await broker.key_value(NAME, dotted=dotted))


async def stored(broker: NatsBroker) -> int:
    info = await broker._connection.api(f"STREAM.INFO.{STREAM}")
    return int(info["state"]["messages"])  # type: ignore[index]


async def revision(store: NatsKeyValue, key: str) -> int:
    entry = await store.get(key, strong=True)
    assert entry is not None
    return entry.revision


async def test_a_sweep_leaves_what_lives_as_it_was_known(server: NatsServer) -> None:
    async with NatsBroker.from_url(server.url) as broker:
        store = await opened(broker)
        dead = [f"dead {number}" for number in range(40)]
        live = [f"live {number}" for number in range(9)]
        for value in (b"1", b"2"):
            await store.apply([Write(key, value) for key in (*dead, *live)])
        await store.apply([Write("timed", b"t", ttl=3600)])
        await store.apply([Write(key, None) for key in dead])
        before = {key: await store.get(key, strong=True) for key in (*live, "timed")}
        assert await store.sweeper.sweep() >= len(dead)
        assert await stored(broker) == len(live) + 2  # And the mark of the sweep.
        for _ in range(2):
            assert {key: await store.get(key, strong=True) for key in before} == before
            assert await store.get_many(list(before)) == list(before.values())
            assert sorted([key async for key in store.keys("")]) == sorted(before)
            assert await store.get(dead[0], strong=True) is None
            await server.forget_index()
        known = {key: entry.revision for key, entry in before.items() if entry is not None}
        await store.apply([Write(live[0], b"3", known[live[0]])])
        await store.apply([Write(live[1], None, known[live[1]])])
        await store.apply([Write("new", b"1"), Write(live[2], None, known[live[2]], check=True)])
        await store.apply([Write(live[3], None, known[live[3]], check=True), Write(live[4], b"3", known[live[4]])])
        await store.apply([Write(dead[0], b"3", 0)])
        for key in live[:2]:
            with pytest.raises(ConflictError):
                await store.apply([Write(key, b"4", known[key])])
        with pytest.raises(ConflictError):
            await store.apply([Write("new", b"2"), Write(live[0], None, known[live[0]], check=True)])
        assert await revision(store, live[0]) > known[live[0]]


async def test_what_expires_does_so_when_it_should(server: NatsServer) -> None:
    async with NatsBroker.from_url(server.url) as broker:
        store = await opened(broker)
        await store.apply([Write("lease", b"0"), *(Write(f"dead {number}", b"1") for number in range(9))])
        began = time.monotonic()
        await store.apply([Write("short", b"1", ttl=2), Write("long", b"1", ttl=3600)])
        await store.apply([Write("lease", b"1", ttl=2, lease=True)])
        held = await revision(store, "lease")
        await store.apply([Write(f"dead {number}", None) for number in range(9)])
        at = [entry and entry.expires_at for entry in await store.get_many(["short", "long"])]
        assert await store.sweeper.sweep() >= 9
        if time.monotonic() < began + 1.9:
            assert [entry and entry.expires_at for entry in await store.get_many(["short", "long"])] == at
            assert await revision(store, "lease") == held

        async def over() -> None:
            assert await store.get_many(["short", "lease"]) == [None, None]

        await eventually(over)
        assert time.monotonic() >= began + 1.9
        await server.forget_index()
        await eventually(over)
        assert [key async for key in store.keys("")] == ["long"]


async def test_nothing_is_swept_while_more_lives(server: NatsServer) -> None:
    async with NatsBroker.from_url(server.url) as broker:
        store = await opened(broker, dotted=True)
        assert await store.sweeper.sweep() == 0
        await store.apply([Write(f"t.{number}", b"1") for number in range(9)])
        await store.apply([Write(f"t.{number}", None) for number in range(3)])
        assert await store.sweeper.sweep() == 0
        assert await stored(broker) == 9


async def test_one_node_at_a_time_is_enough(server: NatsServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_sweep, "CLAIM_SECONDS", 60.0)
    async with NatsBroker.from_url(server.url) as one, NatsBroker.from_url(server.url) as other:
        stores = [await opened(one), await opened(other)]
        await stores[0].apply([Write("a", None), Write("b", None)])
        async with asyncio.TaskGroup() as tasks:
            sweeping = [tasks.create_task(each.sweeper.sweep()) for each in stores]
        assert sorted([each.result() for each in sweeping]) == [0, 2]


async def test_a_node_sweeps_by_itself(server: NatsServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """What an earlier one has left, too; and it leaves in the middle of it, when it is to end."""
    monkeypatch.setattr(nats_broker, "SWEEP_INTERVAL", 0.1)
    monkeypatch.setattr(_sweep, "SWEEP_FROM", 20)
    monkeypatch.setattr(_sweep, "LOOK_AFTER", 1)  # It may have looked before anything was deleted.
    async with NatsBroker.from_url(server.url) as broker:
        store = await opened(broker)
        await store.apply([Write(f"{number}", None) for number in range(19)])

        async def looked() -> None:
            assert store.sweeper.dead == 0

        await eventually(looked)
        assert await stored(broker) == 19
        monkeypatch.setattr(_sweep, "SYNC_WAIT", 3600.0)
        await store.apply([Write("one more", None)])
    async with asyncio.timeout(30), NatsBroker.from_url(server.url) as broker:
        await opened(broker)

        async def begun() -> None:
            assert await stored(broker) == 21

        await eventually(begun)
    monkeypatch.setattr(_sweep, "SYNC_WAIT", 0.0)
    async with NatsBroker.from_url(server.url) as broker:
        await opened(broker)

        async def swept() -> None:
            assert await stored(broker) == 1

        await eventually(swept)


async def test_a_sweep_that_failed_is_tried_again(
    server: NatsServer, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Whatever the reason, and after a pause."""
    monkeypatch.setattr(nats_broker, "SWEEP_INTERVAL", 0.05)
    monkeypatch.setattr(_sweep, "SWEEP_FROM", 20)
    monkeypatch.setattr(_sweep, "AGAIN_SECONDS", (0.5, 0.5))
    monkeypatch.setattr(_sweep, "PURGE_WAIT", 0.0)
    async with NatsBroker.from_url(server.url) as broker:
        store = await opened(broker)
        await store.apply([Write(f"{number}", None) for number in range(20)])

        def failed() -> None:
            assert "no answer in time; it is tried again in" in caplog.text

        await eventually(failed)
        monkeypatch.undo()
        monkeypatch.setattr(_sweep, "SYNC_WAIT", 0.0)
        monkeypatch.setattr(nats_broker, "SWEEP_INTERVAL", 0.05)
        monkeypatch.setattr(_sweep, "SWEEP_FROM", 20)

        async def swept() -> None:
            assert await stored(broker) == 1

        await eventually(swept)


class Workload:
    """Writers, of which each has keys of its own, and counters that all of them count up by compare-and-set."""

    def __init__(self, seed: int) -> None:
        self.over = False
        self.deaths = 0  # Of what is on its way, it is not known what it came to.
        self.written: dict[str, bytes | None] = {}
        self.counted: dict[str, int] = {}
        self.unknown: dict[str, int] = {}
        self.held: dict[str, int] = {}
        self._seed = seed

    async def write(self, store: NatsKeyValue, writer: int) -> None:
        rng = random.Random(f"{self._seed} {writer}")
        number = 0
        while not self.over:
            number += 1
            key = f"w.{writer}.{rng.randrange(60)}"
            value = None if rng.random() < 0.6 else b"%d" % number
            condition = self.held.get(key) if rng.random() < 0.5 else None
            batch = [Write(key, value, condition)]
            if rng.random() < 0.1:
                batch.append(Write(f"w.{writer}.b", b"b"))
            before, known = self.deaths, True
            try:
                await store.apply(batch)
            except (
                BrokerError,
                StateError,
            ):  # What is held as an etag is good, unless this was on its way when it died.
                known = False
                assert self.deaths > before
            entry = await store.get(key, strong=True)
            assert (entry and entry.value) in ((value,) if known else (self.written.get(key), value))
            self.written[key] = None if entry is None else entry.value
            self.held.pop(key, None)
            if entry is not None:
                self.held[key] = entry.revision

    async def count(self, store: NatsKeyValue, key: str) -> None:
        while not self.over:
            entry = await store.get(key, strong=True)
            now = 0 if entry is None else int(entry.value)
            before = self.deaths
            try:
                await store.apply([Write(key, b"%d" % (now + 1), 0 if entry is None else entry.revision)])
            except ConflictError:
                self.unknown[key] = self.unknown.get(key, 0) + (self.deaths > before)
                continue
            self.counted[key] = self.counted.get(key, 0) + 1


@pytest.mark.parametrize("seed", range(SEEDS))
async def test_nothing_is_lost_nor_comes_back(server: NatsServer, seed: int) -> None:
    """Two nodes sweep all the time, both write, and the server is killed again and again."""
    load, swept = Workload(seed), 0

    async def sweep(store: NatsKeyValue) -> None:
        nonlocal swept
        while not load.over:
            with suppress(BrokerError, StateError, TimeoutError):
                swept += await store.sweeper.sweep()

    async with NatsBroker.from_url(server.url) as one, NatsBroker.from_url(server.url) as other:
        stores = [await opened(one, dotted=True), await opened(other, dotted=True)]
        async with asyncio.timeout(120), asyncio.TaskGroup() as tasks:
            for number, store in enumerate(stores * 2):
                tasks.create_task(load.write(store, number))
                tasks.create_task(load.count(store, f"n.{number % 3}"))
            for store in stores:
                tasks.create_task(sweep(store))
            for without_index in (True, False):
                goal = swept + 50

                async def enough(goal: int = goal) -> None:
                    assert swept >= goal

                await eventually(enough, 50)
                load.deaths += 1
                await (server.forget_index() if without_index else server.restart(kill=True))
                load.deaths += 1
            load.over = True
        await check(stores[0], load)
        await server.forget_index()
        await check(stores[1], load)
        assert await stores[0].sweeper.sweep() >= 0
        await check(stores[1], load)


async def check(store: NatsKeyValue, load: Workload) -> None:
    found = dict(await store.scan("", "", 10_000))
    wanted = {key: value for key, value in load.written.items() if value is not None}
    assert {key: found[key].value for key in found if key in load.written} == wanted
    for key, counted in load.counted.items():
        assert counted <= int(found[key].value) <= counted + load.unknown.get(key, 0)
    for key, known in load.held.items():
        assert found[key].revision == known
