"""What SQL databases have besides the suite: the tables, which other runtimes share, and what goes wrong on the way."""

from __future__ import annotations

import asyncio
import base64
import sqlite3
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, replace
from typing import Any, cast

import orjson
import pytest
import pytest_asyncio
from msgspec import structs

from bindings.sql._store import SQLStateStore
from mesh.errors import BadArgumentError, ConflictError, InvalidEtagError, OutcomeUnknownError, StateError
from mesh.query import parse_query
from mesh.registry import Registry
from mesh.store import Concurrency, Item, Stored
from tests.support.eventually import eventually
from tests.support.mariadb_server import MariaDBServer
from tests.support.nodes import unique
from tests.support.postgresql_server import PostgreSQLServer
from tests.support.proxy import Proxy
from tests.support.stores import STATE, Served, StoreKind

TABLE = {name: STATE[name] for name in ("sqlite", "postgresql", "postgresql-v2", "mysql")}
pytestmark = pytest.mark.asyncio(loop_scope="module")


@dataclass(frozen=True)
class Columns:
    """The names in a table, and rows as another runtime writes them.

    Attributes:
        table: Its name in statements.
        key: Column of the key.
        end: Column of the time when a row is over.
        over: A time that is.
        row: Inserts a key with JSON; ``{binary}`` marks encoded values.
        selected: What `rows` gives.
    """

    table: str
    key: str
    end: str
    over: str
    row: str


COLUMNS: Mapping[str, Columns] = {
    "sqlite": Columns(
        "state",
        "key",
        "expiration_time",
        "datetime('now', '-1 second')",
        "INSERT INTO state (key, value, is_binary, etag) VALUES ('{key}', '{value}', {binary}, 'e-1')",
    ),
    "postgresql": Columns(
        "state",
        "key",
        "expiredate",
        "now() - interval '1 second'",
        "INSERT INTO state (key, value, isbinary) VALUES ('{key}', '{value}', {binary}::boolean)",
    ),
    "postgresql-v2": Columns(
        "state",
        "key",
        "expires_at",
        "now() - interval '1 second'",
        "INSERT INTO state (key, value) VALUES ('{key}', '{value}')",
    ),
    "mysql": Columns(
        "dapr_state_store.state",
        "id",
        "expiredate",
        "CURRENT_TIMESTAMP - INTERVAL 1 SECOND",
        "INSERT INTO dapr_state_store.state (id, value, isbinary, eTag) VALUES ('{key}', '{value}', {binary}, 'e-1')",
    ),
}


class Database:
    """A store, and the database below it by its own client."""

    def __init__(self, name: str, kind: StoreKind, served: Served) -> None:
        self.name = name
        self.kind = kind
        self.served = served
        self.columns = COLUMNS[name]
        self.mark = unique("k")

    def key(self, name: str) -> str:
        return f"{self.mark}||{name}"

    def run(self, statement: str) -> list[list[str]]:
        """Do a statement; give its rows as texts."""
        server = self.served.server
        if isinstance(server, PostgreSQLServer):
            told = server.psql(statement)
        elif isinstance(server, MariaDBServer):
            told = server.sql(statement)
        else:
            with sqlite3.connect(self.served.settings["connectionString"]) as database:
                rows = database.execute(statement).fetchall()
            database.close()
            return [["NULL" if value is None else str(value) for value in row] for row in rows]
        return [line.split("\t") for line in told.splitlines()]

    def row(self, name: str, columns: str) -> list[str]:
        """Give a key's row."""
        where = f"WHERE {self.columns.key} = '{self.key(name)}'"
        [row] = self.run(f"SELECT {columns} FROM {self.columns.table} {where}")
        return row

    def expire(self, name: str) -> None:
        """Have a key's time be over."""
        end = f"{self.columns.end} = {self.columns.over}"
        self.run(f"UPDATE {self.columns.table} SET {end} WHERE {self.columns.key} = '{self.key(name)}'")

    def made(self, **settings: str) -> SQLStateStore:
        """Make another store on the same database."""
        component = self.served.component("store", self.kind.type, **settings)
        return cast("SQLStateStore", Registry().load(self.kind.type).from_component(component))  # type: ignore[attr-defined]

    @asynccontextmanager
    async def through(self, **settings: str) -> AsyncIterator[tuple[SQLStateStore, Proxy]]:
        """Give a store that reaches the server through a proxy; skip where there is none."""
        server = self.served.server
        if server is None:
            pytest.skip("has no server")
        async with Proxy(server.port) as proxy:
            text = self.served.settings["connectionString"].replace(str(server.port), str(proxy.port))
            async with self.made(connectionString=text, **settings) as store:
                yield store, proxy


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def opened(served: Served, kind: StoreKind) -> AsyncIterator[Database]:
    name = next(name for name, each in TABLE.items() if each is kind)
    database = Database(name, kind, served)
    async with database.made() as store:
        database.store = store  # type: ignore[attr-defined]
        yield database


@pytest.fixture
def database(opened: Database) -> Database:
    opened.mark = unique("k")
    return opened


