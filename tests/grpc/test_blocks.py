"""Secrets, configuration and locks over gRPC, beside the same over HTTP."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import orjson
import pytest
import pytest_asyncio
from google.protobuf.json_format import MessageToDict

from tests.grpc.harness import Both, Call, Client, calls, check_both, check_call, client, pairs, refused
from tests.http.harness import ANY, App, Backbone, Node, component, gateway, matches, yaml

pytestmark = pytest.mark.asyncio(loop_scope="module")
SECRETS = {"token": "t0p", "db": {"user": "u", "password": "p"}, "wörd": "ü", "empty": ""}
SCOPES = {"secrets": {"scopes": [{"storeName": "some", "deniedSecrets": ["token"]}]}}
BAD, ALPHA = "INVALID_ARGUMENT", "/v1.0-alpha1"


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def node(module_backbone: Backbone, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Node]:
    home = tmp_path_factory.mktemp("home")
    file, configuration = home / "secrets.json", home / "config.yaml"
    file.write_bytes(orjson.dumps(SECRETS))
    configuration.write_text(yaml("Configuration", "c", SCOPES))
    stores = [
        *(component(name, "secretstores.local.file", secretsFile=str(file)) for name in ("file", "some")),
        component("many", "secretstores.local.file", secretsFile=str(file), multiValued="true"),
        component("env", "secretstores.local.env", prefix="MINE_"),
        component("hidden", "secretstores.local.env", scopes=["someone"]),
        component("conf", "configuration.mesh"),
        component("locks", "lock.mesh"),
    ]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MINE_BYTES", os.fsdecode(b"\xff\xfe"))
        async with App() as app, gateway(
            module_backbone, home, app=app, resources="".join(stores), configuration_files=(configuration,)
        ) as node:  # fmt: skip
            for key, value in (("a", "1"), ("b", "zwölf"), ("empty", ""), ("c%2Fd", "c")):
                reply = await node.request("PUT", f"/v1.0/mesh/configuration/conf/{key}", None, value)
                assert reply.status == 204
            yield node


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def called(node: Node) -> AsyncIterator[Client]:
    async with client(node) as called:
        yield called


def of(store: str, **fields: Any) -> dict[str, Any]:
    return {"store_name": store, **fields}


def lock(resource: str = "r", owner: str = "me", seconds: int = 60, store: str = "locks") -> dict[str, Any]:
    return of(store, resource_id=resource, lock_owner=owner, expiry_in_seconds=seconds)


def posted(
    name: str, resource: str = "r", owner: str = "me", seconds: int = 60, store: str = "locks"
) -> tuple[Any, ...]:
    body = {"resourceId": resource, "lockOwner": owner, "expiryInSeconds": seconds}
    return "POST", f"{ALPHA}/{name}/{store}", None, body


def unlock(resource: str = "r", owner: str = "me", store: str = "locks") -> dict[str, Any]:
    return of(store, resource_id=resource, lock_owner=owner)


VALUE = {"value": "1", "version": ANY}
NO_ID = "failed to unsubscribe to configuration request x: subscription with id x does not exist"


@calls(
    Call("a secret", "GetSecret", of("file", key="token"), {"data": {"token": "t0p"}}),
    Call("a nested secret", "GetSecret", of("file", key="db:user"), {"data": {"db:user": "u"}}),
    Call("a secret of several values", "GetSecret", of("many", key="db"), {"data": {"user": "u", "password": "p"}}),
    Call("a secret whose name is no ASCII", "GetSecret", of("file", key="wörd"), {"data": {"wörd": "ü"}}),
    Call("a secret that is empty", "GetSecret", of("file", key="empty"), {"data": {"empty": ""}}),
    Call("metadata of a secret", "GetSecret", of("file", key="token", metadata={"version_id": "1"}),
         {"data": {"token": "t0p"}}),
    Call("all secrets that may be read", "GetBulkSecret", of("some"),
         {"data": {name: {"secrets": {name: value}} for name, value in
                   {"db:user": "u", "db:password": "p", "wörd": "ü", "empty": ""}.items()}}),
    Call("a value", "GetConfiguration", of("conf", keys=["a"]), {"items": {"a": VALUE}}),
    Call("a value, under the name before", "GetConfigurationAlpha1", of("conf", keys=["a"]), {"items": {"a": VALUE}}),
    Call("a key twice", "GetConfiguration", of("conf", keys=["a", "a"]), {"items": {"a": VALUE}}),
    Call("a key that is not there", "GetConfiguration", of("conf", keys=["nope"]), {}),
    Call("too many keys", "GetConfiguration", of("conf", keys=[str(n) for n in range(1001)]),
         (BAD, "invalid request: more than 1000 keys")),
    Call("no subscription", "UnsubscribeConfiguration", of("conf", id="x"), {"message": NO_ID}),
    Call("no subscription, under the name before", "UnsubscribeConfigurationAlpha1", of("conf", id="x"),
         {"message": NO_ID}),
    Call("unlock what nobody holds", "UnlockAlpha1", unlock("nobody"), {"status": "LOCK_DOES_NOT_EXIST"}),
)  # fmt: skip
async def test_calls(called: Client, call: Call) -> None:
    await check_call(called, call)


@pairs(
    Both("unknown secret store", ("GET", "/v1.0/secrets/nope/k"), "GetSecret", of("nope", key="k"), BAD, 401),
    Both("unknown secret store, bulk", ("GET", "/v1.0/secrets/nope/bulk"), "GetBulkSecret", of("nope"), BAD, 401),
    Both("another's secret store", ("GET", "/v1.0/secrets/hidden/k"), "GetSecret", of("hidden", key="k"), BAD, 401),
    Both("a secret that is denied", ("GET", "/v1.0/secrets/some/token"), "GetSecret", of("some", key="token"),
         "PERMISSION_DENIED", 403),
    Both("a secret that is not there", ("GET", "/v1.0/secrets/file/nope"), "GetSecret", of("file", key="nope"),
         "INTERNAL", 500),
    Both("a secret that is no text", ("GET", "/v1.0/secrets/env/BYTES"), "GetSecret", of("env", key="BYTES"),
         "INTERNAL", 500),
    Both("unknown configuration", ("GET", "/v1.0/configuration/nope"), "GetConfiguration", of("nope"), BAD, 400),
    Both("unknown configuration, unsubscribe", ("GET", "/v1.0/configuration/nope/x/unsubscribe"),
         "UnsubscribeConfiguration", of("nope", id="x"), BAD, 400),
    Both("unknown locks", posted("lock", store="nope"), "TryLockAlpha1", lock(store="nope"), BAD, 400),
    Both("unknown locks, and no resource", posted("lock", "", store="nope"), "TryLockAlpha1", lock("", store="nope"),
         BAD, 400),
    Both("unknown locks, unlock", posted("unlock", store="nope"), "UnlockAlpha1", unlock(store="nope"), BAD, 400),
    Both("no resource", posted("lock", ""), "TryLockAlpha1", lock(""), BAD, 400),
    Both("no owner", posted("lock", owner=""), "TryLockAlpha1", lock(owner=""), BAD, 400),
    Both("no time", posted("lock", seconds=0), "TryLockAlpha1", lock(seconds=0), BAD, 400),
    Both("a negative time, and unknown locks", posted("lock", seconds=-1, store="nope"), "TryLockAlpha1",
         lock(seconds=-1, store="nope"), BAD, 400),
    Both("no resource, unlock", posted("unlock", ""), "UnlockAlpha1", unlock(""), BAD, 400),
    Both("no owner, unlock", posted("unlock", owner=""), "UnlockAlpha1", unlock(owner=""), BAD, 400),
    Both("a name that is too long", posted("lock", "r" * 1100), "TryLockAlpha1", lock("r" * 1100), "INTERNAL", 500),
)  # fmt: skip
async def test_failures_are_told_alike(node: Node, called: Client, both: Both) -> None:
    await check_both(node, called, both)


async def test_all_values_are_those_of_http(node: Node, called: Client) -> None:
    found = await called.message("GetConfiguration", **of("conf"))
    items = {key: MessageToDict(item) for key, item in found.items.items()}
    assert items == (await node.get("/v1.0/configuration/conf")).json
    assert set(items) == {"a", "b", "empty", "c/d"}


async def test_a_subscription_that_http_began_ends_over_grpc(node: Node, called: Client) -> None:
    made = (await node.get("/v1.0/configuration/conf/subscribe?key=a")).json["id"]
    assert await called.call("UnsubscribeConfiguration", **of("conf", id=made)) == {"ok": True}
    assert (await node.get(f"/v1.0/configuration/conf/{made}/unsubscribe")).status == 500


async def test_a_lock_is_one_for_both(node: Node, called: Client) -> None:
    """Taken over gRPC it is held for HTTP, and the reverse; who takes it has the fencing token in the trailers."""
    token = matches(lambda text: int(text) > 0)
    first = called.open("TryLockAlpha1", called.request("TryLockAlpha1", **lock("shared")))
    assert (await first).success
    assert dict(await first.trailing_metadata())["mesh-fencing-token"] == token
    assert (await node.request(*posted("lock", "shared", "you"))).json == {"success": False}
    assert await called.call("UnlockAlpha1", **unlock("shared", "you")) == {"status": "LOCK_BELONGS_TO_OTHERS"}
    again = called.open("TryLockAlpha1", called.request("TryLockAlpha1", **lock("shared")))
    assert not (await again).success
    assert "mesh-fencing-token" not in dict(await again.trailing_metadata())
    assert (await called.message("UnlockAlpha1", **unlock("shared"))).status == 0
    assert (await node.request(*posted("lock", "shared", "you"))).json == {"success": True}


@pytest.mark.parametrize(
    ("method", "fields", "text"),
    [
        ("GetSecret", of("s", key="k"), "secret store is not configured"),
        ("GetBulkSecret", of("s"), "secret store is not configured"),
        ("GetConfiguration", of("s"), "configuration stores not configured"),
        ("UnsubscribeConfiguration", of("s", id="x"), "configuration stores not configured"),
        ("TryLockAlpha1", lock(), "lock store is not configured"),
        ("UnlockAlpha1", unlock(""), "lock store is not configured"),
    ],
)
async def test_without_components(
    memory: Backbone, tmp_path: Path, method: str, fields: dict[str, Any], text: str
) -> None:
    resources = component("pubsub", "pubsub.mesh")
    async with gateway(memory, tmp_path, resources=resources) as node, client(node) as called:
        assert await refused(called, method, **fields) == ("FAILED_PRECONDITION", text)
