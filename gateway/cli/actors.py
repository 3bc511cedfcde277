"""``mesh actors``: who hosts which types, and what one actor has, by a gateway."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from gateway.cli.client import path_segment
from gateway.cli.invoke import add_socket_option, ask, gateway_of
from gateway.cli.parsing import Parser, UsageError
from gateway.cli.terminal import add_output_option, note, show_document, show_members, show_records
from gateway.runs import list_runs
from mesh.errors import ConfigError
from mesh.home import mesh_home

if TYPE_CHECKING:
    from collections.abc import Sequence

    from gateway.runs import Run

__all__ = ["parser", "run"]

_HEADING = {
    "type": "TYPE",
    "appID": "APP ID",
    "node": "NODE",
    "standing": "STANDING",
    "partitions": "PARTITIONS",
    "active": "ACTIVE",
}


def parser() -> Parser:
    """Describe the command line."""
    made = Parser(
        "mesh actors",
        description="List who hosts actors, show one, or deactivate one.",
        epilog="mesh actors list                  each type, its hosts, what they own and how many are active\n"
        "mesh actors show cart 17          who owns it, the keys of its state, its reminders\n"
        "mesh actors deactivate cart 17    have its application let go of it, once its turn has ended",
    )
    made.add_argument("what", choices=("list", "show", "deactivate"), metavar="list|show|deactivate", help="what to do")
    made.add_argument("type", nargs="?", metavar="TYPE", help="show, deactivate: the actor's type")
    made.add_argument("id", nargs="?", metavar="ID", help="show, deactivate: its id")
    made.add_argument("-a", "--app-id", metavar="APP-ID", help="whose gateway is asked; show: one that hosts the type")
    made.add_argument("--values", action="store_true", help="show: the values of its state, besides the keys")
    add_socket_option(made)
    add_output_option(made)
    return made


def run(words: Sequence[str]) -> int:
    """Run the command."""
    found = parser().parse(words)
    if found.what == "list" and found.type is not None:
        raise UsageError(f"unexpected '{found.type}'", "mesh actors")
    if found.what != "list" and found.id is None:
        raise UsageError(f"{found.what} needs type and id of an actor", "mesh actors")
    if found.values and found.what != "show":
        raise UsageError("--values belongs to: mesh actors show", "mesh actors")
    if found.unix_domain_socket is not None and found.app_id is None:
        raise UsageError("--unix-domain-socket needs --app-id", "mesh actors")
    path = ""
    if found.what != "list":
        path = f"/v1.0/mesh/actors/{path_segment(found.type, 'actor type')}/{path_segment(found.id, 'actor')}"
    gateway = gateway_of(found.app_id or "", found.unix_domain_socket, only_its_own=found.app_id is not None)
    if found.what == "list":
        types = ask(gateway, "GET", "/v1.0/mesh/actors")
        if not show_document(types, found.output):
            show_records(_rows(types), found.output, _HEADING)
        return 0
    if found.what == "show":
        path += "?values=true" * found.values
        told = ask(gateway, "GET", path) if found.app_id is not None else _shown(gateway, found.type, path)
        show_members(told, found.output)
        return 0
    told = ask(gateway, "DELETE", path, "ERR_ACTOR_TYPE_NOT_HOSTED")
    if told is None:
        raise _nobody_hosts(found.type)
    if not show_document(told, found.output):
        note(f"actor {found.type}/{found.id} " + ("is deactivated" if told["active"] else "was not active"))
    return 0


def _hosts(gateway: Run, type_: str) -> list[str]:
    """Give the app ids that host a type; raises ``ConfigError`` where there is none."""
    types = ask(gateway, "GET", "/v1.0/mesh/actors")
    hosts = sorted({host["appID"] for each in types if each["type"] == type_ for host in each["hosts"]})
    if not hosts:
        raise _nobody_hosts(type_)
    return hosts


def _nobody_hosts(type_: str) -> ConfigError:
    return ConfigError(f"no application hosts the actor type {type_}; see: mesh actors list")


def _shown(gateway: Run, type_: str, path: str) -> Any:
    """Ask a gateway of this machine whose application owns the actor: state is read where it belongs."""
    known = list_runs(mesh_home(os.environ))
    runs = {each.app_id: each for each in known if each.namespace == gateway.namespace}
    for asked in runs.values():
        told = ask(asked, "GET", path, "ERR_ACTOR_TYPE_NOT_HOSTED")
        if told is None:
            continue
        owner = told["appID"]
        if owner in (None, asked.app_id):
            return told
        if owner not in runs:
            text = f"no gateway runs here of {owner}, which owns it"
            raise ConfigError(f"{text}; --app-id {asked.app_id} shows what {asked.app_id} has of it")
        return ask(runs[owner], "GET", path)
    hosts = ", ".join(_hosts(gateway, type_))
    raise ConfigError(f"no gateway runs here of an application that hosts {type_}: {hosts}")


def _rows(types: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Give a line for each host, and one for what nobody owns."""
    rows: list[dict[str, Any]] = []
    for each in types:
        rows += [{"type": each["type"], **host} for host in each["hosts"]]
        if each["unowned"]:
            rows.append({"type": each["type"], "standing": "nobody", "partitions": each["unowned"]})
    return rows
