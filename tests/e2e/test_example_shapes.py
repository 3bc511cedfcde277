"""The small examples: each is started by the line of examples/README.md, and does what it says."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import sys
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.support.gateways import MeshHome
from tests.support.processes import free_port

EXAMPLES = Path(__file__).parents[2] / "examples"
LIBRARIES = Path(__file__).parent / "libraries"
PYTHON = LIBRARIES / ".python" / "bin" / "python"
PAGED = {"clusters", "find-the-failure", "hello-world", "pubsub", "faststream", "hosted", "observability"}
ROW = re.compile(r"^\| \[(?P<name>[\w-]+)\]\((?P<file>[^)]+)\) \|.*\| `(?P<line>[^`]+)` \|$", re.MULTILINE)
ROWS = {found["name"]: found for found in ROW.finditer((EXAMPLES / "README.md").read_text(encoding="utf-8"))}


def needs(what: Path | str) -> None:
    """Skip where a program or a library is not installed; in CI that is a failure."""
    there = what.exists() if isinstance(what, Path) else shutil.which(what) is not None
    if not there:
        assert "CI" not in os.environ, f"{what} is missing: tests/provision/examples.sh"
        pytest.skip(f"{what} is not installed: tests/provision/examples.sh")


def words_of(name: str) -> list[str]:
    """Give the words of its line behind ``mesh run``, with a free port."""
    first, second, *words = shlex.split(ROWS[name]["line"])
    assert (first, second) == ("mesh", "run")
    if "--app-port" in words:
        words[words.index("--app-port") + 1] = str(free_port())
    return words


def copied(name: str, tmp_path: Path) -> Path:
    """Copy an example, so that its logs are nobody else's."""
    return shutil.copytree(EXAMPLES / name, tmp_path / name, ignore=shutil.ignore_patterns(".dapr", "node_modules"))


def with_ports(template: Path) -> None:
    """Give a run file free ports."""
    template.write_text(re.sub(r"appPort: \d+", lambda _: f"appPort: {free_port()}", template.read_text()))


def test_every_example_has_its_line() -> None:
    folders = {each.name for each in EXAMPLES.iterdir() if each.is_dir()}
    assert folders == set(ROWS) | PAGED
    assert all((EXAMPLES / found["file"]).exists() for found in ROWS.values())


@pytest.mark.parametrize("name", ["express", "fastapi", "flask", "node-http", "python-http"])
def test_subscribes_and_answers(home: MeshHome, tmp_path: Path, name: str) -> None:
    """The same of each: it takes an event, and a call gives what came last."""
    words = words_of(name)
    if words[-2] == "node":
        needs("node")
    if name == "express":
        needs(LIBRARIES / "node_modules" / "express")
    if name in ("fastapi", "flask"):
        needs(PYTHON)
        words[-2] = str(PYTHON)
    environ = {"NODE_PATH": str(LIBRARIES / "node_modules")}
    with home.run(*words, cwd=copied(name, tmp_path), environ=environ) as run:
        run.until("subscribed to pubsub/orders")
        topic = ("--publish-app-id", name, "--pubsub", "pubsub", "--topic", "orders", "--data")
        for strange in ("{}", "7"):
            assert home.mesh("publish", *topic, strange).returncode == 0
        run.until(f"(?s)(== APP - {name} == Dropped an event that is no order\n.*){{2}}")
        assert home.mesh("publish", *topic, '{"orderId": 7}').returncode == 0
        run.until(f"^== APP - {name} == Got order 7$")
        last = home.mesh("invoke", "--app-id", name, "--method", "last", "--verb", "GET")
        assert json.loads(last.stdout) == {"orderId": 7}
        run.stop()


def test_declared(home: MeshHome, tmp_path: Path) -> None:
    with home.run(*words_of("declared"), cwd=copied("declared", tmp_path)) as run:
        run.until("subscribed to pubsub/orders")
        topic = ("--publish-app-id", "declared", "--pubsub", "pubsub", "--topic", "orders", "--data")
        assert home.mesh("publish", *topic, "7").returncode == 0
        run.until("^== APP - declared == Dropped an event that is no order$")
        assert home.mesh("publish", *topic, '{"orderId": 7}').returncode == 0
        run.until("^== APP - declared == Got order 7 of orders$")
        run.stop()
    # It has no GET, which Python's server answers with 501: there is nothing to be read, and nothing to warn of.
    assert "GET /dapr/subscribe" not in run.text


def test_state(home: MeshHome, tmp_path: Path) -> None:
    """It counts on where it ended."""
    directory = copied("state", tmp_path)
    for number in (1, 2):
        with home.run(*words_of("state"), cwd=directory) as run:
            run.until(f"^== APP - state == Start number {number}$")
            assert run.wait() == 0


