"""Where an answer differs from the one that was recorded."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any

import orjson

from gateway.errors import row_of
from gateway.replaying.resending import Kind
from mesh.blocks.consumer import judge
from mesh.blocks.invocation import INVOKE
from mesh.blocks.topics import PUBLISH
from mesh.delivery import Outcome
from mesh.error_wire import from_wire
from mesh.tap.sight import Content, Sight

__all__ = ["ABSENT", "Absent", "Answer", "Compared", "Difference", "compare", "outcome_of", "path_pattern"]

MAX_DIFFERENCES = 100
MAX_DEPTH = 100
OK = "ok"
_DOT = re.compile(r"(?<!\\)\.")


class Absent(Enum):
    """What stands where there is nothing."""

    ABSENT = "absent"


ABSENT = Absent.ABSENT


@dataclass(frozen=True, slots=True)
class Answer:
    """What a gateway answered.

    Attributes:
        status: Of HTTP.
        content_type: Of the body.
        body: It, or its beginning.
        cut: Whether it is longer.
    """

    status: int
    content_type: str = ""
    body: bytes = b""
    cut: bool = False


@dataclass(frozen=True, slots=True)
class Difference:
    """One place in which answers differ.

    Attributes:
        path: ``status``, ``outcome`` or ``body``, and behind that the members and indexes that lead there, with dots
            between them; a dot within a name has a backslash before it.
        recorded: What stood there; ABSENT = nothing.
        replayed: What stands there now; ABSENT = nothing.
    """

    path: str
    recorded: object
    replayed: object

    def described(self) -> dict[str, object]:
        """Give it as JSON has it: without the member that has nothing to tell."""
        told = (("recorded", self.recorded), ("replayed", self.replayed))
        return {"path": self.path, **{name: value for name, value in told if value is not ABSENT}}


@dataclass(frozen=True, slots=True)
class Compared:
    """What came of comparing.

    Attributes:
        differences: All that are not to be ignored, the first hundred at most.
        unknown: Why bodies could not be compared; empty = they were, or there are none.
    """

    differences: tuple[Difference, ...] = ()
    unknown: str = ""


def outcome_of(kind: Kind, answer: Answer) -> str:
    """Say what an answer means: ``ok``, the code of a gateway's failure, or what comes of an event that arrived."""
    code = _failure(answer)
    if kind is Kind.DELIVERY and not code:
        return judge(answer.status, answer.body).outcome.value
    return code or OK


def _failure(answer: Answer) -> str:
    """Give the code of a failure that a gateway tells of; empty = it is the application's answer."""
    if answer.status < 400 or b'"errorCode"' not in answer.body:
        return ""
    value = _json(answer.body)
    code = value.get("errorCode") if isinstance(value, dict) else None
    return code if isinstance(code, str) and code.startswith("ERR_") and "message" in value else ""  # type: ignore[operator]


def _json(body: bytes) -> object:
    try:
        return orjson.loads(body)
    except orjson.JSONDecodeError:
        return ABSENT


def path_pattern(text: str) -> tuple[str, ...]:
    r"""Read a path of what is ignored: ``body.items.*.at``; ``*`` is any one name or index, ``\.`` a dot of a name.

    Raises:
        ValueError: It is none.
    """
    parts = tuple(part.replace(r"\.", ".") for part in _DOT.split(text))
    if parts[0] not in ("status", "outcome", "body") or "" in parts:
        raise ValueError(f"{text!r} is no path of an answer, such as body.items.*.at; it begins with status or body")
    return parts


