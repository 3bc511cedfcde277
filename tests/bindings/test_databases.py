"""What bindings of databases have besides the suite: values of all types, and what goes wrong on the way."""

from __future__ import annotations

import asyncio
import json
import time
import tracemalloc
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import pytest
import pytest_asyncio

from bindings.redis.binding import RedisBinding
from bindings.sql._binding import MAX_BYTES, MAX_ROWS, SQLBinding
from mesh.blocks.binding_contract import BindingError, Invoke, Invoked
from mesh.registry import Registry
from tests.support.bindings.databases import mariadb, postgresql
from tests.support.eventually import eventually
from tests.support.mariadb_server import MariaDBServer
from tests.support.nodes import component
from tests.support.postgresql_server import PostgreSQLServer
from tests.support.redis_server import RedisServer

pytestmark = pytest.mark.asyncio(loop_scope="module")


@dataclass(frozen=True)
class Database:
    """A binding that is open.

    Attributes:
        name: Of the database.
        type: Of the component.
        settings: Of it.
        adapter: It.
    """

    name: str
    type: str
    settings: Mapping[str, str]
    adapter: SQLBinding

    async def query(self, sql: str, params: object = None) -> Any:
        """Give the rows of a statement."""
        found = await self.adapter.invoke(asked("query", sql, params))
        assert found is not None
        assert found.data is not None
        return json.loads(found.data)

    async def run(self, sql: str, params: object = None) -> int:
        """Do a statement; give how many rows it changed."""
        found = await self.adapter.invoke(asked("exec", sql, params))
        assert found is not None
        return int(found.metadata["rows-affected"])

    async def cell(self, sql: str, params: object = None) -> Any:
        """Give the first column of the only row."""
        [row] = await self.query(sql, params)
        return row[0] if self.name == "postgresql" else next(iter(row.values()))


def asked(operation: str, sql: str, params: object = None) -> Invoke:
    """Ask for a statement; parameters that are a text are sent as it is."""
    metadata = {"sql": sql}
    if params is not None:
        metadata["params"] = params if isinstance(params, str) else json.dumps(params)
    return Invoke(operation, b"null", metadata)


def opened(kind: str, settings: Mapping[str, str]) -> SQLBinding:
    """Make an adapter."""
    return cast("SQLBinding", Registry().load(kind).from_component(component("db", kind, **settings)))  # type: ignore[attr-defined]


@asynccontextmanager
async def _served(name: str, directory: Path) -> AsyncIterator[tuple[str, Mapping[str, str]]]:
    if name == "sqlite":
        yield "bindings.sqlite", {"connectionString": str(directory / "shop.db")}
        return
    async with (postgresql if name == "postgresql" else mariadb)(directory) as served:
        yield f"bindings.{name}", served.settings


@pytest_asyncio.fixture(scope="module", loop_scope="module", params=["postgresql", "mysql", "sqlite"])
async def database(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Database]:
    name: str = request.param
    async with _served(name, tmp_path_factory.mktemp(name)) as (kind, settings), opened(kind, settings) as adapter:
        yield Database(name, kind, settings, adapter)