@pytest.fixture
def store(database: Database) -> SQLStateStore:
    return database.store  # type: ignore[attr-defined, no-any-return]


async def get(store: SQLStateStore, key: str) -> Stored:
    stored = await store.get(key, strong=True)
    assert stored is not None
    return stored


PG_COLUMNS = """SELECT column_name, data_type, is_nullable, column_default, is_identity FROM information_schema.columns
WHERE table_name = '{}' ORDER BY ordinal_position"""
PG_INDEXES = "SELECT indexname FROM pg_indexes WHERE tablename = 'state' ORDER BY 1"
MY_COLUMNS = """SELECT column_name, column_type, is_nullable, column_key, extra FROM information_schema.columns
WHERE table_schema = 'dapr_state_store' AND table_name = '{}' ORDER BY ordinal_position"""
MY_INDEXES = """SELECT index_name, non_unique FROM information_schema.statistics
WHERE table_schema = 'dapr_state_store' AND table_name = 'state' ORDER BY 1"""
TIME, TEXT = "timestamp with time zone", "text"
METADATA = [["key", TEXT, "NO", "", "NO"], ["value", TEXT, "NO", "", "NO"]]

# What stands in the catalogue of a database that other runtimes share; each row is a question and its answer.
LAYOUTS: Mapping[str, list[tuple[str, list[list[str]]]]] = {
    "sqlite": [
        (
            "SELECT name, type, \"notnull\", dflt_value, pk FROM pragma_table_info('state')",
            [
                ["key", "TEXT", "1", "NULL", "1"],
                ["value", "TEXT", "1", "NULL", "0"],
                ["is_binary", "BOOLEAN", "1", "NULL", "0"],
                ["etag", "TEXT", "1", "NULL", "0"],
                ["expiration_time", "TIMESTAMP", "0", "NULL", "0"],
                ["update_time", "TIMESTAMP", "1", "CURRENT_TIMESTAMP", "0"],
            ],
        ),
        (
            "SELECT name, lower(type), \"notnull\", pk FROM pragma_table_info('metadata')",
            [["key", "text", "1", "1"], ["value", "text", "1", "0"]],
        ),
        ("SELECT key, value FROM metadata WHERE key <> 'last-cleanup'", [["migrations", "1"]]),
        ("SELECT count(*) FROM pragma_index_list('state')", [["1"]]),
        ("PRAGMA journal_mode", [["wal"]]),
    ],
    "postgresql": [
        (
            PG_COLUMNS.format("state"),
            [
                ["key", TEXT, "NO", "", "NO"],
                ["value", "jsonb", "NO", "", "NO"],
                ["isbinary", "boolean", "NO", "", "NO"],
                ["insertdate", TIME, "NO", "now()", "NO"],
                ["updatedate", TIME, "YES", "", "NO"],
                ["expiredate", TIME, "YES", "", "NO"],
                ["row_id", "bigint", "NO", "", "YES"],
            ],
        ),
        (PG_INDEXES, [["state_pkey"], ["state_row_id_uidx"]]),
        (PG_COLUMNS.format("dapr_metadata"), METADATA),
        ("SELECT * FROM dapr_metadata ORDER BY key", [["lock", "lock"], ["migrations", "3"]]),
    ],
    "postgresql-v2": [
        (
            PG_COLUMNS.format("state"),
            [
                ["key", TEXT, "NO", "", "NO"],
                ["value", "bytea", "NO", "", "NO"],
                ["etag", "uuid", "NO", "gen_random_uuid()", "NO"],
                ["created_at", TIME, "NO", "now()", "NO"],
                ["updated_at", TIME, "YES", "", "NO"],
                ["expires_at", TIME, "YES", "", "NO"],
                ["row_id", "bigint", "NO", "", "YES"],
            ],
        ),
        (PG_INDEXES, [["state_expires_at_idx"], ["state_pkey"], ["state_row_id_uidx"]]),
        (PG_COLUMNS.format("dapr_metadata"), METADATA),
        ("SELECT * FROM dapr_metadata ORDER BY key", [["lock", "lock"], ["migrations-state-v2-", "2"]]),
    ],
    "mysql": [
        (
            MY_COLUMNS.format("state"),
            [
                ["id", "varchar(255)", "NO", "PRI", ""],
                ["value", "longtext", "NO", "", ""],
                ["isbinary", "tinyint(1)", "NO", "", ""],
                ["insertDate", "timestamp", "NO", "", ""],
                ["updateDate", "timestamp", "NO", "", "on update current_timestamp()"],
                ["eTag", "varchar(36)", "NO", "", ""],
                ["expiredate", "timestamp", "YES", "MUL", ""],
                ["row_id", "bigint(20) unsigned", "NO", "UNI", "auto_increment"],
            ],
        ),
        (MY_INDEXES, [["expiredate_idx", "1"], ["PRIMARY", "0"], ["row_id_uidx", "0"]]),
        (
            MY_COLUMNS.format("dapr_metadata"),
            [["id", "varchar(255)", "NO", "PRI", ""], ["value", "text", "NO", "", ""]],
        ),
        ("SELECT count(*) FROM dapr_state_store.dapr_metadata", [["0"]]),
    ],
}


