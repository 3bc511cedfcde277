"""Policies for invocation and deliveries: timeout, retry with matching, circuit breaker.

Source: reference/dapr-surface.md 2.5 (retry path), 3.3.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from mesh.errors import BrokerUnavailableError
from tests.http.harness import DEFAULTS, App, Backbone, Got, Node, component, error, gateway, matches, yaml
from tests.support.crypto_keys import JWK
from tests.support.eventually import eventually
from tests.support.hand_servers import KubernetesSecrets
from tests.support.stores import kubeconfig_for

PLURALS = {"timeout": "timeouts", "retry": "retries", "circuitBreaker": "circuitBreakers"}
QUICK = {"policy": "constant", "duration": "10ms", "maxRetries": 3}


def resiliency(policies: dict[str, Any], targets: dict[str, Any]) -> str:
    return DEFAULTS + yaml("Resiliency", "r", {"policies": policies, "targets": targets})


def of_app(**policies: Any) -> str:
    """Policies for calls to `app`: timeout, retry, circuitBreaker."""
    named = {PLURALS[name]: {"p": value} for name, value in policies.items()}
    return resiliency(named, {"apps": {"app": dict.fromkeys(policies, "p")}})


def inbound(**policies: Any) -> str:
    """Policies for deliveries."""
    named = {PLURALS[name]: {"p": value} for name, value in policies.items()}
    return resiliency(named, {"components": {"pubsub": {"inbound": dict.fromkeys(policies, "p")}}})


def answers(*statuses: int) -> Callable[[Got, web.BaseRequest], web.Response]:
    """Answer with these statuses one after another, the last one again and again."""
    left = list(statuses)

    def answer(got: Got, request: web.BaseRequest) -> web.Response:
        status = left.pop(0) if len(left) > 1 else left[0]
        return web.Response(status=status, body=str(status).encode())

    return answer


CALL = "/v1.0/invoke/app/method/x"


@pytest.mark.parametrize(
    ("retry", "statuses", "result", "calls"),
    [
        (QUICK, (500, 503, 200), 200, 3),
        (QUICK, (500,), 500, 4),
        (QUICK, (404, 200), 200, 2),
        (QUICK, (302, 200), 302, 1),
        ({**QUICK, "maxRetries": 0}, (500, 200), 500, 1),
        ({**QUICK, "matching": {"httpStatusCodes": "429,500-503"}}, (429, 503, 504, 200), 504, 3),
        ({**QUICK, "matching": {"httpStatusCodes": "500"}}, (404, 200), 404, 1),
        ({"policy": "exponential", "maxInterval": "10ms", "maxRetries": 2}, (500,), 500, 3),
    ],
)
async def test_retries_of_invocations(
    memory: Backbone, tmp_path: Path, retry: Any, statuses: tuple[int, ...], result: int, calls: int
) -> None:
    """As often as the policy says, for what it matches; then the application's last answer is the answer."""
    async with App() as app, gateway(memory, tmp_path, app=app, resources=of_app(retry=retry)) as node:
        app.answers["/x"] = answers(*statuses)
        reply = await node.post(CALL, b"body")
        assert (reply.status, reply.body) == (result, str(result).encode())
        assert [got.body for got in app.at("/x")] == [b"body"] * calls


async def test_without_a_policy_nothing_runs_twice(memory: Backbone, tmp_path: Path) -> None:
    """The built-in policy repeats only what did not reach the application."""
    async with App() as app, gateway(memory, tmp_path, app=app) as node:
        app.answers["/x"] = answers(500, 200)
        assert (await node.get(CALL)).status == 500
        assert len(app.at("/x")) == 1


async def test_trap_24_chunked_invocations_are_never_retried(memory: Backbone, tmp_path: Path) -> None:
    """A body of unknown length is not kept."""

    async def body() -> AsyncIterator[bytes]:
        yield b"part"

    async with App() as app, gateway(memory, tmp_path, app=app, resources=of_app(retry=QUICK)) as node:
        app.answers["/x"] = answers(500, 200)
        assert (await node.request("POST", CALL, None, body())).status == 500
        assert len(app.at("/x")) == 1


