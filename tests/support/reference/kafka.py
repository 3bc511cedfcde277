"""A stand-in for a sidecar of Dapr 1.18 on Kafka, by a client of another make (kafka-python).

It writes and reads what was seen of one on a broker; it shares nothing with the adapter. One thread is its consumer.
"""

from __future__ import annotations

import threading
import uuid
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Self

from kafka import ConsumerRebalanceListener, KafkaConsumer, KafkaProducer, OffsetAndMetadata, TopicPartition
from kafka.coordinator.assignors.range import RangePartitionAssignor

from tests.support.reference.envelope import enveloped

__all__ = ["Sidecar", "envelope", "publish"]

WITHIN = 60.0
RETRY_SECONDS = 5.0


def envelope(topic: str, data: object, *, app: str = "obs", pubsub: str = "kafka") -> bytes:
    """Write an event as it does."""
    trace = f"00-{uuid.uuid4().hex}-{uuid.uuid4().hex[:16]}-01"
    return enveloped(str(uuid.uuid4()), app, pubsub, topic, data, traceid=trace, traceparent=trace)


def _partition(key: str | None, count: int) -> int | None:
    if key is None:
        return None
    number = 2166136261
    for byte in key.encode():
        number = ((number ^ byte) * 16777619) % 2**32
    signed = number - 2**32 if number >= 2**31 else number
    return abs(signed) % count


def publish(server: str, topic: str, events: Sequence[tuple[object, Mapping[str, str]]]) -> None:
    """Publish data with request metadata, in order."""
    producer = KafkaProducer(bootstrap_servers=server, client_id="sarama", acks="all")
    try:
        count = len(producer.partitions_for(topic))
        sent = [
            producer.send(
                topic,
                envelope(topic, data),
                key=key if key is None else key.encode(),
                partition=_partition(key, count),
                headers=[(name, text.encode()) for name, text in metadata.items()],
            )
            for data, metadata in events
            for key in [metadata.get("partitionKey")]
        ]
        for each in sent:
            each.get(WITHIN)
    finally:
        producer.close()


class Sidecar(ConsumerRebalanceListener):  # type: ignore[misc]  # the library has no types
    """A member of a group that is subscribed to all topics of its component.

    Attributes:
        got: Topic and value of each record that its application took.
    """

    def __init__(self, server: str, group: str, topics: Sequence[str], take: Callable[[Any], bool] = bool) -> None:
        """Prepare; entering takes part.

        Args:
            server: Host and port.
            group: The application's id.
            topics: What is subscribed.
            take: The application: whether it takes a record.
        """
        self.got: list[tuple[str, bytes]] = []
        self._take = take
        self._consumer = KafkaConsumer(
            bootstrap_servers=server,
            client_id="sarama",
            group_id=group,
            enable_auto_commit=False,
            auto_offset_reset="latest",
            partition_assignment_strategy=[RangePartitionAssignor],
            session_timeout_ms=10_000,
            heartbeat_interval_ms=500,
            max_poll_records=10,
        )
        self._topics = topics
        self._consumer.subscribe(list(topics), listener=self)
        self._assigned = False
        self._joined, self._stopping = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._work)

    def __enter__(self) -> Self:
        self._thread.start()
        assert self._joined.wait(WITHIN)
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._stopping.set()
        self._thread.join()

    def on_partitions_revoked(self, revoked: object) -> None:
        """Nothing: each record is committed."""

    def on_partitions_assigned(self, assigned: Sequence[TopicPartition]) -> None:
        """Note that it takes part."""
        self._assigned = True

    def _work(self) -> None:
        try:
            for each in self._topics:  # As the leader of its group it knows what it gives out.
                self._consumer.partitions_for_topic(each)
            while not self._stopping.is_set():
                found = self._consumer.poll(timeout_ms=100)
                if self._assigned and not self._joined.is_set():
                    for at in self._consumer.assignment():
                        self._consumer.position(at)  # As a reader that is there does at once.
                    self._joined.set()
                for at, records in found.items():
                    for record in records:
                        while not self._take(record):
                            if self._stopping.wait(RETRY_SECONDS):
                                return
                        self.got.append((record.topic, record.value))
                        self._consumer.commit({at: OffsetAndMetadata(record.offset + 1, "", -1)})
        finally:
            self._consumer.close()
