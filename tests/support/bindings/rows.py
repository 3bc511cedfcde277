"""What a row of the tables of binding adapters is, and words to write one."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from pathlib import Path

from mesh.blocks.binding_contract import Invoke, Invoked

__all__ = ["Check", "InputKind", "OutputKind", "ServedInput", "ServedOutput", "call", "gives", "nothing"]

Check = Callable[[Invoked | None], object]


@dataclass(frozen=True)
class ServedOutput:
    """An output binding as it can be used now.

    Attributes:
        settings: Of the component.
        calls: Made one after the other, each with a check of what it gives.
        refused: A call that fails.
        streams: Metadata that name what ``create`` and ``get`` pass on in parts, and which is not there; empty = they
            do not.
    """

    settings: Mapping[str, str]
    calls: tuple[tuple[Invoke, Check], ...]
    refused: Invoke
    streams: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class OutputKind:
    """A row.

    Attributes:
        type: Of the component.
        serve: Starts what it stands on.
    """

    type: str
    serve: Callable[[Path], AbstractAsyncContextManager[ServedOutput]]


async def _nothing(data: bytes) -> None:
    """Wait: the source has events by itself."""


@dataclass(frozen=True)
class ServedInput:
    """An input binding as it can be used now.

    Attributes:
        settings: Of the component.
        emit: Makes the source have an event with these bytes.
        data: Whether the event has those bytes.
        read: Finds those bytes in the data of an event.
        again: Whether what was not taken is delivered again.
        within: Seconds until what a killed reader had in hand has come again, at most, on a busy machine.
    """

    settings: Mapping[str, str]
    emit: Callable[[bytes], Awaitable[None]] = _nothing
    data: bool = True
    read: Callable[[bytes], bytes] = bytes
    again: bool = True
    within: float = 60.0


@dataclass(frozen=True)
class InputKind:
    """A row; as an `OutputKind`."""

    type: str
    serve: Callable[[Path], AbstractAsyncContextManager[ServedInput]]


def call(operation: str, data: bytes = b"null", **metadata: str) -> Invoke:
    """Make a call."""
    return Invoke(operation, data, metadata)


def gives(data: bytes | None, **metadata: str) -> Check:
    """Check for these bytes, and for metadata among others."""

    def check(found: Invoked | None) -> object:
        return found is not None and found.data == data and metadata.items() <= found.metadata.items()

    return check


def nothing(found: Invoked | None) -> object:
    """Check that there is nothing to answer."""
    return found is None
