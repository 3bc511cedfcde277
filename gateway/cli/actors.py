"""``mesh actors``: who hosts which types, and what one actor has, by a gateway."""

from __future__ import annotations

import json
import os
from http import HTTPStatus
from typing import TYPE_CHECKING, Any

from gateway.cli.client import path_segment, request
from gateway.cli.invoke import error_text, gateway_of
from gateway.cli.parsing import Parser, UsageError
from gateway.cli.terminal import add_output_option, complain, note, show, show_records
from gateway.runs import list_runs
from mesh.errors import ConfigError
from mesh.home import mesh_home

if TYPE_CHECKING:
    from collections.abc import Sequence

    from gateway.runs import Run

__all__ = ["parser", "run"]

_SECONDS = 75.0  # More than the gateway gives any of it.
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
    made.add_argument("-u", "--unix-domain-socket", metavar="DIR", help="folder of the gateway's socket")
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
    gateway = gateway_of(found.app_id or "", found.unix_domain_socket, only_its_own=found.app_id is not None)
    if found.what == "list":
        types = _asked(gateway, "GET", "/v1.0/mesh/actors")
        if found.output in ("json", "yaml"):
            _write(types, found.output)
        else:
            show_records(_rows(types), found.output, _HEADING)
        return 0
    path = f"/v1.0/mesh/actors/{path_segment(found.type)}/{path_segment(found.id)}"
    if found.what == "show":
        path += "?values=true" * found.values
        told = _asked(gateway, "GET", path) if found.app_id is not None else _shown(gateway, found.type, path)
        _write(told, found.output)
        return 0
    _hosts(gateway, found.type)
    told = _asked(gateway, "DELETE", path)
    if found.output in ("json", "yaml"):
        _write(told, found.output)
    else:
        note(f"actor {found.type}/{found.id} " + ("is deactivated" if told["active"] else "was not active"))
    return 0


def _hosts(gateway: Run, type_: str) -> list[str]:
    """Give the app ids that host a type; raises ``ConfigError`` where there is none."""
    types = _asked(gateway, "GET", "/v1.0/mesh/actors")
    hosts = sorted({host["appID"] for each in types if each["type"] == type_ for host in each["hosts"]})
    if not hosts:
        raise ConfigError(f"no application hosts the actor type {type_}; see: mesh actors list")
    return hosts


def _shown(gateway: Run, type_: str, path: str) -> Any:
    """Ask a gateway of this machine whose application owns the actor: state is read where it belongs."""
    hosts = _hosts(gateway, type_)
    runs = {each.app_id: each for each in list_runs(mesh_home(os.environ)) if each.app_id in hosts}
    if not runs:
        raise ConfigError(f"no gateway runs here of an application that hosts {type_}: {', '.join(hosts)}")
    asked = next(iter(runs))
    told = _asked(runs[asked], "GET", path)
    owner = told["appID"]
    if owner in (None, asked):
        return told
    if owner not in runs:
        raise ConfigError(
            f"no gateway runs here of {owner}, which owns it; --app-id {asked} shows what {asked} has of it"
        )
    return _asked(runs[owner], "GET", path)


def _rows(types: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Give a line for each host, and one for what nobody owns."""
    rows: list[dict[str, Any]] = []
    for each in types:
        rows += [{"type": each["type"], **host} for host in each["hosts"]]
        if each["unowned"]:
            rows.append({"type": each["type"], "standing": "nobody", "partitions": each["unowned"]})
    return rows


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
    return json.loads(body)


def _write(told: Any, output: str) -> None:
    if output == "json":
        show(json.dumps(told, indent=2))
    elif output == "yaml":
        import yaml

        show(yaml.safe_dump(told, sort_keys=False).rstrip())
    else:
        width = max(map(len, told)) + 2
        lines = {name: value if isinstance(value, str) else json.dumps(value) for name, value in told.items()}
        show("\n".join(f"{name:<{width}}{value}" for name, value in lines.items()))
