"""``mesh doctor`` where many workflows have ended and nobody deletes them: on the backbone, and in a marked store."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nats
import pytest
from msgspec.structs import replace
from redis.asyncio import Redis

from gateway.cli import main
from gateway.cli.kept_workflows import MANY
from mesh import address
from mesh.blocks.records import Prefixed
from mesh.blocks.workflow_service import PUT_AWAY
from mesh.registry import Registry
from mesh.resources.component import Component, MetadataEntry
from mesh.store import Item, KeyValueStateStore, StateStore
from mesh.workflows.events import Completed, Started
from mesh.workflows.record import Keys, plan, put_away
from mesh.workflows.state import State, Status, Step
from tests.support.nats import NatsServer
from tests.support.processes import free_port
from tests.support.redis_server import RedisServer

RESOURCE = """\
apiVersion: dapr.io/v1alpha1
kind: Component
metadata: {{name: {name}}}
spec: {{type: {type}, version: v1, metadata: {settings}}}
---
"""
AT = 1_800_000_000.0
NAME = address.store("default", PUT_AWAY)
AT_ONCE = 100


@dataclass
class Place:
    """Where instances lie that have ended.

    Attributes:
        name: As the doctor calls it.
        backbone: Its URL.
        resources: What a folder of resources needs of it.
        opened: Opens it, as a gateway does.
        names: Gives what there is on the server.
    """

    name: str
    backbone: str
    resources: str
    opened: Callable[[], Awaitable[StateStore]]
    names: Callable[[], Awaitable[list[str]]]


@asynccontextmanager
async def on_nats(home: Path, stack: AsyncExitStack) -> AsyncIterator[Place]:
    async with NatsServer(home) as server:
        client = await nats.connect(server.url)

        async def opened() -> StateStore:
            broker: Any = Registry().backbone(server.url).from_url(server.url)  # type: ignore[attr-defined]
            await stack.enter_async_context(broker)
            return KeyValueStateStore(await broker.key_value(NAME, dotted=True))

        async def names() -> list[str]:
            return [each.config.name or "" for each in await client.jetstream().streams_info()]

        yield Place("backbone", server.url, "", opened, names)
        await client.close()


@asynccontextmanager
async def on_redis(home: Path, stack: AsyncExitStack) -> AsyncIterator[Place]:
    async with RedisServer(home) as server:
        url = f"redis://127.0.0.1:{server.port}"
        client = Redis(port=server.port)

        async def opened() -> StateStore:
            broker: Any = Registry().backbone(url).from_url(url)  # type: ignore[attr-defined]
            await stack.enter_async_context(broker)
            return KeyValueStateStore(await broker.key_value(NAME, dotted=True))

        async def names() -> list[str]:
            return [each.decode() for each in await client.keys("*")]

        yield Place("backbone", url, "", opened, names)
        await client.aclose()


@asynccontextmanager
async def in_a_store(home: Path, stack: AsyncExitStack) -> AsyncIterator[Place]:
    """One that is marked, beside a backbone that keeps nothing."""
    async with RedisServer(home) as server:
        settings = {"redisHost": f"127.0.0.1:{server.port}", "actorStateStore": "true"}
        listed = json.dumps([{"name": name, "value": value} for name, value in settings.items()])
        client = Redis(port=server.port)

        async def opened() -> StateStore:
            component = Component("marked", "state.redis", tuple(MetadataEntry(*each) for each in settings.items()))
            adapter: Any = Registry().load("state.redis")
            store = await stack.enter_async_context(adapter.from_component(component))
            return Prefixed(store, f"mesh||{{{NAME}}}||")

        async def names() -> list[str]:
            return [each.decode() for each in await client.keys("*")]

        resources = RESOURCE.format(name="marked", type="state.redis", settings=listed)
        yield Place("marked", f"amqp://127.0.0.1:{free_port()}", resources, opened, names)
        await client.aclose()


async def put(store: StateStore, app: str, numbers: range, until: float | None) -> None:
    """Put instances away, as their owner does."""
    state = State(1, "e", "order", Status.COMPLETED, AT, AT, started=AT, ended=AT, events=2)
    step = Step(state, (Started(AT, "order", "e", app), Completed(AT, 1, Status.COMPLETED)))
    record = put_away(replace(plan(None, step).kept, until=until), state)
    keys = Keys(f"workflows.{app}")
    for start in range(numbers.start, numbers.stop, AT_ONCE):
        page = range(start, min(start + AT_ONCE, numbers.stop))
        failed = await store.save_each([Item(keys.ended_of(each % 256, f"i-{each}"), record) for each in page])
        assert not any(failed)


@pytest.fixture(params=[on_nats, on_redis, in_a_store], ids=["nats", "redis", "marked"])
async def place(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Place]:
    async with AsyncExitStack() as stack, request.param(tmp_path / "server", stack) as place:
        yield place


@pytest.mark.timeout(120)
async def test_many_that_are_kept_for_good(
    place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """It is told whose they are, and what deletes them; fewer are no note, nor those that expire; nothing is made."""
    monkeypatch.setenv("MESH_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("MESH_BACKBONE", place.backbone)
    folder = tmp_path / "resources"
    folder.mkdir()
    files = RESOURCE.format(name="other", type="state.in-memory", settings="[]") + place.resources
    (folder / "all.yaml").write_text(files)

    async def notes(*words: str) -> list[tuple[str, str, str, str]]:
        code = await asyncio.to_thread(main, ["doctor", "-d", str(folder), "-o", "json", *words])
        checks = json.loads(capsys.readouterr().out)["checks"]
        assert code == 0
        found = [each for each in checks if each["what"] == "workflows"]
        return [(each["component"], each["name"], each["status"], each["told"]) for each in found]

    assert (await notes(), await place.names()) == ([], [])
    store = await place.opened()
    await put(store, "shop", range(MANY - 1), None)
    await put(store, "shop", range(MANY, MANY + 100), time.time() + 1e6)
    await put(store, "till", range(1), None)
    await store.write([Item(Keys("workflows.shop").ended_of(0, "damaged"), b"\x00")])
    assert await notes("-a", "shop") == []
    [(component, name, status, told)] = await notes()
    assert (component, name, status) == (place.name, "shop, till", "note")
    assert told == (
        "1,000 or more that have ended are kept for good: a Configuration with spec.workflow.stateRetentionPolicy: "
        "{completed: 24h, anyTerminal: 720h} has those deleted that end from then on, mesh workflow purge "
        "--all-older-than 720h those that are there"
    )
    await put(store, "shop", range(MANY - 1, MANY), None)
    assert [each[:2] for each in await notes("-a", "shop")] == [(place.name, "shop")]
    assert await notes("-a", "till") == []
