"""Asks services that answer JSON over HTTP, for adapters to vendors that have no client of asyncio."""

from __future__ import annotations

import io
import ssl
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any

import aiohttp
import orjson

from mesh.errors import MeshError
from mesh.steps import Steps

__all__ = ["Answer", "HTTPService"]

MAX_CONNECTIONS = 16
MAX_ANSWER_BYTES = 32 * 1024 * 1024
MAX_REASON = 300
CONNECT_SECONDS = 5.0
REQUEST_SECONDS = 10.0


@dataclass(frozen=True, slots=True)
class Answer:
    """What was answered.

    Attributes:
        status: Of HTTP.
        body: The JSON value; None = it is none.
        raw: The bytes.
    """

    status: int
    body: Any
    raw: bytes = b""

    def reason(self) -> str:
        """Tell a refusal in few words."""
        told = self.body if isinstance(self.body, dict) else {}
        given = told.get("errors") or told.get("error") or told.get("message") or told.get("Message")
        texts = [each.get("message") if isinstance(each, dict) else each for each in _several(given)]
        text = "; ".join(each for each in texts if isinstance(each, str))
        return f"{self.status}: {text}"[:MAX_REASON] if text else str(self.status)


class HTTPService(Steps):
    """One service; its answers of 200 to 499 but 429 are its user's, everything else is an error."""

    def __init__(
        self,
        name: str,
        url: str,
        headers: Callable[[], Awaitable[Mapping[str, str]]],
        away: Callable[[str], MeshError],
        *,
        tls: ssl.SSLContext | None = None,
        server_name: str | None = None,
        seconds: float | None = REQUEST_SECONDS,
        connections: int = MAX_CONNECTIONS,
    ) -> None:
        """Prepare; entering opens the pool of connections.

        Args:
            name: For people.
            url: What every path follows.
            headers: Gives those of a request: who asks.
            away: Makes the errors after which the same request may succeed.
            tls: What connections are secured with; None = as is usual.
            server_name: The name in the server's certificate, if that is another than its host.
            seconds: How long a request may take; None = as long as who asks waits.
            connections: How many there are at most.
        """
        super().__init__()
        self._name = name
        self._url = url.rstrip("/")
        self._headers = headers
        self._away = away
        self._tls = tls
        self._server_name = server_name
        self._seconds = seconds
        self._most = connections
        self._session: aiohttp.ClientSession

    async def _enter(self) -> None:
        connector = aiohttp.TCPConnector(limit=self._most, ssl=self._tls or True)
        timeout = aiohttp.ClientTimeout(total=self._seconds, sock_connect=CONNECT_SECONDS)
        session = aiohttp.ClientSession(connector=connector, timeout=timeout, cookie_jar=aiohttp.DummyCookieJar())
        self._session = await self._stack.enter_async_context(session)

    async def get(self, path: str, query: Mapping[str, str] = {}) -> Answer:
        """Read something.

        Raises:
            MeshError: The service is away, too busy, or failed.
        """
        return await self._ask("GET", path, query, None)

    async def request(self, method: str, path: str, body: object = None) -> Answer:
        """Ask by any verb, with a JSON value unless it is None; raises as `post`."""
        if body is None:
            return await self._ask(method, path, {}, None)
        return await self._ask(method, path, {}, orjson.dumps(body), {"Content-Type": "application/json"})

    async def post(self, path: str, body: object) -> Answer:
        """Ask for something with a JSON value.

        Raises:
            MeshError: As `get`; what was asked may have been done.
        """
        return await self.send(path, orjson.dumps(body), {"Content-Type": "application/json"})

    async def send(self, path: str, body: bytes, headers: Mapping[str, str], query: Mapping[str, str] = {}) -> Answer:
        """Ask for something with bytes of any media type; raises as `post`."""
        return await self._ask("POST", path, query, body, headers)

    async def _ask(
        self, method: str, path: str, query: Mapping[str, str], data: bytes | None, more: Mapping[str, str] = {}
    ) -> Answer:
        headers = {**await self._headers(), **more}
        if self._session.closed:
            raise self._away(f"{self._name} at {self._url} is not asked any more")
        try:
            async with self._session.request(
                method,
                self._url + path,
                params=query,
                data=None if data is None else io.BytesIO(data),  # A large one would be sent at once.
                headers=headers,
                server_hostname=self._server_name,
                allow_redirects=False,  # Who asks is told to no other server.
            ) as response:
                raw = await _read(response)
        except TimeoutError:
            raise self._away(f"{self._name} at {self._url} does not answer") from None
        except (aiohttp.ClientError, OSError, ValueError) as error:
            raise self._away(f"{self._name} at {self._url} cannot be reached: {_why(error)}") from None
        answer = Answer(response.status, _json(raw), raw)
        if not 200 <= answer.status < 500 or answer.status == 429:
            raise self._refusal(answer)
        return answer

    def _refusal(self, answer: Answer) -> MeshError:
        return self._away(f"{self._name} answered {answer.reason()}")


async def _read(response: aiohttp.ClientResponse) -> bytes:
    body = bytearray()
    async for chunk in response.content.iter_any():
        body += chunk
        if len(body) > MAX_ANSWER_BYTES:
            raise ValueError(f"it answers more than {MAX_ANSWER_BYTES} bytes")
    return bytes(body)


def _json(raw: bytes) -> object:
    try:
        return orjson.loads(raw)
    except orjson.JSONDecodeError:
        return None


def _several(given: object) -> list[object]:
    return given if isinstance(given, list) else [given]


def _why(error: Exception) -> str:
    """Tell what went wrong without the whole address, which may hold a secret."""
    return error.message if isinstance(error, aiohttp.ClientResponseError) else str(error)
