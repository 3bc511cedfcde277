"""``bindings.azure.storagequeues``: messages of a queue in a storage account of Azure, in and out.

A message that is handled is hidden from others for a time, which is renewed until the application has taken it; then
it is deleted. One that was not taken, or whose reader was killed, comes again when that time is over.

Source: Dapr 1.18, the Azure Storage Queues binding; the Queue service's REST reference.
"""

from __future__ import annotations

import base64
import binascii
import math
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal
from urllib.parse import urlsplit

from azure.core.exceptions import HttpResponseError
from azure.storage.queue import QueueMessage
from azure.storage.queue.aio import QueueClient

from bindings._data import sendable, text_of
from bindings._polled import AT_ONCE, polling
from bindings._service import said
from bindings.azure._binding import binding_failures, code_of
from bindings.azure._storage import StorageAdapter, StorageSettings
from mesh.blocks.binding_contract import BindingError, BindingEvent, Invoke, Reading
from mesh.resources.settings import BOOLEAN, URL, Kind, setting
from mesh.values import parse_duration, parse_whole, show_duration

__all__ = ["StorageQueueBinding", "address_of"]

LONGEST = 7 * 86_400
MAX_TTL = 2**31 - 1
TTL_SECONDS = 600.0
HELD_PART = 3  # So often a message is hidden anew within the time that it is hidden for.
_THERE = "QueueAlreadyExists"  # With other metadata.


def _within(least: float, most: float = LONGEST, *, bare: Literal["s"] | None = None) -> Callable[[str], float]:
    def parse(text: str) -> float:
        seconds = parse_duration(text, bare=bare)
        if not least <= seconds <= most:
            raise ValueError(f"is from {show_duration(least)} to {show_duration(most)}, not {text}")
        return seconds

    return parse


@dataclass(frozen=True, slots=True)
class StorageQueueSettings(StorageSettings):
    """Settings of ``bindings.azure.storagequeues``."""

    queue: str = setting(
        "queueName",
        "Name of the queue, which is made where it is not there.",
        default="",
        required=True,
        aliases=("queue", "storageAccountQueue"),
        example="orders",
    )
    url: str | None = setting(
        "endpoint",
        "URL of the queue service, if it is another than the account gives; without the account in its host or its "
        "path that is put behind it.",
        URL,
        aliases=("queueEndpoint", "queueEndpointUrl", "storageEndpoint", "storageAccountEndpoint"),
        example="http://localhost:10001",
    )
    ttl: float = setting(
        "ttlInSeconds",
        "How long messages stay in the queue, unless a call says.",
        Kind("seconds, or a duration", _within(1, MAX_TTL, bare="s")),
        default=TTL_SECONDS,
        aliases=("ttl",),
    )
    delay: float = setting(
        "initialVisibilityDelay",
        "How long a message is hidden after it was sent, unless a call says.",
        Kind("duration", _within(0)),
        default=0.0,
    )
    encode: bool = setting("encodeBase64", "Whether messages are sent as base64.", BOOLEAN, default=False)
    decode: bool = setting("decodeBase64", "Whether messages that come are base64.", BOOLEAN, default=False)
    idle: float = setting(
        "pollingInterval",
        "How long is waited after there was no message.",
        Kind("duration", _within(0.1)),
        default=10.0,
    )
    hidden: float = setting(
        "visibilityTimeout",
        "How long a message is hidden while it is handled, by times, and after it was not taken.",
        Kind("duration", _within(1)),
        default=30.0,
    )


