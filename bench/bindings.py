"""Output bindings beside their bare drivers, as ``bench.components`` measures stores."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

from bench.app import ECHO_BODY
from bench.components import BACKBONE, BARE, DRIVER, HANDLER, NEAREST, PACE, Call, Measured, Part, Served, Work, around
from bench.components import postgresql as served_postgresql
from bench.components import redis as served_redis
from bench.components_report import ComponentResults, described
from bench.processes import Stage
from bench.works import EVENT, KEYS

__all__ = ["PARTS", "results"]

_PATH = "/v1.0/bindings/store"
_SQL = "SELECT value, total FROM orders WHERE key = $1"
HOW = f"""\
- **In turn.** Every variant is warmed up, then all are measured one after the other in each round, in
  another order; a figure is the median over the rounds, a goal the median of what each round gave.
  Compare variants of one run; absolute figures depend on the machine and what else it does.
- **{NEAREST}**: the application's gateway has the component. **{BACKBONE}**: the application's gateway has
  none, and the one before, over NATS, does the work; the CPU is that of both, the application's own first.
- **{BARE}**: aiohttp's low-level server and the driver in one process; it reads the same request, and answers with the
  same status and body, without metadata. **{HANDLER}**: it reads the body and answers at once. **{DRIVER}**: 32
  calls at once, in a process without HTTP.
- **CPU** is user + system time of the named processes, divided by the requests they served; servers, broker and load
  generator are not in it. Everything runs on loopback, on the same cores.
- **Goals.** CPU of *nearest*, by that of the driver alone and 1.2 times that of the handler alone, in the same round.
  p50 at {PACE:g}/s through the backbone, less that of *nearest* in the same round.
- **Redis**: 200 bytes of JSON under 100 keys; redis-py with hiredis. **PostgreSQL**: a row of a text and a number, by
  its key as a parameter; asyncpg, four connections on either side. **HTTP**: GET of a small JSON; aiohttp's client on
  either side.
- **Checks.** Answers have the expected status and body, also those of a bare handler. A run where one of these fails
  prints no figures."""


@asynccontextmanager
async def _redis(stage: Stage, directory: Path) -> AsyncIterator[Served]:
    from redis.asyncio import Redis

    async with served_redis(stage, directory) as served:
        async with Redis.from_url(f"redis://{served.settings['redisHost']}") as client:
            await client.mset({f"order-{number}": EVENT for number in range(KEYS)})
        yield served


@asynccontextmanager
async def _postgresql(stage: Stage, directory: Path) -> AsyncIterator[Served]:
    import asyncpg

    async with served_postgresql(stage, directory) as served:
        login = {"host": "127.0.0.1", "user": "mesh", "database": "postgres", "ssl": False, **served.options}
        connection = await asyncpg.connect(**login)
        await connection.execute("CREATE TABLE orders (key text PRIMARY KEY, value text NOT NULL, total int NOT NULL)")
        rows = [(f"order-{number}", EVENT, 41) for number in range(KEYS)]
        await connection.executemany("INSERT INTO orders VALUES ($1, $2, $3)", rows)
        await connection.close()
        yield served


@asynccontextmanager
async def _http(stage: Stage, directory: Path) -> AsyncIterator[Served]:
    app = await stage.peer("app")
    url = f"http://127.0.0.1:{app.http_port}"
    try:
        yield Served({"url": url}, {"url": url})
    finally:
        await stage.stop(app)


def _part(
    kind: str,
    store: str,
    serve: object,
    work: str,
    operation: str,
    metadata: Sequence[Mapping[str, str]],
    answer: object,
    data: object = None,
) -> Part:
    def call(each: Mapping[str, str]) -> Call:
        given = {} if data is None else {"data": data}
        return Call(_PATH, json.dumps({"operation": operation, "metadata": each, **given}).encode())

    made = Work(work, "binding", around([call(each) for each in metadata]), answer)
    asked = [(operation, each) for each in metadata]
    return Part(kind, store, serve, [made], len(metadata), asked=asked)  # type: ignore[arg-type]  # as the table has it


_KEYED = [{"key": f"order-{number}"} for number in range(KEYS)]
_ASKED = [{"sql": _SQL, "params": json.dumps([each["key"]])} for each in _KEYED]

PARTS: Mapping[str, Part] = {
    "redis create": _part(
        "bindings.redis", "redis", served_redis, "redis binding create", "create", _KEYED, None, json.loads(EVENT)
    ),
    "redis get": _part("bindings.redis", "redis", _redis, "redis binding get", "get", _KEYED, json.loads(EVENT)),
    "postgresql query": _part(
        "bindings.postgresql", "postgresql", _postgresql, "postgresql binding query", "query", _ASKED, [[EVENT, 41]]
    ),
    "http get": _part(
        "bindings.http", "http", _http, "http binding get", "get", [{"path": "/echo"}], json.loads(ECHO_BODY)
    ),
}


def results(measured: Sequence[Measured]) -> ComponentResults:
    """Make the page of a run."""
    return ComponentResults(measured, described(list(PARTS)), "output bindings", "--only bindings", HOW, PARTS)
