"""A durable timer as a value, and the record that keeps it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from enum import Enum, auto
from functools import lru_cache

import msgspec
from msgspec.structs import replace

from mesh.address import decode_token, encode_token
from mesh.errors import MeshError
from mesh.schedules import LATEST, Timing

__all__ = [
    "FailurePolicy",
    "Outcome",
    "Record",
    "Timer",
    "TimerExistsError",
    "check_moment",
    "due_of",
    "milliseconds",
    "prefix",
    "record_key",
    "record_of",
]

MOST_RETRIES = 2**63 - 1  # What every record can keep.
SHORTEST_RETRY = 0.1  # Seconds: an endless policy without an interval must not keep a processor busy.


class TimerExistsError(MeshError):
    """There is a timer of this key and name, and it is not to be overwritten; nothing was done."""

    code = "TIMER_EXISTS"


class Outcome(Enum):
    """What a firing came to."""

    DONE = auto()
    CANCEL = auto()  # Done, and it is never to fire again.
    FAILED = auto()
    AWAY = auto()  # Nobody is there to take it: tried again later, and counts as no attempt.
    BUSY = auto()  # As ``AWAY``, but it says nothing of others: these are not tried less often.


class FailurePolicy(msgspec.Struct, frozen=True):
    """What follows a firing that failed; once it is given up, the timer goes on with its next due time, if any.

    Attributes:
        interval: Seconds until it is tried again, at least a tenth of one.
        retries: How often it is tried again; None = without an end.
        drop: Whether it is given up at once.
    """

    interval: float = 1.0
    retries: int | None = 3
    drop: bool = False

    def __post_init__(self) -> None:
        """Raise ``ValueError`` for an interval or a number that is none."""
        if not 0 <= self.interval < math.inf:
            raise ValueError(f"the interval of a failure policy is {self.interval}")
        if self.retries is not None and not 0 <= self.retries <= MOST_RETRIES:
            raise ValueError(f"the retries of a failure policy are from 0 to {MOST_RETRIES}")


class Timer(msgspec.Struct, frozen=True):
    """A durable timer.

    Attributes:
        key: Whose it is (the actor's id, the job's name); decides the partition.
        name: Its name among those of the key; may be empty.
        timing: When it fires; ``first`` is its next due time.
        policy: What follows a firing that failed.
        data: What the block keeps with it; the block bounds its size.
    """

    key: str
    name: str
    timing: Timing
    policy: FailurePolicy
    data: bytes


class Record(msgspec.Struct, frozen=True):
    """A timer as it is kept.

    Attributes:
        timer: The timer.
        due: Unix time of the next try: the timer's due time, or later where a firing of it has failed.
        epoch: Of the partition, in which it was written.
        failures: How often the firing of this due time has failed.
    """

    timer: Timer
    due: float
    epoch: int
    failures: int = 0

    @classmethod
    def decode(cls, rest: str, data: bytes) -> Record:
        """Read what ``encode`` wrote.

        Args:
            rest: The last two tokens of the record's key.
            data: The record's value.

        Raises:
            ValueError: It is no timer.
        """
        try:
            key, name = map(decode_token, rest.split("."))
            due, epoch, failures, timing, policy, value = _whole.decode(data)
            timer = Timer(key, name, Timing.decode(timing), FailurePolicy(*policy), value)
            return cls(timer, check_moment("due", due), epoch, failures)
        except (ValueError, LookupError, TypeError) as error:  # msgspec's errors are ValueError.
            raise ValueError(f"it is no timer: {error}") from error

    def encode(self) -> bytes:
        """Write it, without the key and the name, which are in the record's key."""
        timer, policy = self.timer, self.timer.policy
        kept = (
            self.due,
            self.epoch,
            self.failures,
            timer.timing.encode(),
            (policy.interval, policy.retries, policy.drop),
            timer.data,
        )
        return msgspec.msgpack.encode(kept)

    def after(self, outcome: Outcome, now: float, epoch: int) -> Record | None:
        """Give what is left once a firing came to something other than ``AWAY`` and ``BUSY``; None = nothing.

        Args:
            outcome: What it came to.
            now: Unix time; where it was set back behind the due time, that counts.
            epoch: Of the partition, in which it is written.
        """
        if outcome is Outcome.CANCEL:
            return None
        timer, policy = self.timer, self.timer.policy
        again = not policy.drop and (policy.retries is None or self.failures < policy.retries)
        if outcome is Outcome.FAILED and again:
            due = min(max(now, timer.timing.first) + max(policy.interval, SHORTEST_RETRY), LATEST)
            if timer.timing.until is None or due <= timer.timing.until:
                return Record(timer, due, epoch, self.failures + 1)
        timing = timer.timing.after(timer.timing.first, now)
        return None if timing is None else Record(replace(timer, timing=timing), timing.first, epoch)


_whole = msgspec.msgpack.Decoder(tuple[float, int, int, Mapping[str, object], tuple[float, int | None, bool], bytes])
_first = msgspec.msgpack.Decoder(tuple[float, int, int, msgspec.Raw, msgspec.Raw, msgspec.Raw])


def due_of(data: bytes) -> float:
    """Give when a record is due, and no more, for those that are many.

    Raises:
        ValueError: It is no timer.
    """
    try:
        return check_moment("due", _first.decode(data)[0])
    except ValueError as error:
        raise ValueError(f"it is no timer: {error}") from error


def check_moment(name: str, moment: float) -> float:
    """Give a Unix time that others have written, in a record or in a frame: none must stop those who read it.

    Raises:
        ValueError: It is before 1970, behind the year 9999, or no number; names it.
    """
    if not 0 <= moment <= LATEST:
        raise ValueError(f"{name!r} is a Unix time from 0 to {LATEST:.0f}, not {moment}")
    return moment


def milliseconds(due: float) -> int:
    """Give a due time in whole milliseconds, never an earlier one; one that is out of all reason is the latest."""
    return math.ceil(max(0.0, min(LATEST, due)) * 1000)


def prefix(kind: str, partition: int | None = None, key: str | None = None) -> str:
    """Give what the keys of all records of a kind, of its partition, or of a key in that, begin with."""
    begin = _prefix(kind, partition)
    return begin if partition is None or key is None else f"{begin}{encode_token(key)}."


@lru_cache(maxsize=4096)
def _prefix(kind: str, partition: int | None) -> str:
    number = "" if partition is None else f"{partition:03d}."
    return f"timer.{encode_token(kind)}.{number}"


def record_key(kind: str, partition: int, key: str, name: str) -> str:
    """Give the key of a timer's record: dotted tokens."""
    return prefix(kind, partition, key) + encode_token(name)


def record_of(kind: str, partition: int, rest: bytes) -> str:
    """Give the key of the record that a hint is about: ``rest`` are its last two tokens."""
    return prefix(kind, partition) + rest.decode()
