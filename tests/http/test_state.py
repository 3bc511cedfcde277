"""State: routes, etags, expiry, key prefixes, transactions.

Source: Dapr 1.18, the state API and its order of checks.
"""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import AsyncIterator
from datetime import datetime
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import orjson
import pytest
import pytest_asyncio

from mesh.broker import Write
from tests.http.harness import ANY, Backbone, Case, Node, cases, check, component, error, gateway, matches
from tests.support.eventually import eventually

pytestmark = pytest.mark.asyncio(loop_scope="module")
keys = (f"key{number}" for number in itertools.count())
URL = "/v1.0/state/statestore"
RESOURCES = component("statestore", "state.mesh") + component("local", "state.in-memory")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def node(module_backbone: Backbone, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Node]:
    async with gateway(module_backbone, tmp_path_factory.mktemp("home"), resources=RESOURCES) as node:
        yield node


@pytest.fixture(params=["statestore", "local"])
def store(request: pytest.FixtureRequest) -> str:
    return f"/v1.0/state/{request.param}"


def detail(name: str, **members: object) -> dict[str, object]:
    return {"@type": f"type.googleapis.com/google.rpc.{name}", **members}


def info(reason: str) -> dict[str, object]:
    return detail("ErrorInfo", reason=reason, domain="dapr.io", metadata={})


RESOURCE = detail("ResourceInfo", resource_type="state", resource_name="statestore", owner="", description="")
NOT_FOUND = error(
    "ERR_STATE_STORE_NOT_FOUND",
    "state store nope is not found",
    [{**info("DAPR_STATE_NOT_FOUND"), "metadata": {"appID": "app"}}],
)
ILLEGAL_TEXT = "input key/keyPrefix 'a||b' can't contain '||'"
ILLEGAL = error(
    "ERR_MALFORMED_REQUEST",
    ILLEGAL_TEXT,
    [
        detail("BadRequest", field_violations=[{"field": "a||b", "description": ILLEGAL_TEXT}]),
        RESOURCE,
        info("DAPR_STATE_ILLEGAL_KEY"),
    ],
)
SLASH = matches(lambda text: text.endswith("a key that holds a '/' is written with %2F in its place"))
MALFORMED = error("ERR_MALFORMED_REQUEST", matches(lambda text: text.startswith("failed deserializing HTTP body: ")))
NO_ID = error("ERR_DIRECT_INVOKE", "failed getting app id either from the URL path or the header dapr-app-id")
SAVE_FAILED = error("ERR_STATE_SAVE", matches(lambda t: t.startswith("failed saving state in state store statestore")))
DELETE_FAILED = error("ERR_STATE_DELETE", matches(lambda text: text.startswith("failed deleting state with key k")))
TRANSACTION_FAILED = error("ERR_STATE_TRANSACTION", matches(lambda t: t.startswith("error while executing state tran")))


def saved(**item: object) -> tuple[object, ...]:
    return ("POST", URL, None, [{"key": "k", **item}])


LISTED = "/v1.0/mesh/state/statestore"
TOO_MANY = error(
    "ERR_STATE_STORE_TOO_MANY_TRANSACTIONS",
    "the transaction contains 1001 operations, which is more than what the state store supports: 1000",
    [
        RESOURCE,
        {
            **info("DAPR_STATE_TOO_MANY_TRANSACTIONS"),
            "metadata": {"currentOpsTransaction": "1001", "maxOpsPerTransaction": "1000"},
        },
    ],
)


def upsert(**item: object) -> dict[str, object]:
    return {"operation": "upsert", "request": {"key": "k", "value": 1, **item}}


def transaction(*operations: object) -> tuple[object, ...]:
    return ("POST", f"{URL}/transaction", None, {"operations": list(operations)})


