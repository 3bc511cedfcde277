"""An injector's port, which everybody in a cluster reaches: what takes long or is large keeps no pod waiting."""

from __future__ import annotations

import asyncio
import io
import ssl
import sys
from collections.abc import AsyncIterator

import aiohttp
import pytest

from bindings.kubernetes.api import Cluster
from bindings.kubernetes.injector import Injection, Injector, serving
from bindings.kubernetes.injector.serving import LARGE_BYTES, MAX_BYTES, MAX_LARGE
from tests.support.supply import root

HEAD = "POST /inject HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n{{"
REVIEW = {
    "kind": "AdmissionReview",
    "request": {"uid": "u", "operation": "CREATE", "kind": {"kind": "Pod"}, "object": {"metadata": {}, "spec": {}}},
}


@pytest.fixture
def trusting() -> ssl.SSLContext:
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE  # Whoever reaches it need not trust it.
    return context


@pytest.fixture
async def port() -> AsyncIterator[int]:
    issuing = root()
    injector = Injector(namespace="mesh-system", configuration="", host="127.0.0.1", port=0)
    async with serving(Cluster("none"), injector, Injection(image="gateway"), lambda: issuing) as port:
        yield port


async def begun(port: int, context: ssl.SSLContext, length: int) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """Begin a review that does not go on."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=context)
    writer.write(HEAD.format(length).encode())
    await writer.drain()
    return reader, writer


async def test_slow_ones_keep_no_pod_waiting_and_are_given_up(
    port: int, trusting: ssl.SSLContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    slow = [await begun(port, trusting, length) for length in [LARGE_BYTES + 1] * (MAX_LARGE + 1) + [1000] * 3]
    async with (
        asyncio.timeout(5),
        aiohttp.ClientSession(f"https://127.0.0.1:{port}") as session,
        session.post("/inject", json=REVIEW, ssl=trusting) as response,
    ):
        assert (await response.json())["response"]["allowed"] is True
    monkeypatch.setattr(sys.modules[serving.__module__], "ASKED_SECONDS", 0.05)
    reader, writer = await begun(port, trusting, 1000)
    assert (await reader.readline()).startswith(b"HTTP/1.1 408 ")
    for each in (writer, *(one for _, one in slow)):
        each.close()


async def test_what_is_too_large_is_refused(port: int, trusting: ssl.SSLContext) -> None:
    async with (
        asyncio.timeout(10),
        aiohttp.ClientSession(f"https://127.0.0.1:{port}") as session,
        session.post("/inject", data=io.BytesIO(bytes(MAX_BYTES + 1)), ssl=trusting) as response,
    ):
        assert response.status == 413
