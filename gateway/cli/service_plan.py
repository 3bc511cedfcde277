"""What ``mesh service install`` is to write: services by the options and files of ``mesh run``, all of them checked."""

from __future__ import annotations

import os
import re
import stat
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from gateway.cli.one_app import gateway_grace
from gateway.cli.options import GatewayOptions, to_arguments
from gateway.cli.parsing import UsageError, gateway_options
from gateway.cli.run import check_files, plan
from gateway.cli.serve import MAX_WORKERS
from gateway.cli.service_unit import Service
from mesh.errors import ConfigError, Problem

if TYPE_CHECKING:
    import argparse

    from gateway.cli.app_spec import AppSpec

__all__ = ["services"]

_OWN_PORTS_BELOW = 1024
_UNIT_NAME = re.compile(r"[A-Za-z0-9_-]+")
# What a gateway reads of its environment, but for what belongs to one shell or to one folder of data.
_CARRIED = re.compile(
    r"NAMESPACE|APP_API_TOKEN|DAPR_(API_TOKEN|API_TOKEN_FILE|HTTP_DISABLE_H2C|COMPONENTS_SOCKETS_FOLDER|ENV_KEYS)"
    r"|MESH_(BACKBONE|DURABILITY|SINGLE_HOST|TRUST_\w+)"
)
_PATHS = ("trust_dir", "trust_cert", "trust_key", "trust_roots", "unix_domain_socket")
# What ProtectHome= and PrivateTmp= hide.
_HIDDEN = tuple(map(Path, ("/home", "/root", "/run/user", "/tmp", "/var/tmp")))  # noqa: S108 - not used, but refused


def services(found: argparse.Namespace, command: Sequence[str], environ: Mapping[str, str]) -> list[Service]:
    """Check what was given as ``mesh run`` does, and give the services.

    Raises:
        UsageError: The command line is wrong.
        ConfigError: Holds every problem of the options and files.
    """
    if found.run_file:
        words = ["-f", found.run_file]
    else:
        options = gateway_options(found)
        if options.app_id is None:
            raise UsageError("install needs --app-id, or -f and a template", "mesh service")
        words = [*to_arguments(options), *(["--", *command] if command else [])]
    carried = {name: value for name, value in environ.items() if _CARRIED.fullmatch(name) and value}
    if found.user and environ.get("MESH_HOME"):
        carried["MESH_HOME"] = str(_absolute(environ["MESH_HOME"]))
    given = dict(_variable(text) for text in found.env)
    if found.workers is not None and (command or found.run_file or not 1 <= found.workers <= MAX_WORKERS):
        text = f"a number from 1 to {MAX_WORKERS}, for a gateway alone: no command and no -f beside it"
        raise UsageError(f"--workers: expected {text}", "mesh service")
    specs = plan(words, {**environ, **given})
    check_files(specs)
    problems = [problem for spec in specs for problem in _problems(spec, found)]
    if problems:
        raise ConfigError(list(dict.fromkeys(problems)))
    return [_service(spec, found, {**carried, **spec.environment, **given}) for spec in specs]


def _variable(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not equals:
        raise UsageError(f"--env: '{text}' is not NAME=VALUE", "mesh service")
    return name, value


def _service(spec: AppSpec, found: argparse.Namespace, environment: Mapping[str, str]) -> Service:
    config, command = spec.config, spec.command
    verb = ["gateway.cli", "run"] if command else ["gateway"]
    options = to_arguments(_with_whole_paths(spec.options)) + ([f"--workers={found.workers}"] if found.workers else [])
    ports = (config.http_port, config.grpc_port, config.metrics_port)
    return Service(
        app_id=config.app_id,
        # -P: a folder named `gateway` where it works is not ours.
        words=[sys.executable, "-P", "-m", *verb, *options, *(["--", *command] if command else [])],
        directory=spec.directory if command else None,
        runs_application=bool(command),
        stop_seconds=gateway_grace(spec),
        user=found.as_user,
        of_user=found.user,
        low_port=any(0 < (port or 0) < _OWN_PORTS_BELOW for port in ports),
        writable=[_absolute(path) for path in found.write_path],
        environment=environment,
    )


def _with_whole_paths(options: GatewayOptions) -> GatewayOptions:
    """Name files so that they are found from wherever a service works."""
    given = {name: str(_absolute(value)) for name in _PATHS if (value := getattr(options, name))}
    folders = tuple(str(_absolute(path)) for path in options.resources_path)
    files = tuple(str(_absolute(path)) for path in options.config)
    return replace(options, resources_path=folders, config=files, **given)  # type: ignore[arg-type]  # Texts all.


def _absolute(path: Path | str) -> Path:
    return Path(path).expanduser().absolute()


def _problems(spec: AppSpec, found: argparse.Namespace) -> Iterator[Problem]:
    if not _UNIT_NAME.fullmatch(spec.app_id):
        yield Problem(f"'{spec.app_id}' can be no part of a unit's name; use letters, digits, - and _", "--app-id")
    if found.user or found.as_user:
        return
    used = [Path(sys.executable), Path(sys.base_prefix), Path(os.__file__), Path(__file__)]
    used += [_absolute(path) for path in (*spec.config.resource_paths, *spec.config.configuration_files)]
    if spec.command:
        used.append(spec.directory)
    for path in used:
        if reason := _unreadable(path):
            yield Problem(
                f"a service cannot read it: {reason}; move it, such as to /opt, or see --as USER", file=str(path)
            )


def _unreadable(path: Path) -> str:
    """Say why a user that owns nothing cannot read a file or a folder; empty if it can."""
    for each in (path.absolute(), path.resolve()):
        for hidden in _HIDDEN:
            if each.is_relative_to(hidden):
                return f"it does not see {hidden}"
        for folder in each.parents:
            if folder.exists() and not folder.stat().st_mode & stat.S_IXOTH:
                return f"{folder} is closed to others"
        if each.exists() and not each.stat().st_mode & stat.S_IROTH:
            return "its mode is closed to others"
    return ""
