"""State stores of other systems: what they leave there, and what operations come to when the server does not answer."""

from __future__ import annotations

import asyncio
import base64
import json
import socket
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen

import pytest
from aiobotocore.session import get_session

from bindings.aws.dynamodb import DynamoDBStateStore
from bindings.azure.blobstorage import BlobStorageStateStore
from bindings.azure.cosmosdb import CosmosDBStateStore
from bindings.azure.tablestorage import TableStorageStateStore
from bindings.etcd import EtcdStateStore
from bindings.memcached import MemcachedStateStore
from bindings.mongodb.state import MongoDBStateStore
from mesh.errors import (
    ConfigError,
    InvalidEtagError,
    MeshError,
    OutcomeUnknownError,
    StateError,
    StateLimitError,
)
from mesh.store import Concurrency, Item, Stored
from tests.support.azure_servers import ACCOUNT_KEY, COSMOS_KEY, AzuriteServer, CosmosDBServer, azurite_settings
from tests.support.eventually import eventually
from tests.support.nodes import component
from tests.support.processes import free_port
from tests.support.proxy import Proxy
from tests.support.small_servers import DynamoDBServer, EtcdServer, MemcachedServer, MongoDBServer

SERVERS: dict[Any, Any] = {
    BlobStorageStateStore: partial(AzuriteServer, service="blob"),
    TableStorageStateStore: partial(AzuriteServer, service="table"),
    CosmosDBStateStore: CosmosDBServer,
    DynamoDBStateStore: DynamoDBServer,
    EtcdStateStore: EtcdServer,
    MemcachedStateStore: MemcachedServer,
    MongoDBStateStore: MongoDBServer,
}
ADAPTERS = list(SERVERS)


def made(adapter: Any, port: int, version: str = "v1", **settings: str) -> Any:
    host = f"127.0.0.1:{port}"
    own: dict[Any, dict[str, str]] = {
        BlobStorageStateStore: azurite_settings("blob", port),
        TableStorageStateStore: azurite_settings("table", port),
        CosmosDBStateStore: {
            "url": f"http://{host}",
            "masterKey": COSMOS_KEY,
            "database": "shop",
            "collection": "state",
        },
        DynamoDBStateStore: {
            "table": "state",
            "region": "eu-west-1",
            "endpoint": f"http://{host}",
            "accessKey": "testing",
            "secretKey": "testing",
            "ttlAttributeName": "expiresAt",
        },
        EtcdStateStore: {"endpoints": host},
        MemcachedStateStore: {"hosts": host, "timeout": "2s"},
        MongoDBStateStore: {"host": host, "operationTimeout": "2s"},
    }
    return adapter.from_component(component("c", "", version=version, **{**own[adapter], **settings}))


@asynccontextmanager
async def served(directory: Path, adapter: Any) -> AsyncIterator[Any]:
    async with SERVERS[adapter](directory) as server:
        yield server


@pytest.mark.parametrize("adapter", ADAPTERS)
async def test_a_server_that_is_away_at_the_start(adapter: Any) -> None:
    """The error says what was not reached."""
    port = free_port()
    with pytest.raises(StateError, match=r"Azure|Cosmos DB|DynamoDB|etcd|memcached|MongoDB") as raised:
        async with made(adapter, port):
            pass
    assert raised.value.retryable
    assert "testing" not in str(raised.value)
    assert COSMOS_KEY not in str(raised.value)
    assert ACCOUNT_KEY not in str(raised.value)


def silence(proxy: Proxy) -> None:
    """Forward nothing more on the connections that there are."""
    proxy.stall()


def loss(proxy: Proxy) -> None:
    """Reset the connection of the next reply."""
    proxy.cut_after(1, upwards=False)


@pytest.mark.parametrize(
    ("adapter", "trouble"),
    [
        *((adapter, loss) for adapter in ADAPTERS if adapter is not MongoDBStateStore),  # It reads again by itself.
        *((adapter, silence) for adapter in ADAPTERS if adapter is not DynamoDBStateStore),  # moto keeps no connection.
    ],
)
async def test_replies_that_do_not_come(tmp_path: Path, adapter: Any, trouble: Callable[[Proxy], None]) -> None:
    """Reads may be repeated, writes with a condition may have been done; then all works again."""
    async with served(tmp_path, adapter) as server, Proxy(server.port) as proxy, made(adapter, proxy.port) as store:
        await store.write([Item("k", b"1")])
        etag = (await store.get("k", strong=True)).etag
        trouble(proxy)
        with pytest.raises(StateError) as raised:
            await store.get("k", strong=True)
        assert raised.value.retryable
        proxy.cut()
        assert (await until_read(store, "k")).value == b"1"
        trouble(proxy)
        with pytest.raises(OutcomeUnknownError):
            await store.write([Item("k", b"2", etag)])
        proxy.cut()
        await until_read(store, "k")
        await store.write([Item("k", b"3")])
        assert (await store.get("k", strong=True)).value == b"3"


