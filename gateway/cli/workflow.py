"""``mesh workflow``: the workflows of an application, by its own gateway."""

from __future__ import annotations

import json
from argparse import SUPPRESS
from operator import itemgetter
from typing import TYPE_CHECKING, Any
from urllib.parse import urlencode

from gateway.cli.client import path_segment
from gateway.cli.invoke import add_socket_option, ask, own_gateway
from gateway.cli.parsing import Parser, UsageError
from gateway.cli.terminal import add_output_option, members, note, show, show_document, show_records, table
from mesh.errors import ConfigError

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from gateway.runs import Run

__all__ = ["parser", "run"]

_PROGRAM = "mesh workflow"
_PATH = "/v1.0/mesh/workflows"
_PAGE = 1000
_HEADING = {
    "instanceID": "INSTANCE ID",
    "workflowName": "WORKFLOW",
    "runtimeStatus": "STATUS",
    "createdAt": "CREATED",
    "lastUpdatedAt": "UPDATED",
    "waiting": "WAITING FOR",
}
_STARTS = ("start", "run")
_RAISES = ("raise", "raise-event")
# The options of each, by the fields that they fill.
_OPTIONS: Mapping[str, tuple[str, ...]] = {
    "list": ("status", "name", "max_age", "limit"),
    "show": (),
    "history": ("values",),
    **dict.fromkeys(_STARTS, ("input", "instance_id", "start_time")),
    **dict.fromkeys(_RAISES, ("input",)),
    "terminate": ("given_output",),
    "suspend": ("reason",),
    "resume": ("reason",),
    "purge": ("all", "all_older_than", "all_filter_status", "force"),
    "rerun": ("input", "event_id", "new_instance_id"),
}


def parser(what: str = "") -> Parser:
    """Describe the command line; of two options with one letter what is done has its own."""
    starts, terminates = what in _STARTS, what == "terminate"
    made = Parser(
        _PROGRAM,
        description="List, show, start, steer, purge and rerun the workflows of an application.",
        epilog="mesh workflow list -s running -m 1h       those that were started within the last hour\n"
        "mesh workflow show o-17                   one, and what it waits for\n"
        "mesh workflow history o-17                what has happened to it, and when\n"
        "mesh workflow start order -x '{\"id\": 1}'  start one; -i sets its id, --start-time when it begins\n"
        "mesh workflow raise o-17 approved -x true  raise an event of it\n"
        "mesh workflow suspend o-17                and resume, terminate\n"
        "mesh workflow purge o-17 o-18             forget what has ended; --all-older-than 168h\n"
        "mesh workflow rerun o-17 -e 3             run it again from an event",
    )
    made.add_argument("what", choices=tuple(_OPTIONS), metavar="|".join(_OPTIONS), help="what to do")
    made.add_argument("words", nargs="*", metavar="ID", help="the instance; start: the workflow; raise: ID EVENT")
    made.add_argument("-a", "--app-id", metavar="APP-ID", help="the application; not needed when only one runs")
    short = () if starts else ("-s",)
    made.add_argument(*short, "--filter-status", dest="status", metavar="STATUS", help="list: those of a status")
    made.add_argument("-w", "--filter-name", dest="name", metavar="NAME", help="list: those of a workflow")
    made.add_argument("-m", "--filter-max-age", dest="max_age", metavar="TIME", help="list: those that are no older")
    made.add_argument("--limit", type=int, metavar="NUMBER", help="list: the most that are shown (1000)")
    made.add_argument("--values", action="store_true", default=None, help="history: values as long as they are")
    made.add_argument("-x", "--input", metavar="JSON", help="start, raise, rerun: what is given to it")
    made.add_argument("-i", "--instance-id", metavar="ID", help="start: the id, else one is made")
    short = ("-s",) if starts else ()
    made.add_argument(*short, "--start-time", metavar="TIME", help="start: when it begins: 2030-01-01T00:00:00Z")
    made.add_argument("-r", "--reason", metavar="TEXT", help="suspend, resume: kept in its history")
    made.add_argument("-e", "--event-id", type=int, metavar="NUMBER", help="rerun: from which event (the first)")
    made.add_argument("--new-instance-id", metavar="ID", help="rerun: the id of what runs, else one is made")
    made.add_argument("--force", action="store_true", default=None, help="purge: also what has not ended")
    made.add_argument("--all", action="store_true", default=None, help="purge: all that have ended")
    made.add_argument("--all-older-than", metavar="TIME", help="purge: all that ended so long ago, or before a time")
    made.add_argument("--all-filter-status", metavar="STATUS", help="purge: all of a status")
    # Those of dapr for where it runs, or keeps things, otherwise.
    for names in (("-n",), ("-c", "--connection-string"), ("-t", "--table-name")):
        made.add_argument(*names, dest="ignored", help=SUPPRESS)
    add_socket_option(made)
    add_output_option(made)
    if terminates:
        made.add_argument("-o", "--output", dest="given_output", metavar="JSON", help="terminate: its output")
        made.set_defaults(output="table")
    return made


