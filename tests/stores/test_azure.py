"""What the state stores of Azure leave there, and what they read of others."""

from __future__ import annotations

import base64
import logging
from collections.abc import AsyncIterator
from typing import Any

import orjson
import pytest
import pytest_asyncio
from azure.core.credentials import AzureNamedKeyCredential
from azure.data.tables.aio import TableClient
from azure.storage.blob.aio import ContainerClient

from bindings.azure.blobstorage import BlobStorageStateStore
from bindings.azure.cosmosdb import CosmosDBStateStore
from bindings.azure.tablestorage import TableStorageStateStore
from mesh.errors import BadArgumentError, ConfigError, ConflictError, StateError, StateLimitError
from mesh.query import Compare, Query
from mesh.store import Item, Stored
from tests.support.azure_servers import ACCOUNT, ACCOUNT_KEY, AzuriteServer, CosmosDBServer
from tests.support.nodes import component


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def cosmosdb(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[CosmosDBServer]:
    """One for all."""
    async with CosmosDBServer(tmp_path_factory.mktemp("cosmosdb")) as server:
        yield server


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def tables(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[AzuriteServer]:
    async with AzuriteServer(tmp_path_factory.mktemp("table"), "table") as server:
        yield server


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def blobs(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[AzuriteServer]:
    async with AzuriteServer(tmp_path_factory.mktemp("blob"), "blob") as server:
        yield server


def made(server: CosmosDBServer, **settings: str) -> CosmosDBStateStore:
    return CosmosDBStateStore.from_component(component("c", "", **{**server.settings, **settings}))


DEEP = b"[" * 150 + b"]" * 150


@pytest.mark.parametrize(
    ("value", "laid_out"),
    [
        (b'{"a":1}', {"value": {"a": 1}, "isBinary": False}),
        (b'"text"', {"value": "text", "isBinary": False}),
        (b"null", {"value": None, "isBinary": False}),
        (b'{"a": 1}', {"value": {"a": 1}, "isBinary": False, "text": '{"a": 1}'}),
        (b"1.0", {"value": 1, "isBinary": False, "text": "1.0"}),
        (b"9007199254740993", {"value": 9007199254740992, "isBinary": False, "text": "9007199254740993"}),
        (b'{"a":1,"a":2}', {"value": {"a": 2}, "isBinary": False, "text": '{"a":1,"a":2}'}),
        (b"\xff", {"value": "/w==", "isBinary": True}),
        (b"text", {"value": "dGV4dA==", "isBinary": True}),
        (b"", {"value": "", "isBinary": True}),
        (DEEP, {"value": base64.b64encode(DEEP).decode(), "isBinary": True}),
    ],
)
async def test_cosmosdb_layout(cosmosdb: CosmosDBServer, value: bytes, laid_out: dict[str, Any]) -> None:
    """The members are those of the Dapr runtime, and what was saved is read to the byte."""
    async with made(cosmosdb) as store, cosmosdb.client() as client:
        container = client.get_database_client("shop").get_container_client("state")
        await store.write([Item("app||k", value, ttl=99.5)])
        await store.write([Item("app||p", value, metadata={"PartitionKey": "p"})])
        stored = await store.get("app||k", strong=True)
        document = await container.read_item("app||k", "app||k")
        own = {name: each for name, each in document.items() if not name.startswith("_")}
        assert own == {"id": "app||k", "partitionKey": "app||k", "ttl": 100, **laid_out}
        assert stored == Stored(value, document["_etag"], document["_ts"] + 100)
        assert (await container.read_item("app||p", "p"))["partitionKey"] == "p"
        assert await store.get("app||p", strong=True) is None
        found = await store.get("app||p", strong=True, metadata={"partitionkey": "p"})
        assert found is not None
        assert (found.value, found.expires_at) == (value, None)


@pytest.mark.parametrize(
    ("document", "value"),
    [
        ({"value": {"a": [1, "ä"]}, "isBinary": False}, '{"a":[1,"ä"]}'.encode()),
        ({"value": "text", "isBinary": False, "ttl": -1}, b'"text"'),
        ({"value": "dGV4dA==", "isBinary": True, "ttl": None}, b"text"),
        ({}, b"null"),
    ],
)
async def test_cosmosdb_items_of_others(cosmosdb: CosmosDBServer, document: dict[str, Any], value: bytes) -> None:
    """What the Dapr runtime, or another program, wrote is read."""
    async with made(cosmosdb) as store, cosmosdb.client() as client:
        container = client.get_database_client("shop").get_container_client("state")
        written = await container.upsert_item({"id": "k", "partitionKey": "k", **document})
        assert await store.get("k", strong=True) == Stored(value, written["_etag"])


async def test_cosmosdb_transactions_are_of_one_partition(cosmosdb: CosmosDBServer) -> None:
    """Of several nothing is written; a deletion of what is missing is none the less one."""
    here, there = {"partitionKey": "here"}, {"partitionKey": "there"}
    async with made(cosmosdb) as store:
        for first, second in ((here, there), (here, {}), ({}, {})):
            with pytest.raises(BadArgumentError, match=r"metadata\.partitionKey"):
                await store.write([Item("a", b"1", metadata=first), Item("b", b"1", metadata=second)])
        assert await store.get("a", strong=True, metadata=here) is None
        await store.write([Item("a", b"1", metadata=here), Item("missing", None, metadata=here)])
        assert (await store.get("a", strong=True, metadata=here)).value == b"1"
        assert await store.get("missing", strong=True, metadata=here) is None
        deletions = [Item(f"d{number}", None, metadata=here) for number in range(51)]
        with pytest.raises(StateLimitError, match="counts twice"):
            await store.write(deletions)
        await store.write(deletions[1:])


@pytest.mark.parametrize("key", ["a/b", "a\\b", "a?b", "a#b", "a ", "x" * 1024, "ä" * 512])
async def test_cosmosdb_keys_that_it_does_not_take(cosmosdb: CosmosDBServer, key: str) -> None:
    """They are refused, and nothing is there."""
    async with made(cosmosdb) as store:
        with pytest.raises(StateLimitError, match="a key in Cosmos DB"):
            await store.write([Item(key, b"1")])
        assert await store.get(key, strong=True) is None


async def test_cosmosdb_queries_of_one_partition(cosmosdb: CosmosDBServer) -> None:
    """Or of all, whatever the names of members are."""
    awkward = 'it\'s "x" \\ ]'
    async with made(cosmosdb) as store:
        for key, partition in (("q1", "one"), ("q2", "two")):
            await store.write([Item(key, orjson.dumps({awkward: "y"}), metadata={"partitionKey": partition})])
        await store.write([Item("q3", b"bytes")])
        condition = Compare("EQ", (awkward,), ("y",))
        every = await store.query(Query(condition), "q")
        one = await store.query(Query(condition, metadata={"partitionKey": "two"}), "q")
        assert [[match.key for match in found.matches] for found in (every, one)] == [["q1", "q2"], ["q2"]]
        assert (await store.query(Query(Compare("IN", (awkward,), ())), "q")).matches == []


async def test_containers_of_cosmosdb(cosmosdb: CosmosDBServer) -> None:
    """Without a time to live it is not declared; what cannot be used is told at the start."""
    async with made(cosmosdb) as store:
        assert "TTL" in store.capabilities
    async with made(cosmosdb, collection="forever") as store:
        assert "TTL" not in store.capabilities
    with pytest.raises(ConfigError, match="partition key must be /partitionKey"):
        async with made(cosmosdb, collection="other"):
            pass
    with pytest.raises(StateError, match="'nowhere' answered 404"):
        async with made(cosmosdb, collection="nowhere"):
            pass


@pytest.mark.parametrize(
    ("key", "names", "encoded"),
    [
        ("app||a key", ("app", "a key"), "a+key"),
        ("app||kind||id||key", ("app", "kind||id||key"), "kind%7C%7Cid%7C%7Ckey"),
        ("key", ("key", ""), ""),
    ],
)
@pytest.mark.parametrize(("value", "kept"), [(b'{"a": 1}', '{"a": 1}'), (b"\xff", b"\xff"), (b"", "")])
async def test_table_layout(
    tables: AzuriteServer, key: str, names: tuple[str, str], encoded: str, value: bytes, kept: str | bytes
) -> None:
    """The properties are those of the Dapr runtime; bytes that are no text are bytes."""
    credential = AzureNamedKeyCredential(ACCOUNT, ACCOUNT_KEY)
    for mode, row in (("false", names[1]), ("true", encoded)):
        settings = {**tables.settings, "cosmosDbMode": mode}
        store = TableStorageStateStore.from_component(component("c", "", **settings))
        async with store, TableClient(tables.settings["serviceURL"], "state", credential=credential) as table:
            await store.write([Item(key, value)])
            entity = await table.get_entity(names[0], row)
            assert dict(entity) == {"PartitionKey": names[0], "RowKey": row, "Value": kept}
            assert await store.get(key, strong=True) == Stored(value, entity.metadata["etag"])


@pytest.mark.parametrize(
    ("version", "key", "name"),
    [
        ("v1", "app||a/key", "a/key"),
        ("v1", "app||kind||id||key", "kind||id||key"),
        ("v1", "key", "key"),
        ("v2", "app||a/key", "app||a/key"),
        ("v2", "app||kind||id||key", "app||kind||id||key"),
    ],
)
async def test_blob_layout(blobs: AzuriteServer, version: str, key: str, name: str) -> None:
    """Names are those of the Dapr runtime; the content type is that of the request, or of the component."""
    settings = {**blobs.settings, "contentType": "text/plain", "cacheControl": "no-store"}
    store = BlobStorageStateStore.from_component(component("c", "", version=version, **settings))
    account = {"account_name": ACCOUNT, "account_key": ACCOUNT_KEY}
    async with store, ContainerClient(blobs.settings["endpoint"], "state", credential=account) as container:
        for metadata, content_type in (({"ContentType": "application/json"}, "application/json"), ({}, "text/plain")):
            await store.write([Item(key, b'{"a": 1}', metadata=metadata)])
            found = await container.get_blob_client(name).download_blob()
            assert await found.readall() == b'{"a": 1}'
            told = found.properties.content_settings
            assert (told.content_type, told.cache_control) == (content_type, "no-store")
            assert await store.get(key, strong=True) == Stored(b'{"a": 1}', found.properties.etag)


async def test_tables_and_containers_that_must_be_there(tables: AzuriteServer, blobs: AzuriteServer) -> None:
    """Else they are made; a wrong key is told without it."""
    table = {**tables.settings, "tableName": "nowhere"}
    container = {**blobs.settings, "containerName": "nowhere"}
    for adapter, settings, leave in (
        (TableStorageStateStore, table, "skipCreateTable"),
        (BlobStorageStateStore, container, "disableEntityManagement"),
    ):
        with pytest.raises(StateError, match="'nowhere' answered 404"):
            async with adapter.from_component(component("c", "", **settings, **{leave: "true"})):
                pass
        for _ in range(2):
            async with adapter.from_component(component("c", "", **settings)) as store:
                assert await store.get("k", strong=True) is None
        key = base64.b64encode(b"another").decode()
        with pytest.raises(StateError, match="authenticate") as raised:
            async with adapter.from_component(component("c", "", **{**settings, "accountKey": key})):
                pass
        assert key not in str(raised.value)


@pytest.mark.parametrize("etag", ["x", "1", '"0x1', '"a\r\nb"', 'W/"\x01"', "*"])
async def test_etags_that_are_none_of_the_services(tables: AzuriteServer, blobs: AzuriteServer, etag: str) -> None:
    """They match nothing."""
    for adapter, server in ((TableStorageStateStore, tables), (BlobStorageStateStore, blobs)):
        async with adapter.from_component(component("c", "", **server.settings)) as store:
            await store.write([Item("etag", b"1")])
            for value in (b"2", None):
                with pytest.raises(ConflictError):
                    await store.write([Item("etag", value, etag)])
            found = await store.get("etag", strong=True)
            assert found is not None
            assert found.value == b"1"


async def test_requests_are_not_written_to_the_log(
    cosmosdb: CosmosDBServer, tables: AzuriteServer, blobs: AzuriteServer, caplog: pytest.LogCaptureFixture
) -> None:
    """Their URLs have the keys of an application."""
    caplog.set_level(logging.DEBUG)
    adapters: dict[Any, Any] = {
        CosmosDBStateStore: cosmosdb,
        TableStorageStateStore: tables,
        BlobStorageStateStore: blobs,
    }
    for adapter, server in adapters.items():
        async with adapter.from_component(component("c", "", **server.settings)) as store:
            await store.write([Item("quiet", b"1")])
            assert (await store.get("quiet", strong=True)).value == b"1"
    assert "quiet" not in caplog.text