def compare(kind: Kind, sight: Sight, answer: Answer, ignored: Sequence[tuple[str, ...]] = ()) -> Compared:
    """Find where an answer differs from the one that was recorded.

    Args:
        kind: What it was replayed as.
        sight: What was recorded.
        answer: What came now.
        ignored: Paths of which nothing is told, nor of what is below them, see `path_pattern`.
    """
    found: list[Difference] = []
    unknown = ""
    for part, recorded, replayed in _parts(kind, sight, answer):
        if isinstance(recorded, Content):
            unknown = _uncomparable(recorded, answer)
            if unknown:
                continue
            pairs = _of_bodies(recorded.body or b"", answer.body)
        else:
            pairs = iter([((part,), recorded, replayed)] if recorded != replayed else [])
        for path, was, now in pairs:
            if not any(_covers(each, path) for each in ignored):
                found.append(Difference(".".join(name.replace(".", r"\.") for name in path), was, now))
            if len(found) >= MAX_DIFFERENCES:
                return Compared(tuple(found), unknown)
    return Compared(tuple(found), unknown)


def _parts(kind: Kind, sight: Sight, answer: Answer) -> Iterator[tuple[str, object, object]]:
    """Give what is compared: its name, and how it was and is."""
    if kind is Kind.DELIVERY:
        # Any other outcome is why the application gave no answer: then the event comes again.
        recorded = sight.outcome if sight.outcome in {*Outcome} else Outcome.RETRY.value
        yield "outcome", recorded, outcome_of(kind, answer)
    elif (status := _status(kind, sight)) is not None:
        recorded, replayed = _expected_code(kind, sight), outcome_of(kind, answer)
        yield "status", status, answer.status
        yield "outcome", recorded, replayed
        if kind is Kind.EVENT or OK not in (recorded, replayed):
            return  # A failure's text has times and names of nodes in it.
    if kind is not Kind.EVENT and sight.reply is not None:
        yield "body", sight.reply, None


def _status(kind: Kind, sight: Sight) -> int | None:
    """Give the status that was answered then, or was by a gateway that failed so; None = it is not known."""
    if sight.outcome == OK:
        status = sight.details.get("status", 204 if kind is Kind.EVENT else None)
        return status if isinstance(status, int) else None
    return None if sight.outcome == "CANCELLED" else _row(kind, sight).status


def _expected_code(kind: Kind, sight: Sight) -> str:
    return OK if sight.outcome == OK else _row(kind, sight).code


def _row(kind: Kind, sight: Sight) -> Any:
    return row_of(from_wire({"code": sight.outcome}), PUBLISH if kind is Kind.EVENT else INVOKE)


def _uncomparable(recorded: Content, answer: Answer) -> str:
    if recorded.body is None and recorded.size:
        return "the recorded answer has no body: it was streamed, or hidden"
    if recorded.cut or answer.cut:
        return f"the {'recorded ' if recorded.cut else ''}answer is longer than what is kept of it"
    return ""


def _of_bodies(was: bytes, now: bytes) -> Iterator[tuple[tuple[str, ...], object, object]]:
    if was == now:
        return
    recorded, replayed = _json(was), _json(now)
    if recorded is ABSENT or replayed is ABSENT:
        yield ("body",), _text(was), _text(now)
    else:
        yield from _of_values(("body",), recorded, replayed)


def _text(body: bytes) -> object:
    """Give a body that is no JSON as text; one that is no text either by its length."""
    if not body:
        return ABSENT
    try:
        return body.decode()
    except UnicodeDecodeError:
        return f"({len(body)} bytes)"


def _of_values(path: tuple[str, ...], was: object, now: object) -> Iterator[tuple[tuple[str, ...], object, object]]:
    if len(path) < MAX_DEPTH:
        if isinstance(was, dict) and isinstance(now, dict):
            for name in [*was, *(name for name in now if name not in was)]:
                yield from _of_values((*path, name), was.get(name, ABSENT), now.get(name, ABSENT))
            return
        if isinstance(was, list) and isinstance(now, list):
            for index in range(max(len(was), len(now))):
                yield from _of_values((*path, str(index)), _at(was, index), _at(now, index))
            return
    if was != now or isinstance(was, bool) != isinstance(now, bool):
        yield path, was, now


def _at(values: list[object], index: int) -> object:
    return values[index] if index < len(values) else ABSENT


def _covers(pattern: tuple[str, ...], path: tuple[str, ...]) -> bool:
    return len(pattern) <= len(path) and all(each in ("*", path[index]) for index, each in enumerate(pattern))
