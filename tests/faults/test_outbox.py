"""The transactional outbox while gateways are killed: no event without its write, and no write without its event."""

from __future__ import annotations

import asyncio
import itertools
from collections import Counter

import aiohttp
import pytest

from tests.faults.conftest import Figures, Site, portion
from tests.support.eventually import eventually
from tests.support.mesh import AppProcess, GatewayProcess

pytestmark = pytest.mark.slow
RESOURCES = """
apiVersion: dapr.io/v1alpha1
kind: Component
metadata: {name: pubsub}
spec: {type: pubsub.mesh, version: v1}
---
apiVersion: dapr.io/v1alpha1
kind: Component
metadata: {name: store}
spec:
  type: %s
  version: v1
  metadata:
    - {name: outboxPublishPubsub, value: pubsub}
    - {name: outboxPublishTopic, value: orders}
"""
FILE = "    - {name: connectionString, value: %s}\n"
ORDERS = [{"pubsubname": "pubsub", "topic": "orders", "route": "/events/orders"}]
WRITERS = 4  # More take both processors for as long as a gateway takes to start.
BETWEEN_KILLS = portion(300)
KILLS = portion(6)


class Writing:
    """Makes transactions, one after the other by each writer: each of a key of its own, every third one in vain."""

    def __init__(self, *gateways: GatewayProcess) -> None:
        self.confirmed: set[str] = set()
        self.refused: set[str] = set()
        self.unknown: set[str] = set()
        self._gateways = itertools.cycle(gateways)
        self._numbers = itertools.count()
        self._stopping = asyncio.Event()

    @property
    def tried(self) -> set[str]:
        return self.confirmed | self.refused | self.unknown

    def stop(self) -> None:
        self._stopping.set()

    async def more(self, count: int) -> None:
        """Wait until so many more are confirmed."""
        wanted = len(self.confirmed) + count

        def check() -> None:
            assert len(self.confirmed) >= wanted

        await eventually(check, 120.0)

    async def write(self) -> None:
        async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=30)) as session:
            while not self._stopping.is_set():
                await self._transact(session, next(self._gateways), next(self._numbers))

    async def _transact(self, session: aiohttp.ClientSession, gateway: GatewayProcess, number: int) -> None:
        key = f"k{number}"
        operations = [{"operation": "upsert", "request": {"key": key, "value": {"id": key}}}]
        in_vain = number % 3 == 0
        if in_vain:
            operations.append({"operation": "delete", "request": {"key": "nobody", "etag": "99999999"}})
        try:
            url = f"{gateway.api}/state/store/transaction"
            async with session.post(url, json={"operations": operations}) as response:
                done = response.status == 204
                said = await response.text()
        except (aiohttp.ClientError, TimeoutError):
            self.unknown.add(key)
            await asyncio.sleep(0.05)  # It is killed now; this is no wait for anything.
            return
        assert not (done and in_vain)
        (self.confirmed if done else self.refused if "revision" in said else self.unknown).add(key)


def _resources(site: Site) -> str:
    """Write the components: the store is the broker's own where it has one, else a file of both instances."""
    if site.name in ("nats", "redis"):
        return RESOURCES % "state.mesh"
    return RESOURCES % "state.sqlite" + FILE % (site.home / "store.db")


async def test_gateways_with_an_outbox_are_killed(site: Site, figures: Figures) -> None:
    """One of two instances at a time, then both: what is stored, and that alone, was published in the end."""
    file = site.home / "all.yaml"
    file.write_text(_resources(site))
    arguments = ("--resources-path", str(file))
    async with (
        AppProcess(site.home, subscriptions=ORDERS) as app,
        site.gateway("subscriber", app),
        site.gateway("shop", arguments=arguments) as one,
        site.gateway("shop", arguments=arguments) as other,
    ):
        writing = Writing(one, other)
        async with asyncio.TaskGroup() as tasks:
            for _ in range(WRITERS):
                tasks.create_task(writing.write())
            for kill in range(KILLS):
                await writing.more(BETWEEN_KILLS)
                killed = (one, other) if kill == KILLS - 1 else (one,) if kill % 2 else (other,)
                for gateway in killed:
                    await gateway.kill()
                if len(killed) == 1:
                    await writing.more(BETWEEN_KILLS // 3)  # The other one has taken over.
                for gateway in killed:
                    await gateway.start()
            await writing.more(BETWEEN_KILLS)
            writing.stop()
        stored = await _stored(one, sorted(writing.tried))
        assert writing.confirmed <= stored
        assert not writing.refused & stored

        def check() -> None:
            published = set(app.recorded("orders"))
            assert not stored - published, f"{len(stored - published)} writes without their event"
            assert not published - stored, f"events without their write: {sorted(published - stored)[:5]}"

        await eventually(check, 120.0)
        counted = Counter(app.recorded("orders"))
        figures.note(
            confirmed=len(writing.confirmed),
            refused=len(writing.refused),
            unknown=len(writing.unknown),
            unknown_but_stored=len(writing.unknown & stored),
            duplicates=counted.total() - len(counted),
        )


async def _stored(gateway: GatewayProcess, keys: list[str]) -> set[str]:
    """Give the keys that are in the store."""
    url = f"{gateway.api}/state/store/bulk"
    async with aiohttp.ClientSession() as session, session.post(url, json={"keys": keys}) as response:
        assert response.status == 200
        found = await response.json()
    assert not [each for each in found if "error" in each]
    return {each["key"] for each in found if "data" in each}
