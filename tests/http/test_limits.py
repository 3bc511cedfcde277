"""What bounds an operation in time, what becomes of it, and what is told of that: in the log and in metadata."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any, cast

import pytest
from aiohttp import web
from yarl import URL

from mesh.blocks import BLOCKS
from tests.http.harness import DEFAULTS, App, Backbone, Node, component, gateway, yaml
from tests.support.eventually import eventually
from tests.support.proxy import Proxy

SLOW = 1.0
POLICIES: dict[str, object] = {
    "timeouts": {"long": "60s"},
    "retries": {"forever": {"policy": "constant", "duration": "20ms", "maxRetries": -1}},
}


def resources(policies: dict[str, object] = POLICIES, **targets: object) -> str:
    secrets = component("vault", "secretstores.local.env")
    return DEFAULTS + secrets + yaml("Resiliency", "r", {"policies": policies, "targets": targets})


def everywhere(**target: str) -> str:
    """Give every target of these tests one policy."""
    components = {name: {"outbound": target} for name in ("pubsub", "statestore", "vault")}
    return resources(apps={"app": target}, components=components)


@pytest.fixture
def short_limits() -> Iterator[None]:
    """Make every method's own limit shorter than the work takes, so that the tests need not take minutes."""
    methods = {method: method.seconds for block in BLOCKS for method in block.methods}
    for method in methods:
        object.__setattr__(method, "seconds", 0.2)
    yield
    for method, seconds in methods.items():
        object.__setattr__(method, "seconds", seconds)


def slowed(real: Callable[..., Awaitable[object]]) -> Callable[..., Awaitable[object]]:
    async def slow(*arguments: Any, **named: Any) -> object:
        await asyncio.sleep(SLOW)
        return await real(*arguments, **named)

    return slow


def slow_down(node: Node) -> None:
    """Make the backbone and the stores of a node slow."""
    runtime: Any = node.gateway._runtime
    runtime.broker.publish = slowed(runtime.broker.publish)
    state, vault = (runtime.services[name].components for name in ("state", "secrets"))
    state["statestore"].store.get = slowed(state["statestore"].store.get)
    vault["vault"].store.get = slowed(vault["vault"].store.get)


REQUESTS: list[tuple[Any, ...]] = [
    ("GET", "/v1.0/invoke/app/method/slow"),
    ("GET", "/v1.0/state/statestore/k"),
    ("POST", "/v1.0/publish/pubsub/t", None, b"x"),
    ("GET", "/v1.0/secrets/vault/PATH"),
]


@pytest.mark.parametrize("request_", REQUESTS, ids=lambda request_: request_[1])
@pytest.mark.parametrize("lengthened", [True, False])
async def test_a_policy_lengthens_a_limit(
    nats: Backbone, tmp_path: Path, short_limits: None, request_: tuple[Any, ...], lengthened: bool
) -> None:
    """On all of the way: the gateway, the backbone, the callee's gateway, the client towards the application."""

    async def slow(request: web.BaseRequest) -> web.StreamResponse:
        await asyncio.sleep(SLOW)
        return web.Response()

    policies = everywhere(timeout="long") if lengthened else everywhere()
    async with (
        App() as app,
        gateway(nats, tmp_path, app=app),
        gateway(nats, tmp_path, app_id="caller", resources=policies) as caller,
    ):
        app.streams["/slow"] = slow
        slow_down(caller)
        reply = await caller.request(*request_)
        assert (reply.status < 300) is lengthened, reply.body


@pytest.mark.parametrize("request_", REQUESTS[:3], ids=lambda request_: request_[1])
async def test_a_policy_lengthens_what_a_lost_broker_is_waited_for(
    nats: Backbone, tmp_path: Path, short_limits: None, request_: tuple[Any, ...]
) -> None:
    """No wait of an adapter cuts it short."""
    server = URL(nats.url)
    proxy = Proxy(cast("int", server.port))
    async with App() as app, AsyncExitStack() as stack:
        await stack.enter_async_context(gateway(nats, tmp_path, app=app))
        async with proxy:
            through = Backbone(str(server.with_port(proxy.port)), nats.namespace)
            running = gateway(through, tmp_path, app_id="caller", resources=everywhere(timeout="long"))
            caller = await stack.enter_async_context(running)
            assert (await caller.request(*request_)).status < 300
        async with asyncio.TaskGroup() as tasks:
            asking = tasks.create_task(caller.request(*request_))
            await asyncio.wait([asking], timeout=SLOW)
            assert not asking.done()
            async with Proxy(cast("int", server.port), proxy.port):
                assert (await asking).status < 300
                await stack.aclose()


async def conditions(node: Node) -> list[dict[str, Any]]:
    reply = await node.get("/v1.0/metadata")
    told: list[dict[str, Any]] = reply.json.get("conditions", [])
    return told


async def until_condition(node: Node, **members: object) -> dict[str, Any]:
    """Wait for a condition with these members."""

    async def check() -> dict[str, Any]:
        for told in await conditions(node):
            if members.items() <= told.items():
                return told
        raise AssertionError(f"no {members} in {await conditions(node)}")

    return await eventually(check)


