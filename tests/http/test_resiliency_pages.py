"""Resiliency files in the shape of the reference's own pages: each loads, and does what it says.

Names of policies are those of the pages; intervals are short.

Source: Dapr 1.18, the pages on resiliency (overview, timeouts, retries, overriding the default ones, circuit breakers,
default policies, targets, the resource's fields).
"""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from mesh.errors import ConfigError
from mesh.resources.loader import load_resources
from tests.http.harness import DEFAULTS, App, Backbone, Got, Node, error, gateway, yaml
from tests.http.test_resiliency import answers
from tests.http.test_subscriptions import until_settled
from tests.support.eventually import eventually

HEAD = "---\napiVersion: dapr.io/v1alpha1\nkind: Resiliency\nmetadata:\n  name: myresiliency\n"

OVERVIEW = """\
scopes:
  - app1
  - appB
spec:
  policies:
    timeouts:
      general: 5s
      important: 60s
      largeResponse: 10s
    retries:
      pubsubRetry:
        policy: constant
        duration: 10ms
        maxRetries: 10
      retryForever:
        policy: exponential
        maxInterval: 15ms
        maxRetries: -1 # retry indefinitely
      important:
        policy: constant
        duration: 10ms
        maxRetries: 30
      someOperation:
        policy: exponential
        maxInterval: 15s
      largeResponse:
        policy: constant
        duration: 10ms
        maxRetries: 3
    circuitBreakers:
      simpleCB:
        maxRequests: 1
        timeout: 30s
        trip: consecutiveFailures >= 5
      pubsubCB:
        maxRequests: 1
        interval: 8s
        timeout: 45s
        trip: consecutiveFailures > 8
  targets:
    apps:
      appB:
        timeout: general
        retry: important
        circuitBreaker: simpleCB
    actors:
      myActorType:
        timeout: general
        retry: important
        circuitBreaker: simpleCB
        circuitBreakerScope: both
        circuitBreakerCacheSize: 5000
    components:
      statestore:
        outbound:
          timeout: general
          retry: retryForever
          circuitBreaker: simpleCB
      pubsub:
        outbound:
          retry: pubsubRetry
          circuitBreaker: pubsubCB
        inbound:
          timeout: general
          retry: important
          circuitBreaker: pubsubCB
"""

RETRIES = """\
spec:
  policies:
    retries:
      retry5xxOnly:
        policy: constant
        duration: 10ms
        maxRetries: 3
        matching:
          httpStatusCodes: "429,500-599" # retry the HTTP status codes in this range. All others are not retried.
          gRPCStatusCodes: "1-4,8-11,13,14" # retry gRPC status codes in these ranges and separate single codes.
  targets:
    apps:
      appB:
        retry: retry5xxOnly
"""

OVERRIDES = """\
spec:
  policies:
    retries:
      DaprBuiltInServiceRetries: # Overrides default retry behavior for service-to-service calls
        policy: constant
        duration: 10ms
        maxRetries: 10
      retryForever:
        policy: exponential
        maxInterval: 15ms
        maxRetries: -1
  targets:
    apps:
      {app}:
        retry: retryForever
"""

BREAKERS = """\
spec:
  policies:
    circuitBreakers:
      pubsubCB:
        maxRequests: 1
        interval: 8s
        timeout: 45s
        trip: consecutiveFailures > 2
  targets:
    apps:
      appB:
        circuitBreaker: pubsubCB
"""

DEFAULT_POLICIES = """\
spec:
  policies:
    retries:
      # Global Retry Policy
      DefaultRetryPolicy:
        policy: constant
        duration: 10ms
        maxRetries: 5

      # Global Retry Policy for Apps
      DefaultAppRetryPolicy:
        policy: constant
        duration: 10ms
        maxRetries: 2

      DefaultActorRetryPolicy:
        policy: exponential
        maxInterval: 15s
        maxRetries: 10

      DefaultComponentInboundRetryPolicy:
        policy: constant
        duration: 5s
        maxRetries: 5

      DefaultStatestoreComponentOutboundRetryPolicy:
        policy: exponential
        maxInterval: 60s
        maxRetries: -1

     # Named policy
      fastRetries:
        policy: constant
        duration: 10ms
        maxRetries: 3

      retryForever:
        policy: exponential
        maxInterval: 10s
        maxRetries: -1
    circuitBreakers:
      DefaultCircuitBreakerPolicy:
        maxRequests: 1
        timeout: 30s
        trip: consecutiveFailures > 9

  targets:
    apps:
      appA:
        retry: fastRetries

    actors:
      EventActor:
        retry: retryForever

    components:
      pubsub:
        retry: fastRetries
"""