@pytest.mark.parametrize("adapter", [BlobStorageStateStore, CosmosDBStateStore, TableStorageStateStore])
async def test_a_server_that_goes_away(tmp_path: Path, adapter: Any) -> None:
    """What is asked meanwhile fails and may be repeated; then all works again."""
    async with served(tmp_path, adapter) as server, made(adapter, server.port) as store:
        await store.write([Item("k", b"1")])
        await server.stop()
        for attempt in (store.get("k", strong=True), store.check(), store.write([Item("k", b"2")])):
            with pytest.raises(StateError) as raised:
                await attempt
            assert raised.value.retryable
        with pytest.raises(StateError) as raised:
            await store.write([Item("k", b"2", None, Concurrency.FIRST_WRITE)])
        assert not isinstance(raised.value, OutcomeUnknownError)  # Nobody was there to write it.
        await server.start()
        async with made(adapter, server.port):  # It makes the table that an emulator may have lost.
            pass
        await store.write([Item("k", b"3")])
        assert (await store.get("k", strong=True)).value == b"3"


async def until_read(store: Any, key: str) -> Stored:
    async def read() -> Stored:
        try:
            found = await store.get(key, strong=True)
        except MeshError as error:
            raise AssertionError(str(error)) from error
        assert isinstance(found, Stored)
        return found

    await eventually(read)
    return await read()


@pytest.mark.parametrize("adapter", ADAPTERS)
async def test_cancelled_operations(tmp_path: Path, adapter: Any) -> None:
    """They leave nothing behind that a later operation would read."""
    async with served(tmp_path, adapter) as server, made(adapter, server.port) as store:
        await store.save_each([Item(f"k{number}", b"%d" % number) for number in range(40)])
        for number in range(40):
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.0001 * (number % 7)):
                    while True:
                        await store.get(f"k{number}", strong=True)
        found = await store.get_many([f"k{number}" for number in range(40)])
        assert [each.value for each in found] == [b"%d" % number for number in range(40)]


@pytest.mark.parametrize("adapter", ADAPTERS)
async def test_saves_in_order_and_each_for_itself(tmp_path: Path, adapter: Any) -> None:
    """Of equal keys the last one is there; what fails keeps no other from being written."""
    async with served(tmp_path, adapter) as server, made(adapter, server.port) as store:
        items = [Item(f"k{number % 7}", b"%d" % number) for number in range(300)]
        taken = Item("k0", b"x", None, Concurrency.FIRST_WRITE)
        results = await store.save_each([*items, taken, Item("last", b"1"), Item("last", None)])
        assert [type(each).__name__ for each in results if each] == ["ConflictError"]
        found = await store.get_many(["k0", "k1", "last", "k0"])
        assert [each and each.value for each in found] == [b"294", b"295", None, b"294"]


@pytest.mark.parametrize(
    ("adapter", "items", "says"),
    [
        (DynamoDBStateStore, [Item("k", b"x" * 500_000), Item("good", b"1")], "size"),
        (TableStorageStateStore, [Item("k", b"x" * 32_769), Item("good", b"1")], "too large"),
        (TableStorageStateStore, [Item("k", b"\xff" * 65_537), Item("good", b"1")], "too large"),
        (TableStorageStateStore, [Item("a||b/c", b"1"), Item("good", b"1")], "none of /"),
        (TableStorageStateStore, [Item("a||" + "x" * 513, b"1"), Item("good", b"1")], "at most 512 characters"),
        (BlobStorageStateStore, [Item("a.", b"1"), Item("good", b"1")], "no dot or slash at its end"),
        (BlobStorageStateStore, [Item("x" * 1025, b"1"), Item("good", b"1")], "at most 1024 characters"),
        (MemcachedStateStore, [Item("k", b"x" * 5_000_000), Item("good", b"1")], "too large"),
        (MemcachedStateStore, [Item("a blank", b"1"), Item("good", b"1")], "250 bytes without blanks"),
        (MemcachedStateStore, [Item("x" * 251, b"1"), Item("good", b"1")], "250 bytes without blanks"),
        (EtcdStateStore, [Item("k", b"x" * 3_000_000), Item("good", b"1")], "larger than max"),
        (MongoDBStateStore, [Item("k", b"x" * 17_000_000), Item("good", b"1")], "no value that large"),
    ],
)
async def test_what_a_store_does_not_take(tmp_path: Path, adapter: Any, items: Sequence[Item], says: str) -> None:
    """It is said to be too large, and does not keep others from being written."""
    async with served(tmp_path, adapter) as server, made(adapter, server.port) as store:
        refused, written = await store.save_each(items)
        assert isinstance(refused, StateLimitError), refused
        assert says in str(refused)
        assert written is None
        assert (await store.get("good", strong=True)).value == b"1"


