"""An API server that answers what the Kubernetes documentation says of ConfigMaps: read, and watch from any state.

It is written by hand from that documentation, since no real one can be had here.
"""

from __future__ import annotations

import asyncio
import base64
from collections.abc import Mapping
from contextlib import suppress
from typing import Self

import orjson
from aiohttp import web

__all__ = ["KubernetesAPI"]


class KubernetesAPI:
    """One ConfigMap, and who watches it.

    Attributes:
        asked: Path, query and ``Authorization`` of each request.
    """

    def __init__(self, name: str, namespace: str = "default") -> None:
        self._path = f"/api/v1/namespaces/{namespace}/configmaps"
        self._name = name
        self._version = 100
        self._map: dict[str, object] | None = None
        self._watching: list[asyncio.Queue[bytes | None]] = []
        self._runner: web.ServerRunner | None = None
        self.asked: list[tuple[str, Mapping[str, str], str]] = []
        self.port = 0
        self.refuses = 0

    @property
    def url(self) -> str:
        """Where it listens."""
        return f"http://127.0.0.1:{self.port}"

    async def __aenter__(self) -> Self:
        self._runner = web.ServerRunner(web.Server(self._answer, access_log=None), shutdown_timeout=0)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", self.port, reuse_address=True).start()
        self.port = int(self._runner.addresses[0][1])
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        assert self._runner is not None
        self.end_streams()
        await self._runner.cleanup()

    def put(self, key: str, value: str | bytes | None) -> None:
        """Change a value, as ``kubectl edit`` does; None removes it."""
        before = self._map or {}
        fields = {name: dict(before.get(name) or {}) for name in ("data", "binaryData")}  # type: ignore[call-overload]
        for each in fields.values():
            each.pop(key, None)
        if isinstance(value, bytes):
            fields["binaryData"][key] = base64.b64encode(value).decode()
        elif value is not None:
            fields["data"][key] = value
        self._version += 1
        metadata = {"name": self._name, "resourceVersion": str(self._version)}
        kept = {name: each for name, each in fields.items() if each}
        self._map = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, **kept}
        self._tell("MODIFIED" if before else "ADDED")

    def remove(self) -> None:
        """Delete the ConfigMap."""
        self._tell("DELETED")
        self._map = None

    def expire(self) -> None:
        """Tell who watches that it watches from too far back."""
        status = {"kind": "Status", "code": 410, "reason": "Expired"}
        for queue in self._watching:
            queue.put_nowait(orjson.dumps({"type": "ERROR", "object": status}) + b"\n")

    def end_streams(self) -> None:
        """End what is watched, as after its time."""
        for queue in self._watching:
            queue.put_nowait(None)

    def _tell(self, kind: str) -> None:
        for queue in self._watching:
            queue.put_nowait(self._event(kind))

    def _event(self, kind: str) -> bytes:
        return orjson.dumps({"type": kind, "object": self._map}) + b"\n"

    async def _answer(self, request: web.BaseRequest) -> web.StreamResponse:
        query = dict(request.query)
        self.asked.append((request.path, query, request.headers.get("Authorization", "")))
        if self.refuses:
            return _status(self.refuses, f'configmaps "{self._name}" is forbidden')
        if request.path == f"{self._path}/{self._name}":
            if self._map is None:
                return _status(404, f'configmaps "{self._name}" not found')
            return web.json_response(self._map)
        if request.path == self._path and query.get("fieldSelector") == f"metadata.name={self._name}":
            return await self._watch(request)
        return _status(404, "the server could not find the requested resource")

    async def _watch(self, request: web.BaseRequest) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "application/json"})
        response.enable_chunked_encoding()
        await response.prepare(request)
        queue: asyncio.Queue[bytes | None] = asyncio.Queue()
        if self._map is not None:
            queue.put_nowait(self._event("ADDED"))  # What there is, when no version to begin with is named.
        self._watching.append(queue)
        try:
            with suppress(ConnectionResetError):  # Who watched has left.
                while (event := await queue.get()) is not None:
                    await response.write(event)
        finally:
            self._watching.remove(queue)
        return response


def _status(code: int, message: str) -> web.Response:
    return web.json_response({"kind": "Status", "status": "Failure", "message": message, "code": code}, status=code)
