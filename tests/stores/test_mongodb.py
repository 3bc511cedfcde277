"""What ``state.mongodb`` has besides the suite: its layout, its URL, its transactions, and failures."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from bson import Int64, ObjectId
from pymongo import MongoClient

from bindings.mongodb.state import MongoDBStateStore
from mesh.errors import (
    BadArgumentError,
    ConfigError,
    ConflictError,
    FeatureNotSupportedError,
    MeshError,
    OutcomeUnknownError,
    StateError,
    StateLimitError,
)
from mesh.query import Compare, Query
from mesh.store import Concurrency, Item, Stored
from tests.support.eventually import eventually
from tests.support.mongodb_replica_set import Document, ReplicaSet
from tests.support.nodes import component
from tests.support.proxy import Proxy
from tests.support.small_servers import MongoDBServer


def made(port: int = 1, **settings: str) -> MongoDBStateStore:
    given = {"host": f"127.0.0.1:{port}", **settings}
    return MongoDBStateStore.from_component(component("c", "", **{name: each for name, each in given.items() if each}))


@asynccontextmanager
async def server(directory: Path) -> AsyncIterator[MongoDBServer]:
    async with MongoDBServer(directory) as found:
        yield found


async def do(port: int, work: Callable[[Any], Any]) -> Any:
    """Use the collection as another program would."""

    def run() -> Any:
        with MongoClient(f"mongodb://127.0.0.1:{port}") as client:
            return work(client["daprStore"]["daprCollection"])

    return await asyncio.to_thread(run)


LAYOUT: Sequence[tuple[bytes, object]] = [
    (b'{"a":[1,"x",null,true,1.5]}', {"a": [1, "x", None, True, 1.5]}),
    (b'[1,{"b":2}]', [1, {"b": 2}]),
    (b'{"n":9007199254740993}', {"n": 9007199254740993}),
    (b'{"big":18446744073709551615}', '{"big":18446744073709551615}'),
    (b'{"a": 1}', '{"a": 1}'),
    (b'{"a":1,"a":2}', '{"a":1,"a":2}'),
    (b'{"$set":{"a":1}}', '{"$set":{"a":1}}'),
    (b'{"a":"$5"}', {"a": "$5"}),
    (b'{"a\\u0000":1}', '{"a\\u0000":1}'),
    (b"[" * 91 + b"]" * 91, "[" * 91 + "]" * 91),
    (b'"$text"', '"$text"'),
    (b"12", "12"),
    (b"null", "null"),
    (b"{no json", "{no json"),
    (b"\xff", b"\xff"),
    (b"", ""),
]


async def test_layout(tmp_path: Path) -> None:
    """As Dapr's, where it comes back as it was; else as a text."""
    async with server(tmp_path) as at, made(at.port) as store:
        for value, kept in LAYOUT:
            await store.write([Item("app||k", value)])
            found = await store.get("app||k", strong=True)
            assert found is not None
            assert found.value == value
            document = await do(at.port, lambda collection: collection.find_one())
            assert document == {"_id": "app||k", "value": kept, "_etag": found.etag, "_ttl": None}
            assert await store.get_many(["app||k"]) == [found]


OTHERS: Sequence[tuple[object, bytes]] = [
    ('"text"', b'"text"'),
    (12.0, b"12"),
    (1.5, b"1.5"),
    (True, b"true"),
    (None, b"null"),
    (Int64(2**60), b"1152921504606846976"),
    ([1, "x"], b'[1,"x"]'),
    ({"a": 1, "b": {"c": [None]}}, b'{"a":1,"b":{"c":[null]}}'),
    ({"at": datetime(2026, 1, 1)}, b'{"at":{"$date":"2026-01-01T00:00:00Z"}}'),
    ({"id": ObjectId("0" * 24)}, b'{"id":{"$oid":"000000000000000000000000"}}'),
]


async def test_what_others_wrote(tmp_path: Path) -> None:
    """Dapr stores numbers as floating-point ones, and has values without ``_ttl`` from before it had one."""
    async with server(tmp_path) as at, made(at.port) as store:
        for number, (value, read) in enumerate(OTHERS):
            key, document = f"k{number}", {"_id": f"k{number}", "value": value, "_etag": "e"}
            await do(at.port, lambda collection, document=document: collection.insert_one(document))
            assert await store.get(key, strong=True) == Stored(read, "e")
            await store.write([Item(key, b"2", "e")])
            after = await do(at.port, lambda collection, key=key: collection.find_one({"_id": key}))
            assert after["value"] == "2"


