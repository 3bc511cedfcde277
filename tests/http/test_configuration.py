"""Configuration: routes, order of checks, and changes that are told to the application.

Source: reference/dapr-surface.md 1.2, 1.8, 2.10, 0.3; reference/observed-layouts.md 3.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
import pytest_asyncio
from aiohttp import web

from mesh.errors import ConfigurationError
from tests.http.harness import (
    ANY,
    App,
    Backbone,
    Case,
    Got,
    Node,
    cases,
    check,
    component,
    error,
    gateway,
    matches,
    yaml,
)
from tests.support.eventually import eventually

STORES = component("conf", "configuration.mesh") + component("other", "configuration.mesh", scopes=["someone"])
SHARED = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def node(module_backbone: Backbone, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Node]:
    """A gateway without an application, whose store has some values."""
    async with gateway(module_backbone, tmp_path_factory.mktemp("home"), resources=STORES) as node:
        for key, value in (("a", "1"), ("b", "zwölf"), ("empty", ""), ("c%2Fd", "c"), ("gone", "x")):
            await put(node, key, value)
        assert (await node.request("DELETE", f"{WRITE}/conf/gone")).status == 204
        yield node


WRITE = "/v1.0/mesh/configuration"


async def put(node: Node, key: str, value: str) -> None:
    reply = await node.request("PUT", f"{WRITE}/conf/{key}", None, value)
    assert (reply.status, reply.body) == (204, b"")


def get(path: str, version: str = "v1.0") -> tuple[str, str]:
    return "GET", f"/{version}/configuration/{path}"


def item(value: str, version: object = matches(str.isdigit)) -> dict[str, object]:
    return {"value": value, "version": version}


ALL = {"a": item("1", "1"), "b": item("zwölf", "2"), "c/d": item("c", "4"), "empty": {"version": "3"}}
UNKNOWN = error("ERR_CONFIGURATION_STORE_NOT_FOUND", "configuration store nope not found")
NO_APP = error("ERR_APP_CHANNEL_NIL", "app channel is not initialized. cannot subscribe to configuration updates")
NO_ID = error(
    "ERR_CONFIGURATION_UNSUBSCRIBE",
    "failed to unsubscribe to configuration request x: subscription with id x does not exist",
)
MANY = "&".join(f"key={number}" for number in range(1001))


@cases(
    Case("one", get("conf?key=a"), 200, {"a": item("1")}),
    Case("in the version of before", get("conf?key=a", "v1.0-alpha1"), 200, {"a": item("1")}),
    Case("several", get("conf?key=a&key=b&key=none&key=a"), 200, {"a": item("1"), "b": item("zwölf")}),
    Case("a key of bytes that are no text", get("conf?key=%FF&key=a"), 200, {"a": item("1")}),
    Case("escaped", get("conf?key=c%2Fd"), 200, {"c/d": item("c")}),
    Case("with metadata", get("conf?key=a&metadata.x=y"), 200, {"a": item("1")}),
    Case("a value without text", get("conf?key=empty"), 200, {"empty": {"version": "3"}}),
    Case("all", get("conf"), 200, ALL),
    Case("none of the name", get("conf?key=none"), 204, b""),
    Case("what was deleted", get("conf?key=gone"), 204, b""),
    Case("a key without a name", get("conf?key="), 204, b""),
    Case("too many keys", get(f"conf?{MANY}"), 400, error("ERR_BAD_REQUEST")),
    Case("no such store", get("nope?key=a"), 400, UNKNOWN),
    Case("a store out of scope", get("other?key=a"), 400, error("ERR_CONFIGURATION_STORE_NOT_FOUND")),
    Case("by POST", ("POST", "/v1.0/configuration/conf?key=a"), 404, error("ERR_DIRECT_INVOKE")),
    Case("subscribe without an application", get("conf/subscribe?key=a"), 500, NO_APP),
    Case("the same in the version of before", get("conf/subscribe?key=a", "v1.0-alpha1"), 500, NO_APP),
    Case("subscribe at no such store", get("nope/subscribe"), 400, UNKNOWN),
    Case("unsubscribe what is none", get("conf/x/unsubscribe"), 500, NO_ID),
    Case("the same in the version of before", get("conf/x/unsubscribe", "v1.0-alpha1"), 500, NO_ID),
    Case("unsubscribe at no such store", get("nope/x/unsubscribe"), 400, UNKNOWN),
    Case("write no text", ("PUT", f"{WRITE}/conf/k", None, b"\xff"), 400, error("ERR_BAD_REQUEST")),
    Case("write too much", ("PUT", f"{WRITE}/conf/k", None, b"x" * 530_000), 400, error("ERR_BAD_REQUEST")),
    Case("write without a key", ("PUT", f"{WRITE}/conf/", None, b"x"), 400, error("ERR_BAD_REQUEST")),
    Case("write to no such store", ("PUT", f"{WRITE}/nope/k", None, b"x"), 400, UNKNOWN),
    Case("delete what is not there", ("DELETE", f"{WRITE}/conf/none"), 204, b""),
    Case("delete at no such store", ("DELETE", f"{WRITE}/nope/k"), 400, UNKNOWN),
)
@SHARED
async def test_route(node: Node, case: Case) -> None:
    await check(node, case)


async def test_none_is_configured(memory: Backbone, tmp_path: Path, app: App) -> None:
    """As the reference says it."""
    none = error("ERR_CONFIGURATION_STORE_NOT_CONFIGURED", "configuration stores not configured")
    async with gateway(memory, tmp_path, app=app) as node:
        for path in ("c", "c/subscribe", "c/x/unsubscribe"):
            await check(node, Case("", get(path), 500, none))


async def subscribe(node: Node, query: str = "key=a", store: str = "conf") -> str:
    reply = await node.get(f"/v1.0/configuration/{store}/subscribe?{query}")
    assert reply.status == 200, reply
    assert list(reply.json) == ["id"]
    return str(UUID(reply.json["id"]))


async def unsubscribe(node: Node, subscription: str, store: str = "conf") -> None:
    reply = await node.get(f"/v1.0/configuration/{store}/{subscription}/unsubscribe")
    assert (reply.status, reply.json) == (200, {"ok": True})


def told(got: Got, subscription: str, key: str) -> Any:
    """Check a callback; give what it tells of the key."""
    assert (got.method, got.headers["content-type"]) == ("POST", "application/json")
    assert set(got.json) == {"id", "items"}
    assert got.json["id"] == subscription
    assert list(got.json["items"]) == [key]
    return got.json["items"][key]


async def test_changes_are_told(backbone: Backbone, tmp_path: Path, app: App) -> None:
    """A new value, a deletion, a new key; not what was there at first, nor what is as it was, nor another key."""
    async with gateway(backbone, tmp_path, app=app, resources=STORES) as node:
        await put(node, "a", "1")
        first = await subscribe(node, "key=a&key=b%20%2Fc")
        await put(node, "x", "1")
        await put(node, "a", "2")
        [got] = await app.until("/configuration/conf/a")
        assert told(got, first, "a") == item("2")
        await put(node, "b%20%2Fc", "3")
        [got] = await app.until("/configuration/conf/b%20/c")
        assert told(got, first, "b /c") == item("3")
        assert (await node.request("DELETE", f"{WRITE}/conf/a")).status == 204
        got = (await app.until("/configuration/conf/a", 2))[1]
        assert told(got, first, "a") == {}
        assert len(app.got) == 3


async def test_all_keys(backbone: Backbone, tmp_path: Path, app: App) -> None:
    """Are told when none is named."""
    async with gateway(backbone, tmp_path, app=app, resources=STORES) as node:
        await put(node, "a", "1")
        all_keys = await subscribe(node, "metadata.x=y")
        await put(node, "a", "2")
        await put(node, "new", "1")
        [one], [two] = await app.until("/configuration/conf/a"), await app.until("/configuration/conf/new")
        assert (told(one, all_keys, "a"), told(two, all_keys, "new")) == (item("2"), item("1"))


async def test_unsubscribe(backbone: Backbone, tmp_path: Path, app: App) -> None:
    """It ends one of several, which are told each by itself; a second time there is none."""
    async with gateway(backbone, tmp_path, app=app, resources=STORES) as node:
        stays, ends = await subscribe(node), await subscribe(node)
        await put(node, "a", "1")
        got = await app.until("/configuration/conf/a", 2)
        assert {each.json["id"] for each in got} == {stays, ends}
        await unsubscribe(node, ends)
        assert (await node.get(f"/v1.0/configuration/conf/{ends}/unsubscribe")).status == 500
        await put(node, "a", "2")
        got = await app.until("/configuration/conf/a", 3)
        assert told(got[2], stays, "a") == item("2")
        await put(node, "a", "3")
        await app.until("/configuration/conf/a", 4)
        assert [each.json["id"] for each in app.at("/configuration/conf/a")[2:]] == [stays, stays]


async def test_an_application_that_refuses(
    memory: Backbone, tmp_path: Path, app: App, caplog: pytest.LogCaptureFixture
) -> None:
    """Only 200 is taken; anything else is logged, and the next change is told."""
    async with gateway(memory, tmp_path, app=app, resources=STORES) as node:
        await subscribe(node)
        for count, status in enumerate((500, 204, 404, 200), 1):
            app.answer("/configuration/conf/a", status)
            await put(node, "a", str(count))
            await app.until("/configuration/conf/a", count)
            if status != 200:
                await eventually(
                    lambda status=status: _logged(
                        caplog, f"change of 'a' was not taken: the application answered {status}"
                    )
                )
        assert len(app.got) == 4


def _logged(caplog: pytest.LogCaptureFixture, text: str) -> None:
    assert text in caplog.text


async def test_a_policy_tells_again(memory: Backbone, tmp_path: Path, app: App) -> None:
    """The component's inbound one: until it is taken, or the policy gives up."""
    spec = {
        "policies": {"retries": {"r": {"policy": "constant", "duration": "10ms", "maxRetries": 5}}},
        "targets": {"components": {"conf": {"inbound": {"retry": "r"}}}},
    }
    refusals = [500, 204]
    app.answers["/configuration/conf/a"] = lambda got, request: web.Response(status=refusals.pop() if refusals else 200)
    async with gateway(memory, tmp_path, app=app, resources=STORES + yaml("Resiliency", "r", spec)) as node:
        subscription = await subscribe(node)
        await put(node, "a", "1")
        got = await app.until("/configuration/conf/a", 3)
        assert [told(each, subscription, "a") for each in got] == [item("1", "1")] * 3
        await put(node, "a", "2")
        assert told((await app.until("/configuration/conf/a", 4))[3], subscription, "a") == item("2")


