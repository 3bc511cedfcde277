"""Google Cloud Pub/Sub by its REST interface: Google's client of asyncio needs gRPC's own threads.

Source: Pub/Sub's REST reference, v1.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from typing import Any
from urllib.parse import quote

from brokers.clients.gcp import Access, GCPSettings
from brokers.clients.http import Answer, HTTPService
from mesh.errors import MeshError
from mesh.resources.settings import Kind, check_port, setting
from mesh.steps import Steps

__all__ = ["PubSubService", "endpoint_setting"]

URL = "https://pubsub.googleapis.com"
MAX_CONNECTIONS = 128  # Each subscription holds one, waiting.
ANSWER_SECONDS = 30.0
PULL_SECONDS = 120.0  # The service answers earlier, with no messages.


def _url(text: str) -> str:
    if not text.startswith(("https://", "http://")):
        text = f"http://{text}"  # As an emulator is named.
    if "@" in text or "?" in text:
        raise ValueError("is an http:// or https:// URL, or host:port, without credentials")
    check_port(text)
    return text.rstrip("/")


def endpoint_setting() -> Any:
    """Declare where the service is."""
    return setting(
        "endpoint",
        "URL of the service, or host and port of an emulator, where nobody logs in.",
        Kind("URL, or host:port", _url),
        default=URL,
    )


class PubSubService(Steps):
    """The topics and subscriptions of one project."""

    def __init__(
        self, settings: GCPSettings, endpoint: str, failed: Callable[[str], MeshError], away: Callable[[str], MeshError]
    ) -> None:
        """Prepare; entering logs in.

        Args:
            settings: As whom.
            endpoint: Where.
            failed: Makes the errors.
            away: Makes those after which the same request may succeed.
        """
        super().__init__()
        self._access = Access(settings, failed, away)
        self._alone = settings.client_email is None and endpoint.startswith("http://")
        self._failed, self._away = failed, away
        headers = _nobody if self._alone else self._access.headers
        self._service = HTTPService("Pub/Sub", endpoint, headers, away, seconds=None, connections=MAX_CONNECTIONS)

    @property
    def project(self) -> str | None:
        """Whose they are, if that is known."""
        return self._access.project

    async def _enter(self) -> None:
        if not self._alone:
            await self._access.open()
        await self._stack.enter_async_context(self._service)

    async def ask(self, kind: str, name: str, operation: str, body: Mapping[str, Any]) -> dict[str, Any]:
        """Ask something of one of ``topics`` or ``subscriptions``; raises what `__init__` was given."""
        return self.taken(await self.post(kind, name, operation, body), f"{operation} with {name!r}")

    async def post(self, kind: str, name: str, operation: str, body: Mapping[str, Any]) -> Answer:
        """Ask the same, for who looks at the answer's status; raises only where the service is away."""
        seconds = PULL_SECONDS if operation == "pull" else ANSWER_SECONDS
        return await self._send("POST", f"{self.path(kind, name)}:{operation}", body, seconds)

    async def get(self, kind: str, name: str, what: str = "") -> Answer:
        """Look at one of ``topics`` or ``subscriptions``, or at something that it has (``/subscriptions``)."""
        return await self._send("GET", self.path(kind, name) + what, None, ANSWER_SECONDS)

    async def make(self, kind: str, name: str, body: Mapping[str, Any]) -> Answer:
        """Make one of ``topics`` or ``subscriptions``."""
        return await self._send("PUT", self.path(kind, name), body, ANSWER_SECONDS)

    def path(self, kind: str, name: str) -> str:
        """Give the path of one of ``topics`` or ``subscriptions``."""
        return f"/v1/projects/{self.project}/{kind}/{quote(name, safe='')}"

    async def _send(self, method: str, path: str, body: Mapping[str, Any] | None, seconds: float) -> Answer:
        try:
            async with asyncio.timeout(seconds):
                return await self._service.request(method, path, body)
        except TimeoutError:
            raise self._away(f"Pub/Sub, {method} {path}: no answer in time") from None

    def taken(self, answer: Answer, what: str) -> dict[str, Any]:
        """Give what was answered, unless it was refused."""
        if answer.status != 200 or not isinstance(answer.body, dict):
            raise self._failed(f"Pub/Sub, {what}: {answer.reason()}")
        return answer.body


async def _nobody() -> Mapping[str, str]:
    return {}
