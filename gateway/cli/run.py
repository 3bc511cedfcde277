"""``mesh run``."""

from __future__ import annotations

import asyncio
import os
import random
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from gateway.cli.app_spec import AppSpec
from gateway.cli.configure import gateway_config
from gateway.cli.guard import start_guard
from gateway.cli.launch import launch
from gateway.cli.one_app import Surroundings, gateway_grace
from gateway.cli.options import GatewayOptions
from gateway.cli.output import Console
from gateway.cli.parsing import (
    Parser,
    UsageError,
    add_gateway_flags,
    gateway_options,
    split_command,
    warnings_about,
)
from gateway.cli.reference import as_dapr
from gateway.cli.terminal import note
from gateway.cli.voice import voice_of
from gateway.runs import list_runs
from mesh.errors import ConfigError, Problem

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from gateway.cli.processes import Stdin
    from mesh.resources.documents import Document

__all__ = ["OLD_FIELDS", "check_files", "parser", "plan", "run"]

_SWITCHES = ("--kubernetes", "-k", "--help", "-h", "--dashboard")
_OWN = {"--run-file": "text", "-f": "text", **dict.fromkeys(_SWITCHES, "switch")}

_EPILOG = """\
examples:
  mesh run --app-id nodeapp --app-port 3000 --dapr-http-port 3500 -- node app.js
  mesh run --app-id pythonapp python app.py
  mesh run -f dapr.yaml

Everything after '--' is the command. Without '--' the command begins at the first word that is no option; options
of mesh run are its own there too, as for dapr, and all others go to the command."""

_ADJECTIVES = [
    "amber",
    "brave",
    "calm",
    "clever",
    "eager",
    "gentle",
    "happy",
    "jolly",
    "keen",
    "lively",
    "lucky",
    "merry",
    "nimble",
    "proud",
    "quick",
    "quiet",
]
_NOUNS = [
    "badger",
    "beaver",
    "falcon",
    "finch",
    "gecko",
    "heron",
    "ibex",
    "lynx",
    "marten",
    "otter",
    "panda",
    "puffin",
    "raven",
    "robin",
    "stoat",
    "wren",
]

_BESIDE_A_FILE = frozenset(
    ("-f", "--run-file", "-k", "--kubernetes", "--dashboard", "--log-as-json", "--runtime-path", "--dapr-path")
)
OLD_FIELDS = {
    "appSSL": "appProtocol: https or grpcs",
    "daprHTTPMaxRequestSize": "maxBodySize, such as 16Mi",
    "daprHTTPReadBufferSize": "readBufferSize, such as 64Ki",
    "resourcesPath": "resourcesPaths",
}


def parser() -> Parser:
    """Describe the command line."""
    made = Parser(
        "mesh run",
        usage="mesh run [options] [--] COMMAND [ARGUMENT...]\n       mesh run -f FILE|FOLDER|-",
        description="Run an application with its gateway beside it, or all applications of a template.",
        epilog=_EPILOG,
    )
    made.add_argument("-f", "--run-file", metavar="FILE", help="template with several applications; - reads it here")
    made.add_argument("--dashboard", action="store_true", help="show the mesh in a browser meanwhile: mesh dashboard")
    made.add_kubernetes()
    add_gateway_flags(made)
    return made


def run(words: Sequence[str]) -> int:
    """Run the command."""
    specs = plan(words, os.environ)
    if specs and specs[0].kubernetes:
        from gateway.cli.deploying import deploy

        return deploy(specs)
    check_files(specs)
    _check_ports(specs)
    _tell_unread(
        os.environ,
        components=not all(spec.config.resource_paths for spec in specs),
        configuration=not all(spec.config.configuration_files for spec in specs),
    )
    sys.stdout.flush()
    sys.stderr.flush()
    # Before the event loop: a process with threads can not be forked safely.
    guard = start_guard(max(gateway_grace(spec) for spec in specs))

    async def all_of_it() -> int:
        console = Console.of_process()
        console.as_json = specs[0].config.log_json
        voice = voice_of(console, several=specs[0].several)
        return await launch(specs, Surroundings(console, voice, guard, os.environ), dashboard=specs[0].dashboard)

    return asyncio.run(all_of_it())


