"""A collector of spans in the process of a test: takes what Zipkin takes, in Zipkin's wire format."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import orjson
from aiohttp import web

from tests.support.eventually import eventually

__all__ = ["Collected", "Collector"]


@dataclass(frozen=True)
class Collected:
    """A span as it arrived."""

    raw: Mapping[str, Any]

    @property
    def name(self) -> str:
        return str(self.raw["name"])

    @property
    def app(self) -> str:
        return str(self.raw["localEndpoint"]["serviceName"])

    @property
    def tags(self) -> Mapping[str, str]:
        tags: Mapping[str, str] = self.raw["tags"]
        return tags

    @property
    def traceparent(self) -> str:
        return f"00-{self.raw['traceId']}-{self.raw['id']}-01"

    def is_below(self, other: Collected) -> bool:
        """Tell whether it is a child of another one."""
        return (self.raw["traceId"], self.raw.get("parentId")) == (other.raw["traceId"], other.raw["id"])


class Collector:
    """Listens, and keeps all that comes."""

    def __init__(self, status: int = 202) -> None:
        self.status = status
        self.spans: list[Collected] = []
        self.requests: list[tuple[str, str]] = []
        self._runner = web.ServerRunner(web.Server(self._take, access_log=None), shutdown_timeout=0)  # type: ignore[arg-type]

    async def __aenter__(self) -> Self:
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", 0).start()
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self._runner.cleanup()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._runner.addresses[0][1]}/api/v2/spans"

    async def _take(self, request: web.BaseRequest) -> web.Response:
        self.requests.append((request.method, request.headers.get("Content-Type", "")))
        found = orjson.loads(await request.content.read())
        if self.status < 300:
            self.spans += map(Collected, found)
        return web.Response(status=self.status)

    async def until(self, *names: str) -> Sequence[Collected]:
        """Wait for a span of each name, for two where a name stands twice; give them in this order."""

        def look() -> Sequence[Collected]:
            left = list(self.spans)
            found = []
            for name in names:
                one = next((each for each in left if each.name == name), None)
                assert one is not None, (name, sorted(each.name for each in self.spans))
                left.remove(one)
                found.append(one)
            return found

        return await eventually(look)