SCHEMA = """\
version: v1alpha1
scopes:
  - appB
spec:
  policies: # Required
    timeouts:
      timeoutName: 5s
    retries:
      retryName:
        policy: constant
        duration: 10ms
        maxInterval: 15ms
        maxRetries: 2
        matching:
          httpStatusCodes: "500"
          gRPCStatusCodes: "14"
    circuitBreakers:
      circuitBreakerName:
        maxRequests: 1
        timeout: 30s
        trip: consecutiveFailures >= 9
  targets: # Required
    apps:
      appB:
        timeout: timeoutName
        retry: retryName
        circuitBreaker: circuitBreakerName
"""

QUICKSTART = """\
scopes:
  - checkout
spec:
  policies:
    retries:
      retryForever:
        policy: constant
        duration: 5ms
        maxInterval: 5s
        maxRetries: -1
    circuitBreakers:
      simpleCB:
        maxRequests: 1
        timeout: 300ms
        trip: consecutiveFailures >= 5
  targets:
    apps:
      order-processor:
        retry: retryForever
        circuitBreaker: simpleCB
"""

CALL = "/v1.0/invoke/appB/method/x"
OPEN = "circuit breaker is open"


@pytest.mark.parametrize(
    ("page", "statuses", "results", "calls"),
    [
        pytest.param(OVERVIEW, (500, 503, 200), [200], 3, id="overview-works-again"),
        pytest.param(OVERVIEW, (500,), [OPEN], 5, id="overview-breaker-ends-the-retries"),
        pytest.param(RETRIES, (503,), [503], 4, id="retries"),
        pytest.param(RETRIES, (429, 200), [200], 2, id="retries-by-code"),
        pytest.param(RETRIES, (404, 200), [404], 1, id="retries-not-by-this-code"),
        pytest.param(OVERRIDES.format(app="appB"), (500,) * 12 + (200,), [200], 13, id="override-target"),
        pytest.param(OVERRIDES.format(app="other"), (500, 200), [500], 1, id="override-is-not-for-answers"),
        pytest.param(BREAKERS, (500,), [500, 500, 500, OPEN, OPEN], 3, id="circuit-breakers"),
        pytest.param(DEFAULT_POLICIES, (500,), [500], 3, id="default-policies"),
        pytest.param(SCHEMA, (500,), [500], 3, id="fields"),
        pytest.param(SCHEMA, (501, 200), [501], 1, id="fields-matching"),
    ],
)
async def test_calls(
    memory: Backbone, tmp_path: Path, page: str, statuses: tuple[int, ...], results: list[Any], calls: int
) -> None:
    """So often the application is called, and this comes of it."""
    resources = DEFAULTS + HEAD + page
    async with App() as app, gateway(memory, tmp_path, app=app, app_id="appB", resources=resources) as node:
        app.answers["/x"] = answers(*statuses)
        for result in results:
            reply = await node.get(CALL)
            if result == OPEN:
                assert reply.json == error("ERR_DIRECT_INVOKE", f"failed to invoke, id: appB, err: {OPEN}")
            else:
                assert reply.status == result
        assert len(app.at("/x")) == calls


async def test_a_redefined_built_in_repeats_what_has_no_answer(memory: Backbone, tmp_path: Path) -> None:
    """A connection that breaks off is no answer; without the redefinition such a call is not repeated."""
    left = 5

    def breaks_off(got: Got, request: web.BaseRequest) -> web.Response:
        nonlocal left
        left -= 1
        if left >= 0:
            assert request.transport is not None
            request.transport.abort()
        return web.Response(body=b"done")

    resources = DEFAULTS + HEAD + OVERRIDES.format(app="other")
    async with App() as app, gateway(memory, tmp_path, app=app, app_id="appB", resources=resources) as node:
        app.answers["/x"] = breaks_off
        assert (await node.post(CALL, b"x")).body == b"done"
        assert len(app.at("/x")) == 6


async def test_timeouts(memory: Backbone, tmp_path: Path) -> None:
    """The named timeout of the target is the call's; another application has its own limit."""
    page = "spec:\n  policies:\n    timeouts:\n      general: 100ms\n      important: 60s\n      largeResponse: 10s\n"
    page += "  targets:\n    apps:\n      appB:\n        timeout: general\n"

    async def hangs(request: web.BaseRequest) -> web.StreamResponse:
        await asyncio.Event().wait()
        return web.Response()

    async with (
        App() as app,
        gateway(memory, tmp_path, app=app, app_id="appB", resources=DEFAULTS + HEAD + page) as node,
    ):
        app.streams["/x"] = hangs
        reply = await node.get(CALL)
        assert (reply.status, reply.json["errorCode"]) == (500, "ERR_DIRECT_INVOKE")
        assert "no answer within" in reply.json["message"]


