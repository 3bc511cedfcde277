"""An application that runs a workflow over HTTP."""

from __future__ import annotations

from typing import Any

import orjson
from aiohttp import web

from tests.http.harness import App, Got

__all__ = ["Worker"]


class Worker(App):
    """Runs ``order``: charges, waits for ``go``, and gives what it brings; ``charge`` fails as often as it is told."""

    def __init__(self, **config: object) -> None:
        super().__init__()
        self.fails = False
        self.config = {"workflows": ["order"], "activities": ["charge"], **config}
        self.answers["/workflow/run/order"] = lambda got, _: web.Response(body=orjson.dumps(self._turn(got.json)))
        self.answers["/workflow/activity/charge"] = lambda got, _: self._charge()

    def _charge(self) -> web.StreamResponse:
        if self.fails:
            return web.Response(status=422, body=b'{"type": "Refused", "message": "no"}')
        return web.Response(body=b'{"ok": true}')

    def _turn(self, turn: dict[str, Any]) -> dict[str, object]:
        history = turn["history"]
        raised = [each["data"] for each in history if each["event"] == "raised"]
        failed = [each["error"]["message"] for each in history if each["event"] == "failed"]
        actions = [{"activity": "charge", "input": turn["input"]}, {"wait": "go"}]
        if failed:
            return {"actions": actions, "fail": {"type": "Refused", "message": failed[0]}}
        return {"actions": actions, "complete": raised[0]} if raised else {"actions": actions, "status": "waiting"}

    async def _handle(self, request: web.BaseRequest) -> web.StreamResponse:
        if request.path == "/dapr/config":
            self.init.append(Got(request.method, request.raw_path, [], b""))
            return web.Response(body=orjson.dumps(self.config))
        return await super()._handle(request)