@pytest.mark.parametrize("adapter", [CosmosDBStateStore, DynamoDBStateStore, EtcdStateStore])
async def test_transactions_that_are_too_large(tmp_path: Path, adapter: Any) -> None:
    """Nothing of them is written."""
    async with served(tmp_path, adapter) as server, made(adapter, server.port) as store:
        items = [
            Item(f"k{number}", b"1", metadata={"partitionKey": "p"}) for number in range(store.max_transaction + 1)
        ]
        with pytest.raises(StateLimitError, match="at most"):
            await store.write(items)
        await store.write(items[1:])


@pytest.mark.parametrize("adapter", [EtcdStateStore, MemcachedStateStore])
async def test_etags_that_are_none(tmp_path: Path, adapter: Any) -> None:
    """These stores have numbers."""
    async with served(tmp_path, adapter) as server, made(adapter, server.port) as store:
        for etag in ("x", "-1", "1" * 30, " 1", "1\r\n"):
            with pytest.raises(InvalidEtagError):
                await store.write([Item("k", b"1", etag)])


@pytest.mark.parametrize(("version", "value"), [("v1", b"text"), ("v2", b"\x0a\x04text")])
async def test_etcd_layout(tmp_path: Path, version: str, value: bytes) -> None:
    """Version v1 has the value itself, v2 an envelope with it."""
    settings = {"keyPrefixPath": "there"}
    async with (
        served(tmp_path, EtcdStateStore) as server,
        made(EtcdStateStore, server.port, version, **settings) as store,
    ):
        await store.write([Item("app||k", b"text", ttl=100)])
        body = json.dumps({"key": base64.b64encode(b"there/app||k").decode()}).encode()

        def read() -> Any:
            with urlopen(Request(f"http://{server.url}/v3/kv/range", body), timeout=60) as answer:
                return json.load(answer)["kvs"][0]

        found = await asyncio.to_thread(read)
        stored = await store.get("app||k", strong=True)
        assert base64.b64decode(found["value"]).startswith(value)
        assert (stored.value, stored.etag) == (b"text", found["mod_revision"])
        if version == "v2":
            async with made(EtcdStateStore, server.port, **settings) as other:
                await other.write([Item("app||k", b"text")])
            with pytest.raises(StateError, match="version v2"):
                await store.get("app||k", strong=True)


@pytest.mark.parametrize("adapter", [DynamoDBStateStore, EtcdStateStore])
async def test_keys_of_a_store_of_several_pages(tmp_path: Path, adapter: Any) -> None:
    """All that begin so, in the order of code points, however large their values are."""
    names = ["a", "a~", "aé", "a\uffff", "a😀"]
    async with served(tmp_path, adapter) as server, made(adapter, server.port) as store:
        for name in (*reversed(names), "b", "A"):
            await store.write([Item(name, b"x" * 380_000)])
        assert await store.keys("a", "", 10) == names
        assert await store.keys("a", "", 2) == names[:2]
        assert await store.keys("a", names[1], 2) == names[2:4]
        assert await store.keys("a", names[-1], 2) == []
        assert await store.keys("a", "b", 2) == []
        assert await store.keys("", "", 2) == ["A", "a"]


async def test_keys_in_etcd_that_are_no_text(tmp_path: Path) -> None:
    """They are another program's, and left out; a page is full nevertheless."""
    async with served(tmp_path, EtcdStateStore) as server, made(EtcdStateStore, server.port) as store:
        await store.write([Item(name, b"1") for name in ("a", "b")])

        def put(key: bytes) -> None:
            body = json.dumps({"key": base64.b64encode(key).decode(), "value": ""}).encode()
            with urlopen(Request(f"http://{server.url}/v3/kv/put", body), timeout=60):
                pass

        for key in (b"/a\xff", b"/a\xfe", b"/\xff"):
            await asyncio.to_thread(put, key)
        assert await store.keys("", "", 2) == ["a", "b"]
        assert await store.keys("", "a", 1) == ["b"]
        assert await store.keys("", "b", 10) == []


