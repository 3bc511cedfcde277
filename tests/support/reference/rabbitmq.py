"""A stand-in for a sidecar of Dapr 1.18 on RabbitMQ, by a client of another make (pika).

It declares, writes and reads what was seen of one on a broker; it shares nothing with the adapter. One thread is its
consumer.
"""

from __future__ import annotations

import threading
import uuid
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Self

import pika
import pika.exceptions
from pika.adapters.blocking_connection import BlockingChannel

from tests.support.reference.envelope import enveloped

__all__ = ["Sidecar", "envelope", "publish"]

WITHIN = 60.0


def envelope(topic: str, data: object) -> bytes:
    """Write an event as it does."""
    return enveloped(str(uuid.uuid4()), "obs", "rabbit", topic, data)


def _exchange(channel: BlockingChannel, topic: str, deleted: bool) -> None:
    channel.exchange_declare(topic, "fanout", durable=True, auto_delete=deleted)


def publish(url: str, topic: str, events: Sequence[tuple[object, Mapping[str, Any]]], *, deleted: bool = True) -> None:
    """Publish data with properties, in order; transient, as it does."""
    with pika.BlockingConnection(pika.URLParameters(url)) as connection:
        channel = connection.channel()
        channel.confirm_delivery()
        _exchange(channel, topic, deleted)
        for data, properties in events:
            said = pika.BasicProperties(content_type="text/plain", **properties)
            channel.basic_publish(topic, "", envelope(topic, data), said)


class Sidecar:
    """A member of a group.

    Attributes:
        got: The body of each message that its application took.
    """

    def __init__(
        self,
        url: str,
        group: str,
        topic: str,
        take: Callable[[bytes], bool] = bool,
        *,
        deleted: bool = True,
    ) -> None:
        """Prepare; entering takes part.

        Args:
            url: Of the server.
            group: The application's id.
            topic: What is subscribed.
            take: The application: whether it takes a message.
            deleted: Its setting ``deletedWhenUnused``.
        """
        self.got: list[bytes] = []
        self.error: pika.exceptions.AMQPError | None = None
        self._url, self._topic, self._queue, self._deleted = url, topic, f"{group}-{topic}", deleted
        self._take = take
        self._joined, self._stopping = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._work)

    def __enter__(self) -> Self:
        self._thread.start()
        assert self._joined.wait(WITHIN)
        if self.error is not None:
            self._thread.join()
            raise self.error
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._stopping.set()
        self._thread.join()

    def _work(self) -> None:
        try:
            with pika.BlockingConnection(pika.URLParameters(self._url)) as connection:
                self._consume(connection, connection.channel())
        except pika.exceptions.AMQPError as error:
            self.error = error
        finally:
            self._joined.set()

    def _consume(self, connection: pika.BlockingConnection, channel: BlockingChannel) -> None:
        _exchange(channel, self._topic, self._deleted)
        arguments = {"x-queue-type": "classic"}
        channel.queue_declare(self._queue, durable=True, auto_delete=self._deleted, arguments=arguments)
        channel.queue_bind(self._queue, self._topic, "")
        channel.basic_consume(self._queue, self._receive, consumer_tag=f"{self._queue}-{uuid.uuid4()}")
        self._joined.set()
        while not self._stopping.is_set():
            connection.process_data_events(0.05)

    def _receive(self, channel: BlockingChannel, method: Any, _: object, body: bytes) -> None:
        if self._take(body):
            self.got.append(body)
            channel.basic_ack(method.delivery_tag)
        else:
            channel.basic_nack(method.delivery_tag, requeue=False)
