"""What is declared on the server: per space, per group, per delay.

Every queue of events is a quorum queue whose messages expire with the space's age limit, which
refuses when it is full, and which has a dead letter queue. ``x-delivery-limit`` is set, and high:
without one, RabbitMQ puts a returned message at the end of the queue, and 4.0 and later drop it
after 20 deliveries.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable

from brokers.rabbitmq import _wire as wire
from brokers.rabbitmq._connection import Connection, RefusedError
from brokers.rabbitmq._names import FRAMES, KEYED_LANES, NO_LANE, bindings, exchange_name, queue_name
from mesh.address import Address
from mesh.broker import SubscribeOptions, Topology
from mesh.errors import BrokerError, TopologyMismatchError

__all__ = ["FRAMES_EXCHANGE", "declare", "declare_again", "group_lanes", "retry_queue", "unclaimed_queue"]

logger = logging.getLogger("brokers.rabbitmq")

PRECONDITION_FAILED = 406
DELIVERY_LIMIT = 1_000_000
DEAD_BYTES = 256 * 1024 * 1024
DEFAULT_EXPIRES = 24 * 3600.0

FRAMES_EXCHANGE = wire.exchange_declare(FRAMES)


def unclaimed_queue(space: str) -> str:
    """Name the queue of events that no group of a space asked for yet."""
    return f"{exchange_name(space)}:unclaimed"


def _dead(space: str) -> str:
    return f"{exchange_name(space)}:dead"


def _queue(topology: Topology, **arguments: object) -> wire.Table:
    """Give the arguments of a queue that holds events of a space."""
    found: dict[str, object] = {
        "x-queue-type": "quorum",
        "x-delivery-limit": DELIVERY_LIMIT,
        "x-overflow": "reject-publish",
        "x-dead-letter-exchange": _dead(topology.space),
        "x-dead-letter-strategy": "at-least-once",
        **arguments,
    }
    if topology.max_age is not None:
        found["x-message-ttl"] = int(topology.max_age * 1000)
    if topology.max_bytes is not None:
        found["x-max-length-bytes"] = topology.max_bytes
    if topology.max_events is not None:
        found["x-max-length"] = topology.max_events
    if topology.replicas > 1:
        found["x-quorum-initial-group-size"] = topology.replicas
    return found