async def test_memcached_layout(tmp_path: Path) -> None:
    """Key and value are as they are."""
    async with served(tmp_path, MemcachedStateStore) as server, made(MemcachedStateStore, server.port) as store:
        await store.write([Item("app||k", b"text")])

        def read() -> bytes:
            with socket.create_connection(("127.0.0.1", server.port), timeout=10) as connection:
                connection.sendall(b"get app||k\r\nquit\r\n")
                return connection.makefile("rb").read()

        assert await asyncio.to_thread(read) == b"VALUE app||k 0 4\r\ntext\r\nEND\r\n"


async def test_memcached_keeps_what_there_was_when_a_value_is_too_large(tmp_path: Path) -> None:
    """The server would drop it; what it takes at most is what it says."""
    async with served(tmp_path, MemcachedStateStore) as server, made(MemcachedStateStore, server.port) as store:
        await store.write([Item("k", b"1")])
        for size in (4 * 1024 * 1024 - 60, 4 * 1024 * 1024, 5_000_000):
            with pytest.raises(StateLimitError, match="too large"):
                await store.write([Item("k", b"x" * size)])
            assert (await store.get("k", strong=True)).value == b"1"
        await store.write([Item("k", b"x" * (4 * 1024 * 1024 - 129))])


async def test_dynamodb_layout(tmp_path: Path) -> None:
    """The attributes are those of the Dapr runtime; bytes that are no text are bytes."""
    async with served(tmp_path, DynamoDBStateStore) as server, made(DynamoDBStateStore, server.port) as store:
        await store.write([Item("app||k", b'{"a":1}', ttl=1000)])
        await store.write([Item("bytes", b"\xff")])
        names = {"aws_access_key_id": "testing", "aws_secret_access_key": "testing", "region_name": "eu-west-1"}
        async with get_session().create_client("dynamodb", endpoint_url=server.url, **names) as client:
            found = (await client.get_item(TableName="state", Key={"key": {"S": "app||k"}}))["Item"]
            other = (await client.get_item(TableName="state", Key={"key": {"S": "bytes"}}))["Item"]
            await client.put_item(TableName="state", Item={"key": {"S": "old"}, "value": {"S": "1"}})
            past = {"key": {"S": "gone"}, "value": {"S": "1"}, "etag": {"S": "1"}, "expiresAt": {"N": "1000"}}
            await client.put_item(TableName="state", Item=past)
        stored = await store.get("app||k", strong=True)
        assert found == {
            "key": {"S": "app||k"},
            "value": {"S": '{"a":1}'},
            "etag": {"S": stored.etag},
            "expiresAt": {"N": str(int(stored.expires_at))},
        }
        assert other["value"] == {"B": b"\xff"}
        assert await store.get("old", strong=True) == Stored(b"1", "")
        assert await store.get("gone", strong=True) is None
        assert await store.keys("", "", 10) == ["app||k", "bytes", "old"]
        with pytest.raises(StateError):
            await store.write([Item("gone", b"2", "1")])
        await store.write([Item("gone", b"2", None, Concurrency.FIRST_WRITE)])
        assert (await store.get("gone", strong=True)).value == b"2"


async def test_dynamodb_as_a_role(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The role is taken on with the given credentials, at the service that gives it."""
    role = {"assumeRoleArn": "arn:aws:iam::123456789012:role/writer", "sessionName": "shop"}
    async with served(tmp_path, DynamoDBStateStore) as server:
        monkeypatch.setenv("AWS_ENDPOINT_URL_STS", f"http://127.0.0.1:{free_port()}")
        with pytest.raises(StateError, match="cannot be reached"):
            async with made(DynamoDBStateStore, server.port, **role):
                pass
        monkeypatch.setenv("AWS_ENDPOINT_URL_STS", server.url)
        async with made(DynamoDBStateStore, server.port, **role) as store:
            await store.write([Item("k", b"1", None, Concurrency.FIRST_WRITE)])
            assert (await store.get("k", strong=True)).value == b"1"


@pytest.mark.parametrize("endpoint", ["", "http://127.0.0.1:1"])
async def test_dynamodb_without_a_region(endpoint: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is told where it is to be set."""
    for name in ("AWS_REGION", "AWS_DEFAULT_REGION", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_CONFIG_FILE", "/none")
    with pytest.raises(ConfigError, match="region"):
        async with made(DynamoDBStateStore, 1, region="", endpoint=endpoint):
            pass


async def test_a_dynamodb_table_that_is_missing(tmp_path: Path) -> None:
    """It is told at the start, as is another key."""
    async with served(tmp_path, DynamoDBStateStore) as server:
        for settings, says in (({"table": "nowhere"}, "nowhere.*ResourceNotFound"), ({"partitionKey": "id"}, "key")):
            with pytest.raises(StateError, match=says):
                async with made(DynamoDBStateStore, server.port, **settings):
                    pass
