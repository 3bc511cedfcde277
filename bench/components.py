"""Stores of every kind: in the gateway that is asked, in one beyond the backbone, and by the bare driver."""

from __future__ import annotations

import itertools
import json
import os
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import aiohttp

from bench.load import BenchError, Client, get, post
from bench.measure import Measured, Plan, Row, Variant, alternate, note, peer_load
from bench.processes import Gateway, Peer, Process, Stage
from bench.works import EVENT, KEYS, paced

__all__ = [
    "BACKBONE",
    "BARE",
    "DRIVER",
    "HANDLER",
    "NEAREST",
    "PACE",
    "PARTS",
    "PLAN",
    "QUICK_PLAN",
    "Call",
    "Measured",
    "Part",
    "Served",
    "Work",
    "around",
    "measure",
    "postgresql",
    "redis",
]

NEAREST, BACKBONE = "gateway, nearest", "gateways, through the backbone"
BARE, HANDLER, DRIVER = "bare: handler + driver", "part: aiohttp handler", "part: driver"
PLAN = Plan(rounds=4, seconds=0.8, rate_seconds=1.2)
QUICK_PLAN = Plan(rounds=2, seconds=0.3, rate_seconds=0.4)
PACE = 200.0  # A second: a database that syncs every commit to a disk keeps up with it.
LEASE_SECONDS = 30
SEEDED = 25  # Items of one request.


@dataclass(frozen=True)
class Call:
    """A request; a body makes it a POST."""

    path: str
    body: bytes | None = None

    @property
    def sent(self) -> bytes:
        return get(self.path) if self.body is None else post(self.path, self.body)


@dataclass(frozen=True)
class Work:
    """What is asked of a store.

    Attributes:
        name: As in the table.
        driver: What the peer with the bare driver calls it; empty where the driver is a look into a dict.
        calls: Makes the requests; those of a name that two must not share begin with the given text.
        body: The JSON of every answer; None = there is none, and the status is 204.
    """

    name: str
    driver: str
    calls: Callable[[str], Iterator[Call]]
    body: object = None

    @property
    def status(self) -> int:
        return 204 if self.body is None else 200


@dataclass(frozen=True)
class Served:
    """A store that runs.

    Attributes:
        settings: Of the component.
        options: Of the peers.
    """

    settings: Mapping[str, str]
    options: Mapping[str, object] = field(default_factory=dict)


@dataclass(frozen=True)
class Part:
    """A component and its works.

    Attributes:
        type: Of the component.
        store: Its driver, in ``bench.stores``.
        serve: Starts what it needs, given the stage and an empty folder.
        works: In this order.
        keys: How many there are.
        seeds: Requests that make them.
        asked: What the bare driver is asked for in turn, where that is a call of a binding: its operation and metadata.
    """

    type: str
    store: str
    serve: Callable[[Stage, Path], AbstractAsyncContextManager[Served]]
    works: Sequence[Work]
    keys: int = KEYS
    seeds: Sequence[Call] = ()
    asked: Sequence[tuple[str, Mapping[str, str]]] = ()


@asynccontextmanager
async def redis(stage: Stage, directory: Path) -> AsyncIterator[Served]:
    """Serve Redis."""
    from tests.support.redis_server import RedisServer

    async with RedisServer(directory) as server:
        yield Served({"redisHost": f"127.0.0.1:{server.port}"}, {"port": server.port})


@asynccontextmanager
async def _redis_configuration(stage: Stage, directory: Path) -> AsyncIterator[Served]:
    from redis.asyncio import Redis

    async with redis(stage, directory) as served:
        async with Redis.from_url(f"redis://{served.settings['redisHost']}") as client:
            await client.set("order-0", "on||1")
        yield served


@asynccontextmanager
async def postgresql(stage: Stage, directory: Path) -> AsyncIterator[Served]:
    """Serve PostgreSQL."""
    from tests.support.postgresql_server import PASSWORD, PostgreSQLServer

    async with PostgreSQLServer(directory) as server:
        yield Served({"connectionString": server.connection_string}, {"port": server.port, "password": PASSWORD})


@asynccontextmanager
async def _sqlite(stage: Stage, directory: Path) -> AsyncIterator[Served]:
    yield Served({"connectionString": str(directory / "state.db")}, {"file": str(directory / "bare.db")})


@asynccontextmanager
async def _secrets(stage: Stage, directory: Path) -> AsyncIterator[Served]:
    file = directory / "secrets.json"
    file.write_text(json.dumps({"order-0": "s3cret"}))
    yield Served({"secretsFile": str(file)}, {"file": str(file)})


def _items(numbers: Sequence[int]) -> bytes:
    return ("[" + ",".join(f'{{"key":"order-{number}","value":{EVENT}}}' for number in numbers) + "]").encode()


def _operations(key: str) -> bytes:
    def one(kind: str, name: str, more: str = "") -> str:
        return f'{{"operation":"{kind}","request":{{"key":"{name}"{more}}}}}'

    value = f',"value":{EVENT}'
    found = [one("upsert", key, value), one("upsert", f"{key}-b", value), one("delete", f"{key}-c")]
    return ('{"operations":[' + ",".join(found) + "]}").encode()


def around(calls: Sequence[Call]) -> Callable[[str], Iterator[Call]]:
    """Make requests in turn, for ever."""
    return lambda prefix: itertools.cycle(calls)


def _locks(prefix: str) -> Iterator[Call]:
    for number in itertools.count():
        asked = {"resourceId": f"{prefix}-{number}", "lockOwner": "bench", "expiryInSeconds": LEASE_SECONDS}
        yield Call("/v1.0-alpha1/lock/store", json.dumps(asked).encode())