async def test_tables(database: Database) -> None:
    """As the reference makes them: columns, indexes, and what it remembers of its migrations."""
    for question, answer in LAYOUTS[database.name]:
        assert await asyncio.to_thread(database.run, question) == answer, question


BINARY = b"\x00\xffno json"
ENCODED = base64.b64encode(BINARY).decode()
JSON = '{"a":2, "b":"h\u00e9"}'.encode()

# Columns of a row, and what stands in them for the JSON and for the bytes above.
ROWS: Mapping[str, tuple[str, list[str], list[str]]] = {
    "sqlite": ("value, is_binary", [JSON.decode(), "0"], [ENCODED, "1"]),
    "postgresql": ("value, isbinary", ['{"a": 2, "b": "h\u00e9"}', "f"], [f'"{ENCODED}"', "t"]),
    "postgresql-v2": ("encode(value, 'hex')", [JSON.hex()], [BINARY.hex()]),
    "mysql": ("value, isbinary", [JSON.decode(), "0"], [f'"{ENCODED}"', "1"]),
}
UPDATED = {"postgresql": "updatedate", "postgresql-v2": "updated_at"}


async def test_rows(database: Database, store: SQLStateStore) -> None:
    """JSON as JSON, other bytes in base64 and marked; the time of a change only once there was one."""
    columns, json, binary = ROWS[database.name]
    await store.write([Item(database.key("json"), JSON)])
    await store.save_each([Item(database.key("binary"), BINARY), Item(database.key("other"), b"1")])
    assert await asyncio.to_thread(database.row, "json", columns) == json
    assert await asyncio.to_thread(database.row, "binary", columns) == binary
    assert (await get(store, database.key("binary"))).value == BINARY
    updated = UPDATED.get(database.name)
    if updated is not None:
        assert await asyncio.to_thread(database.row, "json", f"{updated} IS NULL") == ["t"]
        await store.write([Item(database.key("json"), JSON)])
        assert await asyncio.to_thread(database.row, "json", f"{updated} IS NULL") == ["f"]


@pytest.mark.parametrize(
    "value", [b"", b"NaN", b'"\\u0000"', b'"\\ud800"', b"1e999", b"[" * 3000, b"\xff", b"null", b'""']
)
async def test_values_that_are_hardly_json(database: Database, store: SQLStateStore, value: bytes) -> None:
    """Come back as they were, whatever the column takes."""
    await store.write([Item(database.key("k"), value)])
    assert (await get(store, database.key("k"))).value == value


async def test_when_a_row_is_over(database: Database, store: SQLStateStore) -> None:
    """Stands in its column; never too early, and at most a second late."""
    seconds = {
        "sqlite": "CAST(strftime('%s', expiration_time) AS INTEGER)",
        "mysql": "UNIX_TIMESTAMP(expiredate)",
    }.get(database.name, f"extract(epoch from {database.columns.end})")
    before = time.time()
    await store.write([Item(database.key("k"), b"1", ttl=600.0), Item(database.key("long"), b"1", ttl=1e12)])
    end = float((await asyncio.to_thread(database.row, "k", seconds))[0])
    assert before + 600 <= end <= time.time() + 601
    assert (await get(store, database.key("k"))).expires_at == pytest.approx(end, abs=0.001)
    assert (await get(store, database.key("long"))).value == b"1"
    await store.write([Item(database.key("k"), b"1")])
    assert (await get(store, database.key("k"))).expires_at is None


async def test_rows_of_another_runtime(database: Database, store: SQLStateStore) -> None:
    """Are read, changed with their etag, and deleted; one that is encrypted comes as the text that it holds."""
    sealed = b"/rM62+oCmeICw1qswrBIhNsTLR54to7jNtnJYdk=||ek"
    encoded = base64.b64encode(sealed).decode()
    quoted = {"sqlite": encoded, "postgresql-v2": sealed.decode()}.get(database.name, f'"{encoded}"')
    rows = {
        "json": ('{"a": 2}', 0, b'{"a": 2}'),
        "sealed": (quoted, 1, sealed),
        "text": ('"h\u00e9"', 0, '"h\u00e9"'.encode()),
    }
    for name, (value, binary, _) in rows.items():
        statement = database.columns.row.format(key=database.key(name), value=value, binary=binary)
        await asyncio.to_thread(database.run, statement)
    found = await store.get_many([database.key(name) for name in rows])
    assert [each.value for each in found if isinstance(each, Stored)] == [value for _, _, value in rows.values()]
    await store.write([Item(database.key("json"), b"3", (await get(store, database.key("json"))).etag)])
    assert (await get(store, database.key("json"))).value == b"3"


