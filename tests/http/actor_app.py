"""An application that hosts actors, in the process of a test."""

from __future__ import annotations

import orjson
from aiohttp import web

from tests.http.harness import App, Got

__all__ = ["ACTORS", "ActorApp", "call"]

ACTORS = "/v1.0/actors"
CONFIG = {
    "entities": ["thing", "again", "brief"],
    "entitiesConfig": [
        {"entities": ["again"], "reentrancy": {"enabled": True, "maxStackDepth": 3}},
        {"entities": ["brief"], "actorIdleTimeout": "300ms"},
    ],
}


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
            self.init.append(Got(request.method, request.raw_path, list(request.headers.items()), b""))
            return web.Response(body=orjson.dumps(self.config))
        return await super()._handle(request)

    def paths(self) -> list[str]:
        return [f"{got.method} {got.path}" for got in self.got]


def call(method: str, id_: str = "1", type_: str = "thing", verb: str = "POST") -> tuple[str, str, None, bytes]:
    """Give a request that calls a method."""
    return verb, f"{ACTORS}/{type_}/{id_}/method/{method}", None, b"in"
