"""``bindings.aws.kinesis``: records of an Amazon Kinesis data stream, in and out.

The shards of a stream are read each by one node of the mesh at a time, in order: a record after the application has
taken the one before. How far that is, is noted in the mesh's own store, for each consumer and shard. A shard that came
of others, by resharding, is read when those have been read to their ends. A consumer that is new begins with what
comes after it was there for the first time.

Source: Dapr 1.18, the AWS Kinesis binding; the Amazon Kinesis Data Streams API Reference and Developer Guide.
"""

from __future__ import annotations

import asyncio
import email.utils
import time
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar
from uuid import uuid4

import msgspec
from botocore.exceptions import ClientError

from bindings._in_order import InOrder, Notes, patiently
from bindings.aws._binding import AWSBinding
from brokers.clients.aws import AWSSettings
from mesh.blocks.binding_contract import BindingEvent, Invoke, Reading
from mesh.ownership.turns import in_turn
from mesh.resources.settings import Setting, ignored, setting
from mesh.store import StateStore
from mesh.tasks import task_group

if TYPE_CHECKING:
    from mesh.ownership.asking import Owners

__all__ = ["KinesisBinding"]

BATCH = 100
IDLE_SECONDS = 1.0  # A shard answers five times a second, to all its readers together.
BUSY_SECONDS = 0.2
LOOK_SECONDS = 10.0
LONGEST_RETENTION = 366 * 86_400.0
EXPIRED = "ExpiredIteratorException"


@dataclass(frozen=True, slots=True, kw_only=True)
class KinesisSettings(AWSSettings):
    """Settings of ``bindings.aws.kinesis``."""

    ignored: ClassVar[tuple[Setting, ...]] = (
        *AWSSettings.ignored,
        *ignored("the stream is read with shared throughput", "mode", "kinesisConsumerMode", anyway=("shared",)),
    )

    stream: str = setting("streamName", "The name of the stream, which must be there.", required=True, example="clicks")
    consumer: str = setting(
        "consumerName",
        "For whom it is noted what was read; if not set, each application for itself.",
        default="",
        example="shop",
    )
    partition_key: str = setting(
        "partitionKey",
        "Tells the shard of a record whose call has no `partitionKey`; if not set, one is made up for each.",
        default="",
    )


class Mark(msgspec.Struct, frozen=True, omit_defaults=True):
    """How far a shard has been read.

    Attributes:
        after: The sequence number of the last record that was taken; empty = none was yet.
        ended: Whether the shard is closed, and read to its end.
    """

    after: str = ""
    ended: bool = False

    def before(self, other: Mark) -> bool:
        """Tell whether the other one is further."""
        return (self.ended, int(self.after or "0")) < (other.ended, int(other.after or "0"))


class KinesisBinding(AWSBinding):
    """A stream."""

    title = "Sends records to an Amazon Kinesis data stream, and reads them, each shard in order."
    tested = "moto's server, and one written by hand for shards that end; never ran against the real service"
    settings = KinesisSettings
    service = "kinesis"

    def __init__(self, settings: KinesisSettings) -> None:
        """Prepare; entering connects."""
        super().__init__(settings)
        self._records: StateStore
        self.owners: Owners

    def remember_in(self, name: str, records: StateStore) -> None:
        """Note there how far shards were read."""
        self._records = records

    def share_by(self, owners: Owners, timers: StateStore) -> None:
        """Read each shard at one host at a time."""
        self.owners = owners

    async def check(self) -> None:
        """Ask whether the stream is there."""
        await self.summary()

    async def summary(self) -> Mapping[str, Any]:
        """Ask what the stream is, with ``now``, the service's clock."""
        answer = await self.call("describe_stream_summary", StreamName=self._settings.stream)
        said = answer["ResponseMetadata"]["HTTPHeaders"].get("date")
        now = email.utils.parsedate_to_datetime(said).timestamp() if said else time.time()
        return {**answer["StreamDescriptionSummary"], "now": now}

    @property
    def _shown(self) -> str:
        return f"the Kinesis stream {self._settings.stream!r}"

    async def invoke(self, asked: Invoke) -> None:
        """Send the data as they are."""
        key = asked.metadata.get("partitionKey") or self._settings.partition_key or str(uuid4())
        await self.call("put_record", StreamName=self._settings.stream, Data=asked.data, PartitionKey=key)

    @asynccontextmanager
    async def reading(self, reading: Reading) -> AsyncIterator[None]:
        """Read the shards while it is entered."""
        group = self._settings.consumer or reading.app_id
        stream = await self.summary()
        # A stream that was deleted and made again has other records.
        place = f"{self._settings.stream}||{stream['StreamCreationTimestamp'].timestamp():.0f}||{group}"
        reader = _Reader(self, reading, Notes(self._records, place, Mark()))
        await reader.begin(stream["now"])
        async with task_group() as tasks:
            looking = tasks.create_task(reader.look(tasks), name="kinesis-look")
            try:
                yield
            finally:
                looking.cancel()
                reader.leave()

    async def shards(self) -> Sequence[Mapping[str, Any]]:
        """List the shards, with those that are closed and still have records."""
        found: list[Mapping[str, Any]] = []
        async for page in self.pages("list_shards", StreamName=self._settings.stream):
            found += page["Shards"]
        return found

    async def iterator(self, shard: str, mark: Mark, since: float) -> str:
        """Begin to read a shard."""
        at: dict[str, Any] = {"ShardIteratorType": "AT_TIMESTAMP", "Timestamp": datetime.fromtimestamp(since, UTC)}
        if mark.after:
            at = {"ShardIteratorType": "AFTER_SEQUENCE_NUMBER", "StartingSequenceNumber": mark.after}
        answer = await self.call("get_shard_iterator", StreamName=self._settings.stream, ShardId=shard, **at)
        return str(answer["ShardIterator"])

    async def batch(self, iterator: str) -> Mapping[str, Any] | None:
        """Read some records; None = too much time went by, a new iterator is needed."""
        try:
            return await self.call("get_records", passes=(EXPIRED,), ShardIterator=iterator, Limit=BATCH)
        except ClientError:
            return None


