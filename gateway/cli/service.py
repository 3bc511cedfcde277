"""``mesh service``: units of systemd for gateways on machines that run for long."""

from __future__ import annotations

import os
import pwd
from pathlib import Path
from typing import TYPE_CHECKING

from gateway.cli.parsing import Parser, UsageError, add_gateway_flags
from gateway.cli.service_unit import MARK, Service, environment_text, unit_text
from gateway.cli.systemd import Systemd
from gateway.cli.terminal import add_output_option, byte_size, note, show, show_records
from mesh.errors import ConfigError, MeshError, Problem
from mesh.home import write_private

if TYPE_CHECKING:
    import argparse
    from collections.abc import Sequence

__all__ = ["parser", "run"]

_HEADING = {
    "appId": "APP ID",
    "state": "STATE",
    "enabled": "AT BOOT",
    "pid": "PID",
    "memory": "MEMORY",
    "restarts": "RESTARTS",
    "since": "SINCE",
    "status": "STATUS",
}


def parser() -> Parser:
    """Describe the command line."""
    made = Parser(
        "mesh service",
        usage="mesh service install --app-id NAME [options of mesh gateway] [-- COMMAND [ARGUMENT...]]\n"
        "       mesh service install -f FILE\n"
        "       mesh service remove APP-ID...\n"
        "       mesh service status [APP-ID...]",
        description="Have systemd run gateways, or applications with theirs.",
        epilog="mesh service install --app-id orders --app-port 3000 -d /etc/mesh/resources\n"
        "mesh service install --app-id orders --app-port 3000 -- /opt/orders/bin/orders\n"
        "mesh service status orders\n"
        "mesh service remove orders",
    )
    verbs = ("install", "remove", "status")
    made.add_argument("what", choices=verbs, metavar="install|remove|status", help="what to do")
    made.add_argument("names", nargs="*", metavar="APP-ID", help="remove, status: which services")
    made.add_argument("-f", "--run-file", metavar="FILE", help="install: a service for each application of a template")
    made.add_argument("--user", action="store_true", help="services of this user, not of the machine")
    made.add_argument("--as", dest="as_user", metavar="USER", help="install: whose rights it has (those of nobody)")
    made.add_argument("--env", action="append", default=[], metavar="NAME=VALUE", help="install: a variable of its own")
    made.add_argument("--write-path", action="append", default=[], metavar="DIR", help="install: a folder it may write")
    made.add_argument("--workers", type=int, metavar="N", help="install: processes that share a gateway's work (1)")
    made.add_argument("--no-start", action="store_true", help="install: from the next boot on, not now")
    made.add_argument("--dry-run", action="store_true", help="install, remove: print what would be done")
    made.add_argument("--purge", action="store_true", help="remove: its environment file, too")
    add_output_option(made)
    return made


def run(words: Sequence[str]) -> int:
    """Run the command."""
    at = words.index("--") if "--" in words else len(words)
    command = list(words[at + 1 :])
    made = parser()
    if "install" in words[:at]:
        add_gateway_flags(made)
    found = made.parse(list(words[:at]))
    unexpected = [*(found.names if found.what == "install" else ()), *command]
    if unexpected and (found.names or found.what != "install" or found.run_file):
        raise UsageError(f"unexpected '{unexpected[0]}'; a command stands behind -- of install", "mesh service")
    systemd = Systemd(of_user=found.user)
    return {"install": _install, "remove": _remove, "status": _status}[found.what](found, systemd, command)


def _install(found: argparse.Namespace, systemd: Systemd, command: Sequence[str]) -> int:
    from gateway.cli.service_plan import services  # Templates and resources: not for the other two.

    if found.user and (found.as_user or found.write_path):
        raise UsageError("--as and --write-path are of services of the machine, not with --user", "mesh service")
    if found.as_user:
        try:
            pwd.getpwnam(found.as_user)
        except KeyError:
            raise ConfigError(Problem(f"there is no user '{found.as_user}'", "--as")) from None
    planned = [(each, unit_text(each)) for each in services(found, command, os.environ)]
    for service, _ in planned:
        environment_text("", service.environment)  # What cannot stand there is told before anything is written.
    if not found.dry_run:
        systemd.check()
    for service, _ in planned:
        _check_ours(systemd.units / service.unit)
    for service, text in planned:
        environments = systemd.environments / f"{service.app_id}.env"
        if found.dry_run:
            _show(systemd.units / service.unit, text, environments, service)
        else:
            _write(systemd.units / service.unit, text, environments, service)
    if found.dry_run:
        return 0
    units = [service.unit for service, _ in planned]
    systemd.command("daemon-reload")
    systemd.command("enable", *units)
    return 0 if found.no_start else max([_started(systemd, unit) for unit in units])


