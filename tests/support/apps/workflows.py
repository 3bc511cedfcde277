"""A worker over HTTP, on the example's few lines: an activity's effect is a line `effect <instance>/<task> <pid>`."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any
from unittest.mock import patch

from aiohttp import web

with patch.object(web, "run_app"):  # It serves its own otherwise.
    from app import activity, turn  # type: ignore[import-not-found]

RECORDS = os.open(os.environ["APP_RECORDS"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
Ask = Callable[..., Any]


def order(ask: Ask, given: int) -> Iterator[Any]:
    """Have one of everything: an activity, a timer, three at once, a child, an event."""
    first = yield ask(activity="step", input=given)
    yield ask(timer="50ms")
    many = [ask(activity="step", input=given + each) for each in range(3)]
    for number, each in enumerate(many):
        many[number] = yield each
    child = yield ask(workflow="leg", input=given)
    told = yield ask(wait="go")
    return [first, sum(many), child, told, (yield ask(activity="step", input=1))]


def leg(ask: Ask, given: int) -> Iterator[Any]:
    """Be the child."""
    return (yield ask(activity="step", input=2 * given))


async def step(given: int, headers: Mapping[str, str]) -> int:
    """Have an effect."""
    line = f"effect {headers['mesh-workflow-instance']}/{headers['mesh-workflow-task']} {os.getpid()}\n"
    os.write(RECORDS, line.encode())
    return given + 1


async def config(_: web.Request) -> web.Response:
    """Say what is here."""
    return web.json_response({"workflows": ["order", "leg"], "activities": ["step"]})


app = web.Application()
app.add_routes([web.get("/dapr/config", config), web.post("/workflow/activity/step", partial(activity, step))])
app.add_routes(web.post(f"/workflow/run/{code.__name__}", partial(turn, code)) for code in (order, leg))
web.run_app(app, host="127.0.0.1", port=int(os.environ["APP_PORT"]), print=None)
