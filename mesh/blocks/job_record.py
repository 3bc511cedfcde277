"""A job as a value: what is scheduled, what is asked of the owner, and how it is kept with its timer."""

from __future__ import annotations

import re
from dataclasses import dataclass

import msgspec
import orjson

from mesh.errors import BadArgumentError, MeshError

__all__ = [
    "DATA_TYPE_HEADER",
    "DEFAULT_POLICY",
    "MAX_DATA_BYTES",
    "MAX_NAME_BYTES",
    "MAX_PAGE",
    "MAX_RETRIES",
    "MAX_TEXT",
    "Delete",
    "Job",
    "JobExistsError",
    "JobNotFoundError",
    "JobScheduleError",
    "JobUnreadableError",
    "Named",
    "Page",
    "Policed",
    "Put",
    "Registered",
    "RunNow",
    "Schedule",
    "Wanted",
    "asked_of",
    "check",
    "check_name",
    "check_policy",
    "encoded",
]

MAX_NAME_BYTES = 256
MAX_DATA_BYTES = 128 * 1024
MAX_TEXT = 256
MAX_INTERVAL = 2**63 / 1e9  # Seconds: Go has no longer duration.
MAX_RETRIES = 2**32 - 1
MAX_PAGE = 1000
MAX_NESTED = 100  # Messages in each other: no more are read by the libraries of most languages.
DATA_TYPE_HEADER = "mesh-data-type"
"""Of a job whose data are a protobuf message: the URL of its type."""
_TYPE = re.compile(r"[!-~]*\Z")
_SEPARATOR = "|"


class JobExistsError(MeshError):
    """There is a job of this name already, and it was not to be overwritten."""

    code = "JOB_EXISTS"


class JobNotFoundError(MeshError):
    """There is no job of this name."""

    code = "JOB_NOT_FOUND"


class JobScheduleError(MeshError):
    """The times of a job make no sense; nothing was done."""

    code = "JOB_SCHEDULE_INVALID"


class JobUnreadableError(MeshError):
    """What is kept of a job is of another version, or is none."""

    code = "JOB_UNREADABLE"


class Policed(msgspec.Struct, frozen=True, omit_defaults=True):
    """What follows when the application does not take a job, or its actor a reminder.

    Attributes:
        interval: Seconds between attempts.
        retries: How many; None = no end.
        drop: Whether there are none.
    """

    interval: float = 1.0
    retries: int | None = 3
    drop: bool = False


DEFAULT_POLICY = Policed()


def check_policy(policy: Policed) -> None:
    """Check the limits of a policy; raises ``BadArgumentError``."""
    if not 0 <= policy.interval <= MAX_INTERVAL:
        raise BadArgumentError("failurePolicy.constant.interval is from 0 s to 292 years")
    if policy.retries is not None and not 0 <= policy.retries <= MAX_RETRIES:
        raise BadArgumentError(f"failurePolicy.constant.maxRetries is from 0 to {MAX_RETRIES}")


class Job(msgspec.Struct, frozen=True, omit_defaults=True):
    """A job as it was scheduled.

    Attributes:
        name: Of those of its application.
        schedule: When it repeats; None = once.
        repeats: How often in all; None = no end.
        due_time: When it is due first.
        ttl: When it ends.
        data: What the application is told: JSON, or the bytes of a message; None = nothing.
        data_type: The URL of the message's type; None = it is JSON.
        policy: What follows when the application fails.
        id: Of the request that has put it, so that the same one, when it is repeated, finds its own work.
    """

    name: str
    schedule: str | None = None
    repeats: int | None = None
    due_time: str | None = None
    ttl: str | None = None
    data: bytes | None = None
    data_type: str | None = None
    policy: Policed = DEFAULT_POLICY
    id: str = ""


class Registered(msgspec.Struct, frozen=True):
    """A job as it is now.

    Attributes:
        job: As it was scheduled.
        due: When it is due next, in Unix time.
        left: How often it will be told, that time included; None = no end.
    """

    job: Job
    due: float
    left: int | None


class Schedule(msgspec.Struct, frozen=True):
    """A job, and whether it takes the place of one of its name."""

    job: Job
    overwrite: bool = False