class _Reader:
    """Reads the shards for one consumer.

    Attributes:
        since: The time from which on records are read, where nothing is noted of a shard.
        leaving: Set when nothing further is to be taken.
    """

    def __init__(self, binding: KinesisBinding, reading: Reading, notes: Notes[Mark]) -> None:
        self._binding, self._reading, self._notes = binding, reading, notes
        self._shards: dict[str, _Shard] = {}
        self._again = asyncio.Event()
        self.leaving = asyncio.Event()
        self.since = 0.0

    async def begin(self, now: float) -> None:
        """Find out since when this consumer reads: the first time it is now."""
        key = self._notes.key("since")
        while (found := await self._notes.records.get(key, strong=True)) is None:
            await self._notes.first(key, now)
        self.since = msgspec.json.decode(found.value, type=float)

    async def look(self, tasks: asyncio.TaskGroup) -> None:
        """Begin with each shard that can be read; look again from time to time, and when one has ended."""
        while True:
            self._again.clear()
            listed = {str(each["ShardId"]): each for each in await patiently(self._binding.shards)}
            for name, each in listed.items():
                parents = listed.keys() & {each.get("ParentShardId"), each.get("AdjacentParentShardId")}
                if name not in self._shards and await patiently(partial(self._ready, name, parents)):
                    shown = f"{name} of the Kinesis stream"
                    in_order = InOrder(self._notes, name, self._reading, self.leaving, shown)
                    made = self._shards[name] = _Shard(self._binding, name, in_order, self.since)
                    made.task = tasks.create_task(self._read(made), name="kinesis-shard")
            with suppress(TimeoutError):
                async with asyncio.timeout(LOOK_SECONDS):
                    await self._again.wait()

    async def _ready(self, name: str, parents: Iterable[str]) -> bool:
        """Tell whether a shard has something to read, and those that it came of have nothing any more."""
        if (await self._notes.read(name)).ended:
            return False
        for parent in parents:
            if not (await self._notes.read(parent)).ended:
                return False
        return True

    async def _read(self, shard: _Shard) -> None:
        """Read a shard to its end, when nobody else does; then others may have come of it."""
        key = f"{self._reading.component}||{self._notes.key(shard.name)}"
        await in_turn(self._binding.owners, key, shard.read, self.leaving)
        del self._shards[shard.name]
        self._again.set()

    def leave(self) -> None:
        """Take nothing further; what is being handled is waited for."""
        self.leaving.set()
        for shard in self._shards.values():
            if not shard.in_order.handling:
                shard.task.cancel()


class _Shard:
    """Reads one shard.

    Attributes:
        name: Its id.
        in_order: Hands its records over.
        task: Reads it.
    """

    task: asyncio.Task[None]

    def __init__(self, binding: KinesisBinding, name: str, in_order: InOrder[Mark], since: float) -> None:
        self._binding, self.name, self.in_order, self._since = binding, name, in_order, since

    async def read(self) -> None:
        """Read on from where it was read to, until it ends."""
        in_order = self.in_order
        await in_order.begin()
        iterator: str | None = None
        while not in_order.mark.ended and not in_order.leaving.is_set():
            if iterator is None:
                iterator = await patiently(self._begin)
            answer = await patiently(partial(self._binding.batch, iterator))
            if answer is None:
                iterator = None
                continue
            iterator = answer.get("NextShardIterator")
            with in_order.whole():
                if await in_order.take(map(self._event, answer["Records"])) and iterator is None:
                    in_order.mark = Mark(in_order.mark.after, ended=True)
                ended = in_order.mark.ended
                await in_order.note(LONGEST_RETENTION if ended else None, must=ended)
            await asyncio.sleep(BUSY_SECONDS if answer["Records"] else IDLE_SECONDS)

    async def _begin(self) -> str:
        return await self._binding.iterator(self.name, self.in_order.mark, self._since)

    def _event(self, record: Mapping[str, Any]) -> tuple[BindingEvent, Mark]:
        number = str(record["SequenceNumber"])
        told = {"partitionKey": str(record["PartitionKey"]), "sequenceNumber": number, "shardId": self.name}
        return BindingEvent(bytes(record["Data"]), told), Mark(number)
