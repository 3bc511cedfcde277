"""How an instance is stored: one record, and what lies beside it because it is large.

The record has the state and the end of the history, so that an ordinary turn replaces one value of a few KiB. What is
beyond that lies beside it, each under a key of its own, and is written before the record that refers to it:

- a *chunk* (``c``) has the next part of the history, and is never written again: the record has what comes behind;
- a *blob* (``b``) is a part of one large event, in whose place a reference stands;
- a *slot* (``s``) is a part of a state that is large itself; there are two, written in turn, since a state changes.

All three belong to one generation of the instance. What a crash left there, the record does not refer to: it is written
over. Keys are dotted paths: of the kind of the partitions, the partition, and the instance.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, islice

import msgspec
from msgspec.structs import replace

from mesh.address import decode_token, encode_token
from mesh.workflows.errors import WorkflowUnreadableError
from mesh.workflows.events import AnyEvent, Completed, Event, Stalled, Started
from mesh.workflows.state import State, Status, Step, View

__all__ = [
    "ENDED",
    "FIRST",
    "FORMAT",
    "BlobRef",
    "Garbage",
    "Kept",
    "Keys",
    "Old",
    "Plan",
    "Record",
    "Spilled",
    "blob",
    "chunk",
    "decode",
    "emptied",
    "instance_of",
    "kept_of",
    "plan",
    "put_away",
    "read_chunk",
    "read_event",
    "read_state",
    "slot_part",
    "unreadable",
    "view_of",
]

FORMAT = 1
ENDED = "wfd."  # What the keys begin with of what has been put away, of any kind.
TAIL_BYTES = 16 * 1024
TAIL_EVENTS = 256
LARGE_BYTES = 32 * 1024  # An event of more lies beside the record.
STATE_BYTES = 128 * 1024
CHUNK_BYTES = 128 * 1024
PART_BYTES = 256 * 1024
GARBAGE = 100  # Generations whose chunks may be waiting to be deleted; a purge finds those of more.
FIRST = 8  # Among so many events of a history is its `Started`.


class BlobRef(Event, frozen=True, array_like=True, tag=200):
    """Stands for an event that is large: its blobs are ``count`` from number ``first`` on."""

    first: int
    count: int


class Spilled(msgspec.Struct, frozen=True, array_like=True):
    """Where a large state is: a slot, how many parts it has, and their checksum, since a slot is written again."""

    slot: int
    count: int
    checksum: int


class Old(msgspec.Struct, frozen=True, array_like=True):
    """A former generation whose chunks, blobs and slots are to be deleted."""

    generation: int
    chunks: int
    blobs: int
    slots: int

    def names(self) -> list[str]:
        """Give the last tokens of their keys."""
        return [
            *map(chunk, range(self.chunks)),
            *map(blob, range(self.blobs)),
            *(slot_part(slot, number) for slot in (0, 1) for number in range(self.slots)),
        ]


class Record(msgspec.Struct, frozen=True, array_like=True):
    """An instance as it is stored; fields are only ever added at the end, with a default.

    Attributes:
        format: `FORMAT`.
        state: The state without its inbox; where it is ``spilled``, also without its outbox and custom status.
        inbox: That of the state.
        tail: The history behind the chunks.
        begun: The start, without its input, where ``tail`` and ``inbox`` do not have it.
        chunks: How many there are.
        blobs: Likewise.
        slots: The most parts that a slot had.
        spilled: Where state and inbox are.
        garbage: What is to be deleted.
        until: Of what has been put away: when it is to be deleted, Unix time in seconds; None = never.
    """

    format: int
    state: State
    inbox: tuple[AnyEvent | BlobRef, ...]
    tail: tuple[AnyEvent | BlobRef, ...]
    begun: Started | None = None
    chunks: int = 0
    blobs: int = 0
    slots: int = 0
    spilled: Spilled | None = None
    garbage: tuple[Old, ...] = ()
    until: float | None = None

    @property
    def fat(self) -> bool:
        """Whether anything lies beside it."""
        return bool(self.chunks or self.blobs or self.slots or self.garbage)


def chunk(number: int) -> str:
    """Give the last token of a chunk's key."""
    return f"c{number:06d}"


def blob(number: int) -> str:
    """Give that of a blob."""
    return f"b{number:06d}"