# What is selected, the parameters as JSON, and what comes.
VALUES: Mapping[str, Sequence[tuple[str, str, object]]] = {
    "postgresql": (
        ("$1::int", "[7]", 7),
        ("$1::int", "[7.0]", 7),
        ("$1::int", '["7"]', 7),
        ("$1::bigint", "[9007199254740993]", 9007199254740993),
        ("$1::float8", "[0.1]", 0.1),
        ("$1::text", "[5]", "5"),
        ("$1::text", "[true]", "true"),
        ("$1::text", '["h\\u00e9\\n\'"]', "hé\n'"),
        ("$1::text", "[null]", None),
        ("$1::bool", "[false]", False),
        ("$1::json", '[{"a":[1,{"b":null}]}]', {"a": [1, {"b": None}]}),
        ("$1::jsonb", "[[1,2]]", [1, 2]),
        ("$1::jsonb", '["{\\"a\\":1}"]', {"a": 1}),
        ("ARRAY[$1::jsonb]", '[{"a":1}]', [{"a": 1}]),
        ("$1::int[]", "[[1,null,3]]", [1, None, 3]),
        ("$1::int[]", '["{1,2}"]', [1, 2]),
        ("$1::text[]", '[["a","b"]]', ["a", "b"]),
        ("$1::timestamptz", '["2020-09-24T11:45:05.120+02:00"]', "2020-09-24T09:45:05.12Z"),
        ("$1::timestamp", '["2020-09-24 11:45:05"]', "2020-09-24T11:45:05Z"),
        ("$1::timestamptz[]", '[["2020-09-24T00:00:00Z"]]', ["2020-09-24T00:00:00Z"]),
        ("$1::date", '["2020-09-24"]', "2020-09-24T00:00:00Z"),
        ("$1::timestamptz", '["infinity"]', "infinity"),
        ("$1::time", '["10:00:01"]', "10:00:01"),
        ("$1::interval", '["1 month 2 days"]', "1 mon 2 days"),
        ("$1::uuid", '["a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11"]', "a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11"),
        ("$1::bytea", '["\\\\xdeadbeef"]', "3q2+7w=="),
        ("$1::inet", '["10.0.0.1/24"]', "10.0.0.1/24"),
        ("$1::int4range", '["[1,5)"]', "[1,5)"),
        ("'NaN'::numeric + $1::numeric", "[1]", "NaN"),
        ("ROW($1::int, 'a')", "[1]", [1, "a"]),
        ("B'101' || $1::bit(1)", '["1"]', "1011"),
    ),
    "mysql": (
        ("?", "[7]", 7),
        ("? + 0", "[18446744073709551615]", 18446744073709551615),
        ("?", '["h\\u00e9\\n\'\\\\ ?"]', "hé\n'\\ ?"),
        ("?", "[null]", None),
        ("?", "[true]", 1),
        ("?", "[1.50]", "1.50"),
        ("?", '[{"a":[1,2.50]}]', '{"a":[1,2.50]}'),
        ("CAST(? AS DATETIME(3))", '["2020-09-24 11:45:05.12"]', "2020-09-24T11:45:05.12Z"),
        ("CAST(? AS DATE)", '["2020-09-24"]', "2020-09-24T00:00:00Z"),
        ("CAST(? AS TIME)", '["-12:30:00"]', "-12:30:00"),
        ("CAST(? AS BINARY)", '["\\u0000x"]', "AHg="),
        ("CONCAT('?', ?, \"?\") /* ? */", '["x"]', "?x?"),
        ("CAST(? AS DOUBLE)", "[0.25]", 0.25),
    ),
    "sqlite": (
        ("?", "[7]", 7),
        ("?", "[9223372036854775807]", 9223372036854775807),
        ("?", "[0.25]", 0.25),
        ("?", '["h\\u00e9\'?"]', "hé'?"),
        ("?", "[null]", None),
        ("?", "[true]", 1),
        ("?", '[{"a":[1,2.50]}]', '{"a":[1,2.50]}'),
        ("CAST(? AS BLOB)", '["\\u0000x"]', "AHg="),
        ("?2", "[1,2]", 2),
    ),
}


async def test_values(database: Database) -> None:
    """Of each type, as parameters and as they are answered."""
    for selected, params, expected in VALUES[database.name]:
        assert await database.cell(f"SELECT {selected}", params) == expected, selected


@pytest.mark.parametrize("database", ["postgresql"], indirect=True)
async def test_numbers_keep_their_digits(database: Database) -> None:
    """In both directions, also in JSON."""
    exact = "123456789012345678901234567890.123456789"
    for selected in ("$1::numeric", "$1::json", "$1::jsonb"):
        found = await database.adapter.invoke(asked("query", f"SELECT {selected}", f"[{exact}]"))
        assert found is not None
        assert found.data == f"[[{exact}]]".encode()


@pytest.mark.parametrize(
    "params",
    [
        "nope",
        '{"a":1}',
        "7",
        "[1e99999999]",
        "[NaN]",
        "[" * 100_000,
        f"[{'9' * 5000}]",
        "[" + "[" * 400 + "]" * 400 + "]",
    ],
    ids=["no JSON", "an object", "a number", "too large", "NaN", "too deep", "too long", "deep"],
)
async def test_parameters_that_are_none(database: Database, params: str) -> None:
    """They are refused, and the next call goes on."""
    mark = "$1::text" if database.name == "postgresql" else "?"
    with pytest.raises(BindingError, match=r"params|cannot be sent"):
        await database.query(f"SELECT {mark}", params)
    assert await database.cell("SELECT 1") == 1


async def test_how_many_parameters(database: Database) -> None:
    """As many as the statement has."""
    mark = "$1::int" if database.name == "postgresql" else "?"
    for params in (None, [1, 2]):
        with pytest.raises(BindingError):
            await database.query(f"SELECT {mark}", params)
    assert await database.cell("SELECT 1", "") == 1
    assert await database.cell("SELECT 1", "null") == 1
    assert await database.cell("SELECT 1", "[]") == 1


@pytest.mark.parametrize("sql", ["", "  ", None, "SELECT '\0'"])
async def test_no_statement(database: Database, sql: str | None) -> None:
    """The metadata that is wrong is named."""
    with pytest.raises(BindingError, match="sql"):
        await database.adapter.invoke(Invoke("query", b"null", {} if sql is None else {"sql": sql}))