@pytest.mark.parametrize("timeout", [pytest.param(100, id="trap_24-bare-integers-are-milliseconds"), "100ms"])
async def test_trap_24_timeouts_are_per_attempt(memory: Backbone, tmp_path: Path, timeout: object) -> None:
    """Each attempt has its own; together they may take longer."""
    calls = 0

    async def slow(request: web.BaseRequest) -> web.StreamResponse:
        nonlocal calls
        calls += 1
        await asyncio.sleep(30 if calls < 3 else 0)
        return web.Response(body=b"done")

    async with App() as app, gateway(memory, tmp_path, app=app, resources=of_app(timeout=timeout, retry=QUICK)) as node:
        app.streams["/x"] = slow
        assert (await node.get(CALL)).body == b"done"
        assert calls == 3


async def test_timeout(memory: Backbone, tmp_path: Path) -> None:
    """Without a retry it is a failed invocation."""

    async def slow(request: web.BaseRequest) -> web.StreamResponse:
        await asyncio.sleep(30)
        return web.Response()

    async with App() as app, gateway(memory, tmp_path, app=app, resources=of_app(timeout="50ms")) as node:
        app.streams["/x"] = slow
        reply = await node.get(CALL)
        assert (reply.status, reply.json) == (
            500,
            error("ERR_DIRECT_INVOKE", matches(lambda t: "no answer within" in t)),
        )


@pytest.mark.parametrize("timeout", [0, "0s", "0ms"])
async def test_a_timeout_of_zero_is_none(memory: Backbone, tmp_path: Path, timeout: object) -> None:
    """As in the reference; the call keeps the limit that it has without a policy."""
    async with App() as app, gateway(memory, tmp_path, app=app, resources=of_app(timeout=timeout)) as node:
        assert (await node.get(CALL)).status == 200


BREAKER = {"maxRequests": 1, "timeout": "500ms", "trip": "consecutiveFailures >= 2"}


async def test_circuit_breaker_of_invocations(memory: Backbone, tmp_path: Path) -> None:
    """It opens after failures, refuses without a call, and closes after a success."""
    async with App() as app, gateway(memory, tmp_path, app=app, resources=of_app(circuitBreaker=BREAKER)) as node:
        app.answers["/x"] = answers(500, 404, 500, 503, 200)
        assert [(await node.get(CALL)).status for _ in range(4)] == [500, 404, 500, 503]
        refused = await node.get(CALL)
        assert refused.json == error("ERR_DIRECT_INVOKE", "failed to invoke, id: app, err: circuit breaker is open")
        assert len(app.got) == 4

        async def closed() -> None:
            assert (await node.get(CALL)).status == 200

        await eventually(closed)
        assert [(await node.get(CALL)).status for _ in range(3)] == [200] * 3


async def test_endpoints_of_an_application_have_breakers_of_their_own(memory: Backbone, tmp_path: Path) -> None:
    """By the path without the query; metadata tells each. The size says how many are kept."""
    target = {"circuitBreaker": "p", "circuitBreakerCacheSize": 2}
    resources = resiliency({"circuitBreakers": {"p": {**BREAKER, "timeout": "60s"}}}, {"apps": {"app": target}})
    async with App() as app, gateway(memory, tmp_path, app=app, resources=resources) as node:
        app.answers["/x"] = answers(500)
        assert [(await node.get(f"{CALL}?{each}")).status for each in range(3)] == [500] * 3
        assert len(app.at("/x")) == 2
        assert (await node.get(f"{CALL}/y")).status == 200
        told = (await node.get("/v1.0/metadata")).json
        common = {"name": "p", "target": "invocation app"}
        assert told["circuitBreakers"] == [
            {**common, "endpoint": "/x", "state": "open"},
            {**common, "endpoint": "/x/y", "state": "closed"},
        ]
        refusing = {"target": "invocation app", "circuitBreaker": "p", "endpoint": "/x", "breaker": "open"}
        assert told["conditions"] == [{**refusing, "refused": 1}]
        assert [(await node.get(f"{CALL}/{each}")).status for each in "zx"] == [200] * 2
        assert (await node.get(CALL)).status == 500
        assert len(app.at("/x")) == 3


async def test_an_open_breaker_ends_the_retries(memory: Backbone, tmp_path: Path) -> None:
    """Retry is around the breaker."""
    breaker = {**BREAKER, "timeout": "60s"}
    retry = {**QUICK, "maxRetries": -1}
    async with (
        App() as app,
        gateway(memory, tmp_path, app=app, resources=of_app(circuitBreaker=breaker, retry=retry)) as node,
    ):
        app.answers["/x"] = answers(500)
        reply = await node.get(CALL)
        assert "circuit breaker is open" in reply.json["message"]
        assert len(app.got) == 2