@cases(
    Case("trap_1 missing key", ("GET", f"{URL}/missing"), 204, b"", {"Content-Type": None, "ETag": None}),
    Case("trap_1 unknown store", ("GET", "/v1.0/state/nope/k"), 400, NOT_FOUND),
    Case("unknown store before the body", ("POST", "/v1.0/state/nope", None, b"{"), 400, NOT_FOUND),
    Case("unknown store, delete", ("DELETE", "/v1.0/state/nope/k"), 400, NOT_FOUND),
    Case("unknown store, bulk", ("POST", "/v1.0/state/nope/bulk", None, b"{"), 400, NOT_FOUND),
    Case("unknown store, transaction", ("POST", "/v1.0/state/nope/transaction", None, b"{"), 400, NOT_FOUND),
    Case("illegal key, get", ("GET", f"{URL}/a%7C%7Cb"), 400, ILLEGAL),
    Case("illegal key, delete", ("DELETE", f"{URL}/a||b"), 400, ILLEGAL),
    Case("illegal key, save", saved(key="a||b"), 400, ILLEGAL),
    Case("illegal key, bulk", ("POST", f"{URL}/bulk", None, {"keys": ["ok", "a||b"]}), 400, ILLEGAL),
    Case("illegal key, transaction", transaction(upsert(key="a||b")), 400, ILLEGAL),
    Case("save put", ("PUT", URL, None, [{"key": "k", "value": 1}]), 204, b"", {"Content-Type": None}),
    Case("save nothing", ("POST", URL, None, b"[]"), 204),
    Case("save no JSON", ("POST", URL, None, b"[{"), 400, MALFORMED),
    Case("save no array", ("POST", URL, None, {"key": "k"}), 400, MALFORMED),
    Case("save an empty body", ("POST", URL), 400, MALFORMED),
    Case("save no object", ("POST", URL, None, [1]), 400, MALFORMED),
    Case("save without key", ("POST", URL, None, [{"value": 1}]), 400, MALFORMED),
    Case("save an empty key", saved(key=""), 400, MALFORMED),
    Case("save a key of another type", saved(key=1), 400, MALFORMED),
    Case("save an etag of another type", saved(etag=1), 400, MALFORMED),
    Case("save options of another type", saved(options=[1]), 400, MALFORMED),
    Case("save metadata of another type", saved(metadata={"ttlInSeconds": 1}), 400, MALFORMED),
    Case("save an invalid string", ("POST", URL, None, rb'[{"key":"k","value":"\ud800"}]'), 400, MALFORMED),
    Case("save no UTF-8", ("POST", URL, None, b'[{"key":"k","value":"\xff"}]'), 400, MALFORMED),
    Case("field names without regard to case", ("POST", URL, None, [{"Key": "k", "VALUE": 1}]), 204),
    Case("unknown fields are ignored", saved(odd=1), 204),
    Case("any content type", ("POST", URL, {"Content-Type": "application/x-www-form-urlencoded"}, b"[]"), 204),
    Case("unknown concurrency", saved(options={"concurrency": "x"}), 500, SAVE_FAILED),
    Case("unknown consistency", saved(options={"consistency": "x"}), 500, SAVE_FAILED),
    Case("consistency that is no text", saved(options={"consistency": {"x": 1}}), 500, SAVE_FAILED),
    Case("strong consistency", saved(options={"consistency": "strong"}), 204),
    Case("malformed ttl", saved(metadata={"ttlInSeconds": "1s"}), 500, SAVE_FAILED),
    Case("ttl below -1", saved(metadata={"ttlInSeconds": "-2"}), 500, SAVE_FAILED),
    Case("ttl of -1 never expires", saved(metadata={"ttlInSeconds": "-1"}), 204),
    Case("malformed etag", saved(etag="abc"), 400, SAVE_FAILED),
    Case("an empty etag is none", saved(etag=""), 204),
    Case("an etag for a missing key", saved(key="no-such", etag="7"), 409, SAVE_FAILED),
    Case("delete a missing key", ("DELETE", f"{URL}/missing"), 204, b""),
    Case("delete with an etag, missing", ("DELETE", f"{URL}/k-missing", {"If-Match": "7"}), 409, DELETE_FAILED),
    Case("delete with a malformed etag", ("DELETE", f"{URL}/k", {"If-Match": "x"}), 400, DELETE_FAILED),
    Case("delete with odd concurrency", ("DELETE", f"{URL}/k?concurrency=x"), 500, DELETE_FAILED),
    Case("bulk of nothing", ("POST", f"{URL}/bulk", None, {"keys": []}), 200, b"[]"),
    Case("bulk without keys", ("POST", f"{URL}/bulk", None, {}), 200, b"[]"),
    Case("bulk of a missing key", ("PUT", f"{URL}/bulk", None, {"keys": ["missing"]}), 200, b'[{"key":"missing"}]'),
    Case("bulk no JSON", ("POST", f"{URL}/bulk", None, b"{"), 400, MALFORMED),
    Case("bulk no object", ("POST", f"{URL}/bulk", None, b"[1]"), 400, MALFORMED),
    Case("bulk keys of another type", ("POST", f"{URL}/bulk", None, {"keys": [1]}), 400, MALFORMED),
    Case(
        "bulk parallelism of another type",
        ("POST", f"{URL}/bulk", None, {"keys": ["a"], "parallelism": "x"}),
        400,
        MALFORMED,
    ),
    Case("transaction of nothing", ("POST", f"{URL}/transaction", None, {"operations": []}), 204, b""),
    Case("transaction no JSON", ("POST", f"{URL}/transaction", None, b"{"), 400, MALFORMED),
    Case(
        "transaction operations of another type",
        ("POST", f"{URL}/transaction", None, {"operations": 1}),
        400,
        MALFORMED,
    ),
    Case("transaction without request", transaction({"operation": "upsert"}), 400, MALFORMED),
    Case(
        "transaction, odd operation",
        transaction({"operation": "merge", "request": {"key": "k"}}),
        400,
        error("ERR_NOT_SUPPORTED_STATE_OPERATION", "operation type merge not supported"),
    ),
    Case("trap_2 transaction, etag", transaction(upsert(etag="9999")), 500, TRANSACTION_FAILED),
    Case("transaction, malformed etag", transaction(upsert(etag="x")), 500, TRANSACTION_FAILED),
    Case("transaction, malformed ttl", transaction(upsert(metadata={"ttlInSeconds": "x"})), 500, TRANSACTION_FAILED),
    Case(
        "query",
        ("POST", "/v1.0-alpha1/state/statestore/query", None, b"{}"),
        500,
        error(
            "ERR_STATE_STORE_NOT_SUPPORTED",
            "state store does not support querying",
            [RESOURCE, info("DAPR_STATE_QUERYING_NOT_SUPPORTED")],
        ),
    ),
    Case("keys of an unknown store", ("GET", "/v1.0/mesh/state/nope"), 400, NOT_FOUND),
    Case("keys, limit of another type", ("GET", f"{LISTED}?limit=x"), 400, error("ERR_BAD_REQUEST")),
    Case("keys, none", ("GET", f"{LISTED}?limit=0"), 400, error("ERR_BAD_REQUEST")),
    Case("keys, too many", ("GET", f"{LISTED}?limit=1001"), 400, error("ERR_BAD_REQUEST")),
    Case("keys that nobody has", ("GET", f"{LISTED}?prefix=no%20such"), 200, b'{"keys":[]}'),
    Case("query of an unknown store", ("POST", "/v1.0-alpha1/state/nope/query", None, b"{}"), 400, NOT_FOUND),
    Case("a key with a slash", ("GET", f"{URL}/a/b"), 404, error("ERR_DIRECT_INVOKE", SLASH)),
    Case("the same, deleted", ("DELETE", f"{URL}/a//b/?x"), 404, error("ERR_DIRECT_INVOKE", SLASH)),
    Case("another verb falls through", ("PATCH", URL, None, b"[]"), 404, NO_ID),
    Case("no key falls through", ("GET", URL), 404, NO_ID),
    Case("bad escape", ("GET", f"{URL}/%zz"), 400, error("ERR_BAD_REQUEST")),
    Case("cut escape", ("GET", f"{URL}/a%2"), 400, error("ERR_BAD_REQUEST")),
    Case("no UTF-8", ("GET", f"{URL}/%ff"), 400, error("ERR_BAD_REQUEST")),
    Case("a key that is too long", ("GET", f"{URL}/{'k' * 1100}"), 500, error("ERR_STATE_GET")),
    Case("body over the limit", ("POST", URL, None, b"[" + b" " * 4 * 1024 * 1024), 413, error("ERR_BODY_READ")),
)
async def test_route(node: Node, case: Case) -> None:
    await check(node, case)