async def test_an_application_that_does_not_answer(
    memory: Backbone, tmp_path: Path, app: App, caplog: pytest.LogCaptureFixture
) -> None:
    """Has the time of a policy; a breaker that it opened refuses the next change, and both are in the log."""
    breaker = {"trip": "consecutiveFailures >= 1", "timeout": "60s"}
    target = {"timeout": "t", "circuitBreaker": "b"}
    spec = {
        "policies": {"timeouts": {"t": "100ms"}, "circuitBreakers": {"b": breaker}},
        "targets": {"components": {"conf": {"inbound": target}}},
    }

    async def never(got: Got, request: web.BaseRequest) -> web.Response:
        await asyncio.Event().wait()
        raise AssertionError

    app.answers["/configuration/conf/a"] = never
    async with gateway(memory, tmp_path, app=app, resources=STORES + yaml("Resiliency", "r", spec)) as node:
        await subscribe(node)
        await put(node, "a", "1")
        await eventually(lambda: _logged(caplog, "change of 'a' was not taken: no answer within 0.1 s"))
        await put(node, "a", "2")
        await eventually(lambda: _logged(caplog, "change of 'a' was not taken: circuit breaker is open"))
        assert len(app.got) == 1


async def test_an_application_that_comes_back(backbone: Backbone, tmp_path: Path, app: App) -> None:
    """Is told what changed meanwhile, once; it may subscribe again, which takes the place of the one before."""
    async with gateway(backbone, tmp_path, app=app, resources=STORES) as node:
        first = await subscribe(node)
        other = await subscribe(node, "key=b")
        await put(node, "a", "1")
        await app.until("/configuration/conf/a")
        await app.stop()
        await put(node, "a", "2")
        await eventually(lambda: _not_ready(node))  # It is missed by what it is told.
        await put(node, "a", "3")
        again = await subscribe(node, "key=b")
        await app.start()
        got = (await app.until("/configuration/conf/a", 2))[1]
        assert told(got, first, "a") == item("3")
        await put(node, "b", "1")
        await app.until("/configuration/conf/b")
        await put(node, "b", "2")
        got_of_b = await app.until("/configuration/conf/b", 2)
        assert other != again
        assert [each.json["id"] for each in got_of_b] == [again, again]
        assert len(app.at("/configuration/conf/a")) == 2


