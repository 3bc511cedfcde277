"""What of a request reaches a state store's adapter, and what is told of an adapter that can do less."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Self

import aiohttp
import orjson
import pytest

from gateway.config import GatewayConfig
from gateway.grpc.messages import message
from gateway.http.server import HTTPServer
from gateway.http.stages import staged, stages
from gateway.routes import build_api, build_router
from mesh.errors import ConfigError, StateError
from mesh.key_value import MemoryKeyValue
from mesh.query import Match, Queried, Query
from mesh.store import Concurrency, Item, KeyValueStateStore, Stored
from tests.support.nodes import MemoryMesh, component, node, unique

JSON = {"contentType": "application/json", "partitionKey": "p"}


class Recording(KeyValueStateStore):
    """Notes what it is asked."""

    capabilities = ("ETAG", "TRANSACTIONAL", "TTL", "QUERY_API")

    def __init__(self) -> None:
        super().__init__(MemoryKeyValue())
        self.asked: list[Mapping[str, str]] = []
        self.items: list[Item] = []
        self.found = Queried([])

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc_info: object) -> None: ...

    async def get(self, key: str, *, strong: bool, metadata: Mapping[str, str] | None = None) -> Stored | None:
        self.asked.append(metadata or {})
        return await super().get(key, strong=strong)

    async def write(self, items: Sequence[Item]) -> None:
        self.items += items
        await super().write(items)

    async def query(self, query: Query, prefix: str) -> Queried:
        self.asked.append(query.metadata)
        if query.limit == 1:
            raise StateError("not now")
        return Queried([Match("app||next", b"1")]) if query.token else self.found


class Lasting(Recording):
    """Keeps what it has."""

    capabilities = ("ETAG", "TRANSACTIONAL")


class About:
    app_id = "app"
    outbound_ready = True
    not_ready = ()
    metadata: ClassVar[dict[str, object]] = {}

    def shut_down(self, *, force: bool = False) -> None: ...


class Site:
    """A node's API with two stores."""

    def __init__(self) -> None:
        self.store, self.lasting = Recording(), Lasting()
        self.client: aiohttp.ClientSession

    async def ask(self, method: str, path: str, body: object = None, **headers: str) -> tuple[int, Any]:
        data = None if body is None else orjson.dumps(body)
        async with self.client.request(method, path, data=data, headers=headers) as response:
            text = await response.read()
            return response.status, orjson.loads(text) if text else None


@pytest.fixture
async def site(tmp_path: Path) -> AsyncIterator[Site]:
    site = Site()
    registry = MemoryMesh(recording=lambda: site.store, lasting=lambda: site.lasting)
    components = component("store", "state.recording"), component("lasting", "state.lasting")
    async with node("memory:", unique("adapters"), *components, registry=registry) as runtime:
        config = GatewayConfig("app", tmp_path)
        router = staged(build_router(build_api(runtime, config, About(), {}, message)), stages(config))
        server = HTTPServer(router, max_body_bytes=1024 * 1024, max_header_bytes=8192)
        async with (
            server.listening(("127.0.0.1",), 0, None, lambda: 0.0) as port,
            aiohttp.ClientSession(f"http://127.0.0.1:{port}") as site.client,
        ):
            yield site


async def test_metadata_of_reads(site: Site) -> None:
    """A bulk read's own, and over them those of its URL."""
    await site.ask("GET", "/v1.0/state/store/k?metadata.partitionKey=p&consistency=strong")
    await site.ask(
        "POST", "/v1.0/state/store/bulk?metadata.a=url", {"keys": ["k"], "metadata": {"a": "body", "b": "1"}}
    )
    await site.ask("POST", "/v1.0-alpha1/state/store/query?metadata.contentType=application/json", {})
    assert site.store.asked == [{"partitionKey": "p"}, {"a": "url", "b": "1"}, {"contentType": "application/json"}]


async def test_metadata_of_writes(site: Site) -> None:
    """An item's own, and over them those of the URL; consistency beside them."""
    url = "/v1.0/state/store"
    item = {"key": "k", "value": 1, "metadata": JSON | {"ttlInSeconds": "9"}, "options": {"consistency": "strong"}}
    assert (await site.ask("POST", f"{url}?metadata.partitionKey=url", [item]))[0] == 204
    path = f"{url}/k?metadata.partitionKey=p&consistency=strong&concurrency=first-write"
    assert (await site.ask("DELETE", path))[0] == 204
    assert site.store.items == [
        Item("app||k", b"1", None, None, 9.0, JSON | {"ttlInSeconds": "9", "partitionKey": "url"}, strong=True),
        Item("app||k", None, None, Concurrency.FIRST_WRITE, metadata={"partitionKey": "p"}, strong=True),
    ]


