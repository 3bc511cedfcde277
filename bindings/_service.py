"""What output bindings to services over HTTP have in common: their errors, without the secrets of the component."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from urllib.parse import urlsplit

import orjson

from brokers.clients.http import Answer, HTTPService
from mesh.blocks.binding_contract import BindingError

__all__ = ["JSON", "MAX_SAID", "Service", "is_service", "protected", "safe", "said"]

JSON: Mapping[str, str] = {"Content-Type": "application/json"}
MAX_SAID = 300
MAX_CONNECTIONS = 100
_LEAST_SECRET = 4  # What is shorter would be found in any text.
_LOOPBACK = ("127.0.0.1", "::1", "localhost")


class Service(HTTPService):
    """A service whose every answer other than 200 to 299 is a `BindingError`."""

    def __init__(
        self,
        name: str,
        url: str,
        headers: Mapping[str, str] = {},
        *,
        secrets: Iterable[str] = (),
        seconds: float | None = None,
    ) -> None:
        """Prepare.

        Args:
            name: For people.
            url: What every path follows.
            headers: Of each request.
            secrets: What no error may tell.
            seconds: How long a request may take; None = as long as the operation.
        """

        async def given() -> Mapping[str, str]:
            return headers

        super().__init__(name, url, given, self._failed, seconds=seconds, connections=MAX_CONNECTIONS)
        self._secrets = tuple(secrets)

    def _failed(self, reason: str) -> BindingError:
        return BindingError(safe(reason, self._secrets), retryable=True)

    async def ask(
        self, path: str, body: bytes, headers: Mapping[str, str] = JSON, query: Mapping[str, str] = {}
    ) -> Answer:
        """Send a body.

        Raises:
            BindingError: It was refused; ``retryable`` where the service was away, too busy, or failed.
        """
        answer = await self.send(path, body, headers, query)
        if not 200 <= answer.status < 300:
            raise self._refusal(answer)
        return answer

    def _refusal(self, answer: Answer) -> BindingError:
        return self.refused(answer.status, f"answered {answer.reason()}")

    def refused(self, status: int, reason: str) -> BindingError:
        """Make the error of an answer, which tells its status."""
        again = status in (408, 429) or status >= 500
        return BindingError(safe(f"{self._name} {reason}", self._secrets), {"statusCode": str(status)}, retryable=again)

    async def post(self, path: str, body: object) -> Answer:
        """Send a JSON value, as `ask`."""
        return await self.ask(path, orjson.dumps(body))


def safe(text: str, secrets: Iterable[str]) -> str:
    """Give a text of somebody else as an error may tell it: short, on one line, without secrets."""
    for secret in secrets:
        if len(secret) >= _LEAST_SECRET:
            text = text.replace(secret, "***")
    return "".join(each if each.isprintable() else " " for each in text)[:MAX_SAID]


def said(metadata: Mapping[str, str], name: str) -> str:
    """Give what a call says by a name, which it may write in any case; empty = nothing."""
    if name in metadata:
        return metadata[name]
    return next((value for each, value in metadata.items() if each.casefold() == name.casefold()), "")


def is_service(url: str) -> bool:
    """Tell whether a URL is one of a service over HTTP."""
    try:
        parts = urlsplit(url)
        return parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:  # As of a port beyond 65535.
        return False


def protected(url: str) -> bool:
    """Tell whether a secret may be sent to a URL: over TLS, or within this machine; it has no credentials itself."""
    try:
        parts = urlsplit(url)
        host = parts.hostname
    except ValueError:
        return False
    return (
        bool(host)
        and "@" not in parts.netloc
        and (parts.scheme == "https" or (parts.scheme == "http" and host in _LOOPBACK))
    )
