"""What commands do with ``-k``: the platform does it, and here it is shown."""

from __future__ import annotations

import asyncio
import json
import sys
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gateway.cli.output import printable
from gateway.cli.parsing import UsageError
from gateway.cli.platform import load_platform
from gateway.cli.reference import program, succeeded
from gateway.cli.terminal import age, note, show, show_document, show_records
from mesh.errors import ConfigError, Problem

if TYPE_CHECKING:
    import argparse
    from collections.abc import AsyncIterator, Sequence

    from gateway.cli.platform import Record

__all__ = [
    "components",
    "configurations",
    "dashboard",
    "init",
    "listed",
    "logs",
    "read_file",
    "status",
    "uninstall",
    "upgrade",
]

WITHIN = 300.0
LINES = 100
DASHBOARD_PORT = 8080
_PARTS = {
    "name": "NAME",
    "namespace": "NAMESPACE",
    "healthy": "HEALTHY",
    "status": "STATUS",
    "ready": "READY",
    "replicas": "REPLICAS",
    "version": "VERSION",
    "age": "AGE",
    "created": "CREATED",
}
_APPLICATIONS = {
    "namespace": "NAMESPACE",
    "appId": "APP ID",
    "appPort": "APP PORT",
    "pod": "POD",
    "ready": "READY",
    "restarts": "RESTARTS",
    "status": "STATUS",
    "age": "AGE",
    "created": "CREATED",
}
_COMPONENTS = {
    "namespace": "NAMESPACE",
    "name": "NAME",
    "type": "TYPE",
    "version": "VERSION",
    "scopes": "SCOPES",
    "loadedBy": "LOADED BY",
    "problems": "PROBLEMS",
    "created": "CREATED",
    "age": "AGE",
}
_CONFIGURATIONS = {key: title for key, title in _COMPONENTS.items() if key not in ("type", "version", "scopes")}


def init(found: argparse.Namespace) -> int:
    """Install."""
    platform, namespace = load_platform(), _system(found)
    given = _given(found)
    if found.output != "table":
        made = platform.manifests(namespace, given)
        if found.output == "yaml":
            import yaml

            show(yaml.safe_dump_all(made, sort_keys=False).rstrip())
        else:
            show(json.dumps({"apiVersion": "v1", "kind": "List", "items": made}, indent=2))
        return 0
    within = _seconds(found) if found.wait else None
    lines = platform.install(namespace, given, dry_run=found.dry_run, within=within, upgrade=False)
    asyncio.run(_noted(lines))
    if not found.dry_run and not succeeded(f"Success! Dapr has been installed to namespace {namespace}."):
        show(f"Installed in {namespace}; annotated pods get a gateway from now on. See: {program()} status -k")
    return 0


def upgrade(found: argparse.Namespace) -> int:
    """Change an installation."""
    platform, namespace = load_platform(), _system(found)
    lines = platform.install(namespace, _given(found), dry_run=found.dry_run, within=_seconds(found), upgrade=True)
    asyncio.run(_noted(lines))
    if not found.dry_run and not succeeded("Dapr control plane successfully upgraded."):
        show(f"Upgraded in {namespace}; gateways of the new version come with their pods: kubectl rollout restart")
    return 0


def _given(found: argparse.Namespace) -> list[str]:
    """Give the settings that options of dapr stand for, and behind them those that were set."""
    given = ["replicas=3"] if getattr(found, "enable_ha", False) else []
    if found.runtime_version or found.image_registry:
        default = next(str(value) for name, value, _ in load_platform().settings() if name == "image")
        image, _, tag = default.rpartition(":")
        registry = f"{found.image_registry.rstrip('/')}/" if found.image_registry else ""
        given.append(f"image={registry}{image}:{found.runtime_version or tag}")
    return [*given, *(found.set or ())]


def uninstall(found: argparse.Namespace) -> int:
    """Remove an installation."""
    namespace = _system(found)
    asyncio.run(_noted(load_platform().uninstall(namespace, everything=found.all)))
    if not succeeded("Dapr has been removed successfully"):
        kept = "" if found.all else "; resources, the root of identities and disks are kept, --all removes them as well"
        show(f"Removed from {namespace}{kept}.")
    return 0