async def test_a_row_whose_time_is_over(database: Database, store: SQLStateStore) -> None:
    """Is not there for anybody, also before it is deleted."""
    key = database.key("k")
    first = Item(key, b"2", None, Concurrency.FIRST_WRITE)
    await store.write([Item(key, b"1", ttl=1000.0)])
    etag = (await get(store, key)).etag
    with pytest.raises(ConflictError):
        await store.write([first])
    await asyncio.to_thread(database.expire, "k")
    assert await store.get(key, strong=True) is None
    assert list(await store.get_many([key])) == [None]
    assert list(await store.keys(database.mark, "", 10)) == []
    for refused in (Item(key, b"3", etag), Item(key, None, etag), Item(key, None, etag, check=True)):
        with pytest.raises(ConflictError):
            await store.write([refused, Item(database.key("other"), b"1")])
    await store.write([Item(key, None, check=True), Item(database.key("other"), b"1")])
    await store.write([first])
    assert (await get(store, key)).value == b"2"
    await store.write([Item(key, None)])
    await store.write([first, Item(database.key("other"), b"2")])
    assert (await get(store, key)).value == b"2"


@pytest.mark.parametrize("etag", ["abc", "0", "-1", "9" * 30, "1\u0660", "99999999999", "\x00"])
async def test_etags_of_no_row(database: Database, store: SQLStateStore, etag: str) -> None:
    """Are told as such where they are numbers, else as one that differs."""
    await store.write([Item(database.key("k"), b"1")])
    malformed = database.name == "postgresql" and etag != "0"
    kind = InvalidEtagError if malformed else ConflictError
    for item in (Item(database.key("k"), b"2", etag), Item(database.key("k"), None, etag)):
        with pytest.raises(kind):
            await store.write([item])
    assert (await get(store, database.key("k"))).value == b"1"


async def test_equal_keys(database: Database, store: SQLStateStore) -> None:
    """The last change counts; conditions are of what was there before all of them."""
    key = database.key("k")
    await store.write([Item(key, b"1"), Item(key, b"2")])
    etag = (await get(store, key)).etag
    await store.write([Item(key, b"3", etag), Item(key, b"4", etag), Item(key, None, etag, check=True)])
    assert (await get(store, key)).value == b"4"
    with pytest.raises(ConflictError):
        await store.write([Item(key, b"5", etag), Item(key, b"6")])
    await store.write([Item(key, None, (await get(store, key)).etag), Item(database.key("other"), b"1")])
    assert await store.get(key, strong=True) is None
    assert list(await store.save_each([Item(key, b"7"), Item(key, None), Item(key, b"8")])) == [None] * 3
    assert (await get(store, key)).value == b"8"


async def test_keys_by_pages(database: Database, store: SQLStateStore) -> None:
    """In the order of their bytes, without those of others."""
    names = ["", "A", "B", "a", "a b", "a%", "a_", "a~", "b", "\u00e9", "\u4e2d", "\U0001f600"]
    await store.save_each([Item(database.key(name), b"1") for name in names])
    prefix = database.key("")
    found: list[str] = []
    while page := await store.keys(prefix, found[-1] if found else "", 5):
        assert len(page) <= 5
        found += page
    assert found == sorted(map(database.key, names), key=str.encode)
    assert list(await store.keys(database.key("a%"), "", 10)) == [database.key("a%")]


async def test_tables_are_made_once(database: Database) -> None:
    """However many gateways start at the same time, on nothing."""
    names = {"metadataTableName": unique("meta").replace("-", "_")}
    table = unique("t").replace("-", "_")
    names |= {"tablePrefix": f"{table}_"} if database.name == "postgresql-v2" else {"tableName": table}
    if database.name == "mysql":
        names["schemaName"] = unique("db").replace("-", "_")
    stores = [database.made(**names, **({} if database.name == "mysql" else {"timeout": "60s"})) for _ in range(8)]
    async with asyncio.TaskGroup() as tasks:

        async def use(store: SQLStateStore, number: int) -> None:
            async with store:
                await store.write([Item(f"k{number}", b"1")])

        for number, store in enumerate(stores):
            tasks.create_task(use(store, number))
    async with database.made(**names) as store:
        assert list(await store.keys("", "", 100)) == [f"k{number}" for number in range(8)]


async def test_what_is_over_is_deleted(database: Database) -> None:
    """In the background, and once for several gateways."""
    async with database.made(cleanupInterval="1s") as one, database.made(cleanupInterval="1s"):
        await one.save_each([Item(database.key(f"k{number}"), b"1", ttl=1.0) for number in range(20)])
        await one.write([Item(database.key("stays"), b"1", ttl=1000.0)])
        where = f"FROM {database.columns.table} WHERE {database.columns.key} LIKE '{database.mark}%'"

        async def cleaned() -> None:
            assert await asyncio.to_thread(database.run, f"SELECT count(*) {where}") == [["1"]]

        await eventually(cleaned)
    metadata = {"sqlite": "metadata", "mysql": "dapr_state_store.dapr_metadata"}.get(database.name, "dapr_metadata")
    column = "id" if database.name == "mysql" else "key"
    marks = f"{column} LIKE 'last-cleanup%'"
    assert len(await asyncio.to_thread(database.run, f"SELECT value FROM {metadata} WHERE {marks}")) == 1
    await asyncio.to_thread(database.run, f"DELETE FROM {metadata} WHERE {marks}")


