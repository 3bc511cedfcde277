"""How the adapters to Azure connect, and what goes wrong there as errors of a state store."""

from __future__ import annotations

import copy
import io
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import aiohttp
from azure.core.exceptions import (
    AzureError,
    ClientAuthenticationError,
    HttpResponseError,
    ServiceRequestError,
    ServiceResponseError,
)
from azure.core.pipeline.transport import AioHttpTransport

from bindings.remote import RemoteStateStore, uncertain
from brokers.clients.azure import CONNECT_SECONDS, READ_SECONDS, AzureAdapter
from mesh.errors import StateError, StateLimitError
from mesh.store import Item

__all__ = ["CONNECT_SECONDS", "READ_SECONDS", "RETRIES", "AzureAdapter", "AzureStateStore", "Transport", "failures"]

RETRIES = 0
MAX_CONNECTIONS = 32
MAX_REASON = 300
_REFUSED = (400, 413)


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
