"""What the reference's sidecar was seen to do on NATS JetStream."""

from __future__ import annotations

import json
import uuid
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from tests.support.nats_raw import RawMessage, RawNats

__all__ = ["ReferenceSidecar"]

TRACE = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


class ReferenceSidecar:
    """A sidecar with one component."""

    def __init__(self, client: RawNats, app_id: str = "ref", pubsub: str = "pubsub") -> None:
        self._client = client
        self._app_id = app_id
        self._pubsub = pubsub

    async def publish(self, topic: str, data: object) -> None:
        """Publish JSON: keys in order, nothing between them; one header."""
        identity = str(uuid.uuid4())
        envelope = {
            "data": data,
            "datacontenttype": "application/json",
            "id": identity,
            "pubsubname": self._pubsub,
            "source": self._app_id,
            "specversion": "1.0",
            "time": "2026-11-28T04:56:00Z",
            "topic": topic,
            "traceid": TRACE,
            "traceparent": TRACE,
            "tracestate": "",
            "type": "com.dapr.event.sent",
        }
        body = json.dumps(envelope, separators=(",", ":"), ensure_ascii=False).encode()
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