class StorageQueueBinding(StorageAdapter):
    """A queue."""

    title = "Sends messages to a queue of Azure Storage, and takes them from there."
    settings = StorageQueueSettings
    operations = ("create",)
    _queue: QueueClient

    async def _enter(self) -> None:
        settings: StorageQueueSettings = self._settings
        self.shown = f"the Azure queue {settings.queue!r}"
        credential: Any = await self._identity() if settings.key is None else None
        if settings.key is not None:
            credential = {"account_name": settings.account, "account_key": settings.key}
        url = self._address("queue", settings.url and address_of(settings.url, settings.account))
        client = QueueClient(url, settings.queue, credential=credential, **await self._options())
        self._queue = await self._stack.enter_async_context(client)
        await self.check()

    async def check(self) -> None:
        """See that the queue is there."""
        with binding_failures(self.shown):
            try:
                await self._queue.create_queue()
            except HttpResponseError as error:
                if code_of(error) != _THERE:
                    raise

    async def invoke(self, asked: Invoke) -> None:
        """Send a message."""
        settings: StorageQueueSettings = self._settings
        data = text_of(asked.data)
        ttl, delay = _lifetime(asked.metadata, settings), _delay(asked.metadata, settings)
        if delay >= ttl:
            raise BindingError(f"initialVisibilityDelay must be shorter than ttlInSeconds, which is {ttl}")
        if settings.encode:
            message = base64.b64encode(data).decode()
        else:
            message = sendable(data, "without encodeBase64 the data for a queue")
        with binding_failures(self.shown):
            await self._queue.send_message(message, time_to_live=ttl, visibility_timeout=delay)

    @asynccontextmanager
    async def reading(self, reading: Reading) -> AsyncIterator[None]:
        """Take messages while it is entered."""
        await self.check()  # It may have been deleted.
        async with polling(_Source(self._queue, self._settings, self.shown), reading):
            yield


class _Source:
    """What `polling` asks."""

    at_once = AT_ONCE

    def __init__(self, queue: QueueClient, settings: StorageQueueSettings, shown: str) -> None:
        self._queue, self._shown = queue, shown
        self._decode = settings.decode
        self._hidden = math.ceil(settings.hidden)
        self.idle_seconds = settings.idle
        self.hold_seconds = settings.hidden / HELD_PART

    async def fetch(self, most: int) -> Sequence[QueueMessage]:
        with binding_failures(self._shown):
            asked = self._queue.receive_messages(
                messages_per_page=most, max_messages=most, visibility_timeout=self._hidden
            )
            return [each async for each in asked]

    def group(self, message: QueueMessage) -> object:
        return message.id

    def event(self, message: QueueMessage) -> BindingEvent:
        text = message.content or ""
        try:
            data = base64.b64decode("".join(text.split()), validate=True) if self._decode else text.encode()
        except (binascii.Error, ValueError):
            raise BindingError("a message is no base64, which decodeBase64 says it is") from None
        told: Mapping[str, object] = {
            "messageID": message.id,
            "popReceipt": message.pop_receipt,
            "dequeueCount": message.dequeue_count,
            "insertionTime": _instant(message.inserted_on),
            "expirationTime": _instant(message.expires_on),
            "nextVisibleTime": _instant(message.next_visible_on),
        }
        return BindingEvent(data, {name: str(value) for name, value in told.items() if value is not None})

    async def hold(self, message: QueueMessage) -> None:
        await self._hide(message, self._hidden)

    async def done(self, message: QueueMessage) -> None:
        with binding_failures(self._shown):
            await self._queue.delete_message(message.id, message.pop_receipt)

    async def again(self, message: QueueMessage, *, refused: bool) -> None:
        if not refused:  # Else it stays hidden for as long as it is now.
            await self._hide(message, 0)

    async def _hide(self, message: QueueMessage, seconds: int) -> None:
        with binding_failures(self._shown):
            changed = await self._queue.update_message(message.id, message.pop_receipt, visibility_timeout=seconds)
        message.pop_receipt = changed.pop_receipt


def address_of(url: str, account: str) -> str:
    """Complete the URL of a service of many accounts, as the emulator's."""
    parts = urlsplit(url)
    there = (parts.hostname or "").split(".")[0] == account or parts.path.strip("/").split("/")[-1] == account
    return url if there else f"{url}/{account}"


def _lifetime(metadata: Mapping[str, str], settings: StorageQueueSettings) -> int:
    text = said(metadata, "ttlInSeconds")
    try:
        return parse_whole(text, least=1, most=MAX_TTL) if text else math.ceil(settings.ttl)
    except ValueError as error:
        raise BindingError(f"ttlInSeconds is {error}") from None


def _delay(metadata: Mapping[str, str], settings: StorageQueueSettings) -> int:
    text = said(metadata, "initialVisibilityDelay")
    try:
        return math.ceil(_within(0)(text) if text else settings.delay)
    except ValueError as error:
        raise BindingError(f"initialVisibilityDelay {error}") from None


def _instant(moment: datetime | None) -> str | None:
    return None if moment is None else moment.isoformat().replace("+00:00", "Z")
