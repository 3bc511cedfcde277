"""What configuration in PostgreSQL has besides the suite: versions, metadata, channels, and what goes wrong."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import orjson
import pytest
import pytest_asyncio

from bindings.sql.configuration import PostgreSQLConfigurationStore
from mesh.blocks.configuration import ConfigurationItem
from mesh.errors import ConfigurationError
from tests.support.eventually import eventually
from tests.support.nodes import component, unique
from tests.support.postgresql_server import PostgreSQLServer
from tests.support.proxy import Proxy
from tests.support.stores import STATE, Served, StoreKind

TABLE = {"postgresql": STATE["postgresql"]}
pytestmark = pytest.mark.asyncio(loop_scope="module")


class Database:
    def __init__(self, served: Served) -> None:
        assert isinstance(served.server, PostgreSQLServer)
        self.server = served.server
        self.settings = served.settings

    async def run(self, statement: str) -> str:
        return await asyncio.to_thread(self.server.psql, statement)

    async def tell(self, channel: str, payload: object) -> None:
        text = payload if isinstance(payload, str) else orjson.dumps(payload).decode()
        await self.run(f"SELECT pg_notify('{channel}', '{text}')")

    @asynccontextmanager
    async def opened(self, **settings: str) -> AsyncIterator[PostgreSQLConfigurationStore]:
        given = {**self.settings, "table": "Config", **settings}
        made = PostgreSQLConfigurationStore.from_component(component("conf", "configuration.postgresql", **given))
        async with made as store:
            yield store


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def database(served: Served, kind: StoreKind) -> Database:
    found = Database(served)
    await found.run(
        "CREATE TABLE Config (KEY VARCHAR NOT NULL, VALUE VARCHAR NOT NULL, VERSION VARCHAR, METADATA JSON)"
    )
    return found


# Versions of one key as they are in the table, and the highest of them.
@pytest.mark.parametrize(
    ("versions", "highest"),
    [
        (["1"], "1"),
        (["9", "10", "2"], "10"),
        (["v9", "v10"], "v10"),
        (["1.2.9", "1.2.10", "1.1.99"], "1.2.10"),
        (["2", None], "2"),
        (["a", "1"], "1"),
        ([None], ""),
    ],
)
async def test_the_highest_version(database: Database, versions: list[str | None], highest: str) -> None:
    """Is the one that is given, numbers in it by their size."""
    key = unique("k")
    for version in versions:
        text = "NULL" if version is None else f"'{version}'"
        await database.run(f"INSERT INTO config VALUES ('{key}', 'value {version}', {text}, NULL)")
    async with database.opened() as store:
        assert await store.get([key], {}) == {key: ConfigurationItem(f"value {highest or None}", highest)}


async def test_metadata(database: Database) -> None:
    """Are texts; a key is a text as well, whatever it looks like."""
    key = unique("k")
    await database.run(
        f"""INSERT INTO config VALUES ('{key}', '', '1', '{{"a": "b", "n": 1, "o": {{"x": null}}}}'),
        ('{key}''; --', 'x', '1', '[1]')"""
    )
    async with database.opened() as store:
        found = await store.get([key, f"{key}'; --", "none"], {"any": "metadata"})
        assert found == {
            key: ConfigurationItem("", "1", {"a": "b", "n": "1", "o": '{"x":null}'}),
            f"{key}'; --": ConfigurationItem("x", "1"),
        }


async def test_metadata_that_is_no_json(database: Database) -> None:
    """Is none, in a table that has it as a text."""
    await database.run(
        "CREATE TABLE texts (KEY VARCHAR NOT NULL, VALUE VARCHAR NOT NULL, VERSION VARCHAR, METADATA VARCHAR); "
        "INSERT INTO texts VALUES ('k', 'v', '1', 'a note')"
    )
    async with database.opened(table="texts") as store:
        assert await store.get(["k"], {}) == {"k": ConfigurationItem("v", "1")}


async def test_channels(database: Database) -> None:
    """Of the component or of the subscription; one that is told of another key is not woken."""
    key = unique("k")
    async with database.opened() as store, AsyncExitStack() as stack:
        with pytest.raises(ConfigurationError, match=r"metadata\.pgNotifyChannel"):
            store.watch([key], {})
        metadata = {"PGNotifyChannel": "Told"}
        mine = await stack.enter_async_context(store.watch([key], metadata))
        other = await stack.enter_async_context(store.watch(["other"], metadata))
        every = await stack.enter_async_context(store.watch([], metadata))
        elsewhere = await stack.enter_async_context(store.watch([key], {"pgNotifyChannel": unique("elsewhere")}))
        for channel in ("told", "Told"):  # As LISTEN takes the name without quotes, and as it is.
            await database.tell(channel, {"data": {"KEY": key, "value": "v", "version": "1", "metadata": {}}})
            async with asyncio.timeout(30):
                await mine.wait()
                await every.wait()
            mine.clear()
            every.clear()
            assert not other.is_set()
        await database.tell("told", "not JSON")
        async with asyncio.timeout(30):
            await other.wait()
        assert not elsewhere.is_set()
        listening = "SELECT count(*) FROM pg_stat_activity WHERE query LIKE 'LISTEN%' OR query LIKE 'SELECT 1'"
        assert int(await database.run(listening)) <= 1


async def test_a_connection_that_is_lost(database: Database) -> None:
    """Wakes all who watch once it is back, since something may have been told meanwhile."""
    async with Proxy(database.server.port) as proxy:
        text = database.settings["connectionString"].replace(str(database.server.port), str(proxy.port))
        async with database.opened(connectionString=text, notifyChannel="lost") as store:
            async with store.watch(["k"], {}) as event:
                assert proxy.cut() >= 1
                async with asyncio.timeout(30):
                    await event.wait()
                event.clear()
                await database.tell("lost", {"data": {"key": "k"}})
                async with asyncio.timeout(30):
                    await event.wait()
            async with store.watch(["k"], {}) as event:
                await database.tell("lost", {"data": {"key": "k"}})
                async with asyncio.timeout(30):
                    await event.wait()


async def test_a_table_that_is_missing(database: Database) -> None:
    """Is told at start, as a server is that is away."""
    for settings, reason in (
        ({"table": "nothing.here"}, "no table nothing.here"),
        ({"port": "1"}, r"127\.0\.0\.1:1\b"),
    ):
        with pytest.raises(ConfigurationError, match=reason):
            async with database.opened(**settings):
                pass


async def test_channels_are_bounded(database: Database) -> None:
    """Those that nobody watches any more make room."""
    async with database.opened() as store:
        for number in range(120):
            async with store.watch(["k"], {"pgNotifyChannel": f"many{number}"}):
                pass
        async with store.watch(["k"], {"pgNotifyChannel": "many0"}) as event:
            await database.tell("many0", {"data": {"key": "k"}})
            await eventually(lambda: _is_set(event))


async def _is_set(event: asyncio.Event) -> None:
    assert event.is_set()


async def test_the_trigger_of_the_page(database: Database) -> None:
    """Tells a row that is written, and one that is deleted; the table is as it has to be."""
    page = Path(__file__).parents[2] / "docs" / "databases.md"
    [statements] = re.findall(r"```sql\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL)
    await database.run(statements)
    named = {"table": "configuration", "notifyChannel": "changes"}
    async with database.opened(**named) as store, store.watch(["k"], {}) as event:
        large = "x" * 10_000
        await database.run(f"INSERT INTO configuration VALUES ('k', '{large}', '1', NULL)")
        await eventually(lambda: _is_set(event))
        assert await store.get(["k"], {}) == {"k": ConfigurationItem(large, "1")}
        event.clear()
        await database.run("DELETE FROM configuration")
        await eventually(lambda: _is_set(event))
        assert await store.get([], {}) == {}
