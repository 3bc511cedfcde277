"""Rows of what others post to: webhooks, by a service that posts an event again until it was taken."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from urllib.parse import urlencode

import aiohttp
import orjson

from bindings._signatures import twilio_signature
from tests.support.bindings.rows import InputKind, OutputKind, ServedInput
from tests.support.processes import free_port

__all__ = ["INPUTS", "OUTPUTS"]

AGAIN_SECONDS = 0.05
URL = "https://shop.example.com/sms"
Signed = Callable[[bytes], tuple[bytes, Mapping[str, str]]]


@asynccontextmanager
async def sender(url: str, signed: Signed) -> AsyncIterator[Callable[[bytes], Awaitable[None]]]:
    """Give what has an event posted from now on, until somebody has taken it; some at once, as services do."""
    async with aiohttp.ClientSession() as session, asyncio.TaskGroup() as tasks:
        slots = asyncio.Semaphore(20)

        async def post(event: bytes) -> None:
            body, headers = signed(event)
            while True:
                try:
                    async with slots, session.post(url, data=body, headers=headers) as response:
                        if 200 <= response.status < 300:
                            return
                except aiohttp.ClientError:
                    pass  # Nobody listens.
                await asyncio.sleep(AGAIN_SECONDS)

        posting: set[asyncio.Task[None]] = set()

        async def emit(event: bytes) -> None:
            posting.add(tasks.create_task(post(event)))

        try:
            yield emit
        finally:
            for task in posting:
                task.cancel()


@asynccontextmanager
async def _webhook(directory: Path) -> AsyncIterator[ServedInput]:
    port = free_port()

    def signed(event: bytes) -> tuple[bytes, Mapping[str, str]]:
        return event, {"X-Hub-Signature-256": "sha256=" + hmac.new(b"s3cret", event, hashlib.sha256).hexdigest()}

    async with sender(f"http://127.0.0.1:{port}/hook", signed) as emit:
        settings = {"port": str(port), "path": "/hook", "signature": "github", "secret": "s3cret"}
        yield ServedInput(settings, emit)


@asynccontextmanager
async def _sms(directory: Path) -> AsyncIterator[ServedInput]:
    port = free_port()

    def signed(event: bytes) -> tuple[bytes, Mapping[str, str]]:
        fields = [("Body", event.decode()), ("From", "+15550100")]
        headers = {
            "X-Twilio-Signature": twilio_signature(URL, fields, "t0ken"),
            "Content-Type": "application/x-www-form-urlencoded",
        }
        return urlencode(fields).encode(), headers

    async with sender(f"http://127.0.0.1:{port}/", signed) as emit:
        settings = {"port": str(port), "publicUrl": URL, "authToken": "t0ken"}
        yield ServedInput(settings, emit, read=lambda data: str(orjson.loads(data)["Body"]).encode())


OUTPUTS: Mapping[str, OutputKind] = {}
INPUTS: Mapping[str, InputKind] = {
    "webhook": InputKind("bindings.webhook", _webhook),
    "twilio.sms": InputKind("bindings.twilio.sms", _sms),
}
