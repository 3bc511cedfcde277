"""``mesh components``."""

from __future__ import annotations

import json
import os
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

from gateway.cli.client import GatewayUnreachableError, request
from gateway.cli.parsing import Parser
from gateway.cli.terminal import add_output_option, complain, note, show_records
from gateway.runs import Run, list_runs
from mesh.home import mesh_home

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["parser", "run"]

_HEADING = {
    "appId": "APP ID",
    "name": "NAME",
    "type": "TYPE",
    "version": "VERSION",
    "placement": "PLACEMENT",
    "capabilities": "CAPABILITIES",
    "health": "HEALTH",
}


def parser() -> Parser:
    """Describe the command line."""
    made = Parser("mesh components", description="List the components of the gateways that run.")
    made.add_argument("-a", "--app-id", metavar="APP-ID", help="only of this application")
    made.add_argument("-n", "--name", metavar="NAME", help="only of this name")
    made.add_kubernetes("with -k: only of this namespace", "--namespace")
    add_output_option(made)
    made.add_argument("-A", "--all-namespaces", action="store_true", help="all, as without it")
    return made


def run(words: Sequence[str]) -> int:
    """Run the command."""
    found = parser().parse(words)
    if found.kubernetes:
        from gateway.cli import cluster

        return cluster.components(found)
    runs = [run for run in list_runs(mesh_home(os.environ)) if found.app_id in (None, run.app_id)]
    with ThreadPoolExecutor(max_workers=max(len(runs), 1)) as pool:
        answers = list(pool.map(_components, runs))
    records = [each for answer in answers for each in answer or () if found.name in (None, each["name"])]
    if found.output == "table":
        if not runs:
            note("no gateway runs; to check files use: mesh check PATH")
            return 0
        records = [
            {
                **each,
                "capabilities": " ".join(map(str, _list(each["capabilities"]))),
                "health": ": ".join(str(each[key]) for key in ("health", "reason") if each[key]),
            }
            for each in records
        ]
    show_records(records, found.output, _HEADING)
    return int(None in answers)


def _components(run: Run) -> list[dict[str, object]] | None:
    try:
        status, body = request(run, "GET", "/v1.0/metadata")
        if status != 200:
            complain(f"{run.app_id}: {status} {body.decode(errors='replace').strip()}; is DAPR_API_TOKEN set right?")
            return None
        data = json.loads(body)
    except (GatewayUnreachableError, TimeoutError, ValueError) as error:
        complain(f"{run.app_id}: {error}")
        return None
    loaded = {each.get("name"): each for each in _records(data.get("components"))}
    known = {each.get("name"): each for each in _records(data.get("componentStatus"))}
    return [_record(run.app_id, loaded.get(name, {}), known.get(name, {})) for name in {**loaded, **known}]


def _record(app_id: str, loaded: dict[str, object], status: dict[str, object]) -> dict[str, object]:
    """Join what a gateway tells of a component, and how it is; one that could not be opened is not loaded."""
    both = {**status, **loaded}
    return {
        "appId": app_id,
        **{key: both.get(key, "") for key in ("name", "type", "version")},
        "capabilities": _list(both.get("capabilities")),
        **{key: both.get(key, "") for key in ("placement", "health", "reason")},
    }


def _records(value: object) -> list[dict[str, object]]:
    return [each for each in _list(value) if isinstance(each, dict)]


def _list(value: object) -> list[object]:
    return value if isinstance(value, list) else []