async def test_metadata_of_transactions(site: Site) -> None:
    """Of the body's own only the partition is that of its operations."""
    operations = [
        {"operation": "upsert", "request": {"key": "a", "value": 1, "metadata": {"contentType": "x"}}},
        {"operation": "delete", "request": {"key": "b", "metadata": {"partitionKey": "own"}}},
    ]
    body = {
        "operations": operations,
        "metadata": {"partitionKey": "p", "ttlInSeconds": "9", "outbox.projection": "true"},
    }
    assert (await site.ask("POST", "/v1.0/state/store/transaction?metadata.u=1", body))[0] == 204
    assert [(item.key, item.metadata, item.ttl) for item in site.store.items] == [
        ("app||a", {"partitionKey": "p", "contentType": "x", "u": "1"}, None),
        ("app||b", {"partitionKey": "own", "u": "1"}, None),
    ]


async def test_a_store_that_keeps_what_it_has(site: Site) -> None:
    """It refuses a time to live, not one that is endless."""
    for ttl, status in (("9", 500), ("-1", 204), ("0", 204)):
        item = {"key": "k", "value": 1, "metadata": {"ttlInSeconds": ttl}}
        saved = await site.ask("POST", "/v1.0/state/lasting", [item])
        operation = {"operation": "upsert", "request": item}
        written = await site.ask("POST", "/v1.0/state/lasting/transaction", {"operations": [operation]})
        assert (saved[0], written[0]) == (status, status)
        if status == 500:
            assert (saved[1]["errorCode"], written[1]["errorCode"]) == ("ERR_STATE_SAVE", "ERR_STATE_TRANSACTION")
            assert saved[1]["message"].endswith("key k: lasting cannot let values expire (ttlInSeconds)")
    assert (await site.ask("DELETE", "/v1.0/state/lasting/k?metadata.ttlInSeconds=9"))[0] == 204
    registry = MemoryMesh(lasting=Lasting)
    wrong = component("lasting", "state.lasting", ttlInSeconds="9")
    with pytest.raises(ConfigError, match=r"ttlInSeconds.*state.lasting cannot let values expire"):
        async with node("memory:", unique("adapters"), wrong, registry=registry):
            pass


async def test_abilities_that_a_store_lacks(site: Site) -> None:
    """Listing and querying are refused by name."""
    for path, text in (
        ("/v1.0/mesh/state/lasting", "state store lasting does not support listing keys"),
        ("/v1.0-alpha1/state/lasting/query", "state store does not support querying"),
    ):
        status, told = await site.ask("GET" if "mesh" in path else "POST", path, None if "mesh" in path else {})
        assert (status, told["errorCode"], told["message"]) == (500, "ERR_STATE_STORE_NOT_SUPPORTED", text)


async def test_values_that_are_no_json(site: Site) -> None:
    """Of another program's: a single one is given as it is, and the answer to several stays JSON."""
    await site.store.write([Item("app||text", b"hello"), Item("app||bytes", b"\xff\x00"), Item("app||json", b"[1]")])
    async with site.client.get("/v1.0/state/store/text") as response:
        assert await response.read() == b"hello"
    _, found = await site.ask("POST", "/v1.0/state/store/bulk", {"keys": ["text", "bytes", "json"]})
    assert [each["data"] for each in found] == ["hello", "/wA=", [1]]
    site.store.found = Queried([Match("app||text", b"hello"), Match("other||k", b"1"), Match("app||a||b", b"1")], "t")
    status, found = await site.ask("POST", "/v1.0-alpha1/state/store/query", {})
    assert (status, found) == (200, {"results": [{"key": "text", "data": "hello"}], "token": "t"})


async def test_a_page_of_others_keys(site: Site) -> None:
    """Another one is looked at: an answer without results says that there are none."""
    site.store.found = Queried([Match("other||k", b"1")], "more")
    status, found = await site.ask("POST", "/v1.0-alpha1/state/store/query", {})
    assert (status, found) == (200, {"results": [{"key": "next", "data": 1}]})


async def test_a_projection_without_an_outbox(site: Site) -> None:
    """It would be stored over what it is not to be seen of."""
    shown = {"key": "k", "value": 2, "metadata": {"outbox.projection": "true"}}
    operations = [{"operation": "upsert", "request": each} for each in ({"key": "k", "value": 1}, shown)]
    status, told = await site.ask("POST", "/v1.0/state/store/transaction", {"operations": operations})
    assert (status, told["errorCode"]) == (500, "ERR_STATE_TRANSACTION")
    assert "has no outbox" in told["message"]
    assert site.store.items == []


async def test_a_query_that_fails(site: Site) -> None:
    """The store's own failure is no mistake of the query's."""
    status, told = await site.ask("POST", "/v1.0-alpha1/state/store/query", {"page": {"limit": 1}})
    assert (status, told["errorCode"]) == (500, "ERR_STATE_QUERY")
    assert told["message"] == "state store store query failed: not now"
    assert [each.get("reason") for each in told["details"]] == [None, "DAPR_STATE_QUERY_FAILED"]
