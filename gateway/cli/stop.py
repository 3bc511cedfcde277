"""``mesh stop``."""

from __future__ import annotations

import os
import signal
import time
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

from gateway.cli.client import request
from gateway.cli.guard import alive
from gateway.cli.parsing import Parser, UsageError
from gateway.cli.reference import as_dapr, succeeded
from gateway.cli.terminal import complain, show
from gateway.runs import Run, list_runs
from mesh.errors import MeshError
from mesh.home import mesh_home

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

__all__ = ["parser", "run"]

_POLL = 0.05
# A gateway drains for 5 s by default, its application has 5 s after it.
_WITHIN = 30.0
_RUN_WITHIN = 10.0


def parser() -> Parser:
    """Describe the command line."""
    made = Parser("mesh stop", description="Stop applications and their gateways; what is in flight is finished.")
    made.add_argument("app_ids", nargs="*", metavar="APP-ID", help="an application")
    made.add_argument("-a", "--app-id", action="append", default=[], metavar="APP-ID", help="an application")
    made.add_argument("-f", "--run-file", metavar="FILE", help="all applications of this template")
    made.add_kubernetes()
    return made


def run(words: Sequence[str]) -> int:
    """Run the command."""
    found = parser().parse(words)
    wanted: list[str] = [*found.app_ids, *found.app_id]
    if not wanted and found.run_file is None:
        raise UsageError("name an application: mesh stop APP-ID, or a template: mesh stop -f FILE", "mesh stop")
    if found.kubernetes:
        if found.run_file is None or wanted:
            raise UsageError("in a cluster, applications of a template are stopped: mesh stop -k -f FILE", "mesh stop")
        from gateway.cli.deploying import withdraw

        return withdraw(Path(_template(found.run_file)))
    home = mesh_home(os.environ)
    runs = list_runs(home)
    failed = False
    for app_id in wanted:
        chosen = [each for each in runs if each.app_id == app_id]
        failed |= not _stopped(home, app_id, chosen, runs)
    if found.run_file is not None:
        path = _template(found.run_file)
        chosen = [each for each in runs if each.labels.get("runTemplatePath") == path]
        if not chosen and as_dapr():
            complain(f"failed to stop Dapr and app processes: no application of {path} runs; see: mesh list")
        else:
            failed |= not _stopped(home, path, chosen, runs)
    # As dapr, one that does not run is no failure: scripts stop what may have ended.
    return int(failed and not as_dapr())


def _template(text: str) -> str:
    from gateway.cli.template import template_path

    path = template_path(text)
    if path is None:
        raise UsageError("a template from standard input has no name; stop its applications by their ids", "mesh stop")
    return str(path.absolute())


def _stopped(home: Path, name: str, chosen: Sequence[Run], all_runs: Sequence[Run]) -> bool:
    if not chosen:
        return _failed(name, "does not run; see: mesh list")
    beside, chosen_apart = Counter(each.pid for each in all_runs), Counter(each.pid for each in chosen)
    apart = [each for each in chosen if beside[each.pid] > chosen_apart[each.pid]]
    for each in apart:  # Others in its process go on.
        try:
            request(each, "POST", "/v1.0/shutdown")
        except (MeshError, TimeoutError) as error:
            return _failed(name, f"does not take the call to stop: {error}")
    for pid in sorted(_processes([each for each in chosen if each not in apart], all_runs)):
        try:
            os.kill(pid, signal.SIGTERM)
        except ProcessLookupError:
            continue
        except PermissionError:
            return _failed(name, f"has a process of another user: {pid}")
    deadline = time.monotonic() + _WITHIN
    rest = [each.pid for each in chosen]
    while rest and time.monotonic() < deadline:
        time.sleep(_POLL)
        there = {(each.pid, each.app_id) for each in list_runs(home)}
        rest = [each.pid for each in chosen if (each.pid, each.app_id) in there]
    if rest:
        pids = ", ".join(map(str, rest))
        return _failed(name, f"still runs after {_WITHIN:.0f} s (gateway {pids}); to kill it: kill -9 {pids}")
    # One whose applications have all gone ends as well: in its terminal, the shell is to read what is typed next.
    _until_gone({each.cli_pid for each in chosen} - {each.cli_pid for each in list_runs(home)})
    of_template = chosen[0].labels.get("runTemplatePath") == name
    if not succeeded(
        "Dapr and app processes stopped successfully" if of_template else f"app stopped successfully: {name}"
    ):
        show(f"{name} stopped")
    return True


def _until_gone(pids: Collection[int | None]) -> None:
    """Wait for processes of ``mesh run``, which may have to kill an application first."""
    deadline = time.monotonic() + _RUN_WITHIN
    while any(pid is not None and alive(pid) for pid in pids) and time.monotonic() < deadline:
        time.sleep(_POLL)


def _failed(name: str, why: str) -> bool:
    complain(f"failed to stop app id {name}: it {why}" if as_dapr() else f"{name} {why}")
    return False


def _processes(chosen: Sequence[Run], all_runs: Sequence[Run]) -> set[int]:
    """Choose whom to tell: ``mesh run`` if all it runs is to stop, else the gateway, whose end it sees."""
    shares = Counter(each.cli_pid for each in all_runs)
    asked = Counter(each.cli_pid for each in chosen)
    return {
        each.cli_pid if each.cli_pid is not None and asked[each.cli_pid] == shares[each.cli_pid] else each.pid
        for each in chosen
    }