def slot_part(slot: int, number: int) -> str:
    """Give that of a part of a slot."""
    return f"s{slot}{number:05d}"


class Keys:
    """The keys of the instances of a kind."""

    def __init__(self, kind: str) -> None:
        """Prepare; ``kind`` is that of the partitions."""
        token = encode_token(kind)
        self.live, self.ended = f"wf.{token}.", f"{ENDED}{token}."
        self._beside, self._expiring = f"wfp.{token}.", f"wfx.{token}."

    def live_in(self, partition: int) -> str:
        """Give what the keys of the records of a partition begin with."""
        return f"{self.live}{partition:03d}."

    def live_of(self, partition: int, instance: str) -> str:
        """Give the key of a record of what has not been put away."""
        return f"{self.live}{partition:03d}.{encode_token(instance)}"

    def ended_of(self, partition: int, instance: str) -> str:
        """Give the key of a record of what has been."""
        return f"{self.ended}{partition:03d}.{encode_token(instance)}"

    def beside(self, partition: int, instance: str, generation: int | None = None) -> str:
        """Give what the keys of all that lies beside a record begin with, or of that of a generation."""
        begin = f"{self._beside}{partition:03d}.{encode_token(instance)}."
        return begin if generation is None else f"{begin}{generation}."

    def expiring_in(self, partition: int) -> str:
        """Give what the keys begin with that tell when instances of a partition are to be deleted."""
        return f"{self._expiring}{partition:03d}."

    def expiring_of(self, partition: int, instance: str, until: float) -> str:
        """Give the key that tells so of one."""
        return f"{self.expiring_in(partition)}{math.ceil(until * 1000):015d}.{encode_token(instance)}"


def instance_of(key: str) -> str:
    """Give the instance whose record, or expiry, has a key."""
    return decode_token(key.rpartition(".")[2])


class _Format(msgspec.Struct, frozen=True, array_like=True):
    format: int


encode = msgspec.msgpack.encode
_record = msgspec.msgpack.Decoder(Record)
_format = msgspec.msgpack.Decoder(_Format)
read_chunk = msgspec.msgpack.Decoder(tuple[AnyEvent | BlobRef, ...]).decode
read_event = msgspec.msgpack.Decoder(AnyEvent).decode
read_state = msgspec.msgpack.Decoder(tuple[State, tuple[AnyEvent | BlobRef, ...]]).decode


def decode(instance: str, data: bytes) -> Record:
    """Read a record.

    Raises:
        WorkflowUnreadableError: It was written by a newer version, or is damaged.
    """
    try:
        found = _record.decode(data)
        if found.format == FORMAT:
            return found
        reason = f"it has format {found.format}, and this version reads {FORMAT}"
    except (ValueError, RecursionError) as error:  # msgspec's errors are ValueError.
        reason = str(error)
        try:
            if (number := _format.decode(data).format) != FORMAT:
                reason = f"it has format {number}, and this version reads {FORMAT}"
        except ValueError:
            pass
    raise unreadable(instance, reason)


def unreadable(instance: str, reason: str) -> WorkflowUnreadableError:
    """Make the error about a record that cannot be read."""
    return WorkflowUnreadableError(f"the record of workflow instance '{instance[:200]}' cannot be read: {reason}")


@dataclass(slots=True)
class Garbage:
    """A former generation, whether it is being deleted, and whether nothing of it is left."""

    old: Old
    cleaning: bool = False
    gone: bool = False


class Kept(msgspec.Struct, frozen=True):
    """The place of an instance in the store (a `mesh.workflows.contracts.Saved`).

    Attributes:
        generation: Of the state.
        inbox: The state's, each with its bytes as they are stored, and how many it has.
        tail: The bytes of the record's tail, which the next step adds to.
        history_bytes: Of the whole history, as encoded.
        state_bytes: Of the state, likewise.
        put_away: Whether it is among those that have ended.

    The others are as in `Record`.
    """

    generation: int
    inbox: tuple[tuple[Event, msgspec.Raw, int], ...] = ()
    tail: tuple[msgspec.Raw, ...] = ()
    begun: Started | None = None
    chunks: int = 0
    blobs: int = 0
    slots: int = 0
    spilled: Spilled | None = None
    garbage: tuple[Garbage, ...] = ()
    until: float | None = None
    events: int = 0
    history_bytes: int = 0
    state_bytes: int = 0
    put_away: bool = False

    @property
    def size(self) -> int:
        """About how many bytes the instance takes in memory with its history."""
        return 1000 + 200 * self.events + 2 * (self.history_bytes + self.state_bytes)

    @property
    def fat(self) -> bool:
        """Whether anything lies beside the record."""
        return bool(self.chunks or self.blobs or self.slots or self.garbage)


