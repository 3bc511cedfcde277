"""A topic's records on Kafka one after the other, of a cluster that answers as it is told to."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from types import SimpleNamespace
from typing import Any

import pytest
from aiokafka.record.default_records import DefaultRecordBatchBuilder

from brokers.kafka._cluster import LATEST
from brokers.kafka._inspection import MAX_NOTE, Records
from brokers.kafka._records import message_of
from mesh.errors import BrokerError, PublishRejectedError


def batch(*written: tuple[bytes | None, bytes | None, list[tuple[str, Any]]]) -> bytes:
    """Write records from offset 0 on: key, value and headers."""
    builder = DefaultRecordBatchBuilder(2, 0, 0, -1, -1, 0, 1024 * 1024)
    for number, (key, value, headers) in enumerate(written):
        builder.append(number, 0, key, value, headers)
    return bytes(builder.build())


class Group:
    """Keeps offsets with their notes."""

    def __init__(self) -> None:
        self.kept: dict[int, tuple[int, str]] = {}

    async def committed(self, partitions: Collection[int]) -> dict[int, tuple[int, str]]:
        return {each: self.kept[each] for each in partitions if each in self.kept}

    async def commit(self, offsets: Mapping[int, tuple[int, str]]) -> None:
        self.kept.update(offsets)


class Cluster:
    """Has so many records in each of its partitions; ``fetch`` answers with what there is of one."""

    def __init__(self, *ends: int, fetch: Callable[[int], bytes] = lambda number: b"") -> None:
        self._ends, self._fetch = ends, fetch

    def partitions(self, topic: str) -> int:
        return len(self._ends)

    def leader(self, topic: str, number: int) -> int:
        return 1

    async def offsets(self, topic: str, wanted: Mapping[int, int]) -> dict[int, int]:
        return {number: self._ends[number] if at == LATEST else 0 for number, at in wanted.items()}

    async def call(self, leader: int, request: Any, wait: float = 0.0) -> Any:
        [(topic, [(number, *_)])] = request.topics
        return SimpleNamespace(topics=[(topic, [(number, 0, 0, self._fetch(number))])])

    async def pause(self) -> None:
        pytest.fail("there is nothing to wait for")


def pile(cluster: Cluster, group: Group | None = None) -> Records:
    made: Any = cluster, group or Group()
    return Records(*made, "failed", message_of)


@pytest.mark.parametrize(
    ("key", "value", "headers", "why"),
    [
        (b"k", b"", [("a", b"1"), ("b", "é".encode())], ""),
        (None, b"\xff", [], ""),
        (b"\xff", b"v", [], "its record has a key that is no text"),
        (b"k", b"v", [("a", b"\xff")], "its record has a header that is no text"),
        (b"k", b"v", [("a", None)], "its record has a header that is no text"),
        (b"k", b"v", [("a", b"1"), ("a", b"2")], "its record has several headers of one name"),
        (b"k", None, [], "its record has no value, which is not the same as an empty one"),
    ],
)
async def test_what_a_message_cannot_hold_is_told(
    key: bytes | None, value: bytes | None, headers: list[tuple[str, Any]], why: str
) -> None:
    """So that it is not sent back as another record."""
    [letter] = [each async for each in pile(Cluster(1, fetch=lambda number: batch((key, value, headers))))]
    assert letter.altered == why


async def test_a_partition_that_gives_nothing_at_first() -> None:
    """It is asked again, and the partitions behind it are not left out."""
    answers = {0: [b"", b"", batch((None, b"a", []))], 1: [batch((None, b"b", []))]}
    found = [each.id async for each in pile(Cluster(1, 1, fetch=lambda number: answers[number].pop(0)))]
    assert found == ["0:0", "1:0"]


async def test_a_partition_that_gives_nothing() -> None:
    """Nobody takes what was seen for all there is."""
    with pytest.raises(BrokerError, match="partition 0 ends at offset 3, but nothing from offset 0 on is read"):
        [each async for each in pile(Cluster(3))]


async def test_two_that_take_records_at_once() -> None:
    """Neither makes the group forget what the other has taken meanwhile."""
    group, records = Group(), batch(*[(None, b"v", [])] * 5)
    piles = [pile(Cluster(5, fetch=lambda number: records), group) for _ in range(2)]
    first, second = [[each async for each in one] for one in piles]
    await piles[0].remove([first[0], first[3]])
    await piles[1].remove([second[1]])
    assert group.kept == {0: (2, "3")}
    await piles[0].remove([first[2]])
    assert group.kept == {0: (4, "")}


async def test_more_than_can_be_remembered_is_known_before() -> None:
    """Nothing is remembered of a try, nor of what failed."""
    group, records = Group(), batch(*[(None, b"v", [])] * (MAX_NOTE + 2))
    one = pile(Cluster(MAX_NOTE + 2, fetch=lambda number: records), group)
    every_second = [each async for each in one][1::2]
    await one.check(every_second[:10])
    for attempt in (one.check, one.remove):
        with pytest.raises(PublishRejectedError, match="out of order"):
            await attempt(every_second)
    assert group.kept == {}
    await one.remove(every_second[:1])
    assert group.kept == {0: (0, "1")}
