"""Actors and jobs on a broker without key/value: who owns them, and what they keep, is in the store that is marked."""

from __future__ import annotations

from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path

import orjson
import pytest_asyncio
from aiohttp import web

from tests.http.actor_app import ACTORS, ActorApp, call
from tests.http.harness import Backbone, Got, Node, component, gateway
from tests.support.eventually import eventually
from tests.support.kafka_server import KafkaServer
from tests.support.postgresql_server import PostgreSQLServer

IDS = [str(number) for number in range(16)]


@pytest_asyncio.fixture
async def kafka(tmp_path: Path) -> AsyncIterator[Backbone]:
    """A server of the test's own."""
    async with KafkaServer(tmp_path / "kafka") as server:
        yield Backbone(server.url)


@pytest_asyncio.fixture
async def store(tmp_path: Path) -> AsyncIterator[PostgreSQLServer]:
    """Where the marked store of both gateways is."""
    async with PostgreSQLServer(tmp_path / "postgresql") as server:
        yield server


class Counting(ActorApp):
    """Actors that count their calls in their state, which they reach by the gateway beside them.

    Attributes:
        name: What they answer, before the count.
        node: The gateway, once it is there.
    """

    def __init__(self, name: str) -> None:
        super().__init__()
        self.name = name
        self.node: Node | None = None
        for id_ in IDS:
            self.answers[f"{ACTORS.removeprefix('/v1.0')}/thing/{id_}/method/count"] = self._count

    async def _count(self, got: Got, request: web.BaseRequest) -> web.Response:
        assert self.node is not None
        at = f"{ACTORS}/thing/{got.path.split('/')[3]}/state"
        found = await self.node.request("GET", f"{at}/n")
        number = 1 + (orjson.loads(found.body) if found.status == 200 else 0)
        operations = [{"operation": "upsert", "request": {"key": "n", "value": number}}]
        assert (await self.node.request("POST", at, None, operations)).status == 204
        return web.Response(body=f"{self.name} {number}".encode())


async def _counted(node: Node) -> dict[str, str]:
    """Call each actor once; give who answered, and check the count of each."""
    found: dict[str, str] = {}
    for id_ in IDS:
        reply = await node.request(*call("count", id_=id_))
        assert reply.status == 200, reply.body
        found[id_] = reply.body.decode()
    return found


async def _scheduled(node: Node, path: str) -> None:
    """Ask for it once; while the store is back only just, an owner may be none yet."""
    reply = await node.post(path, {"dueTime": "1s", "overwrite": True})
    assert reply.status == 204, reply.body


def _number(counted: str) -> int:
    return int(counted.split()[1])


async def test_actors_of_two_gateways(kafka: Backbone, store: PostgreSQLServer, tmp_path: Path) -> None:
    """Both run some, which are called by way of either; those of one that stops go on at the other where they were.

    So do their reminders, and jobs; and all of them when the store is killed and is back.
    """
    connection = store.connection_string
    marked = component("store", "state.postgresql", connectionString=connection, actorStateStore="true")
    async with (
        Counting("one") as one,
        Counting("two") as two,
        gateway(kafka, tmp_path, app=one, app_id="a", resources=marked) as one.node,
    ):
        async with gateway(kafka, tmp_path, app=two, app_id="a", resources=marked) as two.node:

            async def shared() -> dict[str, str]:
                found = await _counted(one.node)
                assert {each.split()[0] for each in found.values()} == {"one", "two"}
                return found

            before = await eventually(shared, within=40.0)
            found = await _counted(two.node)
            assert {id_: _number(found[id_]) - _number(before[id_]) for id_ in IDS} == dict.fromkeys(IDS, 1)
            before = found
            await store.restart(kill=True)

            async def go_on() -> None:
                nonlocal found
                found = await _counted(two.node)

            await eventually(go_on, within=40.0)
            assert all(_number(found[id_]) > _number(before[id_]) for id_ in IDS)
            for number in IDS:
                for path in (f"{ACTORS}/thing/{number}/reminders/r", f"/v1.0/jobs/j{number}"):
                    await eventually(partial(_scheduled, two.node, path), within=40.0)
        before = found
        found = await _counted(one.node)
        assert found == {id_: f"one {_number(before[id_]) + 1}" for id_ in IDS}

        def all_came() -> None:
            came = {got.path for got in (*one.got, *two.got)}
            assert came >= {f"/actors/thing/{number}/method/remind/r" for number in IDS}
            assert came >= {f"/job/j{number}" for number in IDS}

        await eventually(all_came, within=40.0)
