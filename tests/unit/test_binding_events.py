"""How long an application may take for an event of a binding."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest

from mesh import pipeline
from mesh.blocks.binding_contract import BindingEvent
from mesh.blocks.binding_events import Here, Source
from mesh.errors import DeadlineExceededError
from mesh.operation import Caller
from mesh.pipeline import InboundPipeline
from mesh.resources.resiliency import ResiliencyPolicies
from mesh.telemetry import Tracing


class Silent:
    """An application that never answers."""

    asked = 0

    async def trigger(self, *_: object) -> object:
        self.asked += 1
        return await asyncio.Event().wait()


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
