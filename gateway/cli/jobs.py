"""``mesh jobs``: the jobs of an application, by its own gateway."""

from __future__ import annotations

from operator import itemgetter
from typing import TYPE_CHECKING, Any
from urllib.parse import urlencode

from gateway.cli.client import path_segment
from gateway.cli.invoke import add_socket_option, ask, own_gateway
from gateway.cli.parsing import Parser, UsageError
from gateway.cli.terminal import add_output_option, note, show_document, show_members, show_records
from mesh.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from gateway.runs import Run

__all__ = ["parser", "run"]

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
    add_socket_option(made)
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
    name = "" if found.name is None else path_segment(found.name, "job")
    gateway = own_gateway(found.app_id, "say whose with --app-id", found.unix_domain_socket)
    if found.what == "list":
        show_records(sorted(_jobs(gateway, found.prefix or ""), key=itemgetter("name")), found.output, _HEADING)
        return 0
    job = ask(gateway, "GET", f"/v1.0/mesh/jobs/{name}", "ERR_JOB_NOT_FOUND")
    if job is None:  # To delete none is no failure of the API.
        raise ConfigError(f"{gateway.app_id} has no job {found.name}; see: mesh jobs list --app-id {gateway.app_id}")
    if found.what == "show":
        show_members(job, found.output)
        return 0
    if found.what == "delete":
        ask(gateway, "DELETE", f"/v1.0/jobs/{name}")
        said = "is deleted"
    else:
        ask(gateway, "POST", f"/v1.0/mesh/jobs/{name}/run")
        said = "was taken"
    if not show_document({"name": found.name, "outcome": said.split()[-1]}, found.output):
        note(f"job {found.name} {said}")
    return 0


def _jobs(gateway: Run, prefix: str) -> Iterator[dict[str, Any]]:
    after = ""
    while True:
        query = urlencode({"prefix": prefix, "after": after, "limit": _PAGE}, errors="surrogateescape")
        page = ask(gateway, "GET", f"/v1.0/mesh/jobs?{query}")
        yield from page["jobs"]
        if not (after := page.get("after", "")):
            return