async def save(node: Node, store: str, key: str, value: object = 1, **item: object) -> int:
    return (await node.post(store, [{"key": key, "value": value, **item}])).status


async def etag(node: Node, store: str, key: str) -> str:
    return (await node.get(f"{store}/{key}")).headers["etag"]


@pytest.mark.parametrize(
    ("value", "stored"),
    [
        (b'{"orderId":"42"}', b'{"orderId":"42"}'),
        (b' { "b" : 1 , "a" : [ ] } ', b'{"b":1,"a":[]}'),
        (b'"text \\u00fc"', '"text ü"'.encode()),
        (b"1.0", b"1.0"),
        (b"9007199254740993", b"9007199254740993"),
        (b"null", b"null"),
        (b"false", b"false"),
    ],
)
async def test_trap_4_values_come_back_as_json(node: Node, store: str, value: bytes, stored: bytes) -> None:
    """A value is its JSON text, compact, and always labelled application/json."""
    key = next(keys)
    assert (await node.post(store, b'[{"key":"%b","value":%b}]' % (key.encode(), value))).status == 204
    reply = await node.get(f"{store}/{key}")
    assert (reply.status, reply.body, reply.headers["content-type"]) == (200, stored, "application/json")
    assert reply.headers["etag"].isdigit()
    assert "metadata.ttlexpiretime" not in reply.headers


