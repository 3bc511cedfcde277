"""State over gRPC, and that both doors show one thing."""

from __future__ import annotations

import base64
import itertools
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from mesh.broker import Write
from tests.grpc.harness import Both, Call, Client, Failed, calls, check_both, check_call, client, pairs, refused
from tests.http.harness import ANY, Backbone, Node, component, gateway, matches

pytestmark = pytest.mark.asyncio(loop_scope="module")
numbers = itertools.count()
STORE = {"store_name": "statestore"}
URL = "/v1.0/state/statestore"
RESOURCES = (
    component("statestore", "state.mesh")
    + component("local", "state.in-memory")
    + """---
apiVersion: dapr.io/v1alpha1
kind: Component
metadata: {name: sealed}
spec:
  type: state.mesh
  version: v1
  metadata: [{name: primaryEncryptionKey, secretKeyRef: {name: ek, key: ek}}]
auth: {secretStore: keys}
"""
)
# What a client may save: JSON, and what is none.
VALUES = {
    "object": b'{"a": 1}',
    "blanks": b" [1,  2] ",
    "number": b"12",
    "text": b"hello",
    "quoted": b'"hello"',
    "nothing": b"",
    "binary": b"\x00\xff\xfe||\x80",
    "control": b"\n\0",
    "large number": b"123456789012345678901234567890",
    "large": b"\xff" * 200_000,
}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def node(module_backbone: Backbone, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Node]:
    home = tmp_path_factory.mktemp("home")
    (home / "keys.json").write_text('{"ek": "%s"}' % ("ab" * 16))
    keys = component("keys", "secretstores.local.file", secretsFile=str(home / "keys.json"))
    async with gateway(module_backbone, home, resources=RESOURCES + keys) as node:
        yield node


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def called(node: Node) -> AsyncIterator[Client]:
    async with client(node) as called:
        yield called


def fresh() -> str:
    return f"key{next(numbers)}"


def b64(value: bytes) -> str:
    return base64.b64encode(value).decode()


def state(key: str = "k", value: bytes = b"1", **more: Any) -> dict[str, Any]:
    return {"key": key, "value": value, **more}


def saved(*states: dict[str, Any]) -> dict[str, Any]:
    return {**STORE, "states": states}


def transaction(*operations: tuple[str, dict[str, Any]], **more: Any) -> dict[str, Any]:
    made = [{"operationType": kind, "request": request} for kind, request in operations]
    return {"storeName": "statestore", "operations": made, **more}


EMPTY_KEY = ("INVALID_ARGUMENT", "state key cannot be empty")
TTL = {"metadata": {"ttlInSeconds": "1s"}}
FAILS = matches(lambda text: text.startswith("failed saving state in state store statestore: key k: "))
MALFORMED = ("INVALID_ARGUMENT", matches(lambda text: text.startswith("failed deserializing HTTP body: ")))


@calls(
    Call("an empty store", "GetState", {"key": "k"}, ("INVALID_ARGUMENT", "state store  is not found")),
    Call("a missing key", "GetState", {**STORE, "key": "missing"}),
    Call(
        "missing keys, one of them twice",
        "GetBulkState",
        {**STORE, "keys": ["a", "b", "a"]},
        {"items": [{"key": "a"}, {"key": "b"}, {"key": "a"}]},
    ),
    Call("no keys", "GetBulkState", STORE),
    Call(
        "a negative parallelism", "GetBulkState", {**STORE, "keys": ["a"], "parallelism": -5}, {"items": [{"key": "a"}]}
    ),
    Call("save nothing", "SaveState", STORE),
    Call("delete nothing", "DeleteBulkState", STORE),
    Call("a transaction of nothing", "ExecuteStateTransaction", transaction()),
    Call("delete a missing key", "DeleteState", {**STORE, "key": "missing"}),
    Call("delete missing keys", "DeleteBulkState", saved(state("missing"), state("missing"))),
    Call("save an empty key", "SaveState", saved(state(), state("")), EMPTY_KEY),
    Call("delete an empty key of several", "DeleteBulkState", saved(state("")), EMPTY_KEY),
    Call("an empty key in a transaction", "ExecuteStateTransaction", transaction(("upsert", state(""))), EMPTY_KEY),
    Call("an empty etag is none", "SaveState", saved(state(etag={"value": ""}), state(etag={}))),
    Call("a ttl of -1 never expires", "SaveState", saved(state(metadata={"ttlInSeconds": "-1"}))),
    Call("options that are there and say nothing", "SaveState", saved(state(options={}))),
    Call("unknown concurrency", "SaveState", saved(state(options={"concurrency": 9})), ("INTERNAL", FAILS)),
    Call("negative consistency", "SaveState", saved(state(options={"consistency": -1})), ("INTERNAL", FAILS)),
    Call(
        "unknown concurrency of a deletion",
        "DeleteState",
        {**STORE, "key": "k", "options": {"concurrency": 9}},
        ("INTERNAL", matches(lambda text: text.startswith("failed deleting state with key k: unrecognized"))),
    ),
    Call(
        "malformed ttl of a deletion of several",
        "DeleteBulkState",
        saved(state(**TTL)),
        ("INTERNAL", matches(lambda text: text.startswith("failed deleting state with key k: "))),
    ),
    Call(
        "an operation of no type",
        "ExecuteStateTransaction",
        transaction(("", state())),
        ("INVALID_ARGUMENT", "operation type  not supported"),
    ),
    Call("no query", "QueryStateAlpha1", {"store_name": "local", "query": ""}, ANY),
    Call("a broken query", "QueryStateAlpha1", {"store_name": "local", "query": "{"}, MALFORMED),
)
async def test_calls(called: Client, call: Call) -> None:
    await check_call(called, call)


