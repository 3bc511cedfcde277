"""Questions to the owner of a workflow instance and its answers, as they travel: MessagePack arrays, read strictly."""

from __future__ import annotations

from typing import Any, TypeAlias

import msgspec

from mesh.errors import EventError
from mesh.workflows.messages import AnyMessage, Told
from mesh.workflows.state import View
from mesh.workflows.waiting import Waiting

__all__ = [
    "Look",
    "Looked",
    "Question",
    "Read",
    "Tell",
    "Wait",
    "encoded",
    "looked_of",
    "question_of",
    "told_of",
    "view_of",
]


class _Question(msgspec.Struct, frozen=True, array_like=True):
    pass


class Tell(_Question, frozen=True, array_like=True, tag="tell"):
    """Tell it something; answered by `Told`."""

    message: AnyMessage


class Wait(_Question, frozen=True, array_like=True, tag="wait"):
    """Look at it once it has begun, or ``ended``; answered by a `View`."""

    ended: bool
    texts: bool


class Read(_Question, frozen=True, array_like=True, tag="read"):
    """Look at it, for another application; answered by a `View`, or None."""

    texts: bool


class Look(_Question, frozen=True, array_like=True, tag="look"):
    """Tell what it waits for, unless it is known to have ``ended``; answered by `Looked`."""

    ended: bool


class Looked(msgspec.Struct, frozen=True, array_like=True):
    """What an instance waits for, and the workers at its owner, counted by their titles."""

    waiting: Waiting
    workers: dict[str, int]


Question: TypeAlias = Tell | Wait | Read | Look
_QUESTION = msgspec.msgpack.Decoder(Question)
_TOLD, _LOOKED = msgspec.msgpack.Decoder(Told), msgspec.msgpack.Decoder(Looked)
_VIEW = msgspec.msgpack.Decoder(View | None)

encoded = msgspec.msgpack.encode


def question_of(body: bytes) -> Question:
    """Read a question; raises ``EventError``."""
    found: Question = _read(_QUESTION, body)
    return found


def told_of(body: bytes) -> Told:
    """Read what came of telling; raises ``EventError``."""
    found: Told = _read(_TOLD, body)
    return found


def view_of(body: bytes) -> View | None:
    """Read how an instance is; raises ``EventError``."""
    found: View | None = _read(_VIEW, body)
    return found


def looked_of(body: bytes) -> Looked:
    """Read what an instance waits for; raises ``EventError``."""
    found: Looked = _read(_LOOKED, body)
    return found


def _read(decoder: msgspec.msgpack.Decoder[Any], body: bytes) -> Any:
    try:
        return decoder.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise EventError(f"what another node says of a workflow is malformed: {error}") from error