@pytest.mark.parametrize(
    "written", ["a%2Fb", "a+b", "a+b%20c@x", "a%2Bb", "gr%C3%BC", "dots.and=signs", "%00", "..%2F..%2Fetc", "*", "%3E"]
)
async def test_key_names(node: Node, store: str, written: str) -> None:
    """Any text is a key; a plus in a path is a plus."""
    key = unquote(written)
    assert await save(node, store, key, key) == 204
    reply = await node.get(f"{store}/{written}")
    assert (reply.status, reply.json) == (200, key)
    assert (await node.request("DELETE", f"{store}/{written}")).status == 204
    assert (await node.get(f"{store}/{written}")).status == 204


async def test_etag_rules(node: Node, store: str) -> None:
    """The table of the reference: match, mismatch, first write, last write; save and delete."""
    key = next(keys)
    assert await save(node, store, key, 1, options={"concurrency": "first-write"}) == 204
    first = await etag(node, store, key)
    assert await save(node, store, key, 2, options={"concurrency": "first-write"}) == 409
    assert await save(node, store, key, 2, etag=first) == 204
    assert await save(node, store, key, 3, etag=first) == 409
    assert await save(node, store, key, 3, etag=first, options={"concurrency": "last-write"}) == 409
    assert await save(node, store, key, 3, etag=first, options={"concurrency": "first-write"}) == 409
    assert await save(node, store, key, 4) == 204
    assert await save(node, store, key, 5, options={"concurrency": "last-write"}) == 204
    assert (await node.get(f"{store}/{key}")).body == b"5"
    stale = await node.request("DELETE", f"{store}/{key}", {"If-Match": first})
    assert stale.status == 409
    assert stale.json == error(
        "ERR_STATE_DELETE", matches(lambda text: "possible etag mismatch. error from state store: " in text)
    )
    current = await etag(node, store, key)
    assert (await node.request("DELETE", f"{store}/{key}", {"If-Match": current})).status == 204
    assert (await node.get(f"{store}/{key}")).status == 204


