"""Services over HTTP that middleware asks: identity providers, and policies."""

from __future__ import annotations

from collections.abc import Mapping
from urllib.parse import urlsplit

from bindings._service import is_service
from brokers.clients.http import Answer, HTTPService
from mesh.errors import MeshError
from mesh.middleware import MiddlewareError
from mesh.resources.settings import Kind

__all__ = ["SERVICE", "Asked", "header_name"]

SECONDS = 5.0


def _url(text: str) -> str:
    if not is_service(text):
        raise ValueError("is no URL of a service: http:// or https://, a host, and perhaps a path")
    if "@" in urlsplit(text).netloc:
        raise ValueError("has a login in it, which is not sent")
    return text


def header_name(text: str) -> str:
    """Take the name of a header field; raises ValueError."""
    if not text.replace("-", "").replace("_", "").isalnum() or not text.isascii():
        raise ValueError(f"'{text}' cannot be the name of a header field")
    return text


SERVICE = Kind("URL", _url)


class Asked(HTTPService):
    """One address of a service; redirections are not followed."""

    def __init__(self, name: str, url: str) -> None:
        """Prepare.

        Args:
            name: For people.
            url: The whole address.
        """
        parts = urlsplit(url)
        self._path = url.partition("://")[2][len(parts.netloc) :]

        async def nothing() -> Mapping[str, str]:
            return {}

        super().__init__(name, f"{parts.scheme}://{parts.netloc}", nothing, _away, seconds=SECONDS)

    async def read(self) -> Answer:
        """Get what is there.

        Raises:
            MiddlewareError: It is away, or there is nothing of the kind.
        """
        return self._fine(await self.get(self._path))

    async def form(self, body: bytes, headers: Mapping[str, str]) -> Answer:
        """Post a form; the answer may be a refusal.

        Raises:
            MiddlewareError: It is away.
        """
        return await self.send(self._path, body, {"Content-Type": "application/x-www-form-urlencoded", **headers})

    async def value(self, value: object) -> Answer:
        """Post a JSON value.

        Raises:
            MiddlewareError: It is away, or refuses it.
        """
        return self._fine(await self.post(self._path, value))

    async def put(self, path: str, body: bytes) -> Answer:
        """Put a text elsewhere on the same service; the answer may be a refusal.

        Raises:
            MiddlewareError: It is away.
        """
        return await self._ask("PUT", path, {}, body, {"Content-Type": "text/plain"})

    def _fine(self, answer: Answer) -> Answer:
        if not 200 <= answer.status < 300:
            raise self._refusal(answer)
        return answer


def _away(reason: str) -> MeshError:
    return MiddlewareError(reason)