async def test_a_cancelled_call_gives_its_permit_back(memory: Backbone, tmp_path: Path) -> None:
    """A half-open breaker admits one call; a caller that leaves does not block it for ever."""
    begun = asyncio.Event()

    async def slow(request: web.BaseRequest) -> web.StreamResponse:
        begun.set()
        await asyncio.sleep(30)
        return web.Response()

    async with App() as app, gateway(memory, tmp_path, app=app, resources=of_app(circuitBreaker=BREAKER)) as node:
        app.streams["/slow"] = slow
        app.answers["/x"] = answers(500, 500, 200)
        assert [(await node.get(CALL)).status for _ in range(2)] == [500, 500]
        async with asyncio.TaskGroup() as tasks:

            async def half_open() -> None:
                calling = tasks.create_task(node.get("/v1.0/invoke/app/method/slow"))
                await asyncio.wait([calling], timeout=0.05)
                if not begun.is_set():
                    calling.cancel()
                assert begun.is_set()
                calling.cancel()

            await eventually(half_open)

        async def admitted() -> None:
            assert (await node.get(CALL)).status == 200

        await eventually(admitted)


# Deliveries


def subscribed(**more: object) -> list[dict[str, object]]:
    return [
        {"pubsubname": "pubsub", "topic": "t", "route": "/t", **more},
        {"pubsubname": "pubsub", "topic": "dead", "route": "/dead"},
    ]


async def attempts(node: Node, app: App, count: int) -> list[Got]:
    await node.publish("t", "x")
    return await app.until("/t", count)


@pytest.mark.parametrize(
    ("retry", "statuses", "tries"),
    [
        (QUICK, (500,), 4),
        ({**QUICK, "maxRetries": 0}, (500,), 1),
        ({**QUICK, "matching": {"httpStatusCodes": "503"}}, (503, 500), 2),
        ({"policy": "exponential", "maxInterval": "10ms", "maxRetries": 2}, (500,), 3),
    ],
)
async def test_trap_14_retries_of_deliveries(
    memory: Backbone, tmp_path: Path, retry: Any, statuses: tuple[int, ...], tries: int
) -> None:
    """The inbound policy first; with none left, the dead letter topic with the number of attempts."""
    async with (
        App(subscribed(deadLetterTopic="dead")) as app,
        gateway(memory, tmp_path, app=app, resources=inbound(retry=retry)) as node,
    ):
        app.answers["/t"] = answers(*statuses)
        await attempts(node, app, tries)
        (dead,) = await app.until("/dead")
        assert len(app.at("/t")) == tries
        assert dead.headers["mesh-dead-letter-attempts"] == str(tries)
        assert dead.headers["mesh-dead-letter-reason"] == f"the%20application%20answered%20{statuses[-1]}"


async def test_trap_14_without_policy_the_first_failure_is_the_last(memory: Backbone, tmp_path: Path) -> None:
    """A dead letter topic without an inbound retry policy takes the event at once."""
    async with App(subscribed(deadLetterTopic="dead")) as app, gateway(memory, tmp_path, app=app) as node:
        app.answers["/t"] = answers(500)
        await node.publish("t", "x")
        await app.until("/dead")
        assert len(app.at("/t")) == 1


async def test_retries_until_it_works(backbone: Backbone, tmp_path: Path) -> None:
    """Without a policy and without a dead letter topic, a failed event comes again until it is handled."""
    async with App(subscribed()) as app, gateway(backbone, tmp_path, app=app) as node:
        app.answers["/t"] = answers(500, 503, 200)
        got = await attempts(node, app, 3)
        assert len({each.body for each in got}) == 1


async def test_retry_held_by_the_broker(backbone: Backbone, tmp_path: Path) -> None:
    """A delay that is too long to wait out is the broker's; the attempt is then a delivery of its own."""
    retry = {"policy": "constant", "duration": "1100ms", "maxRetries": 3}
    async with App(subscribed()) as app, gateway(backbone, tmp_path, app=app, resources=inbound(retry=retry)) as node:
        app.answers["/t"] = answers(500, 200)
        got = await attempts(node, app, 2)
        assert [each.headers["mesh-attempt"] for each in got] == ["1", "2"]


