"""State in Cassandra: what is left there, how its hosts are reached, and what it does not take."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from pathlib import Path

import pytest
import pytest_asyncio
from cassandra.cluster import NoHostAvailable

from bindings.cassandra import MAX_REQUESTS, CassandraStateStore
from mesh.errors import MeshError, StateError, StateLimitError
from mesh.store import Item, Stored
from tests.support.cassandra_server import CassandraServer
from tests.support.certificates import Authority
from tests.support.eventually import eventually
from tests.support.nodes import component, unique
from tests.support.processes import free_port
from tests.support.proxy import Proxy

pytestmark = pytest.mark.asyncio(loop_scope="module")
PASSWORD = "cassandra"


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    """Who signs the server's certificate."""
    return Authority(tmp_path_factory.mktemp("authority"))


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def server(tmp_path_factory: pytest.TempPathFactory, authority: Authority) -> AsyncIterator[CassandraServer]:
    """One for all tests; each has a keyspace of its own."""
    directory = tmp_path_factory.mktemp("cassandra")
    issued = authority.issue("cassandra")
    both = directory.with_suffix(".pem")
    both.write_text(Path(issued.key).read_text() + Path(issued.certificate).read_text())
    async with AsyncExitStack() as stack:
        server = await stack.enter_async_context(CassandraServer(directory, closed=True, certificate=both))

        async def has_its_user() -> None:
            try:
                await asyncio.to_thread(server.execute, "SELECT now() FROM system.local")
            except NoHostAvailable as error:
                raise AssertionError(str(error)) from error

        await eventually(has_its_user, within=60.0)
        yield server


@pytest.fixture
def keyspace() -> str:
    return unique("k").replace("-", "_")


def made(port: int, keyspace: str, **settings: str) -> CassandraStateStore:
    given = {"hosts": f"127.0.0.1:{port}", "username": "cassandra", "password": PASSWORD, "keyspace": keyspace}
    return CassandraStateStore.from_component(component("c", "", **{**given, **settings}))


async def until_read(store: CassandraStateStore, key: str) -> Stored | None:
    async def read() -> Stored | None:
        try:
            return await store.get(key, strong=True)
        except MeshError as error:
            raise AssertionError(str(error)) from error

    return await eventually(read, within=40.0)


async def test_a_server_that_is_away_at_the_start() -> None:
    """The error says what was not reached."""
    for hosts in (f"127.0.0.1:{free_port()}", "no-such-host.invalid"):
        with pytest.raises(StateError, match="Cassandra") as raised:
            async with made(1, "k", hosts=hosts, password="s3cret"):
                pass
        assert raised.value.retryable
        assert "s3cret" not in str(raised.value)


async def test_users(server: CassandraServer, keyspace: str) -> None:
    """A wrong password is told, and not shown."""
    with pytest.raises(StateError, match="incorrect") as raised:
        async with made(server.port, keyspace, password="s3cret"):
            pass
    assert "s3cret" not in str(raised.value)
    with pytest.raises(StateError):
        async with made(server.port, keyspace, username="", password=""):
            pass


