"""How long an application may take for an event of a binding."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest

from mesh import pipeline
from mesh.application import BindingAnswer, Headers
from mesh.blocks.binding_contract import BindingEvent
from mesh.blocks.binding_events import Here, Source
from mesh.errors import CircuitOpenError, DeadlineExceededError, MeshError
from mesh.operation import Caller, Operation
from mesh.pipeline import InboundPipeline
from mesh.policies import CircuitBreaker, Policy, Retry
from mesh.resources.resiliency import ResiliencyPolicies
from mesh.spans import Span
from mesh.telemetry import Tracing


class Silent:
    """An application that never answers."""

    asked = 0

    async def trigger(self, *_: object) -> object:
        self.asked += 1
        return await asyncio.Event().wait()


class Taking:
    """An application that takes everything, and has something done."""

    def __init__(self) -> None:
        self.headers: dict[str, str] = {}

    async def trigger(self, name: str, path: str, headers: Headers, body: bytes) -> tuple[int, BindingAnswer]:
        self.headers = {name.lower(): value for name, value in headers}
        return 200, BindingAnswer(b'{"state":[{"key":"k","value":1}],"storeName":"statestore"}')


@pytest.mark.parametrize("told", [True, False], ids=["sampled", "not sampled"])
async def test_the_trace_of_an_event_goes_along(told: bool) -> None:
    """From the source, as its metadata, to the application, and into what that has done."""
    parent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-0" + "01"[told]
    carried = {"tracestate": "a=1", "baggage": "k=v"}
    spans: list[Span] = []
    asked: list[Operation] = []

    async def run(operation: Operation) -> None:
        asked.append(operation)

    parts: Any = SimpleNamespace(
        caller=Caller("default", "app"),
        policies=ResiliencyPolicies((), "app"),
        inbound=InboundPipeline(),
        tracing=Tracing(1.0, spans.append),
        run=run,
    )
    taking = Taking()
    application: Any = taking
    event = BindingEvent(b"x", {"traceparent": parent, **carried})
    await Here(parts, application).handle(Source("in", "in", declared=True, answers=True), event)
    own = taking.headers["traceparent"]
    assert own[:36] == parent[:36]
    assert {name: taking.headers[name] for name in carried} == carried
    (operation,) = asked
    context = operation.context
    assert (context.traceparent, context.tracestate, context.baggage, context.own) == (own, "a=1", "k=v", False)
    assert [(each.name, each.span_id, each.parent_id) for each in spans] == (
        [("bindings/in", own[36:52], parent[36:52])] if told else []
    )


async def test_an_application_that_never_answers_holds_no_event_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a policy it has as long as for an event of pub/sub; then the event was not taken."""
    assert pipeline.MAX_ATTEMPT_SECONDS == 3600.0
    monkeypatch.setattr(pipeline, "MAX_ATTEMPT_SECONDS", 0.1)
    parts: Any = SimpleNamespace(
        caller=Caller("default", "app"),
        policies=ResiliencyPolicies((), "app"),
        inbound=InboundPipeline(),
        tracing=Tracing(0.0),
    )
    application: Any = Silent()
    with pytest.raises(DeadlineExceededError, match=r"no answer within 0\.1 s"):
        await Here(parts, application).handle(Source("in", "in", declared=True), BindingEvent(b"", {}))
    assert application.asked == 1


class Failing:
    """An application that fails."""

    asked = 0

    async def trigger(self, *_: object) -> tuple[int, BindingAnswer]:
        self.asked += 1
        return 500, BindingAnswer(b"")


async def test_an_open_breaker_ends_the_retries() -> None:
    """And one that is taken out of the policy is told of no more."""
    breaker = CircuitBreaker("careful", timeout=60.0)
    policies = SimpleNamespace(for_component=lambda *_: Policy(retry=Retry(interval=0.0), breaker=breaker))
    inbound = InboundPipeline()
    parts: Any = SimpleNamespace(
        caller=Caller("default", "app"), policies=policies, inbound=inbound, tracing=Tracing(0.0)
    )
    failing = Failing()
    application: Any = failing
    here, source = Here(parts, application), Source("in", "in", declared=True)
    for _ in range(2):
        with pytest.raises(CircuitOpenError):
            await here.handle(source, BindingEvent(b"", {}))
    assert failing.asked == 6
    assert [each["breaker"] for each in inbound.conditions.described()] == ["open"]
    policies.for_component = lambda *_: Policy()
    with pytest.raises(MeshError):
        await here.handle(source, BindingEvent(b"", {}))
    assert not any("breaker" in each for each in inbound.conditions.described())