async def test_transactions_that_meet(database: Database, store: SQLStateStore) -> None:
    """Each is whole, in whatever order they name their keys; none fails because of another."""
    keys = [database.key(str(number)) for number in range(6)]
    async with database.made() as other, asyncio.TaskGroup() as tasks:

        async def write(number: int) -> None:
            items = [Item(key, b"%d" % number) for key in (keys if number % 2 else reversed(keys))]
            await (store if number % 3 else other).write(items)

        for number in range(30):
            tasks.create_task(write(number))
    found = await store.get_many(keys)
    assert len({each.value for each in found if isinstance(each, Stored)}) == 1


async def test_an_absent_key_stays_absent(database: Database, store: SQLStateStore) -> None:
    """Until the transaction that was promised so is over: of those that ask for it and make it, one wins."""
    won = 0

    async def write(number: int) -> None:
        nonlocal won
        guard, absent = Item(database.key("made"), b"%d" % number), Item(database.key("absent"), None, check=True)
        items = [absent, structs.replace(guard, concurrency=Concurrency.FIRST_WRITE)]
        with suppress(ConflictError):
            await store.write(items)
            won += 1

    async with asyncio.TaskGroup() as tasks:
        for number in range(10):
            tasks.create_task(write(number))
    assert won == 1
    assert await store.get(database.key("absent"), strong=True) is None


async def test_operations_that_are_given_up(database: Database, store: SQLStateStore) -> None:
    """Leave no connection in doubt."""
    for _ in range(5):
        async with asyncio.TaskGroup() as tasks:
            given_up = [
                tasks.create_task(store.write([Item(database.key(f"{name}{number}"), b"1") for name in "ab"]))
                for number in range(20)
            ]
            await asyncio.sleep(0)
            await asyncio.sleep(0.002)
            for each in given_up:
                each.cancel()
    await store.write([Item(database.key("k"), b"1"), Item(database.key("l"), b"1")])
    assert (await get(store, database.key("k"))).value == b"1"


async def test_a_connection_that_is_lost_while_it_writes(database: Database) -> None:
    """What was asked with a condition may have been done, and the error says so; reading goes on by itself."""
    async with database.through(**_one_connection(database)) as (store, proxy):
        await store.write([Item(database.key("k"), b"1")])
        etag = (await get(store, database.key("k"))).etag
        lock = f"SELECT * FROM {database.columns.table} WHERE {database.columns.key} = '{database.key('k')}' FOR UPDATE"
        sleep = "SELECT SLEEP(3)" if database.name == "mysql" else "SELECT pg_sleep(3)"
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(asyncio.to_thread(database.run, f"BEGIN; {lock}; {sleep}; COMMIT"))
            await eventually(lambda: _locked(database, lock))
            writing = tasks.create_task(_error(store, Item(database.key("k"), b"2", etag)))
            assert not (await asyncio.wait([writing], timeout=0.3))[0]
            assert proxy.cut() >= 1
            error = await writing
            assert isinstance(error, OutcomeUnknownError), error
            assert "may have been done" in str(error)
            assert not error.retryable
        assert (await get(store, database.key("k"))).value in (b"1", b"2")


async def test_a_transaction_that_is_cut_off(database: Database) -> None:
    """Before it asked to commit, nothing was done; behind that nobody knows."""
    if database.name != "postgresql":
        pytest.skip("one of those with a server is enough, and has what makes a commit slow")
    await asyncio.to_thread(database.run, _SLOW.format(mark=database.mark))
    for key, kind, may_be_done in (("early", StateError, False), ("late", OutcomeUnknownError, True)):
        async with database.through() as (store, proxy), asyncio.TaskGroup() as tasks:
            first = Item(database.key("first"), b"1", None, Concurrency.FIRST_WRITE)
            writing = tasks.create_task(_error(store, first, Item(database.key(key), b"1")))
            await eventually(lambda: _sleeps(database))
            assert proxy.cut() >= 1
            error = await writing
            assert type(error) is kind, error
            assert error.retryable is (kind is StateError)
        if not may_be_done:
            assert await asyncio.to_thread(database.run, f"SELECT 1 FROM state WHERE key LIKE '{database.mark}%'") == []


# A write of ``early`` takes a while, the commit of ``late``.
_SLOW = """
CREATE OR REPLACE FUNCTION slow() RETURNS trigger AS $$ BEGIN PERFORM pg_sleep(2); RETURN NEW; END; $$ LANGUAGE plpgsql;
CREATE TRIGGER early BEFORE INSERT ON state FOR EACH ROW WHEN (NEW.key = '{mark}||early') EXECUTE FUNCTION slow();
CREATE CONSTRAINT TRIGGER late AFTER INSERT ON state DEFERRABLE INITIALLY DEFERRED FOR EACH ROW
    WHEN (NEW.key = '{mark}||late') EXECUTE FUNCTION slow();
"""
# The first two attempts to write ``again`` fail as if another transaction had been in the way.
_AGAIN = """
CREATE SEQUENCE attempts;
CREATE FUNCTION fail() RETURNS trigger AS $$ BEGIN
    IF nextval('attempts') % 3 <> 0 THEN RAISE EXCEPTION 'could not serialize' USING ERRCODE = '{code}'; END IF;
    RETURN NEW;
END; $$ LANGUAGE plpgsql;
CREATE TRIGGER again BEFORE INSERT ON state FOR EACH ROW WHEN (NEW.key = '{mark}||again') EXECUTE FUNCTION fail();
"""