def _show(unit: Path, text: str, environments: Path, service: Service) -> None:
    show(f"# {unit}\n{text}")
    # Values may be passwords, and this is a screen.
    show(f"# {environments}\n" + "\n".join(f"{name}=…" for name in service.environment))


def _write(unit: Path, text: str, environments: Path, service: Service) -> None:
    before = environments.read_text() if environments.exists() else ""
    environment = environment_text(before, service.environment)
    environments.parent.mkdir(parents=True, exist_ok=True)
    # As it is to be when it is there: a unit holds no secrets, and an environment may.
    if environment != before or not environments.exists():
        write_private(environments, environment)
    unit.parent.mkdir(parents=True, exist_ok=True)
    write_private(unit, text)
    unit.chmod(0o644)
    names = f", with {', '.join(service.environment)} in {environments}" if service.environment else ""
    note(f"wrote {unit}{names}")


def _started(systemd: Systemd, unit: str) -> int:
    try:
        systemd.command("restart", unit)
    except MeshError:
        logs = f"journalctl {'--user ' * systemd.of_user}-u {unit}"
        note(f"error: {unit} does not start, and is tried again and again; see: {logs}")
        return 1
    note(f"{unit} runs")
    return 0


def _check_ours(unit: Path) -> None:
    """Refuse to touch what somebody else wrote.

    Raises:
        ConfigError: It is not of this command.
    """
    if unit.exists() and not unit.read_text(errors="replace").startswith(MARK):
        raise ConfigError(Problem("it was not written by mesh service install; move it away first", file=str(unit)))


def _remove(found: argparse.Namespace, systemd: Systemd, _: Sequence[str]) -> int:
    if not found.names:
        raise UsageError("remove needs an app id", "mesh service")
    units = [systemd.units / f"mesh-{name}.service" for name in dict.fromkeys(found.names)]
    for unit in units:
        if not unit.exists():
            raise ConfigError(Problem("there is no such service; see: mesh service status", file=str(unit)))
        _check_ours(unit)
    files = [systemd.environments / f"{name}.env" for name in found.names] if found.purge else []
    gone = [*units, *(each for each in files if each.exists())]
    if found.dry_run:
        show("\n".join(map(str, gone)))
        return 0
    systemd.check()
    systemd.command("disable", "--now", *(unit.name for unit in units))
    for each in gone:
        each.unlink()
    systemd.command("daemon-reload")
    note("removed " + ", ".join(map(str, gone)) + "; what was stored stays")
    return 0


def _status(found: argparse.Namespace, systemd: Systemd, _: Sequence[str]) -> int:
    ours = [each.name for each in sorted(systemd.units.glob("mesh-*.service")) if each.read_text().startswith(MARK)]
    wanted = [f"mesh-{name}.service" for name in found.names]
    for unit in wanted:
        if unit not in ours:
            raise ConfigError(Problem("there is no such service", file=str(systemd.units / unit)))
    if not ours:
        if found.output != "table":
            show_records([], found.output, _HEADING)
        note(f"there is no service in {systemd.units}; see: mesh service install --help")
        return 0
    told = systemd.described(wanted or ours)
    show_records([_record(each) for each in told], found.output, _HEADING)
    return int(any(each.get("ActiveState") != "active" for each in told))


def _record(told: dict[str, str]) -> dict[str, object]:
    unit, pid, memory = told["Id"], told.get("MainPID", "0"), told.get("MemoryCurrent", "")
    return {
        "appId": unit.removeprefix("mesh-").removesuffix(".service"),
        "unit": unit,
        "state": f"{told.get('ActiveState', '')} ({told.get('SubState', '')})",
        "enabled": told.get("UnitFileState", "") == "enabled",
        "pid": int(pid) if pid.isdecimal() and int(pid) else None,
        "memory": byte_size(int(memory)) if memory.isdecimal() else None,
        "restarts": int(told.get("NRestarts") or 0),
        "since": told.get("ActiveEnterTimestamp") or None,
        "status": told.get("StatusText") or None,
    }
