"""What a call leaves behind goes with it, also where it failed; see tests/http/test_garbage.py."""

from __future__ import annotations

import gc
from pathlib import Path
from typing import Any

import pytest

from gateway.grpc.call import Call
from tests.grpc.harness import client, refused
from tests.http.harness import Backbone, gateway

TIMES = 20


def _calls() -> int:
    # By type: to ask a weak reference what it is fails when that is gone.
    return sum(issubclass(type(each), Call) for each in gc.get_objects())


@pytest.mark.parametrize(
    ("name", "fields"),
    [
        ("GetState", {"store_name": "nobody", "key": "k"}),
        ("SaveState", {"store_name": "statestore", "states": [{"key": "a||b", "value": b"x" * 10_000}]}),
        ("PublishEvent", {"pubsub_name": "nobody", "topic": "t", "data": b"x" * 10_000}),
        ("GetActorReminder", {"actor_type": "nobody", "actor_id": "1", "name": "r"}),
        ("GetJobAlpha1", {"name": "nobody"}),
    ],
    ids=lambda each: each if isinstance(each, str) else "",
)
async def test_it_goes_with_the_call(memory: Backbone, tmp_path: Path, name: str, fields: dict[str, Any]) -> None:
    async with gateway(memory, tmp_path) as node, client(node) as called:
        await refused(called, name, **fields)
        gc.collect()
        gc.disable()
        try:
            before = _calls()
            for _ in range(TIMES):
                await refused(called, name, **fields)
            left = _calls() - before
        finally:
            gc.enable()
    assert left < TIMES / 2