class Plan(msgspec.Struct, frozen=True):
    """The writes of a step: values beside the record, by the last token of their keys, then the record."""

    beside: Sequence[tuple[str, bytes]]
    record: bytes
    kept: Kept


class _Beside:
    """Values to write beside a record, with the numbers that come next."""

    def __init__(self, chunks: int, blobs: int) -> None:
        self.chunks, self.blobs = chunks, blobs
        self.made: list[tuple[str, bytes]] = []

    def event(self, event: Event) -> tuple[Event, msgspec.Raw, int]:
        data = encode(event)
        size = len(data)
        if size > LARGE_BYTES:
            first = self.blobs
            for part in _parts(data):
                self.made.append((blob(self.blobs), part))
                self.blobs += 1
            data = encode(BlobRef(event.at, first, self.blobs - first))
        return event, msgspec.Raw(data), size

    def chunk(self, events: Sequence[msgspec.Raw]) -> None:
        self.made.append((chunk(self.chunks), encode(events)))
        self.chunks += 1

    def state(self, slot: int, whole: bytes) -> Spilled:
        parts = list(_parts(whole))
        self.made += [(slot_part(slot, number), part) for number, part in enumerate(parts)]
        return Spilled(slot, len(parts), zlib.crc32(whole))


def plan(saved: Kept | None, step: Step, until: float | None = None) -> Plan:
    """Make what a step writes; ``saved`` is that of the step before, None for what is new; ``until`` as in `Record`."""
    state = step.state
    garbage = () if saved is None else tuple(each for each in saved.garbage if not each.gone)
    if saved is None or saved.generation != state.generation:
        if saved is not None and (saved.chunks or saved.blobs or saved.slots):
            old = Old(saved.generation, saved.chunks, saved.blobs, saved.slots)
            garbage = (*garbage, Garbage(old))[-GARBAGE:]
        saved = Kept(state.generation)
    beside = _Beside(saved.chunks, saved.blobs)
    # An event keeps its bytes, and what lies beside the record, on its way through the inbox into the history.
    known = {id(each[0]): each for each in saved.inbox}
    added = [known.get(id(each)) or beside.event(each) for each in step.append]
    inbox = tuple([known.get(id(each)) or beside.event(each) for each in state.inbox])
    tail = (*saved.tail, *[raw for _, raw, _ in added])
    if len(tail) > TAIL_EVENTS or _length(tail) > TAIL_BYTES:
        for events in _grouped(tail[:-1]):  # The last event stays: it tells how the instance ended.
            beside.chunk(events)
        tail = tail[-1:]
    begun = saved.begun or _begun(chain(step.append, state.inbox))
    waiting = [raw for _, raw, _ in inbox]
    shown = encode(replace(state, inbox=()) if inbox else state)
    state_bytes = len(shown) + sum([size for _, _, size in inbox])
    spilled, slots = None, saved.slots
    if len(shown) + _length(waiting) > STATE_BYTES:
        slot = 0 if saved.spilled is None else 1 - saved.spilled.slot
        spilled = beside.state(slot, encode((msgspec.Raw(shown), waiting)))
        shown, waiting = encode(replace(state, inbox=(), outbox=(), custom_status=None)), []
        slots = max(slots, spilled.count)
    kept = Kept(
        generation=state.generation,
        inbox=inbox,
        tail=tail,
        begun=begun,
        chunks=beside.chunks,
        blobs=beside.blobs,
        slots=slots,
        spilled=spilled,
        garbage=garbage,
        until=until,
        events=saved.events + len(added),
        history_bytes=saved.history_bytes + sum([size for _, _, size in added]),
        state_bytes=state_bytes,
    )
    return Plan(beside.made, _encoded(kept, shown, waiting), kept)


