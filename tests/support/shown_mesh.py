"""A mesh with something of everything, and its dashboard: what browsers are shown."""

from __future__ import annotations

import json
import re
import shutil
import sys
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tests.support.eventually import eventually_sync
from tests.support.gateways import MESH, MeshHome, MeshRun
from tests.support.processes import ROOT, free_port

__all__ = ["Shown", "ask", "copied", "dashboard", "shown", "with_failures"]

EXAMPLE = "find-the-failure"
# By name: those that wait for an approval, that was refused one, that came to an end, and that cannot be.
WORKFLOWS: Mapping[str, object] = {
    "waits": {"total": 5000, "items": ["piano"], "patience": "1h"},
    "sent": {"total": 50, "items": ["teapot", "spoon"]},
    "fails": {"items": ["teapot"]},
}


@dataclass(frozen=True)
class Shown:
    """A running mesh.

    Attributes:
        address: Of its dashboard, with the token.
        gateways: URL of each application's.
        run: The applications of the example.
        home: Where commands find them.
        directory: Of the template.
    """

    address: str
    gateways: Mapping[str, str]
    run: MeshRun
    home: MeshHome
    directory: Path


def copied(name: str | Path, target: Path) -> Path:
    """Copy an example, or what is like one, with ports that are free, and our Python."""
    shutil.copytree(ROOT / "examples" / name, target, ignore=shutil.ignore_patterns(".dapr", "__pycache__"))
    template = target / "dapr.yaml"
    if template.exists():
        text = re.sub(r"(?<=Port: )\d{4}", lambda _: str(free_port()), template.read_text())
        template.write_text(text.replace('"python3"', f'"{sys.executable}"'))
    return target


@contextmanager
def dashboard(home: MeshHome, directory: Path) -> Iterator[str]:
    """Start it; give its address, with the token."""
    with home.started([*MESH, "dashboard", "--port", str(free_port())], home.environ(), directory) as started:
        yield started.until(r"^Dashboard: (\S+)$")[1]


def ask(url: str, value: object = None, verb: str | None = None, headers: Mapping[str, str] | None = None) -> Any:
    """Ask a gateway; give what it answered, as JSON where it is."""
    body = None if value is None else json.dumps(value).encode()
    made = urllib.request.Request(url, body, {"Content-Type": "application/json", **(headers or {})}, method=verb)
    with urllib.request.urlopen(made, timeout=30) as answer:
        text = answer.read()
    return json.loads(text) if text.startswith((b"{", b"[", b'"')) else text.decode()


@contextmanager
def with_failures(path: Path) -> Iterator[Shown]:
    """Run the prepared example with its dashboard."""
    home, directory = MeshHome(path / "home"), copied(EXAMPLE, path / EXAMPLE)
    with _running(home, directory, ("shop", "packing", "packing-mended")) as (run, gateways):
        run.until("^== APP - packing == Order .* failed: ")
        with dashboard(home, directory) as address:
            yield Shown(address, gateways, run, home, directory)
    home.until_nothing_runs()


@contextmanager
def shown(path: Path, *, broken: bool = True) -> Iterator[Shown]:
    """Run that, and beside it actors, jobs, workflows, state, and where ``broken`` a component that is not there."""
    bank = copied(ROOT / "tests" / "support" / "apps" / "bank", path / "bank")
    copied("workflow-python", bank / "workflows")
    shutil.copy(ROOT / "examples" / EXAMPLE / "resources" / "pubsub.yaml", bank / "resources")
    if not broken:
        (bank / "resources" / "broken.yaml").unlink()
    with with_failures(path) as first, _running(first.home, bank, ("bank", "payer", "orders")) as (run, gateways):
        _fill(run, gateways["bank"], gateways["orders"])
        yield replace(first, gateways={**first.gateways, **gateways})


@contextmanager
def _running(home: MeshHome, directory: Path, apps: Sequence[str]) -> Iterator[tuple[MeshRun, Mapping[str, str]]]:
    with home.run("-f", str(directory)) as run:
        ready = r"^mesh: {} runs \(pid \d+\), its gateway is ready at (\S+?)$"
        yield run, {each: run.until(ready.format(each))[1] for each in apps}


def _fill(run: MeshRun, bank: str, orders: str) -> None:
    run.until(r"^mesh: You're up and running! bank: ")
    run.until(r"^mesh: You're up and running! orders: ")
    for name, given in WORKFLOWS.items():
        ask(f"{orders}/v1.0-beta1/workflows/dapr/order/start?instanceID={name}", given)
    ask(f"{bank}/v1.0/jobs/nightly", {"schedule": "0 30 2 * * *", "data": {"month": 8}})
    ask(f"{bank}/v1.0/jobs/tick", {"schedule": "@every 2s"})
    ask(f"{bank}/v1.0/actors/account/0/reminders/interest", {"dueTime": "1h", "period": "24h", "data": 7})

    def ended() -> None:
        for name, status in (("sent", "COMPLETED"), ("fails", "FAILED"), ("waits", "RUNNING")):
            told = ask(f"{orders}/v1.0-beta1/workflows/dapr/{name}")
            assert told["runtimeStatus"] == status, told

    eventually_sync(ended)
