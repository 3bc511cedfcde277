"""What a request leaves behind goes with it, also where it failed: bodies must not wait for the collector."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from gateway.http.response import Request
from tests.http.actor_app import ACTORS, ActorApp
from tests.http.harness import Backbone, gateway

TIMES = 20
BODY = b'{"padding": "' + b"x" * 10_000 + b'"'
REMINDERS = f"{ACTORS}/thing/1/reminders"
FAILING = [
    pytest.param(400, ("POST", "/v1.0/state/statestore", [], BODY), id="no JSON"),
    pytest.param(400, ("POST", "/v1.0/state/nobody", [], b"[]"), id="no store"),
    pytest.param(404, ("POST", "/v1.0/publish/nobody/t", [], BODY), id="no pubsub"),
    pytest.param(500, ("POST", "/v1.0/invoke/nobody/method/x", [], BODY), id="no application"),
    pytest.param(500, ("POST", f"{REMINDERS}/r", [], b'{"dueTime": "never"}'), id="no time"),
    pytest.param(409, ("POST", f"{REMINDERS}/there", [], b'{"dueTime": "1h", "overwrite": false}'), id="there already"),
    pytest.param(500, ("POST", f"{ACTORS}/thing/1/method/broken", [], BODY), id="actor fails"),
    pytest.param(500, ("POST", "/v1.0-alpha1/jobs/j", [], b'{"schedule": "never"}'), id="no schedule"),
    pytest.param(409, ("POST", "/v1.0-alpha1/jobs/there", [], b'{"dueTime": "1h"}'), id="job there already"),
]


def _requests() -> int:
    # By type: to ask a weak reference what it is fails when that is gone.
    return sum(issubclass(type(each), Request) for each in gc.get_objects())


@contextmanager
def _uncollected() -> Iterator[None]:
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


@pytest.mark.parametrize(("status", "request_"), FAILING)
async def test_it_goes_with_the_request(
    memory: Backbone, tmp_path: Path, status: int, request_: tuple[str, str, list[tuple[str, str]], bytes]
) -> None:
    async with ActorApp() as app, gateway(memory, tmp_path, app=app, app_id="app") as node:
        app.answer("/actors/thing/1/method/broken", 500)
        for there in (f"{REMINDERS}/there", "/v1.0-alpha1/jobs/there"):
            assert (await node.request("POST", there, None, {"dueTime": "1h"})).status == 204
        reply = await node.request(*request_)
        assert reply.status == status, reply.body
        with _uncollected():
            before = _requests()
            for _ in range(TIMES):
                await node.request(*request_)
            assert _requests() - before < TIMES / 2
