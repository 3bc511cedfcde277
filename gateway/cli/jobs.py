"""``mesh jobs``: the jobs of an application, by its own gateway."""

from __future__ import annotations

import json
from http import HTTPStatus
from operator import itemgetter
from typing import TYPE_CHECKING, Any
from urllib.parse import urlencode

from gateway.cli.client import path_segment, request
from gateway.cli.invoke import error_text, own_gateway
from gateway.cli.parsing import Parser, UsageError
from gateway.cli.terminal import add_output_option, complain, note, show, show_records

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from gateway.runs import Run

__all__ = ["parser", "run"]

_SECONDS = 75.0  # More than the gateway gives any of it.
_PAGE = 1000
_HEADING = {
    "name": "NAME",
    "schedule": "SCHEDULE",
    "dueTime": "DUE TIME",
    "repeats": "REPEATS",
    "left": "LEFT",
    "nextDue": "NEXT DUE",
}


def parser() -> Parser:
    """Describe the command line."""
    made = Parser(
        "mesh jobs",
        description="List, show, delete or run the jobs of an application.",
        epilog="mesh jobs list -a shop            all of them, and when each is due next\n"
        "mesh jobs show nightly -a shop    one with its data\n"
        "mesh jobs delete nightly -a shop  one\n"
        "mesh jobs run nightly -a shop     tell the application of it now, once; its times stay as they are",
    )
    made.add_argument(
        "what", choices=("list", "show", "delete", "run"), metavar="list|show|delete|run", help="what to do"
    )
    made.add_argument("name", nargs="?", metavar="NAME", help="show, delete, run: the job")
    made.add_argument("-a", "--app-id", metavar="APP-ID", help="the application; not needed when only one runs")
    made.add_argument("-p", "--prefix", metavar="TEXT", help="list: those whose name begins so")
    made.add_argument("-u", "--unix-domain-socket", metavar="DIR", help="folder of the gateway's socket")
    add_output_option(made)
    return made


def run(words: Sequence[str]) -> int:
    """Run the command."""
    found = parser().parse(words)
    if (found.name is None) != (found.what == "list"):
        problem = f"{found.what} needs the name of a job" if found.name is None else f"unexpected '{found.name}'"
        raise UsageError(problem, "mesh jobs")
    if found.prefix is not None and found.what != "list":
        raise UsageError("--prefix belongs to: mesh jobs list", "mesh jobs")
    if found.name in ("", ".", ".."):
        raise UsageError(f"no job is named {found.name!r}", "mesh jobs")
    gateway = own_gateway(found.app_id, "say whose with --app-id", found.unix_domain_socket)
    if found.what == "list":
        show_records(sorted(_jobs(gateway, found.prefix or ""), key=itemgetter("name")), found.output, _HEADING)
        return 0
    name = path_segment(found.name)
    if found.what == "show":
        return _show(_asked(gateway, "GET", f"/v1.0/mesh/jobs/{name}"), found.output)
    if found.what == "delete":
        _asked(gateway, "GET", f"/v1.0/mesh/jobs/{name}")  # To delete none is no failure of the API.
        _asked(gateway, "DELETE", f"/v1.0/jobs/{name}")
        said = "is deleted"
    else:
        _asked(gateway, "POST", f"/v1.0/mesh/jobs/{name}/run")
        said = "was taken"
    if found.output != "table":
        return _show({"name": found.name, "outcome": said.split()[-1]}, found.output)
    note(f"job {found.name} {said}")
    return 0


def _jobs(gateway: Run, prefix: str) -> Iterator[dict[str, Any]]:
    after = ""
    while True:
        query = urlencode({"prefix": prefix, "after": after, "limit": _PAGE})
        page = _asked(gateway, "GET", f"/v1.0/mesh/jobs?{query}")
        yield from page["jobs"]
        if not (after := page.get("after", "")):
            return


def _asked(gateway: Run, method: str, path: str) -> Any:
    """Ask, and give what is answered as JSON; what is no success ends the command."""
    try:
        status, body = request(gateway, method, path, timeout=_SECONDS)
    except TimeoutError:
        complain(f"the gateway of {gateway.app_id} gave no answer for {_SECONDS:g} s")
        raise SystemExit(1) from None
    if not HTTPStatus.OK <= status < HTTPStatus.MULTIPLE_CHOICES:
        complain(f"{gateway.app_id}: {status} {HTTPStatus(status).phrase}: {error_text(body.decode(errors='replace'))}")
        raise SystemExit(1)
    return json.loads(body) if body else None


def _show(job: dict[str, Any], output: str) -> int:
    if output == "json":
        show(json.dumps(job, indent=2))
    elif output == "yaml":
        import yaml

        show(yaml.safe_dump(job, sort_keys=False).rstrip())
    else:
        width = max(map(len, job)) + 2
        lines = {name: value if isinstance(value, str) else json.dumps(value) for name, value in job.items()}
        show("\n".join(f"{name:<{width}}{value}" for name, value in lines.items()))
    return 0