def _not_ready(node: Node) -> None:
    assert node.gateway.not_ready


async def test_a_subscription_before_the_application_listens(memory: Backbone, tmp_path: Path) -> None:
    """Counts, from then on."""
    app = App()
    await app.start()
    await app.stop()
    async with gateway(memory, tmp_path, app=app, resources=STORES, ready=False) as node:
        subscription = await subscribe(node)
        await put(node, "a", "1")
        async with app:
            [got] = await app.until("/configuration/conf/a")
            assert told(got, subscription, "a") == item("1")


async def test_too_many_subscriptions(memory: Backbone, tmp_path: Path, app: App) -> None:
    """Are refused; one that ends makes room, and an equal one takes the place of the one before."""
    async with gateway(memory, tmp_path, app=app, resources=STORES) as node:
        made = [await subscribe(node, f"key={number}") for number in range(100)]
        refused = await node.get("/v1.0/configuration/conf/subscribe?key=a")
        assert (refused.status, refused.json) == (400, error("ERR_BAD_REQUEST", ANY))
        again = await subscribe(node, "key=5")
        for status in (200, 500):  # Whoever has the id may end it, once, and nothing else ends.
            assert (await node.get(f"/v1.0/configuration/conf/{made[5]}/unsubscribe")).status == status
        await unsubscribe(node, again)
        await subscribe(node)


