"""State in Firestore in Datastore mode: what is left there, transactions in each other's way, and who asks."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from aiohttp import web

from bindings.gcp.firestore import FirestoreStateStore
from mesh.errors import ConfigError, ConflictError, InvalidEtagError, OutcomeUnknownError, StateError, StateLimitError
from mesh.store import Concurrency, Item, Stored
from tests.support.datastore_server import DatastoreServer
from tests.support.hand_servers import HandServer
from tests.support.nodes import component
from tests.support.processes import free_port
from tests.support.proxy import Proxy


@pytest_asyncio.fixture
async def server(tmp_path: Path) -> AsyncIterator[DatastoreServer]:
    async with await asyncio.to_thread(DatastoreServer, tmp_path) as server:
        yield server


def made(server: DatastoreServer, **settings: str) -> FirestoreStateStore:
    return FirestoreStateStore.from_component(component("c", "", **{**server.settings, **settings}))


async def test_layout(server: DatastoreServer) -> None:
    """The entities are those of the Dapr runtime; bytes that are no text are a blob, and what is long has no index."""
    async with made(server) as store:
        await store.write([Item("app||k", b'{"a":"\xc3\xa9"}'), Item("bytes", b"\xff")])
        await store.save_each([Item("short", b"1" * 1500), Item("long", b"1" * 1501)])
        entity, version = server.entities["DaprState", "app||k"]
        assert entity == {
            "key": {"partitionId": {"projectId": "shop"}, "path": [{"kind": "DaprState", "name": "app||k"}]},
            "properties": {"Value": {"stringValue": '{"a":"é"}'}},
        }
        assert await store.get("app||k", strong=True) == Stored(b'{"a":"\xc3\xa9"}', str(version))
        values = {name: entity["properties"]["Value"] for (_, name), (entity, _) in server.entities.items()}
        assert values["bytes"] == {"blobValue": "/w=="}
        assert "excludeFromIndexes" not in values["short"]
        assert values["long"]["excludeFromIndexes"] is True
    async with made(server, entity_kind="Other", noIndex="true") as store:
        assert await store.get("app||k", strong=True) is None
        await store.write([Item("k", b"1")])
        entity, _ = server.entities["Other", "k"]
        assert entity["properties"] == {"Value": {"stringValue": "1", "excludeFromIndexes": True}}


async def test_transactions_in_each_others_way(server: DatastoreServer) -> None:
    """They are made again; one that never gets through did nothing, and may be tried again."""
    async with made(server) as store:
        await store.write([Item("k", b"1")])
        for first in (Item("other", b"2"), Item("other", b"2", None, Concurrency.FIRST_WRITE)):
            server.aborts = 2
            await store.write([Item("other", None)])
            await store.write([Item("k", b"2"), first])
            assert server.aborts == 0
        found = await store.get("k", strong=True)
        assert found is not None
        assert found.value == b"2"
        server.aborts = 1000
        with pytest.raises(StateError, match="too busy") as raised:
            await store.write([Item("k", b"3", found.etag)])
        assert raised.value.retryable
        assert await store.get("k", strong=True) == found


async def test_no_transaction_is_left_open(server: DatastoreServer) -> None:
    """One whose condition does not hold would keep others waiting."""
    async with made(server) as store:
        await store.write([Item("k", b"1")])
        for items in ([Item("k", b"2", "7")], [Item("k", b"2", None, Concurrency.FIRST_WRITE), Item("a", b"2")]):
            with pytest.raises(ConflictError):
                await store.write(items)
        with pytest.raises(InvalidEtagError):
            await store.write([Item("k", b"2", "x")])
        assert not server.transactions


async def test_what_it_does_not_take(server: DatastoreServer) -> None:
    """It is said, and does not keep others from being written or read."""
    async with made(server) as store:
        keys = ("x" * 1501, "é" * 751, "__id7__", "")
        refused = [*(Item(key, b"1") for key in keys), Item("large", b"x" * 1024 * 1024)]
        results = await store.save_each([*refused, Item("x" * 1500, b"1"), Item("good", b"1")])
        assert [type(each) for each in results] == [*([StateLimitError] * 5), type(None), type(None)]
        found = await store.get_many([*keys, "large", "good"])
        assert [type(each) for each in found] == [*([StateLimitError] * 4), type(None), Stored]
        with pytest.raises(StateLimitError, match="at most 500"):
            await store.write([Item(f"k{number}", b"1") for number in range(501)])
        await store.write([Item(f"k{number}", b"1") for number in range(500)])


async def test_reads_that_are_put_off(server: DatastoreServer) -> None:
    """What a reply leaves is asked for again."""
    async with made(server) as store:
        keys = [f"k{number}" for number in range(12)]
        await store.save_each([Item(key, key.encode() * 300_000) for key in keys])
        found = await store.get_many(keys)
        assert [each.value[:4] if isinstance(each, Stored) else each for each in found] == [
            (key * 4).encode()[:4] for key in keys
        ]


async def test_answers_that_do_not_come(server: DatastoreServer) -> None:
    """A write with a condition may have been done; others may be repeated."""
    async with made(server) as store:
        await store.write([Item("k", b"1")])
        for operation, unknown in (("commit", True), ("lookup", False), ("beginTransaction", False)):
            found = await store.get("k", strong=True)
            assert found is not None
            server.loses = operation
            with pytest.raises(StateError) as raised:
                await store.write([Item("k", b"2", found.etag)])
            assert isinstance(raised.value, OutcomeUnknownError) == unknown
            assert raised.value.retryable != unknown
            with pytest.raises(StateError) as raised:
                await store.get("k", strong=True) if operation == "lookup" else await store.write(
                    [Item("k", b"3"), Item("other", b"3")]
                )
            assert raised.value.retryable
            server.loses = ""
        await store.write([Item("k", b"4")])
        found = await store.get("k", strong=True)
        assert found is not None
        assert found.value == b"4"


async def test_a_service_that_stalls(server: DatastoreServer) -> None:
    """An operation ends in time, and later ones work."""
    async with Proxy(server.port) as proxy, made(server, endpoint=f"http://127.0.0.1:{proxy.port}") as store:
        await store.write([Item("k", b"1")])
        proxy.stall()
        async with asyncio.timeout(15):  # The usual deadline of an operation.
            with pytest.raises(StateError) as raised:
                await store.get("k", strong=True)
        assert raised.value.retryable
        proxy.cut()
        assert await store.get("k", strong=True) is not None


async def test_cancelled_operations(server: DatastoreServer) -> None:
    """They leave nothing behind that a later operation would read."""
    async with made(server) as store:
        await store.save_each([Item(f"k{number}", b"%d" % number) for number in range(40)])
        for number in range(40):
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.0001 * (number % 7)):
                    while True:
                        await store.get(f"k{number}", strong=True)
        found = await store.get_many([f"k{number}" for number in range(40)])
        assert [each.value if isinstance(each, Stored) else each for each in found] == [
            b"%d" % number for number in range(40)
        ]


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"endpoint": f"http://127.0.0.1:{free_port()}"}, "Firestore at http://127.0.0.1:.* cannot be reached"),
        ({"project_id": "shop2"}, "404: The project shop2 does not exist"),
        ({"private_key": "s3cret"}, "private_key is no key in PEM"),
    ],
)
async def test_what_is_told_at_the_start(server: DatastoreServer, settings: dict[str, str], says: str) -> None:
    """A database that is not there, or may not be read; no secret is in it."""
    with pytest.raises(StateError, match=says) as raised:
        async with made(server, **settings):
            pass
    assert "s3cret" not in str(raised.value)
    assert "PRIVATE" not in str(raised.value)


async def test_who_may_not(server: DatastoreServer) -> None:
    """A refusal is told with its reason."""
    async with made(server) as store:
        server.refuses = 403
        for ask in (store.get("k", strong=True), store.write([Item("k", b"1")]), store.write([Item("k", b"1", "7")])):
            with pytest.raises(StateError, match="403: Permission denied"):
                await ask


@pytest.mark.parametrize("scheme", ["", "http://"])
async def test_an_emulator(server: DatastoreServer, scheme: str) -> None:
    """Nobody logs in there; without a project nothing is asked."""
    server.anybody = True
    endpoint = f"{scheme}127.0.0.1:{server.port}"
    given = component("c", "", project_id="shop", endpoint=endpoint)
    async with FirestoreStateStore.from_component(given) as store:
        await store.write([Item("k", b"1", None, Concurrency.FIRST_WRITE)])
        assert await store.get("k", strong=True) is not None
    with pytest.raises(ConfigError, match="set project_id"):
        async with FirestoreStateStore.from_component(component("c", "", endpoint=endpoint)):
            pass


class Told(HandServer):
    """Answers everything with one value."""

    def __init__(self, body: object) -> None:
        super().__init__()
        self._body = body

    async def _answer(self, request: web.BaseRequest) -> web.StreamResponse:
        return web.json_response(self._body)


@pytest.mark.parametrize(
    "body",
    [
        None,
        [],
        "text",
        {"found": 7},
        {"found": [7]},
        {"found": [{"entity": {}}]},
        {"found": [{"entity": {"key": {"path": []}}}]},
        {"found": [{"entity": {"key": {"path": [{"name": "k"}]}, "properties": 7}}]},
        {"deferred": 7},
    ],
)
async def test_answers_that_are_somebody_elses(body: object) -> None:
    """They are errors of the store."""
    async with Told(body) as server:
        given = component("c", "", project_id="shop", endpoint=f"127.0.0.1:{server.port}")
        with pytest.raises(StateError):
            async with FirestoreStateStore.from_component(given):
                pass


async def test_entities_of_other_programs(server: DatastoreServer) -> None:
    """What has no value of ours is an empty one; the key is free for a value."""
    path: dict[str, Any] = {"partitionId": {"projectId": "shop"}, "path": [{"kind": "DaprState", "name": "k"}]}
    server.entities["DaprState", "k"] = {"key": path, "properties": {"Other": {"integerValue": "1"}}}, 5
    async with made(server) as store:
        assert await store.get("k", strong=True) == Stored(b"", "5")
        await store.write([Item("k", b"1", "5")])
        assert (await store.get_many(["k", "none"]))[1] is None