async def test_an_open_transaction_is_undone(database: Database) -> None:
    """And said so; a transaction that is sent whole is done."""
    await database.run("CREATE TABLE left_open (id int)")
    texts = ["BEGIN"] if database.name == "mysql" else ["BEGIN", "BEGIN; INSERT INTO left_open VALUES (1)"]
    for text in texts:
        with pytest.raises(BindingError, match="left a transaction open"):
            await database.run(text)
    assert await database.cell("SELECT count(*) FROM left_open") == 0
    if database.name != "mysql":
        await database.run("BEGIN; INSERT INTO left_open VALUES (1); COMMIT")
        assert await database.cell("SELECT count(*) FROM left_open") == 1
        with pytest.raises(BindingError, match="nowhere"):
            await database.run("BEGIN; INSERT INTO left_open VALUES (2); SELECT * FROM nowhere")
        assert await database.cell("SELECT count(*) FROM left_open") == 1


@pytest.mark.parametrize("database", ["mysql"], indirect=True)
async def test_several_statements_in_mysql(database: Database) -> None:
    """Where the connection string says so alone, as they make injecting one easier."""
    await database.run("CREATE TABLE several (id int)")
    text = "INSERT INTO several VALUES (1); INSERT INTO several VALUES (2), (3)"
    with pytest.raises(BindingError, match="syntax"):
        await database.run(text)
    with pytest.raises(BindingError, match="autocommit cannot be set"):
        await database.run("SET SESSION autocommit=0")
    url = database.settings["url"] + "&multiStatements=true"
    async with opened(database.type, {"url": url}) as adapter:
        found = await adapter.invoke(asked("exec", text))
        assert found is not None
        assert found.metadata["rows-affected"] == "2"
        first = await adapter.invoke(asked("query", "SELECT 1 AS a; SELECT 2 AS a"))
        assert first is not None
        assert first.data == b'[{"a":1}]'
    assert await database.cell("SELECT count(*) FROM several") == 3


MANY = {
    "postgresql": "SELECT generate_series(1, {})",
    "mysql": "SELECT seq FROM seq_1_to_{}",
    "sqlite": "WITH RECURSIVE n(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM n LIMIT {}) SELECT x FROM n",
}


async def test_an_answer_that_is_too_large(database: Database) -> None:
    """It is refused by its rows and its bytes; the next one is right."""
    many = MANY[database.name]
    assert len(await database.query(many.format(1200))) == 1200
    with pytest.raises(BindingError, match=f"more than {MAX_ROWS} rows"):
        await database.query(many.format(MAX_ROWS + 1))
    large = "hex(zeroblob(5000000))" if database.name == "sqlite" else "repeat('x', 10000000)"
    with pytest.raises(BindingError, match=f"more than {MAX_BYTES} bytes"):
        await database.query(f"SELECT {large} FROM ({many.format(8)}) AS n")
    assert await database.cell("SELECT 1") == 1


@pytest.mark.parametrize("database", ["mysql", "sqlite"], indirect=True)
async def test_what_is_held_of_large_rows(database: Database) -> None:
    """What is refused by its bytes was not read first: a few of so many rows were in memory."""
    large = "zeroblob(10000000)" if database.name == "sqlite" else "repeat('x', 10000000)"
    tracemalloc.start()
    try:
        with pytest.raises(BindingError, match=f"more than {MAX_BYTES} bytes"):
            await database.query(f"SELECT {large} FROM ({MANY[database.name].format(60)}) AS n")
        assert tracemalloc.get_traced_memory()[1] < 4 * MAX_BYTES
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("database", ["sqlite"], indirect=True)
async def test_a_value_that_sqlite_would_make_here(database: Database) -> None:
    """It is no larger than an answer: it would be in the memory of this process."""
    for sql in (f"SELECT zeroblob({MAX_BYTES + 1})", f"SELECT length(zeroblob({MAX_BYTES + 1}))"):
        with pytest.raises(BindingError, match="too big"):
            await database.query(sql)
    assert await database.cell("SELECT 1") == 1


@pytest.mark.parametrize("database", ["mysql"], indirect=True)
async def test_warnings_of_mysql_are_not_logged(database: Database, caplog: pytest.LogCaptureFixture) -> None:
    """They hold what callers sent."""
    await database.run("DROP TABLE IF EXISTS s3cret")
    assert "s3cret" not in caplog.text


SLOW = {
    "postgresql": "SELECT pg_sleep(600) AS slow",
    "mysql": "SELECT SLEEP(600) AS slow",
    "sqlite": "WITH RECURSIVE n(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM n) SELECT count(*) AS slow FROM n",
}
UNDER_WAY = {
    "postgresql": "SELECT count(*) FROM pg_stat_activity WHERE state = 'active' AND query LIKE '%AS slo' || 'w'",
    "mysql": "SELECT count(*) FROM information_schema.processlist WHERE info LIKE CONCAT('%AS slo', 'w')",
}