async def test_what_is_told_at_the_end(memory: Backbone, tmp_path: Path, app: App) -> None:
    """A change that is being told when the gateway stops is told to its end, and waits keep nothing up."""
    begun, ended = asyncio.Event(), asyncio.Event()

    async def slow(got: Got, request: web.BaseRequest) -> web.Response:
        begun.set()
        await asyncio.sleep(0.5)
        ended.set()
        return web.Response()

    app.answers["/configuration/conf/a"] = slow
    loop = asyncio.get_running_loop()
    async with gateway(memory, tmp_path, app=app, resources=STORES, drain=20.0) as node:
        await subscribe(node, "key=b")
        await subscribe(node)
        await put(node, "a", "1")
        await begun.wait()
        leaving = loop.time()
    assert ended.is_set()
    assert loop.time() - leaving < 15


async def test_a_component_of_another_node(
    nats: Backbone, tmp_path: Path, app: App, caplog: pytest.LogCaptureFixture
) -> None:
    """A gateway with no component reads, writes and is told; its host is replaced, and nothing is lost, or twice."""
    async with gateway(nats, tmp_path, app=app) as node:
        async with gateway(nats, tmp_path, app_id="host", resources=STORES):
            await put(node, "a", "1")
            await check(node, Case("", get("conf?key=a"), 200, {"a": item("1")}))
            subscription = await subscribe(node)
            await put(node, "a", "2")
            await app.until("/configuration/conf/a")
            leaving = asyncio.get_running_loop().time()
        assert asyncio.get_running_loop().time() - leaving < 4  # What the host was asked to wait for does not hold it.
        missing = await node.get("/v1.0/configuration/conf?key=a")
        assert (missing.status, missing.json) == (503, error("ERR_BROKER"))
        lost = "configuration conf: changes are not followed now, trying again: no host of component conf"
        await eventually(lambda: _logged(caplog, lost))
        async with gateway(nats, tmp_path, app_id="host", resources=STORES) as host:
            await put(host, "a", "3")
            got = (await app.until("/configuration/conf/a", 2))[1]
            assert told(got, subscription, "a") == item("3")
            assert caplog.text.count("changes are not followed now") == 1
        await unsubscribe(node, subscription)  # Its store is away.
        assert len(app.got) == 2