def put_away(kept: Kept, state: State) -> bytes:
    """Make the record of what has ended, which a step has stored as ``state``; ``kept`` with until when it is kept."""
    if kept.spilled is not None:
        return _encoded(kept, encode(replace(state, inbox=(), outbox=(), custom_status=None)), [])
    return _encoded(kept, encode(replace(state, inbox=())), [raw for _, raw, _ in kept.inbox])


def emptied(record: Record, now: float) -> bytes | None:
    """Make the record of what is being purged: it has ended, and what lies beside it is to be deleted.

    Args:
        record: As it is stored.
        now: Unix time in seconds.

    Returns:
        None = nothing lies beside it.
    """
    if not (record.chunks or record.blobs or record.slots):
        return None
    state = record.state
    if state.ended is None:
        now = max(now, state.updated)
        state = replace(state, status=Status.TERMINATED, updated=now, ended=now)
    state = replace(state, open_tasks=0, open_children=0, due=None, outbox=(), awaited=())
    tail = tuple([each for each in record.tail[-1:] if not isinstance(each, BlobRef)])
    old = Old(state.generation, record.chunks, record.blobs, record.slots)
    garbage = (*record.garbage, old)[-GARBAGE:]
    return encode(Record(FORMAT, state, (), tail, record.begun, garbage=garbage, until=record.until))


def _encoded(kept: Kept, state: bytes, inbox: Sequence[msgspec.Raw]) -> bytes:
    told = kept.begun if kept.chunks or kept.blobs or kept.spilled is not None else None
    fields = (
        FORMAT,
        msgspec.Raw(state),
        inbox,
        kept.tail,
        told,
        kept.chunks,
        kept.blobs,
        kept.slots,
        kept.spilled,
        [each.old for each in kept.garbage if not each.gone],
        kept.until,
    )
    return encode(fields)


def kept_of(record: Record, state: State, stored_inbox: Sequence[Event], history: Sequence[Event], size: int) -> Kept:
    """Make what the next step builds on.

    Args:
        record: As it is stored.
        state: The whole state.
        stored_inbox: Its inbox, with large events away.
        history: The whole history.
        size: Bytes of the history in chunks and blobs.
    """
    inbox = zip(state.inbox, map(_raw, stored_inbox), strict=True)
    tail = tuple(map(_raw, record.tail))
    return Kept(
        generation=state.generation,
        inbox=tuple([(event, raw, len(encode(event))) for event, raw in inbox]),
        tail=tail,
        begun=_begun(chain(history[:FIRST], state.inbox)),
        chunks=record.chunks,
        blobs=record.blobs,
        slots=record.slots,
        spilled=record.spilled,
        garbage=tuple(map(Garbage, record.garbage)),
        until=record.until,
        events=len(history),
        history_bytes=size + _length(tail),
        state_bytes=len(encode(state)),
    )


def view_of(instance: str, record: Record, *, input: str | None = None, last: Event | None = None) -> View:
    """Show an instance, by its record alone where ``last``, its last event, is not given in its place."""
    begun = record.begun or _begun(chain(record.tail[:FIRST], record.inbox))
    last = last or (record.tail[-1] if record.tail else None)
    ended = last if isinstance(last, Completed) and record.state.ended is not None else None
    return View(
        instance,
        replace(record.state, inbox=()),
        input,
        None if ended is None else ended.result,
        None if ended is None else ended.failure,
        None if begun is None else begun.tags,
        None if begun is None else begun.scheduled,
        last.text if isinstance(last, Stalled) and record.state.status == Status.STALLED else None,
    )


def _raw(event: Event) -> msgspec.Raw:
    return msgspec.Raw(encode(event))


def _begun(events: Iterable[Event]) -> Started | None:
    found = next((each for each in islice(events, FIRST) if isinstance(each, Started)), None)
    return None if found is None else replace(found, input=None)


def _length(pieces: Iterable[msgspec.Raw]) -> int:
    return sum(map(len, pieces))


def _parts(data: bytes) -> Iterator[bytes]:
    for start in range(0, len(data), PART_BYTES):
        yield data[start : start + PART_BYTES]


def _grouped(events: Sequence[msgspec.Raw]) -> Iterator[Sequence[msgspec.Raw]]:
    group, size = list[msgspec.Raw](), 0
    for each in events:
        if size > CHUNK_BYTES:
            yield group
            group, size = [], 0
        group.append(each)
        size += len(each)
    if group:
        yield group
