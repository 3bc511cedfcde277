"""``mesh replay``: calls and events of a recording, sent again."""

from __future__ import annotations

import argparse
import asyncio
import os
from pathlib import Path
from typing import TYPE_CHECKING

from gateway.cli.invoke import gateway_of, header_fields, lasting_option
from gateway.cli.parsing import Parser, UsageError
from gateway.cli.replay_report import Report
from gateway.cli.resending import Plan, Planned, Senders, send_all
from gateway.cli.terminal import complain, note
from gateway.replaying.comparison import path_pattern
from gateway.replaying.recording import Recorded, Recording
from gateway.replaying.resending import Kind, Skipped, kind_of, resend
from gateway.runs import list_runs
from mesh.errors import ExpressionError
from mesh.expressions import compile_match
from mesh.home import mesh_home

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mesh.expressions import Match

__all__ = ["parser", "run"]

_PROGRAM = "mesh replay"
_KINDS = {"calls": Kind.CALL, "events": Kind.EVENT, "deliveries": Kind.DELIVERY}
TIMEOUT_SECONDS = 60.0
MAX_SPEED = 1000.0
LONG_SECONDS = 60.0


def parser() -> Parser:
    """Describe the command line."""
    made = Parser(
        _PROGRAM,
        description="Send the calls and events of a recording again, in their rhythm, and tell what is answered now.",
        epilog="mesh replay orders.jsonl                            calls go where they went, events to their topics\n"
        "mesh replay orders.jsonl --to app=orders-v2 --diff  calls, and events that arrived, to another application\n"
        "mesh replay orders.jsonl --diff --ignore body.at --ignore 'body.items.*.id'\n"
        "mesh replay orders.jsonl --only events --speed max  events alone, as fast as they are taken\n"
        "mesh replay orders.jsonl --where 'event.data.outcome == \"retry\"' --to app=orders\n\n"
        "exit codes: 0, 1 when answers differ (--diff) or something could not be sent, 2 for a wrong command line,\n"
        "130 after Ctrl-C",
    )
    made.add_argument("file", metavar="FILE", help="made by mesh record, or lines of GET /v1.0/mesh/tap")
    made.add_argument("--to", type=_application, metavar="app=APP-ID", help="to this application")
    made.add_argument("--only", action="append", choices=tuple(_KINDS), default=[], help="these alone; repeatable")
    made.add_argument("--where", metavar="CEL", help="those for which a rule over event, the line, is true")
    made.add_argument("--id", action="append", default=[], metavar="ID", help="this line, or event; repeatable")
    made.add_argument("--speed", type=_speed, default=1.0, metavar="2x|max", help="how fast they follow (1x)")
    made.add_argument("--diff", action="store_true", help="tell where answers differ from those that were recorded")
    made.add_argument(
        "--ignore", action="append", type=_path, default=[], metavar="PATH", help="such as body.items.*.at; repeatable"
    )
    made.add_argument(
        *("-H", "--header"), action="append", default=[], metavar="NAME=VALUE", help="a header of calls; repeatable"
    )
    made.add_argument("--via", metavar="APP-ID", help="whose gateway sends; without it that of who sent it then")
    made.add_argument(
        "--timeout",
        type=lasting_option,
        default=TIMEOUT_SECONDS,
        metavar="TIME",
        help=f"of each answer ({TIMEOUT_SECONDS:g}s)",
    )
    made.add_argument("-o", "--output", choices=("text", "json"), default="text", help="how it is written")
    return made


def _application(text: str) -> str:
    name, _, value = text.partition("=")
    if name != "app" or not value:
        raise argparse.ArgumentTypeError(f"{text!r} is no target; an application is app=APP-ID")
    return value


def _speed(text: str) -> float:
    """Read a speed; 0 is without any waiting."""
    if text == "max":
        return 0.0
    try:
        speed = float(text.removesuffix("x"))
    except ValueError:
        speed = 0.0
    if not 0 < speed <= MAX_SPEED:
        raise argparse.ArgumentTypeError(f"{text!r} is no speed; such as 2x, 0.5x or max")
    return speed