def run(words: Sequence[str]) -> int:
    """Run the command."""
    what = next((word for word in words if word in _OPTIONS), "")
    found = parser(what).parse(words)
    _check(found)
    gateway = own_gateway(found.app_id, "say whose with --app-id", found.unix_domain_socket)
    done: Mapping[str, Callable[[Run, argparse.Namespace], int]] = {
        "list": _list,
        "show": _show,
        "history": _history,
        **dict.fromkeys(_STARTS, _start),
        **dict.fromkeys(_RAISES, _raise),
        "terminate": _terminate,
        "suspend": _tell,
        "resume": _tell,
        "purge": _purge,
        "rerun": _rerun,
    }
    return done[found.what](gateway, found)


def _check(found: argparse.Namespace) -> None:
    """Refuse options of another action, and words that are too few or too many."""
    own = _OPTIONS[found.what]
    for name in dict.fromkeys(name for names in _OPTIONS.values() for name in names):
        if name not in own and getattr(found, name, None) is not None:
            of = ", ".join(each for each, names in _OPTIONS.items() if name in names)
            option = {"status": "filter-status", "name": "filter-name", "max_age": "filter-max-age"}.get(name, name)
            raise UsageError(f"--{option.replace('_', '-')} belongs to: {of}", _PROGRAM)
    if found.what in _RAISES and len(found.words) == 1 and "/" in found.words[0]:
        found.words = found.words[0].rsplit("/", 1)
    wanted = {"list": (), **dict.fromkeys(_STARTS, ("a workflow",)), **dict.fromkeys(_RAISES, ("an id", "an event"))}
    needed = wanted.get(found.what, ("an id",))
    if found.what == "purge":
        everything = found.all or found.all_older_than is not None or found.all_filter_status is not None
        if bool(found.words) == bool(everything):
            raise UsageError("purge takes ids, or one of --all, --all-older-than, --all-filter-status", _PROGRAM)
    elif len(found.words) < len(needed):
        raise UsageError(f"{found.what} needs {needed[len(found.words)]}", _PROGRAM)
    elif len(found.words) > len(needed):
        raise UsageError(f"unexpected '{found.words[len(needed)]}'", _PROGRAM)


# What is read


def _list(gateway: Run, found: argparse.Namespace) -> int:
    most = _PAGE if found.limit is None else found.limit
    if most < 1:
        raise UsageError("--limit is at least 1", _PROGRAM)
    asked = {"status": found.status or "", "name": found.name or "", "since": found.max_age or ""}
    rows = [{**each, "waiting": _waiting(each)} for each in _pages(gateway, asked, most + 1)]
    more = len(rows) > most
    rows = sorted(rows[:most], key=itemgetter("createdAt"))
    if not show_document([_without(each, "waiting") for each in rows], found.output):
        show_records(rows, "table", _HEADING)
    if more:
        note(f"there are more than {most}; --limit shows more")
    return 0


def _pages(gateway: Run, asked: Mapping[str, str], most: int) -> Iterator[dict[str, Any]]:
    after = ""
    while most > 0:
        query = urlencode({**asked, "after": after, "limit": min(_PAGE, most)}, errors="surrogateescape")
        page = ask(gateway, "GET", f"{_PATH}?{query}")
        yield from page["workflows"]
        most -= len(page["workflows"])
        if not (after := page.get("after", "")):
            return


def _without(record: Mapping[str, Any], name: str) -> dict[str, Any]:
    return {key: value for key, value in record.items() if key != name}


def _waiting(row: Mapping[str, Any]) -> str:
    waiting = row.get("waitingFor", {})
    told = [f"{waiting[name]} {name}" for name in ("activities", "children") if name in waiting]
    told += [f"event {each['name']}" for each in row.get("waitsForEvents", ())]
    return ", ".join([*told, f"until {waiting['nextDue']}"] if "nextDue" in waiting else told)


def _show(gateway: Run, found: argparse.Namespace) -> int:
    from gateway.cli.workflow_waits import LISTS, waits  # Imported here: the others do without.

    told = _without(_asked(gateway, "GET", _one(found.words[0]), found.words[0]), "properties")
    if not show_document(told, found.output):
        rows = members({name: value for name, value in told.items() if name not in LISTS})
        show(table([*rows, *waits(told, gateway.app_id)]))
    return 0


def _history(gateway: Run, found: argparse.Namespace) -> int:
    from gateway.cli.workflow_timeline import timeline  # Imported here: the others do without.

    id_, after, told = found.words[0], 0, dict[str, Any]()
    while True:
        page = _asked(gateway, "GET", f"{_one(id_)}/history?after={after}&limit={_PAGE}", id_)
        told = {**page, "events": [*told.get("events", ()), *page["events"]]}
        if not (after := told.pop("after", 0)):
            break
    if not show_document(told, found.output):
        show(timeline(told, whole=bool(found.values)))
    return 0


# What changes something


