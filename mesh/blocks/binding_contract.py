"""What adapters of bindings implement: calls out of the mesh, events into it, or both.

An adapter is a ``ComponentAdapter`` (``mesh/adapter.py``), found by an entry point ``bindings.<name>``. One that has
``operations`` and ``invoke`` is an output binding, one that has ``reading`` an input binding. One whose class is both,
and which is one of them by its settings or by what it found when it was entered, has ``directions`` that say so.
``tests/bindings`` holds what either promises. The block reads ``direction`` and ``route`` itself; an adapter leaves
them out of its settings.
"""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol, cast, runtime_checkable

import msgspec

from mesh.errors import MeshError
from mesh.flow import STREAM_SECONDS
from mesh.operation import Method
from mesh.store import StateStore

if TYPE_CHECKING:
    from mesh.ownership.asking import Owners

__all__ = [
    "BindingError",
    "BindingEvent",
    "Handle",
    "INVOKE",
    "InputBinding",
    "Invoke",
    "Invoked",
    "OutputBinding",
    "Reading",
    "Remembering",
    "STREAM",
    "Sharing",
    "StreamHead",
    "Streamed",
    "StreamingBinding",
]


class BindingError(MeshError):
    """What is outside could not do what it was asked, or an application has not taken an event."""

    code = "BINDING_ERROR"

    def __init__(self, reason: str, metadata: Mapping[str, str] = {}, *, retryable: bool = False) -> None:
        """Say why.

        Args:
            reason: For people.
            metadata: What is told of it besides, as of an answer.
            retryable: Whether the same call may succeed later.
        """
        self.told = json.dumps(dict(metadata))  # One text, which crosses the backbone.
        self.retryable = retryable  # type: ignore[misc]  # as what went wrong outside
        super().__init__(reason)

    @property
    def metadata(self) -> Mapping[str, str]:
        """What is told of it besides."""
        return cast("Mapping[str, str]", json.loads(self.told))


class Invoke(msgspec.Struct, frozen=True):
    """A call of an output binding.

    Attributes:
        operation: One of its operations.
        data: Over HTTP a JSON value, ``null`` where there was none, a string with its quotes; over gRPC any bytes.
        metadata: What the caller said besides, with the trace that it is in.
    """

    operation: str
    data: bytes = b""
    metadata: dict[str, str] = msgspec.field(default_factory=dict)


class Invoked(msgspec.Struct, frozen=True):
    """What a call gave.

    Attributes:
        data: None = nothing.
        metadata: What is told besides; over HTTP as header fields.
    """

    data: bytes | None = None
    metadata: dict[str, str] = msgspec.field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Streamed:
    """What a streamed call gave.

    Attributes:
        parts: The bytes, closed by who reads them; None = nothing.
        length: How many bytes they are; None = not known.
        metadata: As `Invoked`.
    """

    parts: AsyncGenerator[bytes, None] | None = None
    length: int | None = None
    metadata: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class StreamHead:
    """What comes before the bytes of a streamed call; as `Streamed`."""

    length: int | None = None
    metadata: dict[str, str] = field(default_factory=dict)


def _operation(asked: Invoke, _: object) -> tuple[str, ...]:
    return (asked.operation,)


INVOKE = Method("bindings", "invoke", Invoke, Invoked | None, seconds=60.0, told=_operation)
STREAM = Method("bindings", "stream", Invoke, StreamHead, seconds=STREAM_SECONDS, streamed=True, told=_operation)


@runtime_checkable
class OutputBinding(Protocol):
    """Makes calls out of the mesh."""

    @property
    def operations(self) -> Sequence[str]:
        """What it can be asked; another one never comes to it."""

    async def invoke(self, asked: Invoke) -> Invoked | None:
        """Do what is asked; None where there is nothing to answer.

        Cancelled by the operation's deadline. Its limits are its own: what it answers is held in memory.

        Raises:
            BindingError: It was not done. Its metadata are told to the caller as those of an answer; it is
                ``retryable`` where the same call may succeed later.
        """


@runtime_checkable
class StreamingBinding(Protocol):
    """An output binding that passes on what is too large to be held in memory."""

    @property
    def streamed(self) -> Sequence[str]:
        """Those of its operations that take or give bytes in parts."""

    async def stream(self, asked: Invoke, parts: AsyncIterator[bytes]) -> Streamed:
        """Do what is asked, as ``invoke``, in bounded memory.

        Cancelled when nothing moves for a minute: neither a part is asked for, nor this returns, nor a part is given.

        Args:
            asked: Without data.
            parts: The data, as they are and as they come; has none where there are none. What is read of them is read
                before this returns. Where they raise, or this is cancelled, nothing of them has been written when this
                is left, and what was there before still is.

        Raises:
            BindingError: As ``invoke``; after the first part that it gave, by its parts.
        """


class BindingEvent(msgspec.Struct, frozen=True):
    """Something that happened outside.

    Attributes:
        data: As it is.
        metadata: What the source said of it.
    """

    data: bytes = b""
    metadata: Mapping[str, str] = msgspec.field(default_factory=dict)


Handle = Callable[[BindingEvent], Awaitable[bytes]]
"""Hands an event to the application; once it returns, with the body of the answer, the application has taken it.

It raises a ``MeshError`` when the application has not: then the source is not told that it was. It may be called for
several events at once. A policy's retries are within it.
"""


@dataclass(frozen=True, slots=True)
class Reading:
    """For whom a source is read.

    Attributes:
        component: The component's name.
        app_id: The application that the events are for: what would be told of a consumer, or name its group.
        handle: Takes the events.
    """

    component: str
    app_id: str
    handle: Handle


@runtime_checkable
class InputBinding(Protocol):
    """Reads a source of events."""

    def reading(self, reading: Reading) -> AbstractAsyncContextManager[None]:
        """Give what reads the source while it is entered, for one application.

        Every host of the component enters it for every application that wants the events, several at once. So hosts of
        one application compete for what the source has, and several applications read it as the source lets them.

        Entered, the source is connected. What the application has taken is acknowledged to the source, and what it has
        not is left to be delivered again, as the source can. How many events are handled at once is bounded. Left, it
        takes no further events, and waits for those that are being handled. Cancelled, it gives them up.

        Raises:
            MeshError: On entering, it cannot be read now; later, the connection broke for good, which ends the body of
                the ``async with`` (``mesh.tasks.task_group``). Either is logged, and it is entered again.
        """


@runtime_checkable
class Remembering(Protocol):
    """An adapter that keeps something where all nodes of the mesh see it."""

    def remember_in(self, name: str, records: StateStore) -> None:
        """Use a place of this component's own; called once, before it is entered.

        The first use raises ``RecordsMissingError`` where the mesh has no such place.

        Args:
            name: The component's.
            records: With expiry and compare-and-set (``ETAG``, ``TTL``).
        """


@runtime_checkable
class Sharing(Protocol):
    """An adapter that does something at one node at a time, of all that read for an application."""

    def share_by(self, owners: Owners, timers: StateStore) -> None:
        """Use these; called once, before it is entered.

        The first use raises ``RecordsMissingError`` where the mesh has no place of its own for them.

        Args:
            owners: Who owns what (``mesh/ownership``).
            timers: Where durable timers are kept (``mesh/timers``).
        """