async def test_tls(
    server: CassandraServer, keyspace: str, authority: Authority, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The host's certificate must be one that the system trusts."""
    with pytest.raises(StateError, match="certificate"):
        async with made(server.port, keyspace, enableHostVerification="true"):
            pass
    monkeypatch.setenv("SSL_CERT_FILE", str(authority.path))
    async with made(server.port, keyspace, enableHostVerification="true") as store:
        await store.write([Item("k", b"1")])
        assert (await store.get("k", strong=True)) == Stored(b"1", "")


async def test_layout(server: CassandraServer, keyspace: str) -> None:
    """The table is as Dapr makes it, and rows of another program are read."""
    async with made(server.port, keyspace) as store:
        await store.write([Item("app||k", b'{"a":1}')])
        await store.write([Item("app||bytes", bytes(range(256)), ttl=1000.0)])
        rows = await asyncio.to_thread(server.execute, f"SELECT key, value, TTL(value) FROM {keyspace}.items")
        (bytes_key, value, ttl), plain = sorted(rows, key=lambda row: str(row[0]))
        assert (bytes_key, value, plain) == ("app||bytes", bytes(range(256)), ("app||k", b'{"a":1}', None))
        assert isinstance(ttl, int)
        assert 900 < ttl <= 1000
        columns = "SELECT column_name, kind, type FROM system_schema.columns WHERE keyspace_name = '{}'"
        assert await asyncio.to_thread(server.execute, columns.format(keyspace)) == [
            ("key", "partition_key", "text"),
            ("value", "regular", "blob"),
        ]
        replication = "SELECT replication FROM system_schema.keyspaces WHERE keyspace_name = '{}'"
        ((told,),) = await asyncio.to_thread(server.execute, replication.format(keyspace))
        assert dict(told) == {  # type: ignore[call-overload]
            "class": "org.apache.cassandra.locator.SimpleStrategy",
            "replication_factor": "1",
        }
        written = f"INSERT INTO {keyspace}.items (key, value) VALUES ('app||other', textAsBlob('\"x\"')) USING TTL 500"
        await asyncio.to_thread(server.execute, written)
        stored = await store.get("app||other", strong=False)
        assert stored is not None
        assert (stored.value, stored.expires_at is not None) == (b'"x"', True)
        await store.write([Item("app||other", b"2")])
        assert await store.get("app||other", strong=False) == Stored(b"2", "")


async def test_a_table_of_another_name(server: CassandraServer, keyspace: str) -> None:
    """Each is a store of its own; what is there is used as it is."""
    for table, before in (("first", None), ("second", None), ("first", Stored(b"1", ""))):
        async with made(server.port, keyspace, table=table, protoVersion="5") as store:
            assert await store.get("first", strong=False) == before
            await store.write([Item(table, b"1")])
    found = await asyncio.to_thread(server.execute, f"SELECT key FROM {keyspace}.first")
    assert found == [("first",)]


@pytest.mark.parametrize("level", ["All", "any", "One", "Quorum", "LocalQuorum", "EachQuorum", "LocalOne"])
async def test_levels(server: CassandraServer, keyspace: str, level: str) -> None:
    """Those that one node can hold."""
    async with made(server.port, keyspace, consistency=level) as store:
        for strong in (False, True):
            await store.write([Item("k", b"1", strong=strong)])
            assert await store.get("k", strong=strong) == Stored(b"1", "")
            await store.write([Item("k", None, strong=strong)])
            assert await store.get("k", strong=strong) is None


@pytest.mark.parametrize("level", ["Two", "Three"])
async def test_levels_that_cannot_be_held(server: CassandraServer, keyspace: str, level: str) -> None:
    """What lacks is said; nothing is written."""
    async with made(server.port, keyspace, consistency=level) as store:
        for ask in (store.get("k", strong=False), store.write([Item("k", b"1")])):
            with pytest.raises(StateError, match=level.upper()) as raised:
                await ask
            assert raised.value.retryable
        assert await store.get("k", strong=True) is None


async def test_what_it_does_not_take(server: CassandraServer, keyspace: str) -> None:
    """It is said, and does not keep others from being written."""
    async with made(server.port, keyspace) as store:
        refused = [
            Item("x" * 65_536, b"1"),
            Item("é" * 32_768, b"1"),
            Item("large", b"x" * 17 * 1024 * 1024),
            Item("long", b"1", ttl=700_000_000.0),
            Item("long", b"1", ttl=600_000_000.0),  # Beyond 2038, up to which this server counts.
        ]
        results = await store.save_each([*refused, Item("x" * 65_535, b"1"), Item("good", b"1", ttl=1_000_000.0)])
        assert [type(each) for each in results] == [*([StateLimitError] * len(refused)), type(None), type(None)]
        assert await store.get("x" * 65_535, strong=True) == Stored(b"1", "")


async def test_saves_in_order(server: CassandraServer, keyspace: str) -> None:
    """Of equal keys the last one is there."""
    async with made(server.port, keyspace) as store:
        items = [Item(f"k{number % 7}", b"%d" % number) for number in range(300)]
        results = await store.save_each([*items, Item("last", b"1"), Item("last", None)])
        assert not any(results)
        found = await store.get_many(["k0", "k1", "last", "k0"])
        assert [each.value if isinstance(each, Stored) else each for each in found] == [b"294", b"295", None, b"294"]


async def test_a_table_that_is_dropped(server: CassandraServer, keyspace: str) -> None:
    """It is an error, and no value that is too large."""
    async with made(server.port, keyspace) as store:
        await asyncio.to_thread(server.execute, f"DROP TABLE {keyspace}.items")
        with pytest.raises(StateError, match="items") as raised:
            await store.write([Item("k", b"1")])
        assert raised.value.retryable


async def test_cancelled_operations(server: CassandraServer, keyspace: str) -> None:
    """However many there are, they take nothing from later ones."""
    async with made(server.port, keyspace) as store:
        await store.save_each([Item(f"k{number}", b"%d" % number) for number in range(40)])
        for _ in range(5):
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.002), asyncio.TaskGroup() as tasks:
                    for number in range(MAX_REQUESTS):
                        tasks.create_task(store.get(f"k{number % 40}", strong=True))
                    await asyncio.sleep(60)
        found = await store.get_many([f"k{number % 40}" for number in range(2 * MAX_REQUESTS)], parallelism=1000)
        values = [each.value if isinstance(each, Stored) else each for each in found]
        assert values == [b"%d" % (number % 40) for number in range(2 * MAX_REQUESTS)]


def silence(proxy: Proxy) -> None:
    """Forward nothing more on the connections that there are."""
    proxy.stall()


def loss(proxy: Proxy) -> None:
    """Reset the connection of the next reply."""
    proxy.cut_after(1, upwards=False)


@pytest.mark.parametrize("trouble", [silence, loss])
async def test_replies_that_do_not_come(
    server: CassandraServer, keyspace: str, trouble: Callable[[Proxy], None]
) -> None:
    """The error says that it may pass, and then all works again."""
    async with Proxy(server.port) as proxy, made(proxy.port, keyspace) as store:
        await store.write([Item("k", b"1")])
        for ask in (lambda: store.get("k", strong=True), lambda: store.write([Item("k", b"2")])):
            raised = None
            for _ in range(20):  # What is lost may be the driver's own, not what was asked.
                trouble(proxy)
                try:
                    async with asyncio.timeout(15):  # The usual deadline of an operation.
                        await ask()
                except StateError as error:
                    raised = error
                    break
            assert raised is not None
            assert raised.retryable
            proxy.cut()
            assert await until_read(store, "k") is not None
        await store.write([Item("k", b"3")])
        assert await store.get("k", strong=True) == Stored(b"3", "")