def plan(words: Sequence[str], environ: Mapping[str, str]) -> list[AppSpec]:
    """Read and check everything before anything is started.

    Raises:
        UsageError: The command line is wrong.
        ConfigError: A value, or the template, is wrong.
    """
    own, command, late = split_command(words, _OWN)
    if late:
        behind = f"what '{command[0]}' is to get stands behind '--'"
        note(f"warning: {', '.join(late)} went to mesh run, as dapr reads it; {behind}")
    found = parser().parse(own)
    if found.run_file is not None:
        given = [word for word in own if word.startswith("-") and word.partition("=")[0] not in _BESIDE_A_FILE]
        specs = _template(found.run_file, environ, given, command)
        specs = [replace(spec, dashboard=found.dashboard, kubernetes=found.kubernetes) for spec in specs]
        return [_in_json(spec) for spec in specs] if getattr(found, "log_as_json", False) else specs
    if found.kubernetes:
        raise UsageError("in a cluster, applications of a template are run: mesh run -k -f FILE", "mesh run")
    for warning in warnings_about(found):
        note(f"warning: {warning}")
    options = gateway_options(found)
    if options.app_id is None and not command and options.app_port is None:
        raise UsageError(
            "there is no command to run, and no --app-id or --app-port of an application that runs already", "mesh run"
        )
    if options.app_id is None:
        options = replace(options, app_id=_random_name())
    if options.app_port is not None and 0 < options.app_port == options.dapr_http_port:
        raise ConfigError(Problem(f"{options.app_port} is the --dapr-http-port as well", "--app-port"))
    return [replace(_single(options, command, environ), dashboard=found.dashboard)]


def _in_json(spec: AppSpec) -> AppSpec:
    return replace(spec, options=replace(spec.options, log_as_json=True), config=replace(spec.config, log_json=True))


def _single(options: GatewayOptions, command: Sequence[str], environ: Mapping[str, str]) -> AppSpec:
    config = gateway_config(options, environ, default_http_port=0)
    for path in (*config.resource_paths, *config.configuration_files):
        if not path.exists():
            raise ConfigError(Problem("there is no such file or folder", file=str(path)))
    return AppSpec(options, config, tuple(command), stdin=_stdin())


def _stdin() -> Stdin:
    if sys.stdin is None:
        return "nothing"
    return "keyboard" if sys.stdin.isatty() else "ours"


def check_files(specs: Sequence[AppSpec]) -> None:
    """Find what is wrong in the files of all applications before any of them starts.

    Raises:
        ConfigError: Holds every problem, once.
    """
    configs = [spec.config for spec in specs if spec.config.resource_paths or spec.config.configuration_files]
    if not configs:
        return
    # Imported here: most runs have no files, and need no YAML.
    from gateway.cli.check import check_start

    findings = check_start(configs)
    if findings.problems:
        raise ConfigError(findings.problems)
    # A gateway logs them as well; they are told here when its log is not seen here.
    if not all(spec.gateway_log.console for spec in specs):
        for warning in findings.warnings:
            note(f"warning: {warning}")


def _check_ports(specs: Sequence[AppSpec]) -> None:
    """Find ports of the API that gateways of this user have, before any application starts.

    Raises:
        ConfigError: Names whose they are.
    """
    taken = {(each.host, each.http_port): each for each in list_runs(specs[0].config.home) if each.http_port}
    problems = []
    for spec in specs:
        port = 0 if spec.config.unix_socket_dir else spec.config.http_port
        if run := taken.get((spec.config.listen[0], port)):
            whose = f"{port} of {spec.app_id} is the port of {run.app_id}, which runs already"
            text = f"{whose}; mesh stop {run.app_id} ends it"
            problems.append(Problem(text, "daprHTTPPort" if spec.several else "--dapr-http-port"))
    if problems:
        raise ConfigError(problems)


def _tell_unread(environ: Mapping[str, str], *, components: bool, configuration: bool) -> None:
    """Say what another runtime keeps for all of its applications: its components need servers of that runtime."""
    home = Path(environ.get("DAPR_RUNTIME_PATH") or Path.home()) / ".dapr"
    if components and (home / "components").is_dir():
        folder = home / "components"
        note(f"{folder} is there and is not read: --resources-path reads it, in place of the built-in components")
    if configuration and (home / "config.yaml").is_file():
        note(f"{home / 'config.yaml'} is there and is not read: --config reads it")


def _template(text: str, environ: Mapping[str, str], given: Sequence[str], command: Sequence[str]) -> list[AppSpec]:
    # Imported here: the models are not needed for one application.
    from gateway.cli.template import load_template, read_template, template_path

    if command:
        raise UsageError(
            f"'{command[0]}' has no place beside -f: the template says it for each application", "mesh run"
        )
    if given:
        note(f"warning: {', '.join(given)}: without effect beside -f; the template says it for each application")
    path = template_path(text)
    (document,) = read_template(path)
    problems: list[Problem] = []
    specs = [replace(spec, several=True) for spec in load_template(document, path, environ, problems)]
    for warning in (*problems, *_about_template(document)):
        note(f"warning: {warning}")
    return specs


def _about_template(document: Document) -> list[str]:
    """Say once which old names of fields a template has."""
    apps = document.get("apps")
    parts = [document.get("common"), *(apps if isinstance(apps, list) else ())]
    names = {name.casefold() for part in parts if isinstance(part, dict) for name in part}
    # Files that are written for dapr have them, and dapr says nothing of it.
    old_fields = {} if as_dapr() else OLD_FIELDS
    return [f"{old} is an old name; use {new}" for old, new in old_fields.items() if old.casefold() in names]


def _random_name() -> str:
    return f"{random.choice(_ADJECTIVES)}-{random.choice(_NOUNS)}"  # noqa: S311 - a name, not a secret
