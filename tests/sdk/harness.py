"""What the tests of SDKs share: their programs, and the components that these use."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pytest

from tests.support.mesh import ManagedProcess

__all__ = ["HERE", "NODE", "PATIENT", "PYTHON", "Program", "actor_resources", "needs", "resources", "run"]

HERE = Path(__file__).parent
PYTHON = HERE / ".python" / "bin" / "python"
NODE = HERE / "node_modules" / "@dapr" / "dapr"

COMPONENTS = {
    "pubsub": "pubsub.mesh",
    "statestore": "state.mesh",
    "queries": "state.in-memory",
    "secrets": "secretstores.local.env",
    "settings": "configuration.mesh",
    "locks": "lock.mesh",
}
# How long SDKs wait for a gateway that starts.
PATIENT = {"DAPR_HEALTH_TIMEOUT": 60, "DAPR_CLIENT_TIMEOUT_SECONDS": 60}


def needs(path: Path) -> None:
    """Skip where an SDK is not installed, or fail in CI."""
    if not path.exists():
        assert "CI" not in os.environ, f"{path.name} is missing: tests/provision/sdks.sh"
        pytest.skip("not installed: tests/provision/sdks.sh")


def resources(home: Path, more: Iterable[Mapping[str, object]] = ()) -> Path:
    """Write the components, and further resources; give their folder."""
    folder = home / "resources"
    folder.mkdir()
    kind = {"apiVersion": "dapr.io/v1alpha1", "kind": "Component"}
    made = [
        {**kind, "metadata": {"name": name}, "spec": {"type": type_, "version": "v1"}}
        for name, type_ in COMPONENTS.items()
    ]
    (folder / "all.yaml").write_text("\n---\n".join(json.dumps(each) for each in (*made, *more)))
    return folder


def actor_resources(home: Path) -> Path:
    """Write a state store that keeps the state of actors; give its folder."""
    folder = home / "resources"
    folder.mkdir()
    spec = {"type": "state.mesh", "version": "v1", "metadata": [{"name": "actorStateStore", "value": "true"}]}
    kind = {"apiVersion": "dapr.io/v1alpha1", "kind": "Component", "metadata": {"name": "actors"}}
    (folder / "actors.yaml").write_text(json.dumps({**kind, "spec": spec}))
    return folder


async def run(*command: str, environ: Mapping[str, object]) -> dict[str, Any]:
    """Run an SDK's program to its end, and give what it saw."""
    process = await asyncio.create_subprocess_exec(
        *command,
        cwd=HERE,
        env={**os.environ, **{name: str(value) for name, value in environ.items()}},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        async with asyncio.timeout(180):
            output, errors = await process.communicate()
    except BaseException:
        process.kill()
        raise
    assert process.returncode == 0, (output + errors).decode()
    seen: dict[str, Any] = json.loads(output.splitlines()[-1])
    return seen


class Program(ManagedProcess):
    """An application on an SDK; its gateway is ready when it is."""

    def __init__(self, home: Path, *command: str, environ: Mapping[str, object]) -> None:
        values = {name: str(value) for name, value in environ.items()}
        super().__init__(Path(command[1]).stem, command, values, home)

    async def until_ready(self) -> None:
        """Whoever uses it waits for its gateway."""