async def test_expiry(node: Node, store: str) -> None:
    """A value with a time to live tells when it ends, and is gone then; the query's time wins over the item's."""
    key, other = next(keys), next(keys)
    items = [{"key": key, "value": 1, "metadata": {"TTLInSeconds": "1000"}}, {"key": other, "value": 1}]
    assert (await node.post(f"{store}?metadata.ttlInSeconds=1", items)).status == 204
    reply = await node.get(f"{store}/{key}")
    left = datetime.fromisoformat(reply.headers["metadata.ttlexpiretime"]).timestamp() - time.time()
    assert -0.1 < left <= 1.1
    bulk = (await node.post(f"{store}/bulk", {"keys": [other]})).json
    assert bulk == [{"key": other, "data": 1, "etag": ANY, "metadata": {"ttlExpireTime": ANY}}]

    async def gone() -> None:
        assert (await node.get(f"{store}/{key}")).status == 204
        assert (await node.get(f"{store}/{other}")).status == 204

    await eventually(gone)
    assert await save(node, store, key, 1) == 204


async def test_trap_3_bulk_get_items_carry_data(node: Node, store: str) -> None:
    """In the order of the keys; a missing one has its name only."""
    key = next(keys)
    await save(node, store, key, {"a": 1})
    for parallelism in (None, 0, -1, 1, 1000):
        reply = await node.post(f"{store}/bulk", {"keys": ["missing", key, key], "parallelism": parallelism})
        assert reply.status == 200
        item = {"key": key, "data": {"a": 1}, "etag": await etag(node, store, key)}
        assert reply.json == [{"key": "missing"}, item, item]


async def test_transaction_is_atomic(node: Node, store: str) -> None:
    """trap_2: one mismatch, and nothing of it happened; the status is 500."""
    one, two, three = next(keys), next(keys), next(keys)
    await save(node, store, one, "old")
    operations = [
        {"operation": "upsert", "request": {"key": one, "value": "new"}},
        {"operation": "upsert", "request": {"key": two, "value": 2}},
        {"operation": "delete", "request": {"key": three}},
    ]
    body = {
        "operations": [*operations, {"operation": "delete", "request": {"key": one, "etag": "99999999"}}],
        "metadata": {"partitionKey": "x"},
    }
    failed = await node.post(f"{store}/transaction", body)
    assert (failed.status, failed.json["errorCode"]) == (500, "ERR_STATE_TRANSACTION")
    assert (await node.get(f"{store}/{one}")).body == b'"old"'
    assert (await node.get(f"{store}/{two}")).status == 204
    assert (
        await node.request("PUT", f"{store}/transaction?metadata.ttlInSeconds=100", None, {"operations": operations})
    ).status == 204
    done = await node.get(f"{store}/{one}")
    assert (done.body, "metadata.ttlexpiretime" in done.headers) == (b'"new"', True)
    etags = [await etag(node, store, key) for key in (one, two)]
    checked = [
        {"operation": "delete", "request": {"key": key, "etag": tag}}
        for key, tag in zip((one, two), etags, strict=True)
    ]
    assert (await node.post(f"{store}/transaction", {"operations": checked})).status == 204
    assert (await node.get(f"{store}/{two}")).status == 204


async def test_concurrent_first_writes_have_one_winner(node: Node, store: str) -> None:
    """The store decides, not the order of arrival."""
    key = next(keys)
    async with asyncio.TaskGroup() as tasks:
        made = [tasks.create_task(save(node, store, key, n, options={"concurrency": "first-write"})) for n in range(20)]
    assert sorted(task.result() for task in made) == [204] + [409] * 19


