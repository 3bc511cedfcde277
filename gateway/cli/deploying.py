"""Applications of a template in a cluster: ``mesh run -k -f`` and ``mesh stop -k -f``."""

from __future__ import annotations

import asyncio
import hashlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gateway.cli.output import printable
from gateway.cli.platform import load_platform
from gateway.cli.reference import program, succeeded
from gateway.cli.terminal import note, show
from mesh.errors import ConfigError, Problem

if TYPE_CHECKING:
    from collections.abc import Sequence

    from gateway.cli.app_spec import AppSpec
    from gateway.cli.platform import Platform

__all__ = ["deploy", "withdraw"]

NAMESPACE = "default"
WAIT_SECONDS = 2.0
# Options of a gateway that annotations set under the same names.
_SAME = (
    "app_protocol",
    "app_max_concurrency",
    "log_level",
    "max_body_size",
    "read_buffer_size",
    "app_health_check_path",
    "app_health_probe_interval",
    "app_health_probe_timeout",
    "app_health_threshold",
    "enable_api_logging",
)


def deploy(specs: Sequence[AppSpec]) -> int:
    """Run them, and show what their gateways write until it is interrupted; they go on."""
    if without := [spec.app_id for spec in specs if not spec.image]:
        text = f"{', '.join(without)}: a cluster runs images; say containerImage for each application"
        raise ConfigError(Problem(text, "containerImage"))
    path = specs[0].labels.get("runTemplatePath") or ""
    platform, run = load_platform(), _run_of(path)
    for spec in specs:
        if spec.options.resources_path or spec.options.config:
            note(f"{spec.app_id}: its resources are not applied; a cluster has its own: kubectl apply -f FOLDER")
    made = asyncio.run(platform.deploy(run, NAMESPACE, [_app(spec) for spec in specs]))
    for name in made:
        note(f"{name}: applied")
    show(f"They run in {NAMESPACE}; to remove them: {program()} stop -k -f {path or 'FILE'}")
    asyncio.run(_follow(platform, [spec.app_id for spec in specs]))
    return 0


def withdraw(path: Path) -> int:
    """Remove the applications of a template."""
    gone = asyncio.run(load_platform().withdraw(_run_of(str(path.absolute())), NAMESPACE))
    for name in gone:
        note(f"{name}: deleted")
    if not gone:
        raise ConfigError(Problem("no application of it runs in the cluster; see: mesh list -k", file=str(path)))
    if not succeeded("Dapr and app processes stopped successfully"):
        show(f"{path} stopped")
    return 0


def _run_of(path: str) -> str:
    return hashlib.sha256(path.encode()).hexdigest()[:16]


def _app(spec: AppSpec) -> dict[str, Any]:
    options = spec.options
    annotations = {f"dapr.io/{name.replace('_', '-')}": getattr(options, name) for name in _SAME}
    annotations |= {
        "dapr.io/app-port": options.app_port,
        "dapr.io/enable-app-health-check": options.enable_app_health_check or None,
        "dapr.io/unix-domain-socket-path": options.unix_domain_socket,
    }
    return {
        "appId": spec.app_id,
        "image": spec.image,
        "pullPolicy": spec.pull_policy,
        "command": spec.command,
        "env": dict(spec.environment),
        "appPort": options.app_port,
        "service": spec.service,
        "annotations": {name: _text(value) for name, value in annotations.items() if value is not None},
    }


def _text(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


async def _follow(platform: Platform, app_ids: Sequence[str]) -> None:
    async def one(app_id: str) -> None:
        while True:
            try:
                async for pod, line in platform.logs(app_id, None, NAMESPACE, lines=100, follow=True):
                    show(f"== {pod} == {printable(line)}")
            except ConfigError:
                pass  # Its pod is not there yet, or is another one now.
            await asyncio.sleep(WAIT_SECONDS)

    async with asyncio.TaskGroup() as tasks:
        for app_id in app_ids:
            tasks.create_task(one(app_id), name=f"logs-{app_id}")