_KEYS = [f"order-{number}" for number in range(KEYS)]
_STATE = "/v1.0/state/store"
_SEEDS = [Call(_STATE, _items(range(first, first + SEEDED))) for first in range(0, KEYS, SEEDED)]


def _state(name: str) -> Sequence[Work]:
    return (
        Work(f"{name} save", "save", around([Call(_STATE, _items([number])) for number in range(KEYS)])),
        Work(f"{name} get", "get", around([Call(f"{_STATE}/{key}") for key in _KEYS]), json.loads(EVENT)),
        Work(
            f"{name} transaction",
            "transaction",
            around([Call(f"{_STATE}/transaction", _operations(key)) for key in _KEYS]),
        ),
    )


_SECRET = Work("secret", "", around([Call("/v1.0/secrets/store/order-0")]), {"order-0": "s3cret"})
_CONFIGURATION = Work(
    "configuration",
    "configuration",
    around([Call("/v1.0/configuration/store?key=order-0")]),
    {"order-0": {"value": "on", "version": "1"}},
)

# By the name that ``--components`` takes.
PARTS: Mapping[str, Part] = {
    "redis": Part("state.redis", "redis", redis, _state("redis"), seeds=_SEEDS),
    "postgresql": Part("state.postgresql", "postgresql", postgresql, _state("postgresql"), seeds=_SEEDS),
    "sqlite": Part("state.sqlite", "sqlite", _sqlite, _state("sqlite"), seeds=_SEEDS),
    "secrets": Part("secretstores.local.file", "file", _secrets, [_SECRET], 1),
    "configuration": Part("configuration.redis", "redis", _redis_configuration, [_CONFIGURATION], 1),
    "lock": Part("lock.redis", "redis", redis, [Work("lock", "lock", _locks, {"success": True})], 1),
}


def _written(directory: Path, part: Part, settings: Mapping[str, str]) -> Path:
    """Write the component; JSON is YAML."""
    folder = directory / "resources"
    folder.mkdir()
    component = {
        "apiVersion": "dapr.io/v1alpha1",
        "kind": "Component",
        "metadata": {"name": "store", "annotations": {"mesh.placement": "nearest"}},
        "spec": {
            "type": part.type,
            "version": "v1",
            "metadata": [{"name": name, "value": value} for name, value in settings.items()],
        },
    }
    (folder / "store.yaml").write_text(json.dumps(component))
    return folder


async def measure(name: str, part: Part, stage: Stage, plan: Plan) -> Measured:
    """Measure one component; the server that it needs runs for that time."""
    before = os.getloadavg()[0]
    note(f"{name} …")
    directory = stage.directory / "store-of-components"
    directory.mkdir()
    async with AsyncExitStack() as stack:
        try:
            served = await stack.enter_async_context(part.serve(stage, directory))
        except FileNotFoundError as error:
            raise BenchError(str(error)) from None
        resources = _written(stage.directory, part, served.settings)
        near = await stage.gateway("near", resources=resources)
        far = await stage.gateway("far")
        options = {"store": part.store, **served.options}
        bare = await stage.peer("bare", **options)
        bodies = {next(each.calls("")).path.split("/")[2]: json.dumps(each.body) for each in part.works}
        handler = await stage.peer("answer", **options, bodies=bodies)
        driver = await stage.peer(
            "driver", **options, value=EVENT, keys=part.keys, lease=LEASE_SECONDS, asked=part.asked
        )
        stack.push_async_callback(stage.stop, far, near, bare, handler, driver)
        servers: dict[str, tuple[Gateway | Peer, Sequence[Process]]] = {
            NEAREST: (near, [near]), BACKBONE: (far, [far, near]), BARE: (bare, [bare]), HANDLER: (handler, [handler])
        }  # fmt: skip
        for server, _ in servers.values():
            for call in part.seeds:
                await _answer(server.http_port, call, 204)
        rows = []
        for work in part.works:
            rows += await _measure(work, servers, driver, plan)
    return Measured(name, rows, (before, os.getloadavg()[0]))


async def _measure(
    work: Work, servers: Mapping[str, tuple[Gateway | Peer, Sequence[Process]]], driver: Peer, plan: Plan
) -> list[Row]:
    """Do one work in all ways at saturation, then at a fixed rate in those that answer alike."""
    async with AsyncExitStack() as stack:
        full, rated = [], []
        for title, (server, processes) in servers.items():
            calls = work.calls(title.replace(" ", "-").replace(":", ""))
            body = await _answer(server.http_port, next(calls), work.status)
            if body and title != HANDLER and json.loads(body) != work.body:
                raise BenchError(f"{work.name}, {title}: answered {body!r}")
            sent = (call.sent for call in calls)
            client = Client(server.http_port, sent, [work.status], body)
            await stack.enter_async_context(client.connected())
            full.append(Variant(title, client.saturate, processes))
            if title != HANDLER:
                rated.append(Variant(title, paced(client, PACE), processes))
        if work.driver:
            full.append(Variant(DRIVER, peer_load(driver, call=work.driver), [driver]))
        return [
            *(await alternate(work.name, full, plan.rounds, plan.seconds)).values(),
            *(await alternate(f"{work.name} at {PACE:g}/s", rated, plan.rounds, plan.rate_seconds)).values(),
        ]


async def _answer(port: int, call: Call, status: int) -> bytes:
    """Ask once; give the body."""
    verb = "GET" if call.body is None else "POST"
    headers = {} if call.body is None else {"Content-Type": "application/json"}
    async with (
        aiohttp.ClientSession() as session,
        session.request(verb, f"http://127.0.0.1:{port}{call.path}", data=call.body, headers=headers) as response,
    ):
        body = await response.read()
        if response.status != status:
            raise BenchError(f"{call.path}: expected {status}, got {response.status}: {body[:600]!r}")
        return body