async def test_trap_1_no_store_at_all(memory: Backbone, tmp_path: Path) -> None:
    """Without any store the answer differs from an unknown one."""
    async with gateway(memory, tmp_path, resources=component("p", "pubsub.mesh")) as node:
        reply = await node.get("/v1.0/state/x/k")
    assert reply.status == 500
    expected = error(
        "ERR_STATE_STORE_NOT_CONFIGURED", "state store x is not configured", [info("DAPR_STATE_NOT_CONFIGURED")]
    )
    assert reply.json == expected


@pytest.mark.parametrize(
    ("prefix", "namespace", "stored"),
    [
        (None, None, "app||k"),
        ("appid", None, "app||k"),
        ("AppID", None, "app||k"),
        ("name", None, "statestore||k"),
        ("none", None, "k"),
        ("namespace", "ns", "ns.app||k"),
        ("namespace", None, "app||k"),
        ("shared", None, "shared||k"),
    ],
)
async def test_key_prefix(
    memory: Backbone,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    prefix: str | None,
    namespace: str | None,
    stored: str,
) -> None:
    """The key as stored; answers show the application's own."""
    monkeypatch.delenv("NAMESPACE", raising=False)
    if namespace:
        monkeypatch.setenv("NAMESPACE", namespace)
        memory.namespace = namespace
    settings: dict[str, Any] = {} if prefix is None else {"keyPrefix": prefix}
    async with gateway(memory, tmp_path, resources=component("statestore", "state.mesh", **settings)) as node:
        assert await save(node, URL, "k", "v") == 204
        assert (await node.get(f"{URL}/k")).body == b'"v"'
        key_value = await node.gateway._runtime.broker.key_value(f"{memory.namespace}.statestore")  # type: ignore[attr-defined]
        assert [key async for key in key_value.keys("")] == [stored]


async def test_values_are_shared_between_instances_of_an_application(nats: Backbone, tmp_path: Path) -> None:
    """The store is the backbone's; another application has other keys."""
    async with (
        gateway(nats, tmp_path, app_id="a") as one,
        gateway(nats, tmp_path, app_id="a") as two,
        gateway(nats, tmp_path, app_id="b") as other,
    ):
        assert await save(one, URL, "k", {"n": 1}) == 204
        assert orjson.loads((await two.get(f"{URL}/k?consistency=strong")).body) == {"n": 1}
        assert (await other.get(f"{URL}/k")).status == 204


QUERY_URL = "/v1.0-alpha1/state/local/query"


async def test_query(memory: Backbone, tmp_path: Path) -> None:
    """Results, pages, nothing found, and what is none."""
    async with gateway(memory, tmp_path, resources=RESOURCES) as node:
        people = [{"key": f"p{n}", "value": {"n": n, "name": f"é{n}"}} for n in range(3)]
        assert (await node.post("/v1.0/state/local", people)).status == 204
        found = await node.post(QUERY_URL, {"filter": {"GTE": {"n": 1}}, "sort": [{"key": "n", "order": "DESC"}]})
        assert (found.status, found.headers["content-type"]) == (200, "application/json")
        assert found.json == {
            "results": [{"key": f"p{n}", "data": {"n": n, "name": f"é{n}"}, "etag": ANY} for n in (2, 1)]
        }
        first = await node.request("PUT", QUERY_URL, None, {"page": {"limit": 2}})
        assert [each["key"] for each in first.json["results"]] == ["p0", "p1"]
        second = await node.post(QUERY_URL, {"page": {"limit": 2, "token": first.json["token"]}})
        assert ([each["key"] for each in second.json["results"]], "token" in second.json) == (["p2"], False)
        nothing = await node.post(QUERY_URL, {"filter": {"EQ": {"n": 7}}})
        assert (nothing.status, nothing.body) == (204, b"")
        assert (await node.post(QUERY_URL, b"")).status == 200
        for wrong in (b"{", b'{"filter": {"LIKE": {"a": 1}}}', b'{"page": {"token": "x"}}'):
            refused = await node.post(QUERY_URL, wrong)
            assert (refused.status, refused.json) == (400, MALFORMED)


