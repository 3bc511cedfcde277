"""Locks: routes, order of checks, prefixes, and the fencing token.

Source: reference/dapr-surface.md 1.2, 1.9, 0.3; reference/observed-layouts.md 3.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from mesh.errors import ConfigError
from tests.http.harness import ANY, Backbone, Case, Node, Reply, cases, check, component, error, gateway, matches

pytestmark = pytest.mark.asyncio(loop_scope="module")

STORES = (
    component("locks", "lock.mesh")
    + component("named", "lock.mesh", keyPrefix="name")
    + component("plain", "lock.mesh", keyPrefix="none")
    + component("other", "lock.mesh", scopes=["someone"])
)
TOKEN = {"mesh-fencing-token": matches(lambda text: int(text) > 0)}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def node(module_backbone: Backbone, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Node]:
    """A gateway whose stores start empty."""
    async with gateway(module_backbone, tmp_path_factory.mktemp("home"), resources=STORES) as node:
        yield node


def lock(body: object, store: str = "locks") -> tuple[str, str, None, object]:
    return "POST", f"/v1.0-alpha1/lock/{store}", None, body


def unlock(body: object, store: str = "locks") -> tuple[str, str, None, object]:
    return "POST", f"/v1.0-alpha1/unlock/{store}", None, body


def asked(resource: str, seconds: object = 60, **more: object) -> dict[str, object]:
    return {"resourceId": resource, "lockOwner": "me", "expiryInSeconds": seconds, **more}


def malformed(message: object = ANY) -> dict[str, object]:
    return error("ERR_MALFORMED_REQUEST", message)


POSITIVE = malformed("ExpiryInSeconds is not positive in lock store locks")
NO_RESOURCE = malformed("ResourceId is empty in lock store locks")
NO_OWNER = malformed("LockOwner is empty in lock store locks")
UNKNOWN = error("ERR_LOCK_STORE_NOT_FOUND", "lock store nope not found")
GOT, NOT = {"success": True}, {"success": False}
SNAKE = {"resource_id": "snake", "lock_owner": "me", "expiry_in_seconds": 60}
TOO_LONG = "failed to try acquiring lock: a key has 1 to 1024 bytes, this one 1111"
APART = "input key/keyPrefix 'a||b' can't contain '||'"


@cases(
    Case("taken", lock(asked("one")), 200, GOT, TOKEN),
    Case("names with underscores", lock(SNAKE), 200, GOT, TOKEN),
    Case("further members", lock(asked("more", x=1)), 200, GOT, TOKEN),
    Case("seconds as text", lock(asked("text", "60")), 200, GOT, TOKEN),
    Case("seconds with a fraction of zero", lock(asked("zero", 60.0)), 200, GOT, TOKEN),
    Case("the longest time", lock(asked("long", 2**31 - 1)), 200, GOT, TOKEN),
    Case("no time", lock({"resourceId": "r", "lockOwner": "me"}), 400, POSITIVE),
    Case("no seconds", lock(asked("r", 0)), 400, POSITIVE),
    Case("less than none", lock(asked("r", -1)), 400, POSITIVE),
    Case("a time that is null", lock(asked("r", None)), 400, POSITIVE),
    Case("half a second", lock(asked("r", 0.5)), 400, malformed()),
    Case("too long a time", lock(asked("r", 2**31)), 400, malformed()),
    Case("a time that is a boolean", lock(asked("r", True)), 400, malformed()),
    Case("a time that is a list", lock(asked("r", [1])), 400, malformed()),
    Case("no resource", lock({"lockOwner": "me", "expiryInSeconds": 1}), 400, NO_RESOURCE),
    Case("a resource without a name", lock(asked("")), 400, NO_RESOURCE),
    Case("no owner", lock({"resourceId": "r", "expiryInSeconds": 1}), 400, NO_OWNER),
    Case("an owner that is a number", lock(asked("r", lockOwner=1)), 400, malformed()),
    Case("a resource with the separator", lock(asked("a||b")), 500, error("ERR_TRY_LOCK", ANY)),
    Case("nothing at all", lock(b""), 400, POSITIVE),
    Case("a list", lock([]), 400, malformed()),
    Case("broken", lock(b"{"), 400, malformed()),
    Case(
        "no such store", lock(asked("r"), "nope"), 400, error("ERR_LOCK_STORE_NOT_FOUND", "lock store nope not found")
    ),
    Case("a store out of scope", lock(asked("r"), "other"), 400, error("ERR_LOCK_STORE_NOT_FOUND")),
    Case("time before the store", lock(asked("r", 0), "nope"), 400, malformed()),
    Case("resource before the store", lock(asked(""), "nope"), 400, malformed()),
    Case("nobody holds it", unlock(asked("nobody")), 200, {"status": 1}),
    Case("unlock no resource", unlock({"lockOwner": "me"}), 400, NO_RESOURCE),
    Case("unlock no owner", unlock({"resourceId": "r"}), 400, NO_OWNER),
    Case("unlock nothing", unlock(b""), 400, NO_RESOURCE),
    Case("unlock at no such store", unlock(asked("r"), "nope"), 400, error("ERR_LOCK_STORE_NOT_FOUND")),
    Case("unlock the separator", unlock(asked("a||b")), 500, error("ERR_UNLOCK", f"failed to release lock: {APART}")),
    Case("too long a resource", lock(asked("x" * 1100)), 500, error("ERR_TRY_LOCK", TOO_LONG)),
    Case("unlock too long a resource", unlock(asked("x" * 1100)), 500, error("ERR_UNLOCK")),
    Case("by GET", ("GET", "/v1.0-alpha1/lock/locks"), 404, error("ERR_DIRECT_INVOKE")),
    Case("in a version without it", ("POST", "/v1.0/lock/locks", None, asked("r")), 404, error("ERR_DIRECT_INVOKE")),
)
async def test_route(node: Node, case: Case) -> None:
    await check(node, case)


async def test_held_and_given_back(node: Node) -> None:
    """The answers say whose it is; a token comes with a lock alone, and rises."""

    async def post(what: str, owner: str) -> Reply:
        body = {"resourceId": "held", "lockOwner": owner, "expiryInSeconds": 600}
        return await node.post(f"/v1.0-alpha1/{what}/locks", body)

    first = await post("lock", "me")
    assert first.json == GOT
    for owner in ("me", "you"):
        refused = await post("lock", owner)
        assert (refused.status, refused.json) == (200, NOT)
        assert "mesh-fencing-token" not in refused.headers
    assert (await post("unlock", "you")).json == {"status": 2}
    assert (await post("unlock", "me")).json == {"status": 0}
    second = await post("lock", "you")
    assert int(second.headers["mesh-fencing-token"]) > int(first.headers["mesh-fencing-token"])
    assert (await post("unlock", "me")).json == {"status": 2}
    assert (await post("unlock", "you")).json == {"status": 0}
    assert (await post("unlock", "you")).json == {"status": 1}


async def test_prefixes(nats: Backbone, tmp_path: Path) -> None:
    """By default each application has locks of its own; with a prefix they may share them. A host knows who asks."""
    async with (
        gateway(nats, tmp_path, resources=STORES, app_id="a") as one,
        gateway(nats, tmp_path, app_id="b") as two,
    ):
        for store, shared in (("locks", False), ("named", True), ("plain", True)):
            assert (await one.request(*lock(asked("shared"), store))).json == GOT
            assert (await two.request(*lock(asked("shared"), store))).json == {"success": not shared}


async def test_none_is_configured(memory: Backbone, tmp_path: Path) -> None:
    """As the reference says it, before what is wrong with the rest."""
    async with gateway(memory, tmp_path) as node:
        none = error("ERR_LOCK_STORE_NOT_CONFIGURED", "lock store is not configured")
        await check(node, Case("", lock(asked("r"), "nope"), 500, none))
        await check(node, Case("", unlock({}, "nope"), 500, none))


async def test_a_wrong_prefix(memory: Backbone, tmp_path: Path) -> None:
    """Is told at start, with its place."""
    with pytest.raises(ConfigError, match=r"all\.yaml:\d+:\d+: .*keyPrefix can't contain '\|\|'"):
        async with gateway(memory, tmp_path, resources=component("l", "lock.mesh", keyPrefix="a||b")):
            pass