@pairs(
    Both("unknown store, get", ("GET", "/v1.0/state/nope/k"), "GetState", {"store_name": "nope", "key": "k"},
         "INVALID_ARGUMENT", 400),
    Both("unknown store, save", ("POST", "/v1.0/state/nope", None, b"["), "SaveState",
         {"store_name": "nope", "states": [{"key": ""}]}, "INVALID_ARGUMENT", 400),
    Both("unknown store, delete", ("DELETE", "/v1.0/state/nope/k"), "DeleteState", {"store_name": "nope", "key": "k"},
         "INVALID_ARGUMENT", 400),
    Both("unknown store, delete several", ("DELETE", "/v1.0/state/nope/k"), "DeleteBulkState",
         {"store_name": "nope"}, "INVALID_ARGUMENT", 400),
    Both("unknown store, bulk", ("POST", "/v1.0/state/nope/bulk"), "GetBulkState", {"store_name": "nope"},
         "INVALID_ARGUMENT", 400),
    Both("unknown store, transaction", ("POST", "/v1.0/state/nope/transaction"), "ExecuteStateTransaction",
         {"storeName": "nope"}, "INVALID_ARGUMENT", 400),
    Both("unknown store, query", ("POST", "/v1.0-alpha1/state/nope/query"), "QueryStateAlpha1",
         {"store_name": "nope"}, "INVALID_ARGUMENT", 400),
    Both("illegal key, get", ("GET", f"{URL}/a%7C%7Cb"), "GetState", {**STORE, "key": "a||b"}, "INVALID_ARGUMENT", 400),
    Both("illegal key, bulk", ("POST", f"{URL}/bulk", None, {"keys": ["k", "a||b"]}), "GetBulkState",
         {**STORE, "keys": ["k", "a||b"]}, "INVALID_ARGUMENT", 400),
    Both("illegal key, save", ("POST", URL, None, [{"key": "a||b"}]), "SaveState", saved(state("a||b")),
         "INVALID_ARGUMENT", 400),
    Both("illegal key, delete", ("DELETE", f"{URL}/a||b"), "DeleteState", {**STORE, "key": "a||b"},
         "INVALID_ARGUMENT", 400),
    Both("illegal key, delete several", ("DELETE", f"{URL}/a||b"), "DeleteBulkState", saved(state("a||b")),
         "INVALID_ARGUMENT", 400),
    Both("etag of a missing key", ("POST", URL, None, [{"key": "none", "value": 1, "etag": "7"}]), "SaveState",
         saved(state("none", etag={"value": "7"})), "ABORTED", 409),
    Both("etag that is none", ("POST", URL, None, [{"key": "k", "value": 1, "etag": "x"}]), "SaveState",
         saved(state(etag={"value": "x"})), "INVALID_ARGUMENT", 400),
    Both("etag of a missing key, delete", ("DELETE", f"{URL}/none", {"If-Match": "7"}), "DeleteState",
         {**STORE, "key": "none", "etag": {"value": "7"}}, "ABORTED", 409),
    Both("etag that is none, delete", ("DELETE", f"{URL}/k", {"If-Match": "x"}), "DeleteState",
         {**STORE, "key": "k", "etag": {"value": "x"}}, "INVALID_ARGUMENT", 400),
    Both("etag of a missing key, delete several", ("DELETE", f"{URL}/none", {"If-Match": "7"}), "DeleteBulkState",
         saved(state("none", etag={"value": "7"})), "ABORTED", 409),
    Both("malformed ttl", ("POST", URL, None, [{"key": "k", "metadata": {"ttlInSeconds": "1s"}}]), "SaveState",
         saved(state(**TTL)), "INTERNAL", 500),
    Both("etag in a transaction",
         ("POST", f"{URL}/transaction", None,
          {"operations": [{"operation": "upsert", "request": {"key": "none", "value": 1, "etag": "7"}}]}),
         "ExecuteStateTransaction", transaction(("upsert", state("none", etag={"value": "7"}))), "INTERNAL", 500),
    Both("unknown operation", ("POST", f"{URL}/transaction", None, {"operations": [{"operation": "x"}]}),
         "ExecuteStateTransaction", transaction(("x", state("k"))), "INVALID_ARGUMENT", 400),
    Both("a store without queries", ("POST", "/v1.0-alpha1/state/statestore/query", None, b"{}"), "QueryStateAlpha1",
         {**STORE, "query": "{}"}, "INTERNAL", 500),
)  # fmt: skip
async def test_failures_are_told_alike(node: Node, called: Client, both: Both) -> None:
    await check_both(node, called, both)