async def test_what_has_expired(tmp_path: Path) -> None:
    """It counts as gone before the server deletes it, and another program sees when that is."""
    async with server(tmp_path) as at, made(at.port) as store:
        past = {"value": "1", "_etag": "e", "_ttl": datetime.now(UTC).replace(tzinfo=None) - timedelta(days=1)}
        await do(at.port, lambda each: each.insert_many([{"_id": key, **past} for key in ("a", "b", "c")]))
        assert await store.get("a", strong=True) is None
        assert await store.get_many(["a", "b"]) == [None, None]
        assert await store.keys("", "", 10) == []
        assert (await store.query(Query(), "")).matches == []
        for item in (Item("a", b"2", "e"), Item("a", None, "e")):
            with pytest.raises(ConflictError):
                await store.write([item])
        await store.write([Item("a", b"2", None, Concurrency.FIRST_WRITE, ttl=1000.0)])
        with pytest.raises(ConflictError):
            await store.write([Item("a", b"3", None, Concurrency.FIRST_WRITE)])
        await store.write([Item("far", b"1", ttl=1e18)])
        found = await do(at.port, lambda each: each.find_one({"_id": "a"}))
        assert timedelta(seconds=900) < found["_ttl"] - datetime.now(UTC).replace(tzinfo=None) < timedelta(seconds=1001)
        assert sorted(await store.keys("", "", 10)) == ["a", "far"]


async def test_the_index_by_which_the_server_deletes() -> None:
    """It is Dapr's own."""
    async with ReplicaSet() as at, made(at.port):
        assert [dict(each) for each in at.indexes] == [{"key": {"_ttl": 1}, "name": "_ttl_1", "expireAfterSeconds": 0}]


async def test_names_that_no_member_has(tmp_path: Path) -> None:
    """They are refused before the server reads them as operators."""
    async with server(tmp_path) as at, made(at.port) as store:
        for path in (("$where",), ("a", "$gt"), ("a\0",)):
            with pytest.raises(BadArgumentError, match="cannot be looked for"):
                await store.query(Query(Compare("EQ", path, ("x",))), "")
        assert (await store.query(Query(Compare("GT", ("n",), (2**63,))), "")).matches == []


async def test_a_key_that_is_no_text() -> None:
    async with ReplicaSet() as at, made(at.port) as store:
        with pytest.raises(BadArgumentError, match="no Unicode"):
            await store.get("\ud800", strong=True)
        with pytest.raises(BadArgumentError, match="no Unicode"):
            await store.write([Item("\ud800", b"1")])