async def _sleeps(database: Database) -> None:
    asleep = "SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'PgSleep'"
    assert await asyncio.to_thread(database.run, asleep) != [["0"]]


@pytest.mark.parametrize("code", ["40001", "40P01"])
async def test_a_transaction_that_the_database_undoes(database: Database, store: SQLStateStore, code: str) -> None:
    """Is made again, a bounded number of times."""
    if database.name != "postgresql":
        pytest.skip("the others' deadlocks cannot be made to order")
    await asyncio.to_thread(database.run, _AGAIN.format(code=code, mark=database.mark))
    try:
        await store.write([Item(database.key("again"), b"1"), Item(database.key("other"), None)])
        assert (await get(store, database.key("again"))).value == b"1"
        assert await asyncio.to_thread(database.run, "SELECT last_value FROM attempts") == [["3"]]
        await asyncio.to_thread(database.run, "ALTER SEQUENCE attempts INCREMENT BY 3 RESTART WITH 1")
        with pytest.raises(StateError, match="could not serialize"):
            await store.write([Item(database.key("again"), b"2"), Item(database.key("other"), None)])
        assert await asyncio.to_thread(database.run, "SELECT last_value FROM attempts") == [["13"]]
    finally:
        await asyncio.to_thread(database.run, "DROP FUNCTION fail CASCADE; DROP SEQUENCE attempts")


@pytest.mark.parametrize(("mode", "kept"), [("cache_statement", True), ("exec", False), ("simple_protocol", False)])
async def test_statements_that_a_proxy_would_lose(database: Database, mode: str, kept: bool) -> None:
    """None is left prepared in the session, which a proxy such as PgBouncer gives to others, unless it is asked for."""
    if not database.name.startswith("postgresql"):
        pytest.skip("has no such setting")
    async with database.made(queryExecMode=mode, maxConns="1") as store:
        await store.write([Item(database.key("k"), b"1")])
        await store.write([Item(database.key("k"), b"2", (await get(store, database.key("k"))).etag)])
        await store.write([Item(database.key("k"), b"3"), Item(database.key("l"), None)])
        for filtered in ("{}", '{"EQ": {"a": 1}}', "{}") if "QUERY_API" in store.capabilities else ():
            queried = await store.query(parse_query(b'{"filter": %s}' % filtered.encode(), {}), database.key(""))
            assert len(queried.matches) == (filtered == "{}")
        asked = "SELECT count(*) FROM pg_prepared_statements WHERE statement NOT LIKE '%pg_prepared_statements%'"
        [[found]] = await store._database.rows(asked, {})
        assert (found > 0) is kept


async def test_waiting_for_a_connection(database: Database) -> None:
    """Is bounded as the operation is; what only waited was not done, and the error says so."""
    if database.name == "sqlite":
        pytest.skip("has one thread, and no connection to wait for")
    timeout = {"timeoutInSeconds" if database.name == "mysql" else "timeout": "1s"}
    async with database.made(maxConns="1", **timeout) as store, asyncio.TaskGroup() as tasks:
        held, released = asyncio.Event(), asyncio.Event()

        async def hold(_: object) -> None:
            held.set()
            await released.wait()

        tasks.create_task(store._database._run(hold))  # type: ignore[arg-type]
        await held.wait()
        error = await _error(store, Item(database.key("k"), b"1", None, Concurrency.FIRST_WRITE))
        assert type(error) is StateError
        assert "no connection was free within 1 s" in str(error)
        released.set()
        await store.write([Item(database.key("k"), b"1", None, Concurrency.FIRST_WRITE)])


@pytest.mark.parametrize(("setting", "text"), [("connectionMaxIdleTime", "1ms"), ("lifetime", "1ms"), ("", "")])
async def test_connections_that_are_replaced(database: Database, setting: str, text: str) -> None:
    """Those that were unused or open for too long; else the one that was used last does the next operation."""
    if not database.name.startswith("postgresql"):
        pytest.skip("has no such setting")
    settings = {setting: text} if setting else {}
    if setting == "lifetime":
        string = database.served.settings["connectionString"]
        settings = {"connectionString": f"{string} pool_max_conn_lifetime={text}"}
    async with database.made(**settings) as store:
        [[first]] = await store._database.rows("SELECT pg_backend_pid()", {})

        async def replaced() -> None:
            assert (await store._database.rows("SELECT pg_backend_pid()", {}))[0][0] != first

        if setting:
            await eventually(replaced)
            asked = f"SELECT 1 FROM pg_stat_activity WHERE pid = {first}"

            async def gone() -> None:
                assert not await asyncio.to_thread(database.run, asked)

            await eventually(gone)
        else:
            assert (await store._database.rows("SELECT pg_backend_pid()", {}))[0][0] == first


