"""What is tested of every broker, on topics as everybody has them: gateways with another backbone, and a component."""

from __future__ import annotations

from tests.faults.test_every_broker import (
    test_the_broker_is_killed_twice,
    test_the_publishers_gateway_is_killed_twice,
    test_the_subscribers_gateway_is_killed_twice,
)

__all__ = [
    "test_the_broker_is_killed_twice",
    "test_the_publishers_gateway_is_killed_twice",
    "test_the_subscribers_gateway_is_killed_twice",
]

EVERYWHERE = ("nats-native", "redis-native", "rabbitmq-native", "kafka-native")
ORDINARY = ("redis-native",)  # tests/native has faults of its own for each.
