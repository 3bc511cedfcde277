"""A question to a service beside a broker, by HTTP; its answer is bounded in size and in time."""

from __future__ import annotations

import ssl
from base64 import b64encode
from collections.abc import Mapping
from urllib.parse import urlsplit

__all__ = ["ask", "shown"]

ANSWER_SECONDS = 10.0
MAX_ANSWER_BYTES = 1024 * 1024


def shown(url: str) -> str:
    """Give a URL without what may be secret in it."""
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"


async def ask(
    url: str,
    *,
    form: Mapping[str, str] | None = None,
    auth: tuple[str, str] | None = None,
    tls: ssl.SSLContext | None = None,
) -> tuple[int, bytes]:
    """Ask, and give the status and the body.

    Args:
        url: Where.
        form: What is posted; None = a GET.
        auth: A user and its password (RFC 7617).
        tls: Whom to trust; None = whom the system trusts.

    Raises:
        ConnectionError: It does not answer, or with too much.
    """
    from aiohttp import ClientError, ClientSession, ClientTimeout, TCPConnector

    method = "GET" if form is None else "POST"
    headers = {"Accept": "application/json"}
    if auth is not None:
        headers["Authorization"] = f"Basic {b64encode(':'.join(auth).encode()).decode()}"
    try:
        async with (
            ClientSession(connector=TCPConnector(ssl=tls or True), timeout=ClientTimeout(ANSWER_SECONDS)) as session,
            session.request(method, url, data=form, headers=headers, allow_redirects=False) as answer,
        ):
            body = bytearray()
            async for part in answer.content.iter_chunked(64 * 1024):
                body += part
                if len(body) > MAX_ANSWER_BYTES:
                    raise ConnectionError(f"{shown(url)} answers with more than {MAX_ANSWER_BYTES} bytes")
            return answer.status, bytes(body)
    except (ClientError, TimeoutError, ValueError) as error:
        raise ConnectionError(f"{shown(url)}: {str(error) or 'it does not answer'}") from error
