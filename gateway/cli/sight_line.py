"""A sight as people read it: a line of when, where, what, what came of it, and how long that took."""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING

from gateway.cli.terminal import on_one_line

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from mesh.tap.sight import Content, Sight

__all__ = ["GREEN", "RED", "clock", "content_lines", "duration", "paint", "parties", "sight_line"]

MAX_BODY = 2000
_PARTIES = 24
_WHAT = 44
_GOOD = frozenset({"ok", "success"})
_PASSING = frozenset({"retry", "CANCELLED"})
RED, GREEN, YELLOW, DIM = 31, 32, 33, 2
# Said elsewhere in the line.
_SHOWN = frozenset({"verb", "path", "status", "settlement", "reason", "pubsub", "topic", "type", "id", "component"})


def paint(text: str, colour: int, *, colours: bool) -> str:
    """Give a text its colour, where there are colours."""
    return f"\x1b[{colour}m{text}\x1b[0m" if colours else text


def clock(at: float) -> str:
    """Write the time of day here, in milliseconds."""
    return datetime.fromtimestamp(at).astimezone().isoformat(timespec="milliseconds")[11:23]


def duration(seconds: float) -> str:
    """Write how long something took, so that columns of it can be read."""
    if seconds < 0.1:
        return f"{seconds * 1000:.1f} ms"
    return f"{seconds * 1000:.0f} ms" if seconds < 10 else f"{seconds:.1f} s"


def parties(sight: Sight) -> str:
    """Say who asked whom; an event arrives at an application from a topic."""
    if sight.seen.value == "arrived" and sight.block == "pubsub":
        return f"{sight.target} → {sight.app}"
    source = sight.source or sight.app
    return source if sight.target in ("", source) else f"{source} → {sight.target}"


def sight_line(sight: Sight, *, colours: bool) -> str:
    """Write a sight on one line.

    Args:
        sight: It.
        colours: Whether to write them.
    """
    outcome, colour = _outcome(sight)
    words = [
        paint(clock(sight.time), DIM, colours=colours),
        sight.seen.value.ljust(7),
        on_one_line(parties(sight)).ljust(_PARTIES),
        on_one_line(_what(sight)).ljust(_WHAT),
        paint(on_one_line(outcome), colour, colours=colours and colour != 0),
        paint(duration(sight.seconds), DIM, colours=colours),
    ]
    return "  ".join(words)


def _what(sight: Sight) -> str:
    details = sight.details
    if sight.block == "invocation" and "verb" in details:
        what = f"{details['verb']} {details.get('path', '')}"
    else:
        what = f"{sight.block}.{sight.method}"
    return " ".join([what, *_told(details)])


def _told(details: Mapping[str, object]) -> Iterator[str]:
    for name, value in details.items():
        if name not in _SHOWN and value not in ("", None):
            yield f"{name}={value}"


def _outcome(sight: Sight) -> tuple[str, int]:
    """Say what came of it, and its colour."""
    status = sight.details.get("status")
    good = sight.outcome in _GOOD
    text = str(status) if status is not None and sight.outcome == "ok" else sight.outcome
    settlement, reason = sight.details.get("settlement"), sight.details.get("reason")
    if settlement and settlement != "ack":
        text += f", {settlement}"
    if reason:
        text += f": {reason}"
    if sight.outcome in _PASSING:
        return text, YELLOW
    failed = isinstance(status, int) and status >= 400
    return text, 0 if good and not failed else RED


def content_lines(sight: Sight) -> Iterator[str]:
    """Write what a sight has of values, each on a line behind its sign: what was asked with, what was answered."""
    for sign, content in ((">", sight.request), ("<", sight.reply)):
        if content is not None:
            yield from (f"    {sign} {on_one_line(line)}" for line in _content(content))


def _content(content: Content) -> Iterator[str]:
    for name, value in content.headers or ():
        yield f"{name}: {value}"
    body = content.body
    if body:
        try:
            text = body[:MAX_BODY].decode()
        except UnicodeDecodeError:
            text = f"({content.size} bytes)"
        yield from text.splitlines()
        if content.cut or len(body) > MAX_BODY:
            yield f"… of {content.size} bytes"
    elif body is None and content.size:
        yield f"({content.size} bytes)" if content.size > 0 else "(streamed)"