async def test_transactions_without_a_replica_set(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The error, and the log, say what is missing."""
    caplog.set_level(logging.INFO)
    async with server(tmp_path) as at, made(at.port) as store:
        assert not {"TRANSACTIONAL", "ACTOR"} & set(store.capabilities)
        with pytest.raises(FeatureNotSupportedError, match="no replica set"):
            await store.write([Item("a", b"1"), Item("b", b"1")])
        assert await store.get("a", strong=True) is None
    assert "belongs to no replica set" in caplog.text


async def test_transactions_in_each_others_way() -> None:
    """Each is done whole, in some order."""
    async with ReplicaSet() as at, made(at.port) as store:
        await store.write([Item("a", b"0"), Item("b", b"0")])
        assert "commitTransaction" in at.commands

        async def count(first: str, second: str) -> None:
            done = 0
            while done < 15:
                now = [each for each in await store.get_many([first, second]) if isinstance(each, Stored)]
                items = zip((first, second), now, strict=True)
                try:
                    await store.write([Item(key, b"%d" % (int(each.value) + 1), each.etag) for key, each in items])
                except ConflictError:
                    continue
                done += 1

        async with asyncio.TaskGroup() as tasks:
            for names in ("ab", "ba", "ab"):
                tasks.create_task(count(*names))
        assert [each["value"] for each in at.documents.values()] == ["45", "45"]


async def test_what_is_only_checked_is_not_written_meanwhile() -> None:
    """Of two that each write what the other one checks, one fails: both together would be right in no order."""
    async with ReplicaSet() as at, made(at.port) as store:
        for _ in range(20):
            await store.write([Item("a", b"on"), Item("b", b"on")])
            now = dict(zip("ab", await store.get_many(["a", "b"]), strict=True))
            results: list[type | None] = []

            async def switch_off(key: str, other: str, now: Any = now, results: Any = results) -> None:
                try:
                    await store.write([Item(key, b"off"), Item(other, None, now[other].etag, check=True)])
                except ConflictError:
                    results.append(ConflictError)
                else:
                    results.append(None)

            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(switch_off("a", "b"))
                tasks.create_task(switch_off("b", "a"))
            assert sorted(results, key=str) == [ConflictError, None]


async def test_a_key_that_must_not_be_there_is_not_made_meanwhile() -> None:
    """Of two that each make what the other one takes for absent, one fails, and leaves nothing."""
    async with ReplicaSet() as at, made(at.port) as store:
        for number in range(20):
            pair, failed = (f"a{number}", f"b{number}"), list[str]()

            async def make(key: str, other: str, failed: list[str] = failed) -> None:
                try:
                    await store.write([Item(key, b"1"), Item(other, None, check=True)])
                except ConflictError:
                    failed.append(key)

            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(make(*pair))
                tasks.create_task(make(*reversed(pair)))
            assert len(failed) == 1
            assert [key for key in pair if key in at.documents] == [key for key in pair if key not in failed]


def answer(name: str, times: int, told: Document) -> Callable[[str], Document | None]:
    """Give an answer in place of the true one, so many times."""
    left = iter(range(times))
    return lambda command: told if command == name and next(left, None) is not None else None


UNKNOWN = {
    "ok": 0.0,
    "code": 189,
    "errmsg": "PrimarySteppedDown",
    "errorLabels": ["UnknownTransactionCommitResult", "RetryableWriteError"],
}
TRANSIENT = {"ok": 0.0, "code": 112, "errmsg": "WriteConflict error", "errorLabels": ["TransientTransactionError"]}
STEPPED_DOWN = {"ok": 0.0, "code": 10107, "errmsg": "not primary", "errorLabels": ["RetryableWriteError"]}


@pytest.mark.parametrize(
    ("command", "told"), [("commitTransaction", UNKNOWN), ("update", TRANSIENT), ("commitTransaction", TRANSIENT)]
)
async def test_transactions_that_are_tried_again(command: str, told: Document) -> None:
    """What may have been committed is asked for again, and what was not is done again; never twice."""
    async with ReplicaSet() as at, made(at.port) as store:
        await store.write([Item("a", b"1")])
        etag = at.documents["a"]["_etag"]
        at.fails = answer(command, 1, told)
        if (command, told) == ("commitTransaction", TRANSIENT):  # It was, although it says that it was not.
            with pytest.raises(ConflictError):
                await store.write([Item("a", b"2", etag), Item("b", b"2")])
        else:
            await store.write([Item("a", b"2", etag), Item("b", b"2")])
        assert [at.documents[key]["value"] for key in "ab"] == ["2", "2"]


async def test_a_commit_that_is_never_confirmed() -> None:
    """Whether it was done is unknown, where it would conflict with itself; else it may be done again."""
    async with ReplicaSet() as at, made(at.port, operationTimeout="1s") as store:
        await store.write([Item("a", b"1")])
        etag = at.documents["a"]["_etag"]
        at.fails = answer("commitTransaction", 10**6, UNKNOWN)
        with pytest.raises(OutcomeUnknownError, match="is unknown"):
            await store.write([Item("a", b"2", etag), Item("b", b"2")])
        with pytest.raises(StateError) as raised:
            await store.write([Item("a", b"3"), Item("b", b"3")])
        assert raised.value.retryable
        at.fails = lambda name: None
        await store.write([Item("a", b"4"), Item("b", b"4")])
        assert [at.documents[key]["value"] for key in "ab"] == ["4", "4"]


async def test_a_write_whose_answer_is_lost() -> None:
    """A member of a replica set is asked again, and has done it once; alone it may have been done, or not."""
    async with ReplicaSet() as at, made(at.port) as store:
        await store.write([Item("k", b"1")])
        at.fails = answer("update", 1, STEPPED_DOWN)
        await store.write([Item("k", b"2", at.documents["k"]["_etag"])])
        assert at.documents["k"]["value"] == "2"


async def test_a_connection_that_is_lost(tmp_path: Path) -> None:
    """What is read is read again; a write with a condition may have been done."""
    async with server(tmp_path) as at, Proxy(at.port) as proxy, made(proxy.port, operationTimeout="2s") as store:
        await store.write([Item("k", b"1")])
        found = await store.get("k", strong=True)
        assert found is not None
        proxy.cut_after(1, upwards=False)
        assert await until(lambda: store.get("k", strong=True)) == found
        proxy.cut_after(1, upwards=False)

        async def write() -> None:
            with pytest.raises(OutcomeUnknownError):
                await store.write([Item("k", b"2", found.etag)])

        await write()
        await until(lambda: store.write([Item("k", b"3")]))
        assert (await do(at.port, lambda each: each.find_one()))["value"] == "3"


async def until(work: Callable[[], Any]) -> Any:
    """Try until it works."""

    async def tried() -> Any:
        try:
            return await work()
        except MeshError as error:
            raise AssertionError(str(error)) from error

    return await eventually(tried)


async def test_a_server_that_goes_and_comes_back() -> None:
    """Operations fail in time, with a text that names it, and work again; what was confirmed is there."""
    async with ReplicaSet() as at, made(at.port, operationTimeout="1s") as store:
        await store.write([Item("k", b"1")])
        await at.kill()
        for work in (store.get("k", strong=True), store.write([Item("k", b"2")])):
            with pytest.raises(StateError, match="MongoDB at 127") as raised:
                await work
            assert raised.value.retryable
        assert all(isinstance(each, StateError) for each in await store.get_many(["k", "l"]))
        await at.start()
        found = await until(lambda: store.get("k", strong=True))
        assert found.value in (b"1", b"2")
        await until(lambda: store.write([Item("k", b"3"), Item("l", b"3")]))


@pytest.mark.parametrize(
    ("told", "error", "says"),
    [
        ({"ok": 0.0, "code": 13, "errmsg": "not authorized on daprStore"}, StateError, "refused: not authorized"),
        ({"ok": 0.0, "code": 10334, "errmsg": "BSONObj size is invalid"}, StateLimitError, "size is invalid"),
        ({"ok": 0.0, "code": 50, "errmsg": "operation exceeded time limit"}, OutcomeUnknownError, "is unknown"),
        (
            {
                "ok": 1.0,
                "n": 1,
                "nModified": 1,
                "writeConcernError": {"code": 64, "errmsg": "waiting for replication timed out"},
            },
            OutcomeUnknownError,
            "replication timed out",
        ),
    ],
)
async def test_answers_of_a_server_that_refuses(told: Document, error: type[StateError], says: str) -> None:
    async with ReplicaSet() as at, made(at.port) as store:
        await store.write([Item("k", b"1")])
        at.fails = answer("update", 10**6, told)
        with pytest.raises(error, match=says) as raised:
            await store.write([Item("k", b"2", at.documents["k"]["_etag"])])
        assert type(raised.value) is error


async def test_many_that_others_make_at_the_same_time() -> None:
    """What another one has made since is written again; it is no conflict."""
    duplicate = [{"index": index, "code": 11000, "errmsg": "E11000 duplicate key error"} for index in (0, 2)]
    async with ReplicaSet() as at, made(at.port) as store:
        at.fails = answer("update", 1, {"ok": 1.0, "n": 1, "nModified": 1, "writeErrors": duplicate})
        assert await store.save_each([Item(key, b"1") for key in "abc"]) == [None] * 3
        assert at.commands.count("update") == 3


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"connectionString": "mongodb://user:hu$h@sec@ret@host"}, "connectionString.*percent-encoded"),
        ({"connectionString": "http://user:hush@secret"}, "connectionString.*no URL of MongoDB"),
        ({"connectionString": "mongodb://127.0.0.1:1/?w=0"}, "connectionString.*w=0"),
        ({"params": "?w=0"}, "params.*w=0"),
        ({"host": "127.0.0.1:port"}, "cannot be used"),
    ],
)
async def test_urls_that_cannot_be_used(given: dict[str, str], says: str) -> None:
    """The error stands at the setting, and shows no secret."""
    with pytest.raises(ConfigError, match=says) as raised:
        async with made(**({"host": ""} if "connectionString" in given else {}), **given):
            pass
    assert not any(each in str(raised.value) for each in ("hu$h", "hush", "secret", "sec@ret"))


async def test_an_option_that_does_nothing(caplog: pytest.LogCaptureFixture) -> None:
    """It is told once."""
    async with ReplicaSet() as at, made(at.port, params="?replicaSet=rs0&none=1"):
        pass
    assert "Unknown option" in caplog.text