def _outbound(**policies: object) -> str:
    """Policies for what is asked of the component."""
    plurals = {"retry": "retries", "circuitBreaker": "circuitBreakers"}
    named = {plurals[name]: {"p": policy} for name, policy in policies.items()}
    targets = {"components": {"conf": {"outbound": dict.fromkeys(policies, "p")}}}
    return STORES + yaml("Resiliency", "r", {"policies": named, "targets": targets})


def _failing(node: Node, error: Exception | None = None) -> list[object]:
    """Have the store fail; give what notes each time."""
    asked: list[object] = []

    def watch(*arguments: object) -> object:
        asked.append(arguments)
        raise error or ConfigurationError("away")

    node.gateway._runtime.services["configuration"].components["conf"].store.watch = watch  # type: ignore[attr-defined]
    return asked


async def test_a_subscription_is_asked_for_as_often_as_the_policy_says(
    memory: Backbone, tmp_path: Path, app: App
) -> None:
    """And not that often each time."""
    retry = {"policy": "constant", "duration": "1ms", "maxRetries": 3}
    async with gateway(memory, tmp_path, app=app, resources=_outbound(retry=retry)) as node:
        asked = _failing(node)
        assert (await node.get("/v1.0/configuration/conf/subscribe?key=a")).status == 500
        assert len(asked) == 4


async def test_unsubscribe_while_a_breaker_is_open(memory: Backbone, tmp_path: Path, app: App) -> None:
    """It asks this node alone."""
    breaker = {"trip": "consecutiveFailures >= 1", "timeout": "60s"}
    async with gateway(memory, tmp_path, app=app, resources=_outbound(circuitBreaker=breaker)) as node:
        subscription = await subscribe(node)
        _failing(node)
        reply = await node.get("/v1.0/configuration/conf/subscribe?key=b")
        assert reply.status == 500
        assert "circuit breaker is open" in (await node.get("/v1.0/configuration/conf/subscribe?key=b")).json["message"]
        await unsubscribe(node, subscription)


async def test_unsubscribe_ends_what_is_told_again_and_again(memory: Backbone, tmp_path: Path, app: App) -> None:
    """A policy without an end has one then."""
    spec = {
        "policies": {"retries": {"r": {"policy": "constant", "duration": "10ms", "maxRetries": -1}}},
        "targets": {"components": {"conf": {"inbound": {"retry": "r"}}}},
    }
    app.answer("/configuration/conf/a", 500)
    async with gateway(memory, tmp_path, app=app, resources=STORES + yaml("Resiliency", "r", spec)) as node:
        subscription = await subscribe(node)
        held: Any = node.gateway._runtime.services["configuration"]
        task = held._subscriptions[subscription].task
        await put(node, "a", "1")
        await app.until("/configuration/conf/a", 3)
        await unsubscribe(node, subscription)
        async with asyncio.timeout(10):
            await asyncio.wait([task])


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (ConfigurationError("away"), "trying again: away"),
        (RuntimeError("password=hunter2"), "trying again: RuntimeError"),
    ],
)
async def test_a_failure_of_a_library_is_logged_by_its_name(
    memory: Backbone, tmp_path: Path, app: App, caplog: pytest.LogCaptureFixture, error: Exception, text: str
) -> None:
    """Its text may hold anything."""
    async with gateway(memory, tmp_path, app=app, resources=STORES) as node:
        await subscribe(node)
        _failing(node, error)
        await put(node, "a", "1")
        await eventually(lambda: _logged(caplog, text))
        assert "hunter2" not in caplog.text
