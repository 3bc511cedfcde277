"""What ``mesh replay`` tells: a line for each that was sent, where its answer differs, and all of it in the end."""

from __future__ import annotations

import json
import os
import sys
import time
from collections import Counter
from typing import TYPE_CHECKING

from gateway.cli.sight_line import GREEN, RED, clock, duration, paint
from gateway.cli.terminal import colours_wanted, note, on_one_line, show
from gateway.replaying.comparison import ABSENT
from gateway.replaying.replay import Replayed
from gateway.replaying.resending import Kind, Skipped

if TYPE_CHECKING:
    from collections.abc import Iterable

    from gateway.replaying.comparison import Difference
    from gateway.replaying.recording import Recorded
    from gateway.replaying.resending import Resend
    from mesh.tap.sight import Sight

__all__ = ["Report"]

MAX_VALUE = 200
MAX_LINES = 10
LATE_SECONDS = 0.5
_INDENT = " " * 7  # Up to where the time stands in lines.
_PLURAL = {Kind.CALL: "calls", Kind.EVENT: "events", Kind.DELIVERY: "deliveries"}


class Report:
    """Of one replay.

    Attributes:
        skips: How many were left out, by why.
        to: The app id of whom all go to; "" = where they went.
    """

    def __init__(self, output: str, *, diff: bool, to: str) -> None:
        """Begin.

        Args:
            output: ``text`` or ``json``.
            diff: Whether differences are told.
            to: See the attribute.
        """
        self.to = to
        self.skips: Counter[str] = Counter()
        self._as_json, self._diff = output == "json", diff
        self._colours = colours_wanted(os.environ, terminal=sys.stdout.isatty())
        self._lines: dict[str, list[int]] = {}
        self._withheld: Counter[str] = Counter()
        self._targets: Counter[str] = Counter()
        self._sent: Counter[Kind] = Counter()
        self._same = self._different = self._failed = 0
        self._latest = 0.0
        self._began = time.monotonic()
        self._planned = 0

    @property
    def exit_code(self) -> int:
        """Give 1 where something could not be sent, or answers differ and that is asked for."""
        return int(self._failed > 0 or self._different > 0)

    # Before

    def skip(self, line: int, reason: str) -> None:
        """Note that a line cannot be sent."""
        self.skips[reason] += 1
        lines = self._lines.setdefault(reason, [])
        if len(lines) < MAX_LINES:
            lines.append(line)

    def plan(self, made: Resend, sight: Sight) -> None:
        """Note that something is to be sent."""
        self._planned += 1
        self._withheld.update(made.withheld)
        self._targets[sight.app if made.kind is Kind.DELIVERY else sight.target] += 1

    # Meanwhile

    def late(self, seconds: float) -> None:
        """Note how far one is behind the rhythm of the recording."""
        self._latest = max(self._latest, seconds)

    def done(self, recorded: Recorded, came: Replayed | Skipped | TimeoutError) -> None:
        """Tell what came of one."""
        if isinstance(came, Skipped):  # It could be sent when it was read: the file has changed.
            self.skip(recorded.line, came.reason)
            return
        if isinstance(came, TimeoutError):
            self._failed += 1
            self._unanswered(recorded)
            return
        self._sent[came.sent.kind] += 1
        differs = self._diff and bool(came.compared.differences)
        self._different += differs
        self._same += self._diff and not differs
        self._failed += came.failed and not (self._diff and not differs)
        if self._as_json:
            show(json.dumps(_document(recorded, came, diff=self._diff), default=str))
        else:
            self._show(recorded, came)
        sys.stdout.flush()

    def _unanswered(self, recorded: Recorded) -> None:
        sight = recorded.sight
        if self._as_json:
            show(json.dumps({"line": recorded.line, "id": sight.id, "outcome": "TIMEOUT"}))
        else:
            self._line(recorded, f"{sight.source} → {self.to or sight.target}", "", "no answer in time", "", RED)

    def _show(self, recorded: Recorded, came: Replayed) -> None:
        sent, compared = came.sent, came.compared
        differences = compared.differences if self._diff else ()
        outcome = str(came.answer.status) if came.outcome == "ok" else f"{came.answer.status} {came.outcome}"
        if sent.kind is Kind.EVENT and came.outcome == "ok":
            outcome = "published"
        judged, colour = "", RED if came.failed else 0
        if self._diff:
            judged, colour = ("differs", RED) if differences else ("same", GREEN)
            if not differences and compared.unknown:
                judged, colour = f"same, as far as it is known: {compared.unknown}", 0
        source = recorded.sight.target if sent.kind is Kind.DELIVERY else sent.source or "?"
        took = duration(came.seconds)
        self._line(recorded, f"{source} → {sent.target}", sent.title, outcome, took, colour, judged)
        for each in differences:
            show(_INDENT + on_one_line(_difference(each)))
        if differences:
            show(f"{_INDENT}trace {sent.trace}")

    def _line(
        self, recorded: Recorded, parties: str, title: str, outcome: str, took: str, colour: int, judged: str = ""
    ) -> None:
        words = [
            f"{recorded.line:>5}",
            clock(recorded.sight.time),
            on_one_line(parties).ljust(24),
            on_one_line(title).ljust(28),
        ]
        words += [outcome.ljust(9), took.rjust(9)]
        words.append(paint(judged, colour, colours=self._colours and colour != 0))
        show("  ".join(words).rstrip())

    # In the end

    def skipped_only(self) -> None:
        """Tell what was left out, where that is all."""
        for reason, count in self.skips.most_common():
            lines = ", ".join(map(str, self._lines[reason])) + ("…" if count > MAX_LINES else "")
            note(f"skipped {count} (line {lines}): {reason}")

    def sum_up(self, instead: Iterable[str], sender: str) -> None:
        """Tell how it went, also when it was broken off.

        Args:
            instead: The applications that do not run here, for which another gateway sent.
            sender: Whose that is.
        """
        self.skipped_only()
        sent = sum(self._sent.values())
        took = time.monotonic() - self._began
        kinds = ", ".join(f"{count} {_PLURAL[kind]}" for kind, count in self._sent.items())
        if self._as_json:
            counts = {"same": self._same, "different": self._different} if self._diff else {}
            summary = {"sent": sent, "of": self._planned, **counts, "failed": self._failed, "skipped": dict(self.skips)}
            show(json.dumps({"summary": summary}))
        if self._withheld:
            names = ", ".join(sorted(self._withheld))
            note(f"sent without headers whose values are never recorded: {names}; -H NAME=VALUE gives one")
        if self.to and len(self._targets) > 1:
            note(f"what {', '.join(sorted(self._targets))} got went to {self.to}; --where or mesh record --app chooses")
        for source in sorted(instead):
            note(f"{source} does not run here: the gateway of {sender} sent in its place")
        if self._latest > LATE_SECONDS:
            note(f"up to {duration(self._latest)} behind the rhythm of the recording")
        text = f"sent {sent} of {self._planned}" + (f" ({kinds})" if kinds else "") + f" in {duration(took)}"
        if self._diff:
            text += f": {self._same} the same, {self._different} differ"
        note(text + (f", {self._failed} failed" if self._failed else ""))


def _document(recorded: Recorded, came: Replayed, *, diff: bool) -> dict[str, object]:
    sent, compared = came.sent, came.compared
    made: dict[str, object] = {
        "line": recorded.line,
        "id": recorded.sight.id,
        "kind": sent.kind.value,
        "from": sent.source,
        "target": sent.target,
        "title": sent.title,
        "status": came.answer.status,
        "outcome": came.outcome,
        "seconds": round(came.seconds, 6),
        "trace": sent.trace,
    }
    if diff:
        made["differences"] = [each.described() for each in compared.differences]
        if compared.unknown:
            made["notCompared"] = compared.unknown
    return made


def _difference(each: Difference) -> str:
    if each.recorded is ABSENT:
        return f"{each.path}: is new: {_value(each.replayed)}"
    if each.replayed is ABSENT:
        return f"{each.path}: is gone: {_value(each.recorded)}"
    return f"{each.path}: {_value(each.recorded)} → {_value(each.replayed)}"


def _value(value: object) -> str:
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= MAX_VALUE else f"{text[:MAX_VALUE]}…"
