"""A connection to a cluster's API server."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Callable, Collection, Mapping
from contextlib import asynccontextmanager
from typing import cast

import aiohttp
import orjson

from bindings.kubernetes._access import Access, find_access
from mesh.errors import MeshError
from mesh.steps import Steps

__all__ = ["Cluster"]

REQUEST_SECONDS = 10.0
MAX_CONNECTIONS = 16
MAX_REASON = 200


class Cluster(Steps):
    """Asks an API server; what goes wrong is an error of its user's kind."""

    def __init__(
        self,
        path: str | None,
        failure: Callable[[str], MeshError],
        away: Callable[[str], MeshError] | None = None,
    ) -> None:
        """Prepare; entering reads how to connect.

        Args:
            path: Of a kubeconfig file; None looks for it.
            failure: Makes the errors.
            away: Makes those after which the same request may succeed, if they are of a class of their own.
        """
        super().__init__()
        self._path = path
        self._failure = failure
        self._away = away or failure
        self._access: Access
        self._session: aiohttp.ClientSession

    async def _enter(self) -> None:
        try:
            self._access = access = await asyncio.to_thread(find_access, self._path, os.environ)
            tls = await asyncio.to_thread(access.tls)
        except (OSError, ValueError) as error:
            raise self._failure(f"cannot tell how to reach the cluster: {error}") from error
        connector = aiohttp.TCPConnector(limit=MAX_CONNECTIONS, ssl=tls or True)
        login = None if access.login is None else aiohttp.BasicAuth(*access.login)
        timeout = aiohttp.ClientTimeout(total=REQUEST_SECONDS)
        session = aiohttp.ClientSession(connector=connector, auth=login, timeout=timeout)
        self._session = await self._stack.enter_async_context(session)

    async def get(
        self, path: str, query: Mapping[str, str] = {}, *, absent: Collection[int] = (404,)
    ) -> Mapping[str, object] | None:
        """Read an object, or a page of a list; None for an answer of such a status."""
        async with self._asking(path, query, aiohttp.ClientTimeout(total=REQUEST_SECONDS)) as response:
            if response.status in absent:
                return None
            await self._check(response)
            return cast("Mapping[str, object]", orjson.loads(await response.read()))

    @asynccontextmanager
    async def watching(
        self, path: str, query: Mapping[str, str], silence: float
    ) -> AsyncIterator[AsyncIterator[bytes]]:
        """Open a stream; gives its bytes as they come.

        Args:
            path: Of what is watched.
            query: What else is asked.
            silence: Seconds without a byte after which the connection is given up.
        """
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=REQUEST_SECONDS, sock_read=silence)
        async with self._asking(path, {**query, "watch": "1"}, timeout) as response:
            await self._check(response)
            yield response.content.iter_any()

    @asynccontextmanager
    async def _asking(
        self, path: str, query: Mapping[str, str], limits: aiohttp.ClientTimeout
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        try:
            headers = {"Accept": "application/json"}
            token = await self._token()
            if token:
                headers["Authorization"] = f"Bearer {token}"
            name = self._access.server_name
            async with self._session.get(
                self._access.server + path,
                params=query,
                headers=headers,
                timeout=limits,
                server_hostname=name,
                allow_redirects=False,
            ) as response:
                yield response
        except (aiohttp.ClientError, OSError, TimeoutError, ValueError) as error:
            reason = str(error) or "it does not answer"
            raise self._away(f"the API server {self._access.server} cannot be asked: {reason}") from error

    async def _token(self) -> str | None:
        """Give the token of now: one in a file is replaced there before its time is over."""
        file = self._access.token_file
        return self._access.token if file is None else (await asyncio.to_thread(file.read_text)).strip()

    async def _check(self, response: aiohttp.ClientResponse) -> None:
        if response.status == 200:
            return
        try:
            told = orjson.loads(await response.content.read(4096))
            reason = str(told["message"])[:MAX_REASON]
        except (orjson.JSONDecodeError, KeyError, TypeError):
            reason = response.reason or ""
        failure = self._away if response.status >= 500 or response.status == 429 else self._failure
        raise failure(f"the API server {self._access.server} answered {response.status}: {reason}")