@pytest.mark.parametrize("store", ["statestore", "local", "sealed"])
@pytest.mark.parametrize("value", VALUES.values(), ids=VALUES)
async def test_any_bytes_are_read_as_they_were_saved(called: Client, store: str, value: bytes) -> None:
    """Alone, with others, and in a transaction."""
    one, two = fresh(), fresh()
    await called.call("SaveState", store_name=store, states=[state(one, value)])
    operations = [{"operationType": "upsert", "request": state(two, value)}]
    await called.call("ExecuteStateTransaction", storeName=store, operations=operations)
    for key in (one, two):
        found = await called.message("GetState", store_name=store, key=key)
        assert (found.data, bool(found.etag), dict(found.metadata)) == (value, True, {})
    found = await called.message("GetBulkState", store_name=store, keys=[one, two])
    assert [(item.key, item.data, bool(item.etag), item.error) for item in found.items] == [
        (one, value, True, ""),
        (two, value, True, ""),
    ]


@pytest.mark.parametrize("value", VALUES.values(), ids=VALUES)
async def test_what_grpc_saved_is_there_over_http(node: Node, called: Client, value: bytes) -> None:
    """As it is; in a larger answer JSON is JSON, and everything else a text."""
    key = fresh()
    await called.call("SaveState", **saved(state(key, value)))
    reply = await node.get(f"{URL}/{key}")
    assert (reply.status, reply.body, reply.headers["etag"]) == (200, value, ANY)
    reply = await node.post(f"{URL}/bulk", {"keys": [key]})
    assert (reply.status, reply.json[0]["key"]) == (200, key)
    if value in (VALUES["object"], VALUES["quoted"], VALUES["text"], VALUES["nothing"]):
        expected = {b"hello": "hello", b'"hello"': "hello", b"": ""}.get(value, {"a": 1})
        assert reply.json[0]["data"] == expected
    if value == VALUES["binary"]:
        assert reply.json[0]["data"] == b64(value)


async def test_a_bulk_read_that_is_too_large(node: Node, called: Client) -> None:
    """Is refused at both doors, however few keys it names; each is read once, and repeated in the answer."""
    key = fresh()
    await called.call("SaveState", store_name="local", states=[state(key, b"1" * 1_500_000)])
    text = "fail to get from state store local: the answer would be larger than 64 MiB; ask for fewer keys at once"
    with pytest.raises(Failed) as failed:
        await called.call("GetBulkState", store_name="local", keys=[key] * 200)
    assert (failed.value.code, failed.value.text) == ("RESOURCE_EXHAUSTED", text)
    reply = await node.post("/v1.0/state/local/bulk", {"keys": [key] * 200})
    assert (reply.status, reply.json) == (413, {"errorCode": "ERR_STATE_BULK_GET", "message": text})
    found = await called.message("GetBulkState", store_name="local", keys=[key, "none", key])
    assert [(item.key, len(item.data)) for item in found.items] == [(key, 1_500_000), ("none", 0), (key, 1_500_000)]