async def test_a_deadline_ends_the_statement(database: Database) -> None:
    """The server does not go on."""

    async def counted(expected: int) -> None:
        assert await database.cell(UNDER_WAY[database.name]) == expected

    async with asyncio.TaskGroup() as tasks:
        task = tasks.create_task(database.query(SLOW[database.name]))
        if database.name in UNDER_WAY:
            await eventually(lambda: counted(1))
        else:
            await asyncio.sleep(0.05)
        task.cancel()
    if database.name in UNDER_WAY:
        await eventually(lambda: counted(0))
    assert await database.cell("SELECT 1") == 1


async def test_closing_waits_for_what_is_under_way(database: Database) -> None:
    """Then everything is refused, but for closing again."""
    async with opened(database.type, database.settings) as adapter, asyncio.TaskGroup() as tasks:
        short = {"postgresql": "SELECT pg_sleep(0.3)", "mysql": "SELECT SLEEP(0.3)"}
        task = tasks.create_task(adapter.invoke(asked("query", short.get(database.name, "SELECT 1"))))
        await asyncio.sleep(0)
        assert await adapter.invoke(Invoke("close")) is None
        assert task.done()
        assert await adapter.invoke(Invoke("close")) is None
        with pytest.raises(BindingError, match="component is closed"):
            await adapter.invoke(asked("query", "SELECT 1"))
        with pytest.raises(BindingError, match="component is closed"):
            await adapter.check()


@pytest.mark.parametrize("database", ["sqlite"], indirect=True)
async def test_sqlite_reads_no_other_file(database: Database, tmp_path: Path) -> None:
    """Neither by attaching it, nor by writing a copy."""
    for text in (f"ATTACH '{tmp_path / 'other.db'}' AS other", f"VACUUM INTO '{tmp_path / 'copy.db'}'"):
        with pytest.raises(BindingError, match="authoriz"):
            await database.run(text)
    await database.run("VACUUM")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("database", ["postgresql"], indirect=True)
async def test_postgresql_takes_no_stream(database: Database) -> None:
    """COPY would wait for it."""
    with pytest.raises(BindingError, match="COPY"):
        await database.run("COPY nothing FROM STDIN")
    assert await database.run("-- nothing") == 0


@pytest.mark.parametrize("server", [PostgreSQLServer, MariaDBServer], ids=["postgresql", "mysql"])
async def test_the_server_is_away(server: type[PostgreSQLServer | MariaDBServer], tmp_path: Path) -> None:
    """A call says that it may be tried again, and works when the server is back; so does the start."""
    async with server(tmp_path) as running:
        name = "connectionString" if server is PostgreSQLServer else "url"
        kind = "bindings.postgresql" if server is PostgreSQLServer else "bindings.mysql"
        settings = {name: running.connection_string}
        async with opened(kind, settings) as adapter:
            await running.kill()
            with pytest.raises(BindingError):
                await adapter.invoke(asked("query", "SELECT 1"))
            with pytest.raises(BindingError) as refused:
                await adapter.invoke(asked("query", "SELECT 1"))
            assert refused.value.retryable
            with pytest.raises(BindingError) as at_start:
                async with opened(kind, settings):
                    pass
            assert at_start.value.retryable
            await running.start()

            assert await adapter.invoke(asked("query", "SELECT 1"))


async def test_redis_expires(tmp_path: Path) -> None:
    """What has a time to live is gone after it; another time is refused."""
    async with RedisServer(tmp_path) as server:
        made = RedisBinding.from_component(component("keys", "bindings.redis", redisHost=f"127.0.0.1:{server.port}"))
        async with made as adapter:
            for operation in ("create", "increment"):
                began = time.monotonic()
                await adapter.invoke(Invoke(operation, b"1", {"key": operation, "ttlInSeconds": "1"}))

                async def gone(key: str = operation) -> None:
                    assert await adapter.invoke(Invoke("get", b"", {"key": key})) == Invoked(None)

                await eventually(gone)
                assert time.monotonic() - began >= 0.9
            for wrong in ("0", "-1", "soon", "1.5", str(2**40)):
                with pytest.raises(BindingError, match="ttlInSeconds"):
                    await adapter.invoke(Invoke("create", b"1", {"key": "k", "ttlInSeconds": wrong}))
            await adapter.invoke(Invoke("create", b'"a"', {"key": "text"}))
            with pytest.raises(BindingError, match="not an integer"):
                await adapter.invoke(Invoke("increment", b"", {"key": "text"}))
