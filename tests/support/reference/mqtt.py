"""A stand-in of a sidecar's MQTT component, as observed: who talks to it cannot tell it from that one.

It is written from what such a sidecar was seen to do on a server, on paho-mqtt with a thread of its own: one connection
by the application's id, an envelope as payload, an acknowledgement after success, and none at all after a failure.
"""

from __future__ import annotations

import json
import threading
import uuid
from collections.abc import Callable
from typing import Any, Self

import paho.mqtt.client as mqtt
from paho.mqtt.enums import CallbackAPIVersion

from tests.support.reference.envelope import enveloped

__all__ = ["ReferenceMQTT"]


class ReferenceMQTT:
    """One sidecar.

    Attributes:
        got: The envelopes that the application was called with.
    """

    def __init__(self, port: int, app_id: str, app: Callable[[dict[str, Any]], bool] = lambda event: True) -> None:
        """Prepare; entering connects.

        Args:
            port: The server's.
            app_id: Also the client id.
            app: The application; False is a failure.
        """
        self.got: list[dict[str, Any]] = []
        self._port, self._app_id, self._app = port, app_id, app
        self._topics: set[str] = set()
        self._connected = threading.Event()
        self._subscribed = threading.Event()
        client = mqtt.Client(CallbackAPIVersion.VERSION2, app_id, clean_session=False, manual_ack=True)
        client.on_connect = lambda *_: self._connected.set()
        client.on_subscribe = lambda *_: self._subscribed.set()
        client.on_message = self._come
        self._client = client

    def __enter__(self) -> Self:
        self._client.connect("127.0.0.1", self._port, keepalive=30)
        self._client.loop_start()
        assert self._connected.wait(30)
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._client.disconnect()
        self._client.loop_stop()

    def subscribe(self, topic: str) -> None:
        self._topics.add(topic.split("/", 2)[2] if topic.startswith("$share/") else topic)
        self._subscribed.clear()
        self._client.subscribe(topic, 1)
        assert self._subscribed.wait(30)

    def publish(self, topic: str, data: object, *, retain: bool = False) -> str:
        """Publish an event, and give its id."""
        identity = str(uuid.uuid4())
        body = enveloped(identity, self._app_id, "pubsub", topic, data)
        self._client.publish(topic, body, 1, retain).wait_for_publish(30)
        return identity

    def _come(self, client: mqtt.Client, _: object, message: mqtt.MQTTMessage) -> None:
        if not any(mqtt.topic_matches_sub(each, message.topic) for each in self._topics):
            return  # It was sent before it was subscribed to: the application is not called.
        try:
            event = json.loads(message.payload)
        except ValueError:
            return
        if not isinstance(event, dict):
            return
        self.got.append(event)
        if self._app(event):
            client.ack(message.mid, message.qos)