async def test_targets(memory: Backbone, tmp_path: Path) -> None:
    """What comes in by a pub/sub component has the policies of its direction."""
    subscribed = [{"pubsubname": "pubsub", "topic": "t", "route": "/t"}]
    async with (
        App(subscribed) as app,
        gateway(memory, tmp_path, app=app, app_id="appB", resources=DEFAULTS + HEAD + OVERVIEW) as node,
    ):
        app.answers["/t"] = answers(500, 500, 500, 200)
        await node.publish("t", "x")
        assert len(await app.until("/t", 4)) == 4


async def test_targets_of_both_directions(memory: Backbone, tmp_path: Path) -> None:
    """A component's policy beside its directions is for both: three more attempts, not the five of the default."""
    subscribed = [{"pubsubname": "pubsub", "topic": "t", "route": "/t", "deadLetterTopic": "dead"}]
    async with (
        App(subscribed) as app,
        gateway(memory, tmp_path, app=app, app_id="appB", resources=DEFAULTS + HEAD + DEFAULT_POLICIES) as node,
    ):
        app.answer("/t", 500)
        await node.publish("t", "x")
        await until_settled(node, events_dead_lettered=1)
        assert len(app.at("/t")) == 4


def test_what_is_beside_its_place_is_told(tmp_path: Path) -> None:
    """``specs`` is meant to be ``spec``; ``targets`` at the top has no effect, and a warning says where it belongs."""
    file = tmp_path / "r.yaml"
    file.write_text(HEAD + SCHEMA.replace("spec:\n", "specs:\n"))
    with pytest.raises(ConfigError) as refused:
        load_resources([file])
    assert [str(each) for each in refused.value.problems] == [f"{file}:9:1: specs: unknown field; did you mean 'spec'?"]
    file.write_text(HEAD + SCHEMA.replace("  targets: # Required", "targets: # Required"))
    warnings = load_resources([file]).warnings
    assert [str(each) for each in warnings] == [f"{file}:27:1: targets: unknown field; its place is 'spec.targets'"]
    file.write_text(HEAD + SCHEMA)
    assert load_resources([file]).warnings == ()


@pytest.mark.parametrize("target", ["URL", "weather", "appB.NAMESPACE"])
async def test_targets_of_calls(memory: Backbone, tmp_path: Path, target: str) -> None:
    """A URL, an HTTPEndpoint and an application with its namespace are targets by the name that a call gives them."""
    async with App() as app:
        url = f"http://127.0.0.1:{app.port}"
        named = target.replace("URL", url).replace("NAMESPACE", memory.namespace)
        page = RETRIES.replace("appB:", f'"{named}":') + yaml("HTTPEndpoint", "weather", {"baseUrl": url})
        async with gateway(memory, tmp_path, app=app, app_id="appB", resources=DEFAULTS + HEAD + page) as node:
            app.answers["/x"] = answers(503, 503, 200)
            assert (await node.get(f"/v1.0/invoke/{named}/method/x")).status == 200
            assert len(app.at("/x")) == 3


@pytest.mark.costly
async def test_quickstart(nats: Backbone, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Orders while the other application works, is stopped, and is back; the log says each change."""
    caplog.set_level("INFO", "mesh.conditions")

    async def order(node: Node) -> int:
        return (await node.request("POST", "/orders", {"dapr-app-id": "order-processor"}, b"{}")).status

    async with App() as app, gateway(nats, tmp_path, app_id="checkout", resources=DEFAULTS + HEAD + QUICKSTART) as node:
        async with gateway(nats, tmp_path, app=app, app_id="order-processor"):
            assert await order(node) == 200
        assert await order(node) == 500
        (told,) = (await node.get("/v1.0/metadata")).json["circuitBreakers"]
        common = {"name": "simpleCB", "target": "invocation order-processor", "endpoint": "/orders"}
        assert told in ({**common, "state": "open"}, {**common, "state": "half-open"})
        async with gateway(nats, tmp_path, app=app, app_id="order-processor"):

            async def goes_on() -> None:
                assert await order(node) == 200

            await eventually(goes_on)
        assert (await node.get("/v1.0/metadata")).json["circuitBreakers"] == [{**common, "state": "closed"}]
    target = "invocation order-processor: "
    said = [each.message.removeprefix(target) for each in caplog.records if each.message.startswith(target)]
    of = "circuit breaker simpleCB of /orders is"
    for line in (f"{of} open for 0.3 s: 5 failures in a row", f"{of} half open: it refused ", f"{of} closed"):
        assert any(each.startswith(line) for each in said), said
    assert said[0].startswith("attempt 1 failed: ")
    assert "given up after 5 attempts: circuit breaker is open" in said
    assert any(each.startswith("works again after ") for each in said)