class Named(msgspec.Struct, frozen=True):
    """Which job, or which jobs: those whose name begins so."""

    name: str


@dataclass(frozen=True, slots=True)
class Wanted:
    """A page of a list.

    Attributes:
        prefix: Of the names.
        after: Where the page before ended; empty = the first one.
        limit: Of jobs, at most ``MAX_PAGE``.
    """

    prefix: str = ""
    after: str = ""
    limit: int = MAX_PAGE


@dataclass(frozen=True, slots=True)
class Page:
    """Some jobs, and where the next page begins; empty = this is the last one."""

    jobs: tuple[Registered, ...]
    after: str = ""


class Put(msgspec.Struct, frozen=True, tag="put"):
    """Keep a job.

    Attributes:
        job: The job.
        at: Unix time at which it was scheduled: its times count from there, however long the owner was looked for.
        overwrite: Whether it takes the place of one of its name.
    """

    job: Job
    at: float
    overwrite: bool


class Delete(msgspec.Struct, frozen=True, tag="delete"):
    """Delete a job."""


class RunNow(msgspec.Struct, frozen=True, tag="run"):
    """Hand a job over now."""


_ASKED: msgspec.msgpack.Decoder[Put | Delete | RunNow] = msgspec.msgpack.Decoder(Put | Delete | RunNow)
encoded = msgspec.msgpack.Encoder().encode


def asked_of(body: bytes) -> Put | Delete | RunNow:
    """Read what the owner is asked.

    Raises:
        BadArgumentError: It is nothing that is asked.
    """
    try:
        return _ASKED.decode(body)
    except msgspec.DecodeError as error:
        raise BadArgumentError(f"it is nothing that is asked of jobs: {error}") from None


def check_name(name: str) -> None:
    """Check a job's name.

    Raises:
        BadArgumentError: It is too long, or cannot be the last segment of a path.
    """
    if len(name.encode("utf-8", "replace")) > MAX_NAME_BYTES:
        raise BadArgumentError(f"the name of a job has at most {MAX_NAME_BYTES} bytes")
    if _SEPARATOR in name or name in (".", "..") or not name.isprintable():
        raise BadArgumentError("the name of a job has no '|' and no control characters, and is not '.' or '..'")


def check(job: Job) -> None:
    """Check the limits of a job; raises ``BadArgumentError``."""
    check_name(job.name)
    if job.data is not None and len(job.data) > MAX_DATA_BYTES:
        raise BadArgumentError(f"the data of a job have {len(job.data)} bytes; {MAX_DATA_BYTES} are the most")
    if job.data_type is not None and (len(job.data_type) > MAX_TEXT or not _TYPE.match(job.data_type)):
        raise BadArgumentError(f"the type of a job's data is no URL of at most {MAX_TEXT} characters")
    for name, text in (("schedule", job.schedule), ("dueTime", job.due_time), ("ttl", job.ttl)):
        if text is not None and len(text) > MAX_TEXT:
            raise BadArgumentError(f"{name} has more than {MAX_TEXT} characters")
    if job.data is not None and job.data_type is None:
        _check_nesting(job.data)
    check_policy(job.policy)


def _check_nesting(data: bytes) -> None:
    """Refuse JSON that goes into no message, as which jobs are listed and told over gRPC.

    Raises:
        BadArgumentError: It is nested too deeply, or is no JSON.
    """
    if 2 * data.count(b"[") + 3 * data.count(b"{") + 1 <= MAX_NESTED:
        return  # What nearly all are: however they are in each other.
    try:
        left: list[tuple[object, int]] = [(orjson.loads(data), 1)]
    except orjson.JSONDecodeError as error:
        raise BadArgumentError(f"the data of a job are no JSON: {error}") from None
    while left:
        value, messages = left.pop()  # A value is one; an array, and what an object and a member of it are, are more.
        if messages + isinstance(value, dict | list) > MAX_NESTED:
            raise BadArgumentError("the data of a job are nested too deeply: 33 objects or 49 arrays are the most")
        if isinstance(value, dict):
            left += [(each, messages + 3) for each in value.values()]
        elif isinstance(value, list):
            left += [(each, messages + 2) for each in value]
