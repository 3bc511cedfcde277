"""The examples, run as their pages say."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest

from tests.support.gateways import MeshHome
from tests.support.processes import free_port

needs_node = pytest.mark.skipif(shutil.which("node") is None and "CI" not in os.environ, reason="node is not installed")
pytestmark = needs_node

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.fixture
def ports() -> dict[str, int]:
    return {name: free_port() for name in ("3000", "3500", "6001", "6002")}


def copied(name: str, tmp_path: Path, ports: dict[str, int]) -> Path:
    """Copy an example, so that its logs and its ports are nobody else's."""
    directory = tmp_path / name
    shutil.copytree(EXAMPLES / name, directory, ignore=shutil.ignore_patterns(".dapr"))
    template = directory / "dapr.yaml"
    template.write_text(re.sub(r"\d{4}", lambda match: str(ports.get(match[0], match[0])), template.read_text()))
    for app in directory.glob("*/app.py"):  # Nobody watches: five orders a second instead of one.
        app.write_text(app.read_text().replace("time.sleep(1)", "time.sleep(0.2)"))
    return directory


def test_hello_world_from_its_template(home: MeshHome, tmp_path: Path, ports: dict[str, int]) -> None:
    directory = copied("hello-world", tmp_path, ports)
    with home.run("-f", "dapr.yaml", cwd=directory) as run:
        run.until("^== APP - nodeapp == Got a new order! Order ID: 3$")
        run.until("^== APP - pythonapp == Order 3 was taken$")
        gateway = f"http://localhost:{ports['3500']}"
        with urllib.request.urlopen(f"{gateway}/v1.0/invoke/nodeapp/method/order", timeout=60) as answer:
            assert json.load(answer)["orderId"] >= 3
        stopped = home.mesh("stop", "pythonapp")
        assert stopped.stdout == "pythonapp stopped\n"
        last = int(re.findall(r"Got a new order! Order ID: (\d+)", run.text)[-1])
        assert run.stop(signal.SIGINT) == 130
    # A restart of everything keeps the order.
    with home.run("-f", str(directory / "dapr.yaml")) as run:
        run.until("^mesh: nodeapp runs")
        run.until("^== APP - nodeapp == Got a new order! Order ID: 1$")
        kept = home.mesh("invoke", "-a", "nodeapp", "-m", "order", "-v", "GET")
        assert json.loads(kept.stdout)["orderId"] in range(1, last + 10)


def test_hello_world_in_two_terminals(home: MeshHome, tmp_path: Path, ports: dict[str, int]) -> None:
    """As the tutorials have it: no ``--`` before the command, old names of options, either one first."""
    directory = copied("hello-world", tmp_path, ports)
    app_port, http_port = str(ports["3000"]), str(ports["3500"])
    node_line = ("--app-id", "nodeapp", "--app-port", app_port, "--port", http_port, "node", "app.js")
    with home.run("--app-id", "pythonapp", "python", "app.py", cwd=directory / "python") as caller:
        caller.until("^== APP - pythonapp == Order 1 failed: ")
        with home.run(*node_line, cwd=directory / "node") as callee:
            callee.until(r"^== APP - nodeapp == Got a new order! Order ID: \d+$")
            caller.until(r"^== APP - pythonapp == Order \d+ was taken$")
            assert caller.stop() == 0
            payload = '{"data": {"orderId": "41"}}'
            called = home.mesh("invoke", "--app-id", "nodeapp", "--method", "neworder", "--payload", payload)
            assert (called.returncode, called.stderr) == (0, "warning: --payload is an old name; use --data\n")
            callee.until("^== APP - nodeapp == Got a new order! Order ID: 41$")
            assert callee.stop() == 0
    # Alone again, it still has the order.
    with home.run(*node_line, cwd=directory / "node") as callee:
        callee.until("Node app listening")
        url = f"http://127.0.0.1:{http_port}/v1.0/state/statestore/order"
        with urllib.request.urlopen(url, timeout=60) as answer:
            assert answer.read() == b'{"orderId":"41"}'


def test_pubsub(home: MeshHome, tmp_path: Path, ports: dict[str, int]) -> None:
    directory = copied("pubsub", tmp_path, ports)
    assert home.mesh("check", ".", cwd=directory).stdout == "4 resources and 1 template are fine\n"
    with home.run("-f", str(directory)) as run:
        run.until("^== APP - warehouse == Order 1: teapot goes by post$")
        run.until("^== APP - warehouse == Order 2: piano goes by lorry$")
        run.until("^== APP - warehouse == Order 4: there is no unicorn$")
        run.until("^== APP - office == Order 4: writing to the customer that there is no unicorn$")
        run.until("^== APP - office == Order 4: turnover is now 4028$")
        event = '{"orderId": 1000, "item": "spoon", "total": 2}'
        words = ("--publish-app-id", "publisher", "--pubsub", "pubsub", "--topic", "orders", "--data", event)
        assert home.mesh("publish", *words).returncode == 0
        run.until("^== APP - warehouse == Order 1000: spoon goes by post$")
        # What is published while a subscriber is away waits for it.
        assert home.mesh("stop", "warehouse").returncode == 0
        assert home.mesh("publish", *words[:-1], event.replace("1000", "1001")).returncode == 0
        run.until("^== APP - office == Order 1001: turnover is now ")
        assert "Order 1001: spoon" not in run.text
        line = ("--app-id", "warehouse", "--app-port", str(ports["6001"]), "--resources-path", "../resources")
        with home.run(*line, "python3", "app.py", cwd=directory / "warehouse") as again:
            again.until("^== APP - warehouse == Order 1001: spoon goes by post$")
            assert "Order 1000:" not in again.text
        assert run.stop() == 0


@pytest.mark.parametrize(
    "command",
    [
        ["node", "hello-world/node/app.js"],
        [sys.executable, "hello-world/python/app.py"],
        [sys.executable, "pubsub/publisher/app.py"],
        [sys.executable, "pubsub/warehouse/app.py"],
        ["node", "pubsub/office/app.js"],
    ],
    ids=lambda command: command[1],
)
def test_example_ends_well_when_told_to(command: list[str]) -> None:
    environ = {**os.environ, "APP_PORT": str(free_port()), "DAPR_HTTP_PORT": str(free_port()), "PYTHONUNBUFFERED": "1"}
    process = subprocess.Popen(command, cwd=EXAMPLES, env=environ, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    try:
        assert process.stdout is not None
        assert process.stdout.readline() != b""
        process.terminate()
        _, errors = process.communicate(timeout=20)
    finally:
        process.kill()
        process.communicate()
    assert (process.returncode, errors) == (0, b"")
