"""Records: batches to be sent, and what a fetch brought."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from typing import Any

from aiokafka.errors import CorruptRecordException
from aiokafka.protocol.fetch import FetchRequest
from aiokafka.record.default_records import DefaultRecordBatchBuilder
from aiokafka.record.memory_records import MemoryRecords

from mesh.broker import Message

__all__ = ["ID", "apart", "fetch_request", "fetched", "message_of", "new_batch", "records"]

ID = ":id"  # The header of `Message.id`; no header of a message holds a colon.
BATCH_BYTES = 512 * 1024
FETCH_BYTES = 8 * 1024 * 1024
PARTITION_FETCH_BYTES = 1024 * 1024


def new_batch() -> Any:
    """Begin a batch."""
    return DefaultRecordBatchBuilder(2, 0, 0, -1, -1, 0, BATCH_BYTES)


def fetch_request(wanted: list[tuple[str, list[tuple[int, int]]]], wait: float) -> FetchRequest:
    """Ask for what follows some offsets.

    Args:
        wanted: Topics, each with its partitions and offsets.
        wait: Seconds that the broker waits for the first byte.
    """
    topics = [
        (topic, [(partition, offset, PARTITION_FETCH_BYTES) for partition, offset in parts]) for topic, parts in wanted
    ]
    return FetchRequest(int(wait * 1000), 1, FETCH_BYTES, 0, topics)


def fetched(response: Any) -> Iterator[tuple[str, int, int, bytes]]:
    """Give topic, partition, error code and raw records."""
    for topic, partitions in response.topics:
        for part in partitions:
            yield topic, part[0], part[1], part[-1]


def records(raw: bytes, offset: int) -> tuple[Iterator[Any], int]:
    """Give the records from an offset on, each read when it is asked for, and the offset to go on from."""
    found, top = _batches(raw, offset)
    return _read(found, offset), top


def apart(raw: bytes, offset: int) -> tuple[Iterator[Iterator[Any]], int]:
    """Give the same, batch by batch: what cannot be read of one, which is one producer's, is in no other's way."""
    found, top = _batches(raw, offset)
    return (_read(deque((batch,)), offset) for batch in found), top


def _batches(raw: bytes, offset: int) -> tuple[deque[Any], int]:
    found: deque[Any] = deque()
    top = offset
    batches = MemoryRecords(raw)
    while batches.has_next():
        batch = batches.next_batch()
        top = max(top, batch.next_offset)
        if not batch.is_control_batch:
            found.append(batch)
    return found, top


def _read(batches: deque[Any], offset: int) -> Iterator[Any]:
    """Read one batch after the other: only one of them is checked and decompressed at a time."""
    while batches:
        batch = batches.popleft()
        if not batch.validate_crc():
            raise CorruptRecordException("a batch does not match its checksum")
        for record in batch:
            if record.offset >= offset:
                yield record


def message_of(record: Any) -> Message:
    """Read a record as the message that was published; what somebody else wrote is read as well as it can be."""
    headers: dict[str, str]
    try:
        headers = {name: value.decode() for name, value in record.headers}
    except (AttributeError, UnicodeDecodeError):
        headers = {name: (value or b"").decode("utf-8", "replace") for name, value in record.headers}
    identity = headers.pop(ID, None)
    key = record.key.decode("utf-8", "replace") if record.key is not None else None
    return Message(headers, record.value or b"", key, identity)
