"""What passes a node while somebody watches: collected by the stages that it passes, told when it is over.

Stages ask one thing, ``taps.on``. While that is false, which is nearly always, nothing of this module is made. Who is
told, and how much, is decided in `mesh/tap`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

__all__ = ["NOBODY", "REPLAYED", "Headers", "Part", "Passing", "Taps", "arrives"]

MAX_REASON = 500
MAX_REPLAYED = 300
REPLAYED = "meshreplayed"
"""The header of a call, or the attribute of an event, that is sent again: which one it was."""
ARRIVING = {
    "binding": ("bindings", "trigger"),
    "call": ("invocation", "invoke"),
    "change": ("configuration", "change"),
    "durable": ("durable", "call"),
    "event": ("pubsub", "deliver"),
    "job": ("jobs", "trigger"),
}
"""What comes to the application, as it is called there: its block, and what is asked of that."""

Value = str | int | float | bool
Headers = Sequence[tuple[str, str]]


class Part:
    """What something was asked with, or what came of it: bytes, or a value of ours.

    Attributes:
        headers: Fields that belong to it.
        content_type: Of the bytes; "" = not said, or it stands among the fields.
        body: The bytes; None = a stream, or there is a value.
        value: Arguments or a result, which are written as JSON; None = there is none.
        event: Gives the CloudEvent that is told in place of the bytes, once that is wanted; None = there is none.
    """

    __slots__ = ("body", "content_type", "event", "headers", "value")

    def __init__(
        self, headers: Headers = (), content_type: str = "", body: bytes | None = None, value: object = None
    ) -> None:
        self.headers = headers
        self.content_type = content_type
        self.body = body
        self.value = value
        self.event: Callable[[], bytes | None] | None = None


class Passing:
    """One thing that passes, from its beginning to its end.

    Attributes:
        seen: Where, as of `mesh.tap.sight.Seen`.
        block: The building block.
        method: What is asked of it.
        target: Of whom.
        source: The app id of who asks or sent it; "" = not known.
        traceparent: Of its span.
        details: What is told besides.
        query: Of a request of HTTP; "" = it has none.
        request: What it is asked with.
        reply: What came of it.
        outcome: What it came to; empty until it did.
        began: Monotonic time in seconds.
        seconds: How long it took, once it is over.
        held: Whether who made it tells of it, when more is known than what it came to.
    """

    __slots__ = (
        "began",
        "block",
        "details",
        "held",
        "method",
        "outcome",
        "query",
        "reply",
        "request",
        "seconds",
        "seen",
        "source",
        "target",
        "traceparent",
    )

    def __init__(
        self, seen: str, block: str, method: str, target: str, source: str = "", *, traceparent: str = ""
    ) -> None:
        """Begin now."""
        self.seen = seen
        self.block, self.method, self.target, self.source = block, method, target, source
        self.traceparent = traceparent
        self.details: dict[str, Value] = {}
        self.query = ""
        self.request: Part | None = None
        self.reply: Part | None = None
        self.outcome = ""
        self.seconds = 0.0
        self.held = False
        self.began = time.perf_counter()

    def asked(self, verb: str, target: str, headers: Headers, body: bytes | None) -> None:
        """Note a request of HTTP; its query is a value. A body that is None is a stream."""
        self.details["verb"] = verb
        self.details["path"], _, self.query = target.partition("?")
        replayed = next((value for name, value in headers if name.lower() == REPLAYED), "")
        if replayed:
            self.details[REPLAYED] = replayed[:MAX_REPLAYED]
        self.request = Part(headers, body=body)

    def answered(self, status: int, headers: Headers = (), body: bytes | None = None) -> None:
        """Note an answer of HTTP; a body that is None is a stream."""
        self.details["status"] = status
        self.reply = Part(headers, body=body)

    def ends(self, outcome: str, reason: str = "") -> None:
        """Note what it came to and why, and how long it took."""
        self.outcome = outcome
        self.seconds = time.perf_counter() - self.began
        if reason:
            self.details["reason"] = reason[:MAX_REASON]


class Taps:
    """Who watches a node: nobody, unless it is a `mesh.tap.watches.Watches`.

    Attributes:
        on: Whether anybody watches. Only then the rest is called.
    """

    on: bool = False

    def takes(self, block: str) -> bool:
        """Tell whether anybody is to be told of a building block."""
        return False

    def reads(self, block: str) -> bool:
        """Tell whether anybody is to be told the values of a building block."""
        return False

    def tell(self, passing: Passing) -> None:
        """Tell those who watch of something that is over. It neither fails nor waits."""

    def asked(self, passing: Passing, operation: Any) -> None:
        """Note what is told of an operation that begins."""

    def came(self, passing: Passing, operation: Any, result: Any) -> None:
        """Note what is told of one that is over; ``result`` is None where it failed."""


NOBODY = Taps()


def arrives(names: Sequence[str], *, held: bool = False) -> Passing:
    """Begin with something that comes to the application.

    Args:
        names: What it is, of ``ARRIVING``, and of what.
        held: Whether who makes it tells of it.
    """
    what, target, *_ = (*names, "", "")
    passing = Passing("arrived", *ARRIVING.get(what, (what, "deliver")), target)
    passing.held = held
    return passing
