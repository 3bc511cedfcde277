"""``mesh list``."""

from __future__ import annotations

import os
import sys
import time
from typing import TYPE_CHECKING, Any

from gateway.cli.client import metadata
from gateway.cli.parsing import Parser
from gateway.cli.reference import as_dapr
from gateway.cli.terminal import add_output_option, age, note, show, show_records
from gateway.runs import Run, list_runs
from mesh.home import mesh_home

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

__all__ = ["parser", "record", "run"]

_HEADING = {
    "appId": "APP ID",
    "httpPort": "HTTP PORT",
    "metricsPort": "METRICS PORT",
    "appPort": "APP PORT",
    "actors": "ACTORS",
    "command": "COMMAND",
    "age": "AGE",
    "created": "CREATED",
    "daprdPid": "GATEWAY PID",
    "cliPid": "CLI PID",
    "appPid": "APP PID",
    "runTemplatePath": "RUN TEMPLATE",
    "appLogPath": "APP LOG",
    "daprdLogPath": "GATEWAY LOG",
}
_DAPR_HEADING = {
    "appId": "APP ID",
    "httpPort": "HTTP PORT",
    "grpcPort": "GRPC PORT",
    "appPort": "APP PORT",
    "command": "COMMAND",
    "age": "AGE",
    "created": "CREATED",
    "daprdPid": "DAPRD PID",
    "cliPid": "CLI PID",
    "appPid": "APP PID",
    "runTemplatePath": "RUN_TEMPLATE_PATH",
    "appLogPath": "APP_LOG_PATH",
    "daprdLogPath": "DAPRD_LOG_PATH",
}
_PATHS = ("runTemplatePath", "appLogPath", "daprdLogPath")
_SHORT, _SHORT_PATH = 40, 28
_ANSWER_WITHIN = 1.0


def parser() -> Parser:
    """Describe the command line."""
    made = Parser(
        "mesh list",
        description="List the applications and gateways that run, and the types of actors of each: TYPE:ACTIVE.",
    )
    made.add_kubernetes("with -k: only of this namespace", "--namespace")
    add_output_option(made)
    made.add_argument("-A", "--all-namespaces", action="store_true", help="all, as without it")
    return made


def run(words: Sequence[str]) -> int:
    """Run the command."""
    found = parser().parse(words)
    if found.kubernetes:
        from gateway.cli import cluster

        return cluster.listed(found)
    output = found.output
    runs = list_runs(mesh_home(os.environ))
    records: list[dict[str, Any]] = [record(each) for each in runs]
    if not as_dapr():
        told = metadata(runs, _ANSWER_WITHIN)
        records = [{**each, "actors": _actors(about)} for each, about in zip(records, told, strict=True)]
    if output == "table":
        if not records and as_dapr():
            show("No Dapr instances found.")
            return 0
        if not records:
            note("nothing runs; start an application with: mesh run --app-id NAME -- COMMAND")
            return 0
        records = [
            {**each, "command": _short(str(each["command"])), "actors": _counts(each.get("actors"))} for each in records
        ]
        if sys.stdout.isatty():  # Scripts get the whole paths.
            records = [{**each, **{key: _short_path(str(each[key])) for key in _PATHS}} for each in records]
    # Columns that are empty everywhere only take the width of others; scripts count those of dapr.
    shown = {
        key: title for key, title in _HEADING.items() if any(each.get(key) not in ("", 0, None) for each in records)
    }
    show_records(records, output, _DAPR_HEADING if as_dapr() else shown)
    return 0


def record(each: Run) -> dict[str, str | int | bool]:
    """Give what ``dapr list -o json`` gives, under its names."""
    labels = each.labels
    return {
        "appId": each.app_id,
        "httpPort": each.http_port,
        "grpcPort": each.grpc_port,
        "appPort": each.app_port or 0,
        "metricsEnabled": each.metrics_port > 0,
        "metricsPort": each.metrics_port,
        "command": labels.get("appCommand", ""),
        "age": age(time.time() - each.created),
        "created": time.strftime("%Y-%m-%d %H:%M.%S", time.localtime(each.created)),
        "daprdPid": each.pid,
        "cliPid": each.cli_pid or 0,
        "appPid": each.app_pid or 0,
        "maxRequestBodySize": each.max_body_bytes,
        "httpReadBufferSize": each.max_header_bytes,
        "runTemplatePath": labels.get("runTemplatePath", ""),
        "appLogPath": labels.get("appLogPath", ""),
        "daprdLogPath": labels.get("daprdLogPath", ""),
        "runTemplateName": labels.get("runTemplateName", ""),
    }


def _actors(told: Mapping[str, Any] | str) -> object:
    """Give the types of actors that an application hosts, and how many are active; None where that is not known."""
    return None if isinstance(told, str) else told.get("actors", [])


def _counts(actors: Sequence[Mapping[str, object]] | None) -> str:
    """Write them without blanks, so that programs can count columns."""
    return ",".join(f"{each['type']}:{each['count']}" for each in actors or ())


def _short(text: str) -> str:
    text = " ".join(text.split())
    return text if len(text) <= _SHORT else f"{text[: _SHORT - 1]}…"


def _short_path(text: str) -> str:
    """Give the end of a path, which tells one from the others."""
    return text if len(text) <= _SHORT_PATH else f"…{text[1 - _SHORT_PATH :]}"