AWAY = "no instance is there, and one was within the last minute"


def lines(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [each.getMessage() for each in caplog.records if each.name == "mesh.conditions"]


async def test_endless_retries_last_until_the_application_is_there(
    nats: Backbone, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """However often nobody answers; the log has two lines of it."""
    caplog.set_level("INFO", "mesh.conditions")
    async with App() as app, gateway(nats, tmp_path, app_id="caller", resources=everywhere(retry="forever")) as caller:
        async with asyncio.TaskGroup() as tasks:
            calling = tasks.create_task(caller.get("/v1.0/invoke/app/method/x"))
            told = await until_condition(caller, target="invocation app", state="retrying", trying=1)
            assert told["reason"] == "no instance of app is on the mesh"
            async with gateway(nats, tmp_path, app=app):
                assert (await calling).status == 200
        assert await conditions(caller) == []
    first, last = lines(caplog)
    assert first == "invocation app: attempt 1 failed: no instance of app is on the mesh; the next in 0.02 s"
    assert last.startswith("invocation app: works again after ")


async def test_a_client_that_hangs_up_ends_endless_retries(nats: Backbone, tmp_path: Path) -> None:
    """Its connection is watched."""
    async with gateway(nats, tmp_path, app_id="caller", resources=everywhere(retry="forever")) as caller:
        calling = asyncio.ensure_future(caller.get("/v1.0/invoke/app/method/x"))
        await until_condition(caller, target="invocation app", trying=1)
        calling.cancel()
        with pytest.raises(asyncio.CancelledError):
            await calling
        told = await until_condition(caller, target="invocation app", trying=0)
        assert told["state"] == "given up"


@pytest.mark.parametrize(
    ("policies", "said"),
    [
        ("", f"{AWAY}; it is waited for"),
        (everywhere(retry="forever"), f"attempt 1 failed: app is away: {AWAY}; the next in 0.02 s"),
    ],
    ids=["no-policy", "endless-retries"],
)
async def test_what_waits_for_an_application(
    nats: Backbone, tmp_path: Path, caplog: pytest.LogCaptureFixture, policies: str, said: str
) -> None:
    """That is told without a policy, too; with one, the attempts fail and each call counts once."""
    caplog.set_level("INFO", "mesh.conditions")
    async with App() as app, gateway(nats, tmp_path, app_id="caller", resources=policies) as caller:
        async with gateway(nats, tmp_path, app=app):
            assert (await caller.get("/v1.0/invoke/app/method/x")).status == 200
        async with asyncio.TaskGroup() as tasks:
            calls = [tasks.create_task(caller.get("/v1.0/invoke/app/method/x")) for _ in range(5)]
            await until_condition(caller, target="invocation app", state="retrying", trying=5)
            async with gateway(nats, tmp_path, app=app):
                assert [(await call).status for call in calls] == [200] * 5
        assert await conditions(caller) == []
    first, last = lines(caplog)
    assert first == f"invocation app: {said}"
    assert last.startswith("invocation app: works again after ")


async def test_what_deliveries_say(memory: Backbone, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The inbound policy's retries, its breaker, and the recovery, under the name of the subscription."""
    caplog.set_level("INFO", "mesh.conditions")
    policies = {
        "retries": {"forever": {"policy": "constant", "duration": "20ms", "maxRetries": -1}},
        "circuitBreakers": {"cb": {"timeout": "60s", "trip": "consecutiveFailures > 20"}},
    }
    both = {"retry": "forever", "circuitBreaker": "cb"}
    subscriptions = [{"pubsubname": "pubsub", "topic": "t", "route": "/t"}]
    async with (
        App(subscriptions) as app,
        gateway(
            memory, tmp_path, app=app, resources=resources(policies, components={"pubsub": {"inbound": both}})
        ) as node,
    ):
        app.answer("/t", 500)
        await node.publish("t", "x")
        await until_condition(node, target="event pubsub/t", state="retrying")
        del app.answers["/t"]

        async def well() -> None:
            assert await conditions(node) == []

        await eventually(well)
        assert len(lines(caplog)) == 2
        app.answer("/t", 500)
        for _ in range(5):
            await node.publish("t", "x")
        told = await until_condition(node, target="event pubsub/t", breaker="open")
        assert told["circuitBreaker"] == "cb"
    said = lines(caplog)
    failed = "event pubsub/t: attempt 1 failed: the application answered 500; the next in 0.02 s"
    assert said[0] == failed + '; the answer {"status":"DROP"} or 404 ends it, see docs/pubsub.md'
    assert said[1].startswith("event pubsub/t: works again after ")
    assert (
        sum("event pubsub/t: circuit breaker cb is open for 60 s: 21 failures in a row, " in each for each in said) == 1
    )


async def test_an_application_that_is_away_is_told(memory: Backbone, tmp_path: Path) -> None:
    async with App() as app, gateway(memory, tmp_path, app=app) as node:
        assert await conditions(node) == []
        await app.stop()
        await node.get("/v1.0/invoke/app/method/x", **{"mesh-timeout": "1s"})
        await until_condition(node, target="application", state="away")