def _start(gateway: Run, found: argparse.Namespace) -> int:
    given = {"name": found.words[0], "instanceID": found.instance_id, "startTime": found.start_time}
    told = ask(gateway, "POST", _PATH, body=_body(given, "input", found.input))
    if not show_document(told, found.output):
        show(told["instanceID"])
    return 0


def _raise(gateway: Run, found: argparse.Namespace) -> int:
    id_, event = found.words
    body = None if found.input is None else _json("input", found.input).encode()
    place = f"/v1.0/workflows/dapr/{path_segment(id_, 'instance')}/raiseEvent/{path_segment(event, 'event')}"
    _not_ended(gateway, id_)
    ask(gateway, "POST", place, body=body)
    return _done(found, id_, f"event {event} is raised of", "raised")


def _terminate(gateway: Run, found: argparse.Namespace) -> int:
    id_ = found.words[0]
    body = _body({}, "output", found.given_output)
    _not_ended(gateway, id_, "TERMINATED")
    _asked(gateway, "POST", f"{_one(id_)}/terminate", id_, body)
    note(f"workflow {id_} is terminated")
    return 0


def _tell(gateway: Run, found: argparse.Namespace) -> int:
    id_ = found.words[0]
    _not_ended(gateway, id_)
    _asked(gateway, "POST", f"{_one(id_)}/{found.what}", id_, _body({"reason": found.reason}))
    return _done(found, id_, "", {"suspend": "suspended", "resume": "resumed"}[found.what])


def _not_ended(gateway: Run, id_: str, wanted: str = "") -> None:
    """Raise ``ConfigError`` where it has ended, but as it is wanted: the API takes what changes nothing any more."""
    told = _asked(gateway, "GET", _one(id_), id_)
    if "endedAt" in told and told["runtimeStatus"] != wanted:
        raise ConfigError(f"workflow {id_} of {gateway.app_id} has ended: {told['runtimeStatus']}")


def _done(found: argparse.Namespace, id_: str, text: str, outcome: str) -> int:
    if not show_document({"instanceID": id_, "outcome": outcome}, found.output):
        note(f"{text} workflow {id_}" if text else f"workflow {id_} is {outcome}")
    return 0


def _rerun(gateway: Run, found: argparse.Namespace) -> int:
    id_ = found.words[0]
    given = {"event": found.event_id, "newInstanceID": found.new_instance_id}
    told = _asked(gateway, "POST", f"{_one(id_)}/rerun", id_, _body(given, "input", found.input))
    if not show_document(told, found.output):
        show(told["instanceID"])
    return 0


def _purge(gateway: Run, found: argparse.Namespace) -> int:
    force = bool(found.force)
    if found.words:
        count = 0
        for id_ in found.words:
            count += _whole(gateway, f"{_one(id_)}/purge", {"force": force}, id_)
    else:
        statuses = None if found.all_filter_status is None else found.all_filter_status.split(",")
        asked = {"force": force, "limit": _PAGE, "olderThan": found.all_older_than, "statuses": statuses}
        count = _whole(gateway, f"{_PATH}/purge", asked)
    if not show_document({"purged": count}, found.output):
        note(f"{count} workflow{'s' * (count != 1)} purged")
    return 0


def _whole(gateway: Run, path: str, body: Mapping[str, Any], id_: str = "") -> int:
    """Purge until it is done, or does not go on; gives how many there were."""
    count = 0
    while True:
        told = _asked(gateway, "POST", path, id_, _body(body))
        count += int(told["purged"])
        if told["complete"]:
            return count
        if not told["purged"]:
            force = "" if body["force"] else ", or have not ended: --force"
            raise ConfigError(f"{count} purged; the others do not go now, try again{force}")


def _one(id_: str) -> str:
    return f"{_PATH}/{path_segment(id_, 'instance')}"


def _asked(gateway: Run, method: str, path: str, id_: str, body: bytes | None = None) -> Any:
    """Ask about an instance; raises ``ConfigError`` where it is not there."""
    told = ask(gateway, method, path, "ERR_INSTANCE_ID_NOT_FOUND", body)
    if told is None:
        see = f"see: mesh workflow list --app-id {gateway.app_id}"
        raise ConfigError(f"{gateway.app_id} has no workflow {id_}; {see}")
    return told


def _body(given: Mapping[str, Any], name: str = "", text: str | None = None) -> bytes:
    """Write what there is as JSON, and a value as it was given: no number of it loses a digit."""
    members = [f"{json.dumps(key)}: {json.dumps(value)}" for key, value in given.items() if value is not None]
    if text is not None:
        members.append(f"{json.dumps(name)}: {_json(name, text)}")
    return f"{{{', '.join(members)}}}".encode()


def _json(name: str, text: str) -> str:
    """Check a value; raises ``UsageError`` for what is no JSON."""
    try:
        json.loads(text)
        text.encode()
    except ValueError:
        raise UsageError(
            f"--{name} is JSON, which {text[:50]!r} is not; a text has quotes: '\"…\"'", _PROGRAM
        ) from None
    return text
