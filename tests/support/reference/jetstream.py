"""A stand-in of the reference sidecar on NATS JetStream, made from what was seen of it alone, on its own client."""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from tests.support.nats_raw import RawMessage, RawNats
from tests.support.reference.envelope import enveloped

__all__ = ["ReferenceSidecar"]


class ReferenceSidecar:
    """A sidecar with one component."""

    def __init__(self, client: RawNats, app_id: str = "ref", pubsub: str = "pubsub") -> None:
        self._client = client
        self._app_id = app_id
        self._pubsub = pubsub

    async def publish(self, topic: str, data: object) -> None:
        """Publish JSON: keys in order, nothing between them; one header."""
        identity = str(uuid.uuid4())
        body = enveloped(identity, self._app_id, self._pubsub, topic, data)
        await self._client.store(topic, body, {"Nats-Msg-Id": identity})

    @asynccontextmanager
    async def subscribed(
        self, stream: str, topic: str, handle: Callable[[RawMessage], bool], *, durable: str = "", queue: str = ""
    ) -> AsyncIterator[None]:
        """Hand the application what a push consumer delivers; what it refuses comes again at once."""
        config: dict[str, object] = {
            "ack_policy": "explicit",
            "deliver_policy": "all",
            "deliver_subject": f"_INBOX.{uuid.uuid4().hex}",
            "filter_subject": topic,
        }
        if durable:
            config["durable_name"] = durable
            made = f"DURABLE.CREATE.{stream}.{durable}"
        else:
            config["inactive_threshold"] = 5_000_000_000
            made = f"CREATE.{stream}"
        if queue:
            config["deliver_group"] = queue
        there = await self._client.api(f"CONSUMER.INFO.{stream}.{durable}") if durable else {"error": {}}
        if "error" in there:
            there = await self._client.api(f"CONSUMER.{made}", {"stream_name": stream, "config": config})
            assert "error" not in there, there
        found = there["config"]
        assert (found.get("deliver_group", ""), found["filter_subject"]) == (queue, topic)

        def take(message: RawMessage) -> None:
            self._client.send(message.reply, b"+ACK" if handle(message) else b"-NAK")

        number = self._client.subscribe(found["deliver_subject"], take, queue)
        try:
            yield
        finally:
            await self._client.unsubscribe(number)
