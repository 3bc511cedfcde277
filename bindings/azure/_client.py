"""How the adapters to Azure connect, and what goes wrong there as errors of a state store."""

from __future__ import annotations

import copy
import io
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Self

import aiohttp
from azure.core.exceptions import (
    AzureError,
    ClientAuthenticationError,
    HttpResponseError,
    ServiceRequestError,
    ServiceResponseError,
)
from azure.core.pipeline.transport import AioHttpTransport

from bindings.azure._identity import AzureSettings, check_identity, make_credential
from bindings.remote import RemoteStateStore, uncertain
from mesh.adapter import ComponentAdapter
from mesh.errors import StateError, StateLimitError
from mesh.resources.component import Component
from mesh.store import Item

__all__ = ["CONNECT_SECONDS", "READ_SECONDS", "RETRIES", "AzureAdapter", "AzureStateStore", "Transport", "failures"]

CONNECT_SECONDS = 5
READ_SECONDS = 10
RETRIES = 0
TOKEN_RETRIES = 2
MAX_CONNECTIONS = 32
MAX_REASON = 300
_REFUSED = (400, 413)


class AzureAdapter(ComponentAdapter):
    """An adapter that asks as an identity of Microsoft Entra ID, unless its settings have a key."""

    def __init__(self, settings: AzureSettings) -> None:
        """Prepare; entering connects."""
        super().__init__(settings)
        self._settings: Any = settings

    @classmethod
    def from_component(cls, component: Component) -> Self:
        """Read the settings; raises ``ConfigError`` with every one that is wrong, located."""
        made = super().from_component(component)
        check_identity(made._settings, component)
        return made

    async def _identity(self) -> Any:
        """Make what gives tokens."""
        options = {"connection_timeout": CONNECT_SECONDS, "read_timeout": READ_SECONDS, "retry_total": TOKEN_RETRIES}
        try:
            credential = await make_credential(self._settings, **options)
        except (OSError, ValueError) as error:
            raise self._problem(f"there are no credentials for Azure: {error}") from None
        return await self._stack.enter_async_context(credential)


class AzureStateStore(AzureAdapter, RemoteStateStore):
    """A state store of Azure."""


class Transport(AioHttpTransport):  # type: ignore[misc]  # Its module has lazy names, which mypy cannot see.
    """The library's own, which bounds its connections and tells whether a request may have been done.

    Nothing is sent again that may have been done: a write with a condition would conflict with itself. So the clients
    that have this are told not to retry.
    """

    async def open(self) -> None:
        """Make the session."""
        if self.session is None:
            connector = aiohttp.TCPConnector(limit=MAX_CONNECTIONS)
            session = aiohttp.ClientSession(
                connector=connector, cookie_jar=aiohttp.DummyCookieJar(), auto_decompress=False, trust_env=True
            )
            session._retry_connection = False  # It takes every PUT and DELETE for one that may be repeated.
            self.session: Any = session
        await super().open()

    async def send(self, request: Any, **options: Any) -> Any:
        """Send a request, once."""
        body = request.data.encode() if isinstance(request.data, str) else request.data
        if isinstance(body, bytes):
            request = copy.copy(request)
            request.data = io.BytesIO(body)  # As aiohttp wants it where it is large.
        try:
            return await super().send(request, **options)
        except ServiceRequestError as error:  # The library says so of a lost answer, too.
            if isinstance(error.inner_exception, aiohttp.ClientConnectorError | aiohttp.ConnectionTimeoutError):
                raise
            raise ServiceResponseError(error.message, error=error.inner_exception) from None


@contextmanager
def failures(shown: str, items: Sequence[Item] = ()) -> Iterator[None]:
    """Turn the library's errors into ours.

    Args:
        shown: What is asked, for people.
        items: What is written.
    """
    try:
        yield
    except ClientAuthenticationError as error:
        raise StateError(f"{shown}: Azure does not take the credentials: {_reason(error)}") from None
    except HttpResponseError as error:
        status = error.status_code or 0
        if status in _REFUSED:
            raise StateLimitError(f"{shown} refused: {_reason(error)}") from None
        failed = StateError(f"{shown} answered {status}: {_reason(error)}")
        raise (uncertain(failed, items) if status >= 500 or status == 408 else failed) from None
    except ServiceRequestError as error:  # It was not sent.
        raise StateError(f"{shown} cannot be reached: {_reason(error)}") from None
    except (ServiceResponseError, OSError) as error:
        raise uncertain(StateError(f"{shown} did not answer: {_reason(error)}"), items) from None
    except AzureError as error:
        raise uncertain(StateError(f"{shown} cannot be asked: {_reason(error)}"), items) from None


def _reason(error: Exception) -> str:
    told = str(getattr(error, "message", "") or error)
    return (told.strip().partition("\n")[0] or type(error).__name__)[:MAX_REASON]