def _path(text: str) -> tuple[str, ...]:
    try:
        return path_pattern(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def run(words: Sequence[str]) -> int:
    """Run the command; its exit codes are those that the help tells."""
    found = parser().parse(words)
    headers = tuple(header_fields(found.header).items())
    where = _where(found.where)
    kinds = _kinds(found)
    report = Report(found.output, diff=found.diff, to=found.to or "")
    with Recording(Path(found.file)) as recording:
        plan = Plan(
            recording,
            _planned(recording, _Choice(found, kinds, where), report, headers),
            report.to,
            headers,
            tuple(found.ignore),
            found.speed,
            found.timeout,
        )
        if not plan.steps:
            report.skipped_only()
            complain(f"{found.file} has nothing to send{'' if report.skips else ' that is wanted'}")
            return 1
        _tell_length(plan)
        senders = Senders(
            gateway_of(found.via or "", only_its_own=found.via is not None),
            () if found.via is not None else list_runs(mesh_home(os.environ)),
        )
        try:
            asyncio.run(send_all(plan, senders, report))
        finally:
            report.sum_up(senders.instead, senders.default.app_id)
    return report.exit_code


def _tell_length(plan: Plan) -> None:
    """Say how long it will take, where that is longer than anybody would expect to see nothing."""
    seconds = (plan.steps[-1].began - plan.steps[0].began) / plan.speed if plan.speed else 0.0
    if seconds > LONG_SECONDS:
        minutes = f"{seconds / 60:,.0f} minutes"
        note(f"{len(plan.steps)} are sent in their rhythm, which takes {minutes}; --speed max waits for none")


def _where(text: str | None) -> Match | None:
    try:
        return None if text is None else compile_match(text)
    except ExpressionError as error:
        raise UsageError(f"--where: {error}", _PROGRAM) from None


def _kinds(found: argparse.Namespace) -> frozenset[Kind]:
    """Give what is to be sent: to an application calls and events that arrived, else calls and events."""
    given = frozenset(_KINDS[each] for each in found.only)
    able = frozenset({Kind.CALL, Kind.DELIVERY} if found.to else {Kind.CALL, Kind.EVENT})
    if wrong := given - able:
        if Kind.DELIVERY in wrong:
            raise UsageError("--only deliveries needs --to: the application that they are posted to", _PROGRAM)
        raise UsageError("--only events goes without --to: they are published to their topics", _PROGRAM)
    return given or able


class _Choice:
    """Which lines are meant."""

    def __init__(self, found: argparse.Namespace, kinds: frozenset[Kind], where: Match | None) -> None:
        self._kinds, self._where, self._ids = kinds, where, frozenset(found.id)
        self._arrived: set[tuple[str, ...]] = set()
        self.unjudged = 0

    def takes(self, recorded: Recorded) -> bool:
        """Tell whether a line is one of them; of one event's attempts at an application the first is."""
        sight = recorded.sight
        kind = kind_of(sight)
        if kind not in self._kinds:
            return False
        event_id = str(sight.details.get("id", ""))
        if self._ids and not self._ids & {sight.id, event_id}:
            return False
        try:
            if self._where is not None and not self._where.matches(recorded.event):
                return False
        except ExpressionError:  # Of a line that has not what the rule names.
            self.unjudged += 1
            return False
        if kind is Kind.DELIVERY and event_id:
            one = (sight.app, sight.target, event_id, str(sight.details.get("route", "")))
            if one in self._arrived:
                return False
            self._arrived.add(one)
        return True


def _planned(
    recording: Recording, choice: _Choice, report: Report, headers: Sequence[tuple[str, str]]
) -> list[Planned]:
    """Read a recording to its end, before anything is sent; give what is to be, in the order of its beginnings."""
    steps: list[Planned] = []
    for recorded in recording:
        if not choice.takes(recorded):
            continue
        made = resend(recorded.sight, report.to, headers)
        if isinstance(made, Skipped):
            report.skip(recorded.line, made.reason)
        else:
            steps.append(Planned(recorded.began, recorded.line, recorded.at, made.source))
            report.plan(made, recorded.sight)
    if recording.cut:
        note("warning: the last line of the recording is not whole, and left out")
    if recording.dropped:
        note(f"warning: {recording.dropped} more passed than are in the recording: they came too fast for it")
    if choice.unjudged:
        note(f"{choice.unjudged} lines have not what --where names")
    steps.sort()
    return steps
