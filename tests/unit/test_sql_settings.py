"""What connection strings and settings of SQL databases say, and which are refused."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy.dialects.mssql.base import MSDialect

from bindings.sql import _ado, _godsn, _libpq, sqlite
from bindings.sql._dialect import numbered, one, rows_of
from bindings.sql.configuration import PostgreSQLConfigurationStore
from bindings.sql.mysql import MySQLStateStore
from bindings.sql.postgresql import CockroachDBStateStore, PostgreSQLStateStore, YugabyteDBStateStore
from bindings.sql.sqlite import SQLiteStateStore
from bindings.sql.sqlserver import SQLServerStateStore
from bindings.sql.sqlserver_binding import calling
from mesh.errors import ConfigError, StateError
from mesh.resources.settings import read_settings
from tests.support.nodes import component

SECRET = "s3cr3t"

# Passwords that end the place of a URL early, or make it none.
SPLIT = (f"{SECRET}/x", f"12/{SECRET}", f"12?{SECRET}", f"12#{SECRET}", f"{SECRET}\uff03", f"[{SECRET}")

# A connection string of PostgreSQL, what is said besides, and what is then passed on.
LIBPQ: list[tuple[str, dict[str, str], dict[str, Any]]] = [
    ("", {"host": "db"}, {"host": ["db"], "port": [5432]}),
    (
        "host=db user=shop password='it''s' port=1 dbname=d",
        {},
        {"error": "pairs"},
    ),
    (
        r"host=db user=shop password='it\'s \\ = x' port = 1 database=d",
        {},
        {"host": ["db"], "port": [1], "user": "shop", "password": r"it's \ = x", "database": "d"},
    ),
    (
        "host=a,b port=1,2 target_session_attrs=read-write connect_timeout=7",
        {},
        {"host": ["a", "b"], "port": [1, 2], "target_session_attrs": "read-write", "timeout": 7.0},
    ),
    ("host=a,b port=1", {}, {"host": ["a", "b"], "port": [1, 1]}),
    ("host=db hostaddr=10.0.0.1", {}, {"host": ["10.0.0.1"]}),
    (
        "postgres://us%40er:p%2Fw%3A@a:1,[::1],b:3/d%20b?sslmode=verify-full&sslrootcert=/ca.pem&application_name=x",
        {},
        {
            "host": ["a", "::1", "b"],
            "port": [1, 5432, 3],
            "user": "us@er",
            "password": "p/w:",
            "database": "d b",
            "tls": {"sslmode": "verify-full", "sslrootcert": "/ca.pem"},
            "settings": {"application_name": "x"},
        },
    ),
    ("postgresql://db", {"user": "u", "password": "p"}, {"host": ["db"], "user": "u", "password": "p"}),
    ("postgresql:///d?host=/var/run/postgresql", {}, {"host": ["/var/run/postgresql"], "database": "d"}),
    ("postgres://u:p@db/d?ssl=true", {}, {"tls": {"sslmode": "require"}}),
    ("host=db port=1", {"port": "2", "dbname": "e"}, {"port": [2], "database": "e"}),
    (
        "host=db pool_max_conns=7 pool_max_conn_lifetime=1h pool_max_conn_idle_time=90s pool_min_conns=1",
        {},
        {"max_connections": 7, "max_lifetime": 3600.0, "max_idle": 90.0},
    ),
    ("host=db default_query_exec_mode=exec", {}, {"exec_mode": "exec"}),
    (
        "host=db search_path=shop options='-c statement_timeout=5s --lock_timeout=1s'",
        {},
        {"settings": {"search_path": "shop", "statement_timeout": "5s", "lock_timeout": "1s"}},
    ),
    ("host=db keepalives_idle=3 sslsni=1 gssencmode=disable channel_binding=prefer", {}, {"host": ["db"]}),
    (f"host=db password={SECRET} channel_binding=require", {}, {"error": "channel_binding is not supported"}),
    (f"service=prod password={SECRET}", {}, {"error": "service is not supported"}),
    (f"host=db password={SECRET} nonsense", {}, {"error": "pairs"}),
    (f"host=db password='{SECRET}", {}, {"error": "pairs"}),
    (f"host=db port=x password={SECRET}", {}, {"error": "port"}),
    ("host=db port=70000", {}, {"error": "65535"}),
    ("host=a,b,c port=1,2", {}, {"error": "one port, or one for each"}),
    (f"postgres://u:{SECRET}@a:b:c/d", {}, {"error": "names a host"}),
    *((f"postgres://u:{each}@db:5432/d", {}, {"error": "percent-encode"}) for each in SPLIT),
    ("host=db target_session_attrs=mine", {}, {"error": "target_session_attrs is"}),
    ("host=db pool_max_conns=0", {}, {"error": "pool_max_conns"}),
    ("host=db pool_max_conn_lifetime=x", {}, {"error": "pool_max_conn_lifetime"}),
    ("host=db default_query_exec_mode=x", {}, {"error": "default_query_exec_mode is"}),
]


@pytest.mark.parametrize(("text", "besides", "said"), LIBPQ)
def test_connection_strings_of_postgresql(text: str, besides: dict[str, str], said: dict[str, Any]) -> None:
    """As libpq and the Go driver read them; what would be unsafe to leave out is refused."""
    if "error" in said:
        with pytest.raises(ValueError, match=said["error"]) as raised:
            _libpq.parse(text, besides)
        assert SECRET not in str(raised.value)
        return
    parsed = _libpq.parse(text, besides)
    assert SECRET not in repr(parsed)
    for name, value in said.items():
        if name == "tls":
            assert parsed.tls == value
        elif name == "settings":
            assert parsed.options["server_settings"] == {"application_name": "brokermesh"} | value
        elif hasattr(parsed, name):
            assert getattr(parsed, name) == value
        else:
            assert parsed.options[name] == value


GO: list[tuple[str, dict[str, Any]]] = [
    ("user:p@ss:w/ord@tcp(db:3307)/shop", {"user": "user", "password": "p@ss:w/ord", "host": "db", "port": 3307}),
    ("user@tcp(db)/", {"user": "user", "password": "", "host": "db", "port": 3306, "database": ""}),
    ("u:p@/d", {"host": "127.0.0.1", "database": "d"}),
    ("u:p@tcp([::1]:1)/", {"host": "::1", "port": 1}),
    ("u:p@unix(/run/mysqld/mysqld.sock)/d", {"socket": "/run/mysqld/mysqld.sock", "database": "d"}),
    ("/", {"user": "", "host": "127.0.0.1"}),
    ("u:p@tcp(db)/?tls=skip-verify&timeout=5s&readTimeout=1s", {"tls": "skip-verify", "connect_timeout": 5.0}),
    ("u:p@tcp(db)/?allowNativePasswords=true&charset=utf8mb4&loc=Asia%2FTokyo", {"variables": {}}),
    ("u:p@tcp(db)/?loc=Asia/Tokyo", {"database": ""}),
    ("u:p@tcp(db)/?sql_mode=%27ANSI%27", {"variables": {"sql_mode": "'ANSI'"}}),
    (f"u:{SECRET}@tcp(db)", {"error": "with the slash"}),
    (f"u:{SECRET}@tcp(a:b:c)/", {"error": "names a host"}),
    (f"u:{SECRET}@pipe(x)/", {"error": "tcp"}),
    ("u:p@tcp(db)/?tls=mine", {"error": "tls is"}),
    ("u:p@tcp(db)/?allowCleartextPasswords=true", {"error": "clear text"}),
    ("u:p@tcp(db)/?multiStatements=true", {"error": "one by one"}),
    ("u:p@tcp(db)/?multiStatements=false", {"variables": {}}),
    ("u:p@tcp(db)/?x%20y=1", {"error": "whose name is none"}),
    ("u:p@tcp(db:0)/", {"error": "0"}),
]


@pytest.mark.parametrize(("text", "said"), GO)
def test_connection_strings_of_mysql(text: str, said: dict[str, Any]) -> None:
    """As the Go driver reads them."""
    if "error" in said:
        with pytest.raises(ValueError, match=said["error"]) as raised:
            _godsn.parse(text)
        assert SECRET not in str(raised.value)
        return
    parsed = _godsn.parse(text)
    assert {name: getattr(parsed, name) for name in said} == said
    assert "password" not in repr(parsed)


FILES: list[tuple[str, Any]] = [
    ("data/state.db", Path("data/state.db")),
    ("file:data/state.db", Path("data/state.db")),
    ("file:/abs/a%20b.db?_txlock=immediate&cache=shared", Path("/abs/a b.db")),
    ("file:///abs/x.db", Path("/abs/x.db")),
    ("file://localhost/abs/x.db", Path("/abs/x.db")),
    ("what?.db", Path("what?.db")),
    ("~/x.db", Path.home() / "x.db"),
    (":memory:", None),
    ("file::memory:?cache=shared", None),
    ("file:x?mode=memory", None),
    ("", "must be the path"),
    ("file:", "must be the path"),
    ("a\0b", "must be the path"),
    ("file:x.db?mode=ro", "only read"),
    ("file:x.db?immutable=1", "only read"),
    ("file:x.db?vfs=unix-none", "vfs"),
    ("file:x.db?_pragma=busy_timeout(5000)", "busyTimeout"),
    ("file:x.db?_pragma=journal_mode(OFF)", "disableWAL"),
    ("file:x.db?_pragma=synchronous(NORMAL);%20DROP", "_pragma is one of"),
]


@pytest.mark.parametrize(("text", "said"), FILES)
def test_connection_strings_of_sqlite(text: str, said: object) -> None:
    """Paths and URLs."""
    if isinstance(said, str):
        with pytest.raises(ValueError, match=said):
            sqlite.parse(text)
    else:
        assert sqlite.parse(text).path == said


def test_pragmas() -> None:
    """Those that are a matter of taste may be set."""
    found = sqlite.parse("file:x.db?_pragma=synchronous(NORMAL)&_pragma=cache_size=-2000").pragmas
    assert found == {"synchronous": "normal", "cache_size": "-2000"}


ADO: list[tuple[str, dict[str, Any]]] = [
    (
        "Server=db\\inst;Database=shop;User Id=u;Password='p;''w';Encrypt=strict;TrustServerCertificate=true;",
        {"server": "db\\inst", "database": "shop", "user": "u", "password": "p;'w", "encrypt": "strict", "trust": True},
    ),
    ("server=(local);port=1433", {"server": "localhost,1433", "encrypt": "yes", "trust": False, "app": "brokermesh"}),
    (
        "sqlserver://u:p%3B@db:1433/inst?database=shop&encrypt=disable&connection+timeout=5",
        {"server": "db\\inst,1433", "database": "shop", "password": "p;", "encrypt": "no", "timeout": 5},
    ),
    (f"Server=db;Password={SECRET};Integrated Security=true", {"error": "'integrated security', which is not"}),
    (f"Password={SECRET}", {"error": "must name a server"}),
    (f"Server=db;{SECRET}", {"error": "pairs as"}),
    ("Server=db;Encrypt=maybe", {"error": "encrypt is"}),
    *((f"sqlserver://u:{each}@db:1433", {"error": "percent-encode"}) for each in SPLIT),
    (f"sqlserver://u:12?{SECRET}=x@db", {"error": "a part, which is not"}),
    (f"Server=db;Password=ab;{SECRET}=q;", {"error": "a part, which is not"}),
    (f"Server=db,1;Password=ab;port={SECRET}", {"error": "port is no whole number"}),
]


@pytest.mark.parametrize(("text", "said"), ADO)
def test_connection_strings_of_sqlserver(text: str, said: dict[str, Any]) -> None:
    """As pairs and as URLs."""
    if "error" in said:
        with pytest.raises(ValueError, match=said["error"]) as raised:
            _ado.parse(text)
        assert SECRET not in str(raised.value)
        return
    parsed = _ado.parse(text)
    assert {name: getattr(parsed, name) for name in said} == said


def test_the_driver_of_sqlserver_is_given_texts_as_they_are() -> None:
    """Braces around each, so that none begins another part."""
    told = _ado.parse("Server=db;User Id=u;Password=a}b;App Name=x").odbc
    assert told.startswith("DRIVER={ODBC Driver 18 for SQL Server};SERVER={db};UID={u};PWD={a}}b};Encrypt={yes};")


@pytest.mark.parametrize("version", ["v1", "v2"])
def test_statements_of_sqlserver(version: str) -> None:
    """Have each parameter that they name, and no more than the server takes; nothing else of them is run here."""
    settings = {"connectionString": "Server=db", "version": version}
    dialect = SQLServerStateStore.from_component(component("store", "state.sqlserver", **settings))._dialect
    rows = [dialect.parameters(f"k{number}", b"1", None) for number in range(dialect.chunk)]
    given = numbered(rows)
    assert len(given) < 2100
    for statement in (dialect.upsert, *dialect.insert):
        compiled = one(rows_of(statement, dialect.row, dialect.chunk)).compile(dialect=MSDialect())
        assert compiled.params.keys() == given.keys()
    named = dialect.parameters("k", b"1", 1.0).keys()
    for statement, names in (
        (dialect.get, {"key"}),
        (dialect.update, {*named, "etag_is"}),
        (dialect.delete_if, {"key", "etag_is"}),
        (dialect.check, {"key", "etag_is"}),
        (dialect.keys, {"prefix", "after", "limit"}),
        (dialect.clean, {"limit"}),
    ):
        assert one(statement).compile(dialect=MSDialect()).params.keys() == names
    assert dialect.etag("00000000000007d1") == bytes.fromhex("00000000000007d1")
    assert dialect.etag("xyz") is dialect.etag("00") is None
    if version == "v1":
        with pytest.raises(StateError, match="use version v2"):
            dialect.parameters("k", b"\xff", None)
    else:
        assert dialect.parameters("k", b"\xff", None)["bytes"] == b"\xff"


PG = {"connectionString": f"host=db password={SECRET}"}
REFUSED: list[tuple[type, dict[str, str], str]] = [
    (PostgreSQLStateStore, {}, "connectionString is missing"),
    (PostgreSQLStateStore, {"user": "u"}, "connectionString is missing"),
    (PostgreSQLStateStore, {"connectionString": f"nonsense {SECRET}"}, "connectionString"),
    (PostgreSQLStateStore, PG | {"tableName": "a;b"}, "tableName: is a name"),
    (PostgreSQLStateStore, PG | {"tableName": "a.b.c"}, "tableName: is a name"),
    (PostgreSQLStateStore, PG | {"tableName": 'a"b'}, "tableName: is a name"),
    (PostgreSQLStateStore, PG | {"metadataTableName": "x" * 64}, "metadataTableName: is a name"),
    (PostgreSQLStateStore, PG | {"tablePrefix": "a_"}, "tablePrefix: is not a setting of version v1"),
    (PostgreSQLStateStore, PG | {"version": "v2", "tableName": "a"}, "tableName: is not a setting of version v2"),
    (PostgreSQLStateStore, PG | {"version": "v2", "tablePrefix": "a-"}, "tablePrefix: is a name"),
    (PostgreSQLStateStore, PG | {"version": "v3"}, "the versions v1 and v2 .spec.version., not 'v3'"),
    (PostgreSQLStateStore, PG | {"useAzureAD": "true"}, "useAzureAD: is not supported"),
    (PostgreSQLStateStore, PG | {"useAWSIAM": "yes"}, "useAWSIAM: is not supported"),
    (PostgreSQLStateStore, PG | {"queryExecMode": "x"}, "queryExecMode"),
    (PostgreSQLStateStore, PG | {"cleanupInterval": "soon"}, "cleanupInterval"),
    (CockroachDBStateStore, PG, "the version v2 .spec.version., not 'v1'"),
    (PostgreSQLConfigurationStore, PG, "the setting table is missing"),
    (MySQLStateStore, {}, "connectionString is missing"),
    (MySQLStateStore, {"connectionString": f"u:{SECRET}@tcp(db)/?tls=custom"}, "needs the setting pemPath"),
    (MySQLStateStore, {"connectionString": "u:p@/", "schemaName": "a`b"}, "schemaName: is a name"),
    (MySQLStateStore, {"connectionString": "u:p@/a`b"}, "connectionString: names a database"),
    (SQLServerStateStore, {"connectionString": "Server=db", "keyType": "uuid"}, "keyType: is string"),
    (SQLServerStateStore, {"connectionString": "Server=db", "keyLength": "500"}, "keyLength"),
    (SQLServerStateStore, {"connectionString": "Server=db", "useAzureAD": "true"}, "useAzureAD: is not supported"),
    (SQLServerStateStore, {"connectionString": f"Server=db;{SECRET}"}, "connectionString: must be"),
    (SQLiteStateStore, {}, "connectionString is missing"),
    (SQLiteStateStore, {"connectionString": "x", "busyTimeout": "x"}, "busyTimeout"),
]


@pytest.mark.parametrize(("adapter", "settings", "reason"), REFUSED)
def test_settings_that_are_refused(adapter: Any, settings: dict[str, str], reason: str) -> None:
    """With their place, and without a secret."""
    with pytest.raises(ConfigError) as raised:
        adapter.from_component(component("store", "state.x", **settings))
    told = "; ".join(map(str, raised.value.problems))
    assert re.search(reason, told), told
    assert SECRET not in told


@pytest.mark.parametrize(
    ("adapter", "settings", "capable"),
    [
        (PostgreSQLStateStore, PG, True),
        (PostgreSQLStateStore, PG | {"version": "v2", "tablePrefix": "shop.a_", "useAWSIAM": "false"}, False),
        (PostgreSQLStateStore, {"host": "db", "sslRootCert": "/ca.pem", "cleanupInterval": "-1"}, True),
        (PostgreSQLStateStore, {"url": "postgres://db", "timeoutInSeconds": "5", "maxConns": "-1"}, True),
        (YugabyteDBStateStore, PG, False),
        (YugabyteDBStateStore, PG | {"version": "v2"}, False),
        (CockroachDBStateStore, PG | {"version": "v2"}, False),
    ],
)
def test_settings_that_are_taken(adapter: Any, settings: dict[str, str], capable: bool) -> None:
    """Queries are for the tables with jsonb alone."""
    store = adapter.from_component(component("store", "state.x", **settings))
    assert ("QUERY_API" in store.capabilities) is capable


@pytest.mark.parametrize(
    "adapter", [CockroachDBStateStore, MySQLStateStore, PostgreSQLStateStore, SQLiteStateStore, SQLServerStateStore]
)
@pytest.mark.parametrize(
    ("name", "value", "seconds"),
    [
        ("cleanupInterval", "2m", 120.0),
        ("cleanupInterval", "90", 90.0),
        ("cleanupIntervalInSeconds", "90", 90.0),
        ("CleanupIntervalInSeconds", "1m", 60.0),
        ("cleanupIntervalInSeconds", "0", 0.0),
        ("cleanupIntervalInSeconds", "-1", 0.0),
    ],
)
def test_names_with_their_unit(adapter: Any, name: str, value: str, seconds: float) -> None:
    """Older files name the unit, in every database."""
    more = {name: value, "timeoutInSeconds": "7"}
    read = read_settings(component("store", "state.x", connectionString="x", **more), adapter.settings)
    assert (read.clean_every, read.timeout) == (seconds, 7.0)


def test_calls_of_sqlserver() -> None:
    """Parameters have the names that the reference gives them, and the types of JSON."""
    assert calling("SELECT 1", None) == ("SELECT 1",)
    text, sql, declared, *values = calling("EXEC p @a = @p1", ["x", None, True, 2**40, {"a": 1}])
    assert text == "EXEC sp_executesql ?, ?, ?, ?, ?, ?, ?"
    assert sql == "EXEC p @a = @p1"
    assert declared == "@p1 nvarchar(max), @p2 nvarchar(max), @p3 bit, @p4 bigint, @p5 nvarchar(max)"
    assert values == ["x", None, True, 2**40, '{"a":1}']