async def test_keys(node: Node, store: str) -> None:
    """Pages of an application's own keys."""
    listed = store.replace("/v1.0/", "/v1.0/mesh/")
    names = [f"list/{n}" for n in range(5)]
    assert (await node.post(store, [{"key": name, "value": 1} for name in names])).status == 204
    assert len((await node.get(f"{listed}?prefix=&after=&limit=")).json["keys"]) > 3  # As good as none of them.
    first = await node.get(f"{listed}?prefix=list/&limit=3")
    assert (first.status, first.json) == (200, {"keys": names[:3], "after": names[2]})
    second = await node.get(f"{listed}?prefix=list%2F&limit=3&after={first.json['after']}")
    assert second.json == {"keys": names[3:]}


ENCRYPTED = """
apiVersion: dapr.io/v1alpha1
kind: Component
metadata: {name: keys}
spec:
  type: secretstores.local.file
  version: v1
  metadata: [{name: secretsFile, value: "%s"}]
---
apiVersion: dapr.io/v1alpha1
kind: Component
metadata: {name: statestore}
spec:
  type: state.mesh
  version: v1
  metadata: [{name: primaryEncryptionKey, secretKeyRef: {name: ek, key: ek}}]
auth: {secretStore: keys}
---
"""


async def test_encryption_at_rest(memory: Backbone, tmp_path: Path) -> None:
    """JSON comes back as JSON, also a text that Dapr stored; a query is refused."""
    secrets = tmp_path / "secrets.json"
    secrets.write_text(orjson.dumps({"ek": bytes(range(32)).hex()}).decode())
    async with gateway(memory, tmp_path, resources=ENCRYPTED % secrets) as node:
        assert await save(node, URL, "k", {"p": 1}) == 204
        key_value = await node.gateway._runtime.broker.key_value(f"{memory.namespace}.statestore")  # type: ignore[attr-defined]
        stored = await key_value.get("app||k")
        assert stored.value.endswith(b"||ek")
        await key_value.apply([Write("app||seen", b"/rM62+oCmeICw1qswrBIhNsTLR54to7jNtnJYdk=||ek")])
        await key_value.apply([Write("app||plain", b'{"p":1}')])
        assert (await node.get(f"{URL}/k")).body == b'{"p":1}'
        assert (await node.get(f"{URL}/seen")).body == b'"s"'
        refused = await node.get(f"{URL}/plain")
        assert (refused.status, refused.json["errorCode"]) == (500, "ERR_STATE_GET")
        bulk = (await node.post(f"{URL}/bulk", {"keys": ["k", "seen", "plain"]})).json
        assert [each.get("data") for each in bulk] == [{"p": 1}, "s", None]
        assert "is not encrypted" in bulk[2]["error"]
        query = await node.post("/v1.0-alpha1/state/statestore/query", {})
        assert (query.status, query.json["errorCode"]) == (500, "ERR_STATE_STORE_NOT_SUPPORTED")


async def test_a_time_to_live_by_default(memory: Backbone, tmp_path: Path) -> None:
    """It holds where an item says nothing of its own."""
    resources = component("statestore", "state.in-memory", ttlInSeconds="1000")
    async with gateway(memory, tmp_path, resources=resources) as node:
        items = [{"key": "k", "value": 1}, {"key": "for ever", "value": 1, "metadata": {"ttlInSeconds": "-1"}}]
        assert (await node.post(URL, items)).status == 204
        operations = [{"operation": "upsert", "request": {"key": "t", "value": 1}}]
        assert (await node.post(f"{URL}/transaction", {"operations": operations})).status == 204
        told = [
            "metadata.ttlexpiretime" in (await node.get(f"{URL}/{key}")).headers for key in ("k", "t", "for%20ever")
        ]
        assert told == [True, True, False]