async def test_a_server_that_says_nothing(database: Database) -> None:
    """Ends an operation after its time, and then the connection is replaced."""
    timeout = {"timeoutInSeconds" if database.name == "mysql" else "timeout": "1s"}
    async with database.through(**timeout) as (store, proxy):
        await store.write([Item(database.key("k"), b"1")])
        proxy.stall()
        with pytest.raises(StateError, match="did not answer within 1 s"):
            await store.get(database.key("k"), strong=True)
        assert (await get(store, database.key("k"))).value == b"1"


async def test_closing_waits_for_no_server_that_says_nothing(database: Database) -> None:
    """What is left of the connections is cut."""
    async with asyncio.timeout(30):
        async with database.through() as (store, proxy):
            await store.write([Item(database.key("k"), b"1")])
            proxy.stall()


async def test_a_start_that_is_given_up_waits_for_no_server_that_says_nothing(database: Database) -> None:
    """Also in the middle of the migration, whose lock another gateway holds here."""
    if database.name != "postgresql":
        pytest.skip("one of those with a server is enough, and has a row to lock")

    async def start(text: str) -> None:
        async with database.made(connectionString=text):
            pass

    text, server = database.served.settings["connectionString"], database.served.server
    lock = "SELECT 1 FROM dapr_metadata WHERE key = 'lock' FOR UPDATE"
    waits = "SELECT 1 FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND query LIKE '%''lock'' FOR UPDATE'"
    async with Proxy(server.port) as proxy, asyncio.TaskGroup() as tasks:  # type: ignore[union-attr]
        tasks.create_task(asyncio.to_thread(database.run, f"BEGIN; {lock}; SELECT pg_sleep(3); COMMIT"))
        await eventually(lambda: _locked(database, lock))
        starting = tasks.create_task(start(text.replace(str(server.port), str(proxy.port))))  # type: ignore[union-attr]

        async def waiting() -> None:
            assert await asyncio.to_thread(database.run, waits)

        await eventually(waiting)
        proxy.stall()
        starting.cancel()
        assert (await asyncio.wait([starting], timeout=30))[0]
        proxy.cut()


async def test_a_server_that_cannot_be_used(database: Database) -> None:
    """Is told with where it is and why, and without a password."""
    server = database.served.server
    if server is None:
        pytest.skip("has no server")
    text = database.served.settings["connectionString"]
    wrong = text.replace("p@ss", "hush")
    for string, reason in ((wrong, "(?i)password"), (text.replace(str(server.port), "1"), r"127\.0\.0\.1:1\b")):
        with pytest.raises(StateError, match=reason) as raised:
            async with database.made(connectionString=string):
                pass
        assert "word/1" not in str(raised.value)
        assert "hush" not in str(raised.value)


GRANTS = {
    "mysql": ("CREATE USER {0} IDENTIFIED BY 'pw'", "GRANT CREATE, ALTER, INDEX, SELECT, INSERT, UPDATE, DELETE"),
    "postgresql": ("CREATE USER {0} PASSWORD 'pw'", "GRANT USAGE, CREATE ON SCHEMA public"),
    "postgresql-v2": ("CREATE USER {0} PASSWORD 'pw'", "GRANT USAGE, CREATE ON SCHEMA public"),
}


async def test_a_user_who_may_not_make_tables(database: Database) -> None:
    """Is told what is missing; the statement that the error names is enough."""
    if database.name not in GRANTS:
        pytest.skip("has no users")
    make, grant = GRANTS[database.name]
    user, table = unique("u").replace("-", "_")[:30], unique("t").replace("-", "_")
    schema = f"dapr_{user}" if database.name == "mysql" else "public"
    settings = {"connectionString": _as_user(database, user), "metadataTableName": f"m_{table}"}
    if database.name == "mysql":
        settings["schemaName"] = schema
    settings |= {"tablePrefix": f"{table}_"} if database.name == "postgresql-v2" else {"tableName": table}
    await asyncio.to_thread(database.run, make.format(user))
    with pytest.raises(StateError, match=f"its user needs {grant}"):
        async with database.made(**settings):
            pass
    on = f" ON `{schema}`.* TO {user}" if database.name == "mysql" else f" TO {user}"
    await asyncio.to_thread(database.run, grant + on)
    async with database.made(**settings) as store:
        await store.write([Item("k", b"1")])
        assert (await get(store, "k")).value == b"1"


def _as_user(database: Database, user: str) -> str:
    text = database.served.settings["connectionString"]
    if database.name == "mysql":
        return f"{user}:pw@{text.rpartition('@')[2]}"
    port = cast("PostgreSQLServer", database.served.server).port
    return f"host=127.0.0.1 port={port} user={user} password=pw dbname=postgres sslmode=disable"


