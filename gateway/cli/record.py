"""``mesh record``: what passes the mesh, with its values, into a file."""

from __future__ import annotations

import os
import signal
import stat
import sys
import time
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, BinaryIO

import orjson

from gateway.cli.invoke import lasting_option
from gateway.cli.parsing import Parser
from gateway.cli.tap import tell_beside
from gateway.cli.tapping import Event, add_filter_options, asked_of, events, size_option, tap_gateway
from gateway.cli.terminal import Progress, byte_size, complain, note
from gateway.replaying.recording import beginning
from mesh.errors import ConfigError
from mesh.tap.wire import DROPPED, REFUSED, TYPE

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

__all__ = ["parser", "run"]

_PROGRAM = "mesh record"
_MIB = 1024 * 1024
MAX_BODY = _MIB
MAX_SIZE = 1024 * _MIB
LINGER_SECONDS = 0.3  # Nodes tell what passes them in batches, each 50 ms.


def parser() -> Parser:
    """Describe the command line."""
    made = Parser(
        _PROGRAM,
        description="Write calls, events and all else that passes the mesh into a file, with headers and bodies,"
        "\nfor mesh replay. Ctrl-C ends it.",
        epilog="mesh record -o orders.jsonl --app orders                what orders asks, gets and does\n"
        "mesh record -o orders.jsonl --topic orders --for 30s    events of a topic, for half a minute\n"
        "mesh record -o failed.jsonl --where 'event.data.outcome == \"retry\"'",
    )
    made.add_argument("-o", "--output", required=True, metavar="FILE", help="is written anew; - is the standard output")
    add_filter_options(made)
    made.add_argument("--for", dest="seconds", type=lasting_option, metavar="TIME", help="end then, such as 30s")
    made.add_argument("--max-body", type=size_option, default=MAX_BODY, metavar="SIZE", help="of each body (1Mi)")
    made.add_argument("--max-size", type=size_option, default=MAX_SIZE, metavar="SIZE", help="end at this size (1Gi)")
    return made


@dataclass(slots=True)
class _Recorder:
    """What was written so far."""

    out: BinaryIO
    limit: int
    size: int = 0
    sights: int = 0
    hidden: int = 0
    dropped: int = 0
    apps: set[str] = field(default_factory=set)

    def write(self, line: bytes) -> None:
        self.out.write(line + b"\n")
        self.size += len(line) + 1

    def take(self, told: Sequence[tuple[bytes, Event]]) -> bool:
        """Write what came; tells whether there is room for more."""
        for line, event in told:
            if self.size + len(line) >= self.limit:
                note(f"warning: it ends at {byte_size(self.limit)}; --max-size sets another limit")
                return False
            self.write(line)
            if event["type"] == DROPPED:
                self.dropped += event["data"]["count"]
            elif event["type"] == REFUSED:
                tell_beside(event)
            elif event["type"].startswith(TYPE) and "seen" in event["data"]:
                self.sights += 1
                self.apps.add(event["data"]["app"])
                self.hidden += event["data"].get("hidden") is True
        self.out.flush()  # Whatever ends this, what came until then is there.
        return True

    def told(self) -> str:
        return f"{self.sights} recorded, {byte_size(self.size)}"


def run(words: Sequence[str]) -> int:
    """Run the command; its exit code is 0 when it ended as it was to, with Ctrl-C too, and 1 when the gateway did."""
    found = parser().parse(words)
    gateway = tap_gateway(found, os.environ)
    asked = {**asked_of(found), "values": "true", "maxBody": found.max_body}
    if found.seconds is not None:
        asked["for"] = f"{found.seconds:g}s"
    ended, limited = False, found.seconds is not None
    with _opened(found.output) as out, _told_to_end():
        recorder = _Recorder(out, found.max_size)
        recorder.write(orjson.dumps(beginning(gateway.namespace, time.time(), asked)))
        until = time.monotonic() + (found.seconds or 0)
        try:
            with Progress() as tell:
                for told in events(gateway, asked, _PROGRAM):
                    if not told and not recorder.sights:
                        note(f"records into {found.output}; Ctrl-C ends it")
                    if not recorder.take(told):
                        ended = True
                        break
                    tell(recorder.told())
        except KeyboardInterrupt:
            ended = True
        # Half a second early is no end of the gateway: its clock is not ours.
        ended = ended or (limited and time.monotonic() > until - 0.5)
    _sum_up(recorder, found.output)
    if not ended:
        complain(f"the gateway of {gateway.app_id} ended before; what came until then is in {found.output}")
    return int(not ended)


def _sum_up(recorder: _Recorder, name: str) -> None:
    if recorder.dropped:
        note(f"warning: {recorder.dropped} more are not in it: they came faster than they were taken")
    if recorder.hidden:
        note(f"warning: {recorder.hidden} are without headers and bodies, as said above; mesh replay leaves them out")
    apps = f" of {', '.join(sorted(recorder.apps))}" if recorder.apps else ""
    note(f"{recorder.told()}{apps}: {'written' if name == '-' else name}")


@contextmanager
def _opened(name: str) -> Iterator[BinaryIO]:
    """Open what is written; nobody else may read it."""
    if name == "-":
        yield sys.stdout.buffer
        return
    try:
        descriptor = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise ConfigError(f"{name}: {error.strerror}") from error
    with open(descriptor, "wb") as out:
        if stat.S_ISREG(os.fstat(descriptor).st_mode):  # One that was there may have been everybody's.
            os.fchmod(descriptor, 0o600)
        yield out


@contextmanager
def _told_to_end() -> Iterator[None]:
    """Have SIGTERM end it as Ctrl-C does: a moment later, since what has passed is still on its way; twice, at once."""
    told = False

    def end(number: int, _: object) -> None:
        nonlocal told
        if told or number == signal.SIGALRM:
            raise KeyboardInterrupt
        told = True
        signal.setitimer(signal.ITIMER_REAL, LINGER_SECONDS)

    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGALRM)
    before = [signal.signal(each, end) for each in numbers]
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        for number, former in zip(numbers, before, strict=True):
            signal.signal(number, former)