async def test_an_encrypted_text_is_quoted_over_http(node: Node, called: Client) -> None:
    """A store that Dapr wrote to holds texts without quotes; other bytes are given as they are."""
    for value, body in ((b"hello", b'"hello"'), (b"12", b"12"), (b"", b'""'), (b"\xff", b"\xff")):
        key = fresh()
        await called.call("SaveState", store_name="sealed", states=[state(key, value)])
        assert (await node.get(f"/v1.0/state/sealed/{key}")).body == body


async def test_what_http_saved_is_there_over_grpc(node: Node, called: Client) -> None:
    """As its JSON, compact; etags pass from one to the other."""
    key = fresh()
    for store in ("statestore", "local", "sealed"):
        url = f"/v1.0/state/{store}"
        assert (await node.post(url, [{"key": key, "value": {"text": "hello", "n": [1, 2]}}])).status == 204
        found = await called.message("GetState", store_name=store, key=key)
        assert found.data == b'{"text":"hello","n":[1,2]}'
        assert found.etag == (await node.get(f"{url}/{key}")).headers["etag"]
        assert (await node.post(url, [{"key": key, "value": "hello", "etag": found.etag}])).status == 204
        stale = {"key": key, "value": b"", "etag": {"value": found.etag}}
        with pytest.raises(Failed, match=r"ABORTED.*possible etag mismatch"):
            await called.call("SaveState", store_name=store, states=[stale])
        assert (await called.message("GetState", store_name=store, key=key)).data == b'"hello"'
        assert (await node.request("DELETE", f"{url}/{key}")).status == 204
        assert await called.call("GetState", store_name=store, key=key) == {}


async def test_concurrency_and_etags(called: Client) -> None:
    key = fresh()
    first = {"concurrency": "CONCURRENCY_FIRST_WRITE", "consistency": "CONSISTENCY_STRONG"}
    await called.call("SaveState", **saved(state(key, b"1", options=first)))
    code, text = await refused(called, "SaveState", **saved(state(key, b"2", options=first)))
    assert (code, "possible etag mismatch" in text) == ("ABORTED", True)
    last = {"concurrency": "CONCURRENCY_LAST_WRITE", "consistency": "CONSISTENCY_EVENTUAL"}
    await called.call("SaveState", **saved(state(key, b"3", options=last)))
    found = await called.message("GetState", **STORE, key=key, consistency="CONSISTENCY_STRONG")
    assert found.data == b"3"
    etag = {"value": found.etag}
    await called.call("DeleteState", **STORE, key=key, etag=etag, options=last)
    assert (await refused(called, "DeleteState", **STORE, key=key, etag=etag))[0] == "ABORTED"


async def test_of_several_deletions_one_fails(called: Client) -> None:
    """The failure names it, the others are done."""
    one, two, three = fresh(), fresh(), fresh()
    await called.call("SaveState", **saved(state(one), state(two), state(three)))
    stale = state(three, etag={"value": "999999"})
    code, text = await refused(called, "DeleteBulkState", **saved(state(one), state(two), stale))
    assert (code, text.startswith(f"failed deleting state with key {three}: possible etag mismatch")) == (
        "ABORTED",
        True,
    )
    found = await called.message("GetBulkState", **STORE, keys=[one, two, three])
    assert [item.data for item in found.items] == [b"", b"", b"1"]


async def test_expiry(called: Client, node: Node) -> None:
    key, other = fresh(), fresh()
    await called.call("SaveState", **saved(state(key, b"1", metadata={"ttlInSeconds": "100"})))
    at = (await called.message("GetState", **STORE, key=key)).metadata["ttlExpireTime"]
    assert at == (await node.get(f"{URL}/{key}")).headers["metadata.ttlexpiretime"]
    operation = ("upsert", state(other, b"1", metadata={"TTLINSECONDS": "100"}))
    await called.call("ExecuteStateTransaction", **transaction(operation, metadata={"ttlInSeconds": "1"}))
    items = (await called.message("GetBulkState", **STORE, keys=[key, other])).items
    assert [bool(item.metadata["ttlExpireTime"]) for item in items] == [True, True]
    assert items[0].metadata["ttlExpireTime"] == at


async def test_a_transaction_is_all_or_nothing(called: Client, node: Node) -> None:
    one, two = fresh(), fresh()
    await called.call("SaveState", **saved(state(one, b"old")))
    stale = ("upsert", state(two, etag={"value": "999999"}))
    code, _ = await refused(called, "ExecuteStateTransaction", **transaction(("upsert", state(one, b"new")), stale))
    assert code == "INTERNAL"
    assert (await node.get(f"{URL}/{one}")).body == b"old"
    await called.call("ExecuteStateTransaction", **transaction(("delete", state(one)), ("upsert", state(two, b"2"))))
    assert [(await node.get(f"{URL}/{key}")).status for key in (one, two)] == [204, 200]


