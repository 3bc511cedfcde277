"""Actors over HTTP: a real gateway, and an application that records its turns."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import orjson
import pytest
import pytest_asyncio
from aiohttp import web

from tests.http.harness import ANY, App, Backbone, Case, Got, Node, cases, check, gateway
from tests.support.eventually import eventually

CONFIG = {"entities": ["thing", "again"], "entitiesConfig": [{"entities": ["again"], "reentrancy": {"enabled": True, "maxStackDepth": 3}}]}


class ActorApp(App):
    """An application that hosts actors.

    Attributes:
        config: What it says of them.
    """

    def __init__(self, config: object = None) -> None:
        super().__init__()
        self.config = CONFIG if config is None else config

    async def _handle(self, request: web.BaseRequest) -> web.StreamResponse:
        if request.path == "/dapr/config":
            return web.Response(body=orjson.dumps(self.config))
        return await super()._handle(request)


async def test_a_call(memory: Backbone, tmp_path: Path) -> None:
    async with ActorApp() as app, gateway(memory, tmp_path, app=app, app_id="a") as node:
        app.answer("/actors/thing/1/method/doit", 200, b"done", x_more="1")
        reply = await node.request("POST", "/v1.0/actors/thing/1/method/doit?a=b%20c", {"X-Own": "1"}, b"hello")
        assert (reply.status, reply.body) == (200, b"done")
        assert reply.headers["x-more"] == "1"
        got = app.got[0]
        assert (got.method, got.target, got.body) == ("PUT", "/actors/thing/1/method/doit?a=b%20c", b"hello")
        assert got.headers["dapr-api-call"] == "true"
        assert got.headers["dapr-caller-app-id"] == "a"
        assert got.headers["x-own"] == "1"
