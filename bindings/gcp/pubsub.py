"""``bindings.gcp.pubsub``: messages of Google Cloud Pub/Sub, in and out.

A message that is handled is leased for 20 seconds, which are renewed until the application has taken it; then it is
acknowledged. What a reader that was killed held comes again when they are over. Messages of one ordering key are
handed over one after the other.

Source: Dapr 1.18, the GCP Pub/Sub binding; Pub/Sub's REST reference, v1.
"""

from __future__ import annotations

import base64
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

from bindings._polled import AT_ONCE, polling
from bindings._service import said
from brokers.clients.gcp import GCPAdapter, GCPSettings
from brokers.clients.gcp_pubsub import PubSubService, endpoint_setting
from mesh.blocks.binding_contract import BindingError, BindingEvent, Invoke, Reading
from mesh.resources.settings import setting

__all__ = ["PubSubBinding"]

IDLE_SECONDS = 0.1  # Asked for messages, the service waits itself.
LEASE_SECONDS = 20
RENEW_SECONDS = 4.0  # A subscription's own lease has at least ten.


@dataclass(frozen=True, slots=True)
class PubSubSettings(GCPSettings):
    """Settings of ``bindings.gcp.pubsub``."""

    topic: str | None = setting(
        "topic", "Name of the topic that messages are sent to, unless a call says.", example="orders", suggested=True
    )
    subscription: str | None = setting(
        "subscription", "Name of the subscription that messages are taken from.", example="shop-orders", suggested=True
    )
    endpoint: str = endpoint_setting()


class PubSubBinding(GCPAdapter):
    """A topic and a subscription."""

    title = "Sends messages to a topic of Google Cloud Pub/Sub, and takes those of a subscription."
    tested = "Google's own stand-in for Pub/Sub; never ran against the real service"
    settings = PubSubSettings
    operations = ("create",)

    def __init__(self, settings: PubSubSettings) -> None:
        """Prepare; entering connects."""
        super().__init__(settings)
        self._service = PubSubService(settings, settings.endpoint, BindingError, partial(BindingError, retryable=True))
        self.ask = self._service.ask
        self.directions = ("input", "output") if settings.subscription else ("output",)

    async def _enter(self) -> None:
        await self._stack.enter_async_context(self._service)
        if self._service.project is None:
            raise self._problem("no project is known: set project_id")

    async def invoke(self, asked: Invoke) -> None:
        """Publish the data as they are."""
        topic = said(asked.metadata, "topic") or self._settings.topic
        if not topic:
            raise BindingError("no topic is known: set topic, in the component or in the metadata")
        message = {"data": base64.b64encode(asked.data).decode()}
        if key := said(asked.metadata, "orderingKey"):
            message["orderingKey"] = key
        await self.ask("topics", topic, "publish", {"messages": [message]})

    @asynccontextmanager
    async def reading(self, reading: Reading) -> AsyncIterator[None]:
        """Take messages while it is entered."""
        if not self._settings.subscription:
            raise BindingError("no subscription is known: set subscription")
        async with polling(_Source(self, self._settings.subscription), reading):
            yield


class _Source:
    """What `polling` asks."""

    idle_seconds = IDLE_SECONDS
    hold_seconds = RENEW_SECONDS
    at_once = AT_ONCE

    def __init__(self, service: PubSubBinding, subscription: str) -> None:
        self._ask = partial(service.ask, "subscriptions", subscription)

    async def fetch(self, most: int) -> Sequence[Mapping[str, Any]]:
        answer = await self._ask("pull", {"maxMessages": most})
        return [*answer.get("receivedMessages", ())]

    def group(self, message: Mapping[str, Any]) -> object:
        key = message["message"].get("orderingKey")
        return ("key", key) if key else ("one", message["ackId"])

    def event(self, message: Mapping[str, Any]) -> BindingEvent:
        """Read a message; its attributes are told besides."""
        given = message["message"]
        told = {str(name): str(value) for name, value in given.get("attributes", {}).items()}
        if key := given.get("orderingKey"):
            told["orderingKey"] = str(key)
        told |= {"id": str(given.get("messageId", "")), "publishTime": _as_go(str(given.get("publishTime", "")))}
        return BindingEvent(base64.b64decode(given.get("data", "")), told)

    async def hold(self, message: Mapping[str, Any]) -> None:
        await self._lease(message, LEASE_SECONDS)

    async def done(self, message: Mapping[str, Any]) -> None:
        await self._ask("acknowledge", {"ackIds": [message["ackId"]]})

    async def again(self, message: Mapping[str, Any], *, refused: bool) -> None:
        """Give it back; without a policy of the subscription it would come at once, so it is kept for a while."""
        attempt = int(message.get("deliveryAttempt", 1))
        await self._lease(message, min(LEASE_SECONDS, 2 ** min(attempt - 1, 5)) if refused else 0)

    async def _lease(self, message: Mapping[str, Any], seconds: int) -> None:
        await self._ask("modifyAckDeadline", {"ackIds": [message["ackId"]], "ackDeadlineSeconds": seconds})


def _as_go(instant: str) -> str:
    """Write a time of the service as Go's own text of it, which applications of Dapr know."""
    date, _, rest = instant.removesuffix("Z").partition("T")
    return f"{date} {rest.rstrip('0').rstrip('.') if '.' in rest else rest} +0000 UTC"