async def test_a_transaction_of_too_many(called: Client, node: Node) -> None:
    """The memory takes any number, NATS a thousand."""
    fields = transaction(*[("delete", state())] * 1001)
    if node.gateway.config.backbone == "memory:":
        assert await called.call("ExecuteStateTransaction", **fields) == {}
        return
    body = {"operations": [{"operation": "delete", "request": {"key": "k"}}] * 1001}
    request = ("POST", f"{URL}/transaction", None, body)
    both = Both("", request, "ExecuteStateTransaction", fields, "INVALID_ARGUMENT", 400)
    await check_both(node, called, both)


async def test_an_item_that_cannot_be_read_has_its_error(called: Client, node: Node) -> None:
    """The others are given all the same."""
    plain, sealed = fresh(), fresh()
    await called.call("SaveState", store_name="sealed", states=[state(sealed)])
    backbone, namespace = node.gateway._runtime.broker, node.gateway.config.namespace  # type: ignore[attr-defined]
    key_value = await backbone.key_value(f"{namespace}.sealed")
    await key_value.apply([Write(f"app||{plain}", b"1")])
    items = (await called.message("GetBulkState", store_name="sealed", keys=[sealed, plain])).items
    assert [(item.data, "not encrypted" in item.error) for item in items] == [(b"1", False), (b"", True)]


async def test_query(called: Client) -> None:
    """What is found is as it was saved; a page has a token for the next one."""
    keys = sorted(f"q{fresh()}" for _ in range(3))
    states = [state(key, b'{"kind":  "q", "n": %d}' % number) for number, key in enumerate(keys)]
    await called.call("SaveState", store_name="local", states=states)
    wanted = '{"filter":{"EQ":{"kind":"q"}},"sort":[{"key":"n"}],"page":{"limit":2%s}}'
    first = await called.message("QueryStateAlpha1", store_name="local", query=wanted % "")
    assert [(item.key, item.data) for item in first.results] == [(each["key"], each["value"]) for each in states[:2]]
    assert all(item.etag for item in first.results)
    rest = await called.message("QueryStateAlpha1", store_name="local", query=wanted % f',"token":"{first.token}"')
    assert [item.key for item in rest.results] == keys[2:]
    nothing = '{"filter":{"EQ":{"kind":"none"}}}'
    assert await called.call("QueryStateAlpha1", store_name="local", query=nothing) == {}


async def test_a_gateway_without_stores(memory: Backbone, tmp_path: Path) -> None:
    resources = component("pubsub", "pubsub.mesh")
    async with gateway(memory, tmp_path, resources=resources) as node, client(node) as called:
        expected = ("FAILED_PRECONDITION", "state store statestore is not configured")
        assert await refused(called, "GetState", **STORE, key="k") == expected


async def test_hosted_stores(nats: Backbone, tmp_path: Path) -> None:
    """Any bytes and all failures cross the backbone."""
    stores = component("statestore", "state.in-memory", scopes=())
    hosted = stores.replace(
        '"metadata":{"name":"statestore"}',
        '"metadata":{"name":"statestore","annotations":{"mesh.placement":"backbone"}}',
    )
    async with (
        gateway(nats, tmp_path, app_id="host", resources=hosted),
        gateway(nats, tmp_path, app_id="asker", resources=component("pubsub", "pubsub.mesh")) as node,
        client(node) as called,
    ):
        for key, value in VALUES.items():
            await called.call("SaveState", **saved(state(key, value)))
            assert (await called.message("GetState", **STORE, key=key)).data == value
        found = await called.message("GetBulkState", **STORE, keys=list(VALUES))
        assert [item.data for item in found.items] == list(VALUES.values())
        stale = state("text", etag={"value": "999999"})
        assert (await refused(called, "SaveState", **saved(stale)))[0] == "ABORTED"
        code, text = await refused(called, "DeleteBulkState", **saved(state("object"), stale))
        # What a host did of several is not known here.
        assert (code, text.startswith("failed deleting state with key object, text: ")) == ("ABORTED", True)
        await called.call("DeleteBulkState", **saved(*map(state, VALUES)))
        assert [item.data for item in (await called.message("GetBulkState", **STORE, keys=list(VALUES))).items] == [
            b""
        ] * len(VALUES)
