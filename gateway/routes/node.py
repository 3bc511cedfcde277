"""``metadata``, ``healthz``, ``shutdown``: the gateway about itself."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

from aiohttp import web

from gateway.errors import APIError
from gateway.http.response import Answered, json_response, no_content
from gateway.routes.request import query_of, read_body, unescape

__all__ = ["Node", "NodeRoutes", "Refusal", "absent"]

MAX_LABELS = 100


class Node(Protocol):
    """What the routes ask of the gateway."""

    app_id: str
    outbound_ready: bool

    @property
    def not_ready(self) -> Sequence[str]:
        """What is missing until everything works."""

    @property
    def metadata(self) -> dict[str, object]:
        """What the node tells about itself."""

    def shut_down(self, *, force: bool = False) -> None:
        """Begin to stop."""


class NodeRoutes:
    """The gateway about itself."""

    def __init__(self, node: Node, labels: dict[str, str]) -> None:
        """Bind the node.

        Args:
            node: The gateway.
            labels: Shown under ``extended``; ``PUT metadata`` writes into it.
        """
        self._node = node
        self._labels = labels

    async def healthz(self, request: web.BaseRequest, segments: Sequence[str], query: str) -> Answered:
        """Tell whether everything works, the application included."""
        wanted = query_of(query).get("appid") if query else None
        if wanted is not None and wanted != self._node.app_id:
            raise APIError(500, "ERR_HEALTH_APPID_NOT_MATCH", "dapr app-id does not match")
        missing = self._node.not_ready
        if missing:
            raise APIError(500, "ERR_HEALTH_NOT_READY", f"dapr is not ready: [{' '.join(missing)}]")
        return no_content()

    async def outbound(self, request: web.BaseRequest, segments: Sequence[str], query: str) -> Answered:
        """Tell whether calls out of the application work; the application need not be there."""
        if not self._node.outbound_ready:
            raise APIError(500, "ERR_OUTBOUND_HEALTH_NOT_READY", "dapr outbound is not ready")
        return no_content()

    async def metadata(self, request: web.BaseRequest, segments: Sequence[str], query: str) -> Answered:
        """Describe the node."""
        return json_response(self._node.metadata)

    async def set_label(self, request: web.BaseRequest, segments: Sequence[str], query: str) -> Answered:
        """Set a label."""
        name = unescape(segments[0])
        body = await read_body(request)
        if name not in self._labels and len(self._labels) >= MAX_LABELS:
            raise APIError(400, "ERR_BAD_REQUEST", f"invalid request: more than {MAX_LABELS} labels")
        self._labels[name] = body.decode("utf-8", "replace")
        return no_content()

    async def shutdown(self, request: web.BaseRequest, segments: Sequence[str], query: str) -> Answered:
        """Drain and stop."""
        self._node.shut_down(force=request.headers.get("dapr-force-shutdown", "").lower() == "true")
        return no_content()


Refusal = Callable[[Sequence[str]], APIError]


def absent(block: str) -> Refusal:
    """Give the answer of a building block that has nothing configured."""

    def refuse(segments: Sequence[str]) -> APIError:
        name = unescape(segments[0]) if segments else ""
        return _ABSENT[block](name)

    return refuse


_ABSENT: dict[str, Callable[[str], APIError]] = {
    "secrets": lambda name: APIError(500, "ERR_SECRET_STORES_NOT_CONFIGURED", "secret store is not configured"),
    "configuration": lambda name: APIError(
        500, "ERR_CONFIGURATION_STORE_NOT_CONFIGURED", "configuration stores not configured"
    ),
    "lock": lambda name: APIError(500, "ERR_LOCK_STORE_NOT_CONFIGURED", "lock store is not configured"),
    "unlock": lambda name: APIError(500, "ERR_LOCK_STORE_NOT_CONFIGURED", "lock store is not configured"),
    "crypto": lambda name: APIError(500, "ERR_CRYPTO_PROVIDERS_NOT_CONFIGURED", "crypto providers not configured"),
    "subtlecrypto": lambda name: APIError(501, "ERR_API_UNIMPLEMENTED", "this API is currently not implemented"),
    "bindings": lambda name: APIError(
        500, "ERR_INVOKE_OUTPUT_BINDING", f"error invoking output binding {name}: couldn't find output binding {name}"
    ),
    "actors": lambda name: APIError(
        500, "ERR_ACTOR_RUNTIME_NOT_FOUND", "the state store is not configured to use the actor runtime"
    ),
    "jobs": lambda name: APIError(501, "ERR_API_UNIMPLEMENTED", "this API is currently not implemented"),
    "workflows": lambda name: APIError(501, "ERR_API_UNIMPLEMENTED", "this API is currently not implemented"),
    "conversation": lambda name: APIError(400, "ERR_CONVERSATION_NOT_FOUND", f"conversation {name} not found"),
}