def test_invocation(home: MeshHome, tmp_path: Path) -> None:
    needs("node")
    directory = copied("invocation", tmp_path)
    with_ports(directory / "dapr.yaml")
    with home.run(*words_of("invocation"), cwd=directory) as run:
        run.until("^== APP - caller == 3 squared is 9$")
        run.stop()


def test_actors(home: MeshHome, tmp_path: Path) -> None:
    """What callers do to one actor at once is all done, and what was ordered for later comes."""
    needs("node")
    directory = copied("actors", tmp_path)
    with_ports(directory / "dapr.yaml")
    with home.run(*words_of("actors"), cwd=directory) as run:
        run.until("^== APP - payer == The account has 50 more$")
        run.until("^== APP - bank == Account ann has 57 after its interest$")
        run.until("^== APP - bank == Job audit: count everything$")
        run.stop()


@pytest.mark.parametrize("name", ["workflow-python", "workflow-node"])
def test_workflow(home: MeshHome, tmp_path: Path, name: str) -> None:
    """An activity is tried again, an approval is waited for, and what has to be done is done at once."""
    first, *words = words_of(name)
    if words[-2] == "node":
        needs("node")
    else:
        words[-2] = sys.executable  # Has aiohttp, as whatever runs the mesh does.
    port = free_port()
    url = f"http://127.0.0.1:{port}/v1.0"

    def ask(path: str, value: object = None) -> Any:
        body = None if value is None else json.dumps(value).encode()
        with urllib.request.urlopen(urllib.request.Request(url + path, body), timeout=60) as answer:
            return json.load(answer)

    def ended(instance: str) -> dict[str, Any]:
        told = ask(f"/mesh/workflows/{instance}?wait=30s")
        assert told["runtimeStatus"] == "COMPLETED", told
        return dict(told["output"])

    with home.run(first, words[0], "--dapr-http-port", str(port), *words[1:], cwd=copied(name, tmp_path)) as run:
        run.until("^mesh: You're up and running!")
        small, large = {"total": 7, "items": ["cup", "pan"]}, {"total": 5000, "items": ["piano"]}
        ask("/workflows/dapr/order/start?instanceID=small", small)
        ask("/workflows/dapr/order/start?instanceID=large", large)
        parcels = ["a box with a cup", "a box with a pan"]
        assert ended("small") == {"state": "sent", "payment": "payment of 7", "parcels": parcels}
        ask("/workflows/dapr/large/raiseEvent/approve", False)
        assert ended("large") == {"state": "refused", "reason": "not approved"}
        events = ask("/mesh/workflows/large/history")["events"]
        run.stop()
    assert [each["task"] for each in events if each["event"] == "completed"] == [1, 4]
    assert "the bank is away" in str(events)


def test_dapr_yaml(home: MeshHome, tmp_path: Path) -> None:
    """Its paths are relative to the file, wherever the command is run; a variable of an application comes first."""
    needs("node")
    directory = copied("dapr-yaml", tmp_path)
    with_ports(directory / "dapr.yaml")
    with home.run("-f", "dapr-yaml/dapr.yaml", cwd=tmp_path) as run:
        for name in ("Ada", "Grace"):
            run.until(f"^== APP - receiver == Hello, {name}! Welcome!$")
        run.stop()


def sidecars() -> Iterator[tuple[str, Sequence[str], Sequence[str]]]:
    """Give each application of the stack: its name, its command, and that of the gateway in its network."""
    services = yaml.safe_load((EXAMPLES / "compose" / "compose.yaml").read_text(encoding="utf-8"))["services"]
    for service in services.values():
        mode = service.get("network_mode", "")
        if mode.startswith("service:"):
            name = mode.removeprefix("service:")
            assert service["image"] == "brokermesh/gateway"
            assert service["environment"]["MESH_BACKBONE"] == "nats://nats:4222"
            assert name in service["depends_on"]
            yield name, services[name]["command"], service["command"]


def test_compose(home: MeshHome, tmp_path: Path) -> None:
    """Each application and its gateway, with the words that the stack gives them; a network each becomes ports."""
    directory = copied("compose", tmp_path)
    with ExitStack() as stack:
        runs = {}
        for name, command, options in sidecars():
            ports = {"8000": str(free_port()), "3500": str(free_port())}
            words = [ports.get(word, word) for word in options]
            assert (command[0], len(command)) == ("python", 2)
            run = home.run(*words, "--", sys.executable, command[1], cwd=directory)
            runs[name] = stack.enter_context(run)
        runs["orders"].until(r"^== APP - orders == Got order \d+$")
        runs["client"].until(r"^== APP - client == Sent order \d+$")
        for each in runs.values():
            each.stop()
