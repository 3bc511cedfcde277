"""What is tested of every broker, on topics as everybody has them: gateways with another backbone, and a component."""

from __future__ import annotations

import pytest

from tests.faults.conftest import Figures, Site
from tests.faults.test_every_broker import (
    a_silent_connection_is_left,
    test_a_connection_is_cut_in_the_middle_of_acks,
    test_a_connection_is_cut_in_the_middle_of_publishes,
    test_instances_join_and_leave_while_handlers_run,
    test_the_broker_is_killed_twice,
    test_the_publishers_gateway_is_killed_twice,
    test_the_subscribers_gateway_is_killed_twice,
)

__all__ = [
    "test_a_connection_is_cut_in_the_middle_of_acks",
    "test_a_connection_is_cut_in_the_middle_of_publishes",
    "test_instances_join_and_leave_while_handlers_run",
    "test_the_broker_is_killed_twice",
    "test_the_publishers_gateway_is_killed_twice",
    "test_the_subscribers_gateway_is_killed_twice",
]

EVERYWHERE = ("nats-native", "redis-native", "rabbitmq-native", "kafka-native", "mqtt-native")
ORDINARY = ("redis-native",)  # tests/native has faults of its own for each.
# MQTT confirms what is in memory alone, and a session with all that is in it belongs to one instance.
LEFT_OUT = {
    "test_the_broker_is_killed_twice": ("mqtt-native",),
    "test_instances_join_and_leave_while_handlers_run": ("mqtt-native",),
}


@pytest.mark.slow
async def test_a_silent_connection_is_left(site: Site, figures: Figures) -> None:
    """After as long as the adapter waits for a sign of life."""
    await a_silent_connection_is_left(site, figures)
