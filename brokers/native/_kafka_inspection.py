"""What is on a Kafka cluster for a topic and a group, and a topic's records one after the other.

Records that were taken from a topic are remembered as in the mesh layout: by the offsets of the group ``mesh-dlq``.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from aiokafka import errors as kafka
from aiokafka.coordinator.protocol import ConsumerProtocolMemberMetadata
from aiokafka.protocol.admin import DescribeGroupsRequest
from aiokafka.protocol.coordination import FindCoordinatorRequest
from aiokafka.protocol.metadata import MetadataRequest

from brokers.kafka._cluster import Cluster, error_of
from brokers.kafka._group import Membership
from brokers.kafka._inspection import DLQ_GROUP, Records
from brokers.native._kafka_producer import BYTES
from mesh.address import Address
from mesh.broker import Message, SubscribeOptions
from mesh.errors import BrokerError
from mesh.inspection import Pile, Standing

__all__ = ["Inspection"]

_REFUSED = (kafka.TopicAuthorizationFailedError, kafka.GroupAuthorizationFailedError)


class Inspection:
    """The part of the adapter that looks on."""

    _cluster: Cluster
    _settings: Any

    async def inspect(self, address: Address, options: SubscribeOptions | None) -> Standing:
        """Look at a topic, and at a group; see ``Inspectable``."""
        topic, refused = address.label, list[str]()
        if address.is_pattern:  # Whatever fits it, now or later.
            return Standing(f"topics {topic}", exists=True)
        response = await self._cluster.ask(MetadataRequest([topic], allow_auto_topic_creation=False))
        failure = next((error_of(code) for code, name, *_ in response.topics if name == topic), kafka.UnknownError)
        if failure in _REFUSED:
            refused.append(f"topic {topic} may not be used: {failure.__name__}")
        elif failure is kafka.InvalidTopicError:
            raise BrokerError(f"Kafka has no topics like {topic[:80]!r}: letters, digits, '.', '_' and '-'")
        exists = failure is None or (failure is not kafka.UnknownTopicOrPartitionError and not refused)
        there, differs = None, ""
        if options is not None:
            there, differs = await self._group(topic, options.group, refused)
        return Standing(f"topic {topic}", exists=exists, group=there, differs=differs, refused=tuple(refused))

    async def _group(self, topic: str, name: str, refused: list[str]) -> tuple[bool, str]:
        """Tell whether a group has to do with a topic, and how its members differ from what this one would be."""
        found = await self._cluster.ask(FindCoordinatorRequest(name, 0))
        code, strategy, members = found.error_code, "", list[Any]()
        if code == 0:
            response = await self._cluster.call(found.coordinator_id, DescribeGroupsRequest([name]))
            code, _, _, _, strategy, members = response.groups[0]
        if (failure := error_of(code)) is not None:  # For one, there are no groups at all yet.
            if failure in _REFUSED:
                refused.append(f"group {name} may not be used: {failure.__name__}")
            return False, ""
        differs, wanted = "", self._settings.strategy
        if strategy and strategy != wanted:
            differs = f"group {name!r} gives out partitions by {strategy!r}, wanted {wanted!r}"
        if any(topic in _subscribed(told) for _, _, _, told, _ in members):
            return True, differs
        await self._cluster.refresh(topic)
        group = Membership(self._cluster, name, topic)
        try:
            partitions = range(self._cluster.partitions(topic))
            return bool(partitions and await group.committed(partitions)), differs
        finally:
            await group.close()

    @asynccontextmanager
    async def letters(self, address: Address) -> AsyncIterator[Pile]:
        """Go through a topic's records; what is removed is remembered by a group of our own."""
        group = Membership(self._cluster, DLQ_GROUP, address.label)
        try:
            await self._cluster.refresh(address.label)
            yield Records(self._cluster, group, address.label, _message_of)
        finally:
            await group.close()


def _subscribed(told: bytes) -> list[str]:
    """Read which topics a member asks for; nothing in a round that is not over, or of another kind of member."""
    try:
        return list(ConsumerProtocolMemberMetadata.decode(told).subscription)
    except (ValueError, TypeError, AttributeError):
        return []


def _message_of(record: Any) -> Message:
    """Read a record as it could be published again: where it lies is not part of it."""
    headers = {name: (value or b"").decode(errors="replace") for name, value in record.headers}
    key = None if record.key is None else record.key.decode(errors=BYTES)
    return Message(headers, record.value or b"", key)