async def test_tables_of_another_version(database: Database) -> None:
    """Both have the same name unless one is given; a table that is none of ours is told as such."""
    if not database.name.startswith("postgresql"):
        pytest.skip("has one layout")
    other, setting = ("v2", "tableName") if database.name == "postgresql" else ("v1", "tablePrefix")
    own = "v1" if other == "v2" else "v2"
    component = database.served.component("store", database.kind.type)
    made = Registry().load(database.kind.type).from_component(replace(component, version=other))  # type: ignore[attr-defined]
    wrong = "tablePrefix" if other == "v2" else "tableName"
    with pytest.raises(
        StateError, match=f"table state is of version {own}: set spec.version {own}, or another {wrong}"
    ):
        async with made:
            pass
    name = unique("t").replace("-", "_")
    await asyncio.to_thread(database.run, f"CREATE TABLE {name}_state (id int)")
    settings = {setting: f"{name}_state" if setting == "tableName" else f"{name}_"}
    with pytest.raises(StateError, match=f"there is a table {name}_state that no state store made: set another"):
        async with database.made(**settings):
            pass


def _one_connection(database: Database) -> dict[str, str]:
    return {"maxConns": "1"}


async def _error(store: SQLStateStore, *items: Item) -> StateError | None:
    try:
        await store.write(items)
    except StateError as error:
        return error
    return None


async def _locked(database: Database, locking: str) -> None:
    try:
        await asyncio.to_thread(database.run, f"{locking} NOWAIT")
    except RuntimeError:  # Somebody else has the row.
        return
    raise AssertionError


PEOPLE: list[dict[str, Any]] = [
    {"person": {"org": "Dev", "id": 1036}, "city": "Seattle", "state": "WA"},
    {"person": {"org": "Finance", "id": 9}, "city": "Portland", "state": "OR"},
    {"person": {"org": "Dev", "id": 1054}, "city": "Spokane", "state": "WA", "ok": True, "none": None},
    {"person": {"org": "O'; DROP TABLE state; --"}, "city": "10"},
]

# A query's filter, and the numbers of those it finds.
QUERIES = [
    ({}, [0, 1, 2, 3]),
    ({"EQ": {"state": "WA"}}, [0, 2]),
    ({"EQ": {"person.id": 9}}, [1]),
    ({"EQ": {"person.id": "9"}}, []),
    ({"EQ": {"ok": True}}, [2]),
    ({"EQ": {"none": None}}, [2]),
    ({"EQ": {"city": 10}}, []),
    ({"NEQ": {"state": "WA"}}, [1]),
    ({"GT": {"person.id": 100}}, [0, 2]),
    ({"GTE": {"person.id": 1036.0}}, [0, 2]),
    ({"LT": {"person.id": 1000}}, [1]),
    ({"LTE": {"city": "Portland"}}, [1, 3]),
    ({"IN": {"person.id": [9, 1054, "x"]}}, [1, 2]),
    ({"IN": {"person.id": []}}, []),
    ({"EQ": {"person.org": "O'; DROP TABLE state; --"}}, [3]),
    ({"EQ": {"a'] = '1": 1}}, []),
    ({"AND": [{"EQ": {"state": "WA"}}, {"OR": [{"EQ": {"city": "Spokane"}}, {"EQ": {"person.id": 9}}]}]}, [2]),
]


async def test_queries(database: Database, store: SQLStateStore) -> None:
    """By type and value, among the keys with the prefix alone, by pages; what was saved as bytes is not found."""
    prefix = database.key("")
    if database.name != "postgresql":
        assert "QUERY_API" not in store.capabilities
        return
    assert "QUERY_API" in store.capabilities
    await store.save_each([Item(f"{prefix}{number}", orjson.dumps(each)) for number, each in enumerate(PEOPLE)])
    await store.save_each([Item(f"{prefix}binary", BINARY), Item(unique("other"), orjson.dumps(PEOPLE[0]))])
    for wanted, found in QUERIES:
        queried = await store.query(parse_query(orjson.dumps({"filter": wanted}), {}), prefix)
        assert sorted(int(each.key.removeprefix(prefix)) for each in queried.matches) == found, wanted
    body: dict[str, Any] = {"sort": [{"key": "person.id", "order": "DESC"}], "page": {"limit": 2}}
    first = await store.query(parse_query(orjson.dumps(body), {}), prefix)
    body["page"]["token"] = first.token
    second = await store.query(parse_query(orjson.dumps(body), {}), prefix)
    order = [each.key.removeprefix(prefix) for each in (*first.matches, *second.matches)]
    assert sorted(order) == ["0", "1", "2", "3"]
    assert order.index("2") < order.index("0") < order.index("1")
    assert (first.token, second.token) == ("2", "")
    assert second.matches[0].etag == (await get(store, second.matches[0].key)).etag
    with pytest.raises(BadArgumentError):
        await store.query(parse_query(b'{"page": {"token": "x"}}', {}), prefix)
    for refused in (
        {"filter": {"EQ": {"city": "\0"}}},
        {"filter": {"EQ": {"city\0": 1}}},
        {"sort": [{"key": "a.\0"}]},
    ):
        with pytest.raises(BadArgumentError, match="NUL"):
            await store.query(parse_query(orjson.dumps(refused), {}), prefix)