async def _noted(lines: AsyncIterator[str]) -> None:
    async for line in lines:
        note(line)


def status(found: argparse.Namespace) -> int:
    """Show the parts of an installation; 1 where one is not well, or there is none."""
    platform, namespace = load_platform(), _system(found)
    parts = asyncio.run(platform.parts(namespace))
    if not parts:
        raise ConfigError(Problem(f"nothing is installed in {namespace}; see: {program()} init -k"))
    _records(parts, found.output, _PARTS)
    return int(not all(each["healthy"] for each in parts))


def listed(found: argparse.Namespace) -> int:
    """Show applications."""
    apps = asyncio.run(load_platform().applications(_namespace(found)))
    if not apps and found.output == "table":
        note("no pod has a gateway; annotate one with dapr.io/enabled: 'true' and dapr.io/app-id")
        return 0
    _records(apps, found.output, _APPLICATIONS)
    return 0


def components(found: argparse.Namespace) -> int:
    """Show components."""
    return _resources(found, "Component", _COMPONENTS)


def configurations(found: argparse.Namespace) -> int:
    """Show Configurations."""
    return _resources(found, "Configuration", _CONFIGURATIONS)


def _resources(found: argparse.Namespace, kind: str, heading: dict[str, str]) -> int:
    platform = load_platform()
    resources = asyncio.run(platform.resources(kind, _namespace(found), found.name))
    if not show_document(resources, found.output):
        _records(platform.rows(resources), "table", heading)
    return 0


def logs(found: argparse.Namespace) -> int:
    """Show what the gateways of an application write."""
    if len(found.app) != 1:
        raise UsageError("name one application: mesh logs -k -a APP-ID", "mesh logs")
    platform = load_platform()
    numeric = str(found.lines).isdigit()
    # dapr's -n is the namespace, ours are lines.
    namespace = found.namespace or ("default" if numeric else str(found.lines))
    lines = int(found.lines) if numeric else LINES

    async def follow() -> None:
        told = platform.logs(found.app[0], found.pod_name, namespace, lines=lines, follow=found.follow)
        async for pod, line in told:
            show(f"== {pod} == {printable(line)}")
            sys.stdout.flush()

    asyncio.run(follow())
    return 0


def dashboard(found: argparse.Namespace) -> int:
    """Forward a port to the dashboard until it is interrupted."""
    platform, namespace = load_platform(), _system(found)

    async def serve() -> None:
        async with platform.dashboard(namespace, DASHBOARD_PORT if found.port is None else found.port) as port:
            show(f"Dashboard: http://127.0.0.1:{port}/")
            sys.stdout.flush()
            if found.open:
                import webbrowser

                webbrowser.open(f"http://127.0.0.1:{port}/")
            await asyncio.Event().wait()

    with suppress(KeyboardInterrupt):
        asyncio.run(serve())
    return 0


def _records(records: Sequence[Record], output: str, heading: dict[str, str]) -> None:
    if output == "table":
        records = [{key: _cell(key, value) for key, value in each.items()} for each in records]
    show_records(list(records), output, heading)  # type: ignore[arg-type]  # argparse has checked it


def _cell(key: str, value: Any) -> Any:
    if isinstance(value, bool):
        return str(value)
    return age(value) if key == "age" else value


def _system(found: argparse.Namespace) -> str:
    return found.namespace or load_platform().namespace


def _namespace(found: argparse.Namespace) -> str | None:
    return None if found.all_namespaces or not found.namespace else str(found.namespace)


def _seconds(found: argparse.Namespace) -> float:
    try:
        return float(found.timeout or WITHIN)
    except ValueError:
        raise UsageError(f"--timeout: '{found.timeout}' is no number of seconds", "mesh init") from None


def read_file(path: str) -> str:
    """Read manifests: a file, or ``-`` for the standard input."""
    return sys.stdin.read() if path == "-" else Path(path).expanduser().read_text(encoding="utf-8")