async def test_timeout_of_a_delivery(memory: Backbone, tmp_path: Path) -> None:
    """An attempt that takes too long has failed."""
    calls = 0

    async def slow(request: web.BaseRequest) -> web.StreamResponse:
        nonlocal calls
        calls += 1
        await asyncio.sleep(30 if calls == 1 else 0)
        return web.Response()

    async with (
        App(subscribed()) as app,
        gateway(memory, tmp_path, app=app, resources=inbound(timeout="50ms", retry=QUICK)) as node,
    ):
        app.streams["/t"] = slow
        await node.publish("t", "x")

        def again() -> None:
            assert calls == 2

        await eventually(again)


async def test_breaker_of_deliveries(memory: Backbone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An open breaker keeps events away from the application; they are delivered once it has closed."""
    monkeypatch.setattr("mesh.delivery.BREAKER_RETRY", 0.1)
    policies = inbound(circuitBreaker={**BREAKER, "timeout": "300ms"}, retry={**QUICK, "maxRetries": -1})
    async with App(subscribed()) as app, gateway(memory, tmp_path, app=app, resources=policies) as node:
        app.answers["/t"] = answers(500, 500, 200)
        await attempts(node, app, 3)
        assert len(app.at("/t")) == 3


# Outbound


class Failing:
    """Stands before a broker's or store's method, and fails so many times."""

    def __init__(self, real: Callable[..., Any], times: int, failed: Callable[..., Any]) -> None:
        self.left = times
        self.calls = 0
        self._real = real
        self._failed = failed

    async def __call__(self, *arguments: Any, **named: Any) -> Any:
        self.calls += 1
        if self.left:
            self.left -= 1
            return self._failed(*arguments)
        return await self._real(*arguments, **named)


def away(*arguments: object) -> object:
    raise BrokerUnavailableError("away")


def all_away(where: object, messages: list[object]) -> list[object]:
    return [BrokerUnavailableError("away") for _ in messages]


def outbound(name: str, **policies: Any) -> str:
    named = {PLURALS[kind]: {"p": value} for kind, value in policies.items()}
    return resiliency(named, {"components": {name: {"outbound": dict.fromkeys(policies, "p")}}})


BULK = [{"entryId": str(number), "event": "x", "contentType": "text/plain"} for number in range(3)]


@pytest.mark.parametrize(
    ("method", "failed", "request_", "code"),
    [
        ("publish", away, ("POST", "/v1.0/publish/pubsub/t", None, b"x"), "ERR_PUBSUB_PUBLISH_MESSAGE"),
        ("publish_many", all_away, ("POST", "/v1.0/publish/bulk/pubsub/t", None, BULK), "ERR_PUBSUB_PUBLISH_MESSAGE"),
    ],
)
async def test_outbound_policies_of_pubsub(
    memory: Backbone, tmp_path: Path, method: str, failed: Any, request_: tuple[Any, ...], code: str
) -> None:
    """What failed is tried again; then it is the documented error, and an open breaker calls nobody."""
    breaker = {"timeout": "60s", "trip": "consecutiveFailures >= 4"}
    resources = outbound("pubsub", retry={**QUICK, "maxRetries": 1}, circuitBreaker=breaker)
    async with gateway(memory, tmp_path, resources=resources) as node:
        broker = node.gateway._runtime.broker
        failing = Failing(getattr(broker, method), 1, failed)
        setattr(broker, method, failing)
        assert (await node.request(*request_)).status == 204
        assert failing.calls == 2
        failing.left = 99
        for calls in (4, 6, 6):
            reply = await node.request(*request_)
            assert (reply.status, reply.json["errorCode"]) == (500, code)
            assert failing.calls == calls
        assert "circuit breaker is open" in reply.body.decode()


async def test_bulk_publish_tries_again_only_what_failed(memory: Backbone, tmp_path: Path) -> None:
    """An entry that was stored is not stored twice."""
    subscribed_ = [{"pubsubname": "pubsub", "topic": "t", "route": "/t"}]
    resources = outbound("pubsub", retry=QUICK)
    async with App(subscribed_) as app, gateway(memory, tmp_path, app=app, resources=resources) as node:
        broker = node.gateway._runtime.broker
        real = broker.publish_many
        seen: list[int] = []

        async def second_fails(where: Any, messages: Any) -> Any:
            seen.append(len(messages))
            if len(seen) > 1:
                return await real(where, messages)
            stored = await real(where, [messages[0], messages[2]])
            return [stored[0], BrokerUnavailableError("away"), stored[1]]

        broker.publish_many = second_fails  # type: ignore[method-assign]
        assert (await node.post("/v1.0/publish/bulk/pubsub/t", BULK)).status == 204
        assert seen == [3, 1]
        await app.until("/t", 3)
        assert len(app.got) == 3


@pytest.mark.parametrize(
    ("request_", "code"),
    [
        (("GET", "/v1.0/state/statestore/k"), "ERR_STATE_GET"),
        (("POST", "/v1.0/state/statestore", None, [{"key": "k", "value": 1}]), "ERR_STATE_SAVE"),
        (("DELETE", "/v1.0/state/statestore/k"), "ERR_STATE_DELETE"),
        (
            (
                "POST",
                "/v1.0/state/statestore/transaction",
                None,
                {"operations": [{"operation": "delete", "request": {"key": "k"}}]},
            ),
            "ERR_STATE_TRANSACTION",
        ),
    ],
)
async def test_outbound_policies_of_state(
    memory: Backbone, tmp_path: Path, request_: tuple[Any, ...], code: str
) -> None:
    """The same for a store."""
    breaker = {"timeout": "60s", "trip": "consecutiveFailures >= 2"}
    resources = outbound("statestore", retry={**QUICK, "maxRetries": 1}, circuitBreaker=breaker)
    async with gateway(memory, tmp_path, resources=resources) as node:
        store: Any = node.gateway._runtime.services["state"].components["statestore"].store
        failing = Failing(store.get, 1, away)
        store.get = store.write = failing
        failing._real = lambda *arguments, **named: asyncio.sleep(0)
        assert (await node.request(*request_)).status == 204
        failing.left = 99
        for _ in range(3):
            reply = await node.request(*request_)
            assert (reply.status, reply.json["errorCode"]) == (500, code)
        assert "circuit breaker is open" in reply.json["message"]
        assert failing.calls <= 5


class BusyCluster(KubernetesSecrets):
    """It is too busy for so many requests.

    Attributes:
        busy: How many more it refuses.
        asked: How many it got.
    """

    busy = 0
    asked = 0

    async def _answer(self, request: web.BaseRequest) -> web.StreamResponse:
        self.asked += request.path != "/version"
        if self.busy and request.path != "/version":
            self.busy -= 1
            return web.Response(status=503)
        return await super()._answer(request)


def _document(key: str) -> tuple[Any, ...]:
    told = {"dapr-key-name": key, "dapr-key-wrap-algorithm": "A256KW"}
    return "PUT", "/v1.0-alpha1/crypto/vault/encrypt", told, b"document"


def _message(key: str) -> tuple[Any, ...]:
    told = {"plaintext": "AAAA", "algorithm": "A256GCM", "keyName": key, "nonce": "AAAAAAAAAAAAAAAA"}
    return "POST", "/v1.0-alpha1/subtlecrypto/vault/encrypt", None, told


@pytest.mark.parametrize("made", [_document, _message])
async def test_outbound_policies_of_cryptography(
    memory: Backbone, tmp_path: Path, made: Callable[[str], tuple[Any, ...]]
) -> None:
    """Keys that cannot be read now are asked for again; one that is not there is not."""
    async with BusyCluster() as cluster:
        cluster.put("keys", {"jwk": JWK})
        file = kubeconfig_for(f"http://127.0.0.1:{cluster.port}", tmp_path)
        settings = {"kubeconfigPath": str(file), "defaultNamespace": "shop"}
        vault = component("vault", "crypto.dapr.kubernetes.secrets", **settings)
        breaker = {"timeout": "60s", "trip": "consecutiveFailures >= 6"}
        policies = outbound("vault", retry=QUICK, circuitBreaker=breaker)
        async with gateway(memory, tmp_path, resources=policies + vault) as node:
            cluster.busy = 3
            assert (await node.request(*made("keys/jwk"))).status == 200
            assert cluster.asked == 4
            assert (await node.request(*made("keys/none"))).json["errorCode"] == "ERR_CRYPTO"
            assert cluster.asked == 5
            cluster.busy = 99
            for asked in (9, 11, 11):
                reply = await node.request(*made("keys/jwk"))
                assert (reply.status, reply.json["errorCode"]) == (500, "ERR_CRYPTO"), reply.json
                assert cluster.asked == asked
            assert "circuit breaker is open" in reply.json["message"]
