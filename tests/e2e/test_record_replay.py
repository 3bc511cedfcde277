"""The orders of the demo, recorded, and replayed to another version of the application that takes them."""

from __future__ import annotations

import json
import re
import signal
from pathlib import Path

from tests.e2e.test_examples import copied, needs_node
from tests.support.gateways import MESH, MeshHome
from tests.support.processes import free_port

pytestmark = needs_node
TAKEN = "response.writeHead(200).end();"


def test_orders_of_the_demo(home: MeshHome, tmp_path: Path) -> None:
    """The other version answers with 201: that is told of each order, and nothing else."""
    directory = copied("hello-world", tmp_path, {"3000": free_port(), "3500": free_port()})
    first = (directory / "node" / "app.js").read_text()
    assert first.count(TAKEN) == 1
    other = directory / "node" / "other.js"
    other.write_text(first.replace(TAKEN, TAKEN.replace("200", "201")))
    file = tmp_path / "orders.jsonl"
    with home.run("-f", str(directory)) as demo:
        demo.until("^== APP - pythonapp == Order 2 was taken$")
        with home.started([*MESH, "tap", "-n", "2", "--app", "pythonapp"], home.environ(), None) as tap:
            tap.until(r"^\S+  (asked|arrived)  +pythonapp → nodeapp +POST /neworder +200  ")
            assert tap.wait() == 0
        recording = home.mesh("record", "-o", str(file), "--app", "nodeapp", "--for", "4s")
        assert (recording.returncode, "warning" in recording.stderr) == (0, False)
        with home.run("--app-id", "other", "--app-port", str(free_port()), "--", "node", str(other)) as second:
            second.until("You're up and running")
            words = ("replay", str(file), "--to", "app=other", "--diff", "--only", "calls")
            found = home.mesh(*words, "--speed", "2x", "-o", "json")
            assert found.returncode == 1
            *lines, last = map(json.loads, found.stdout.splitlines())
            assert len(lines) >= 2
            assert all(
                each["differences"] == [{"path": "status", "recorded": 200, "replayed": 201}] for each in lines
            ), found.stdout
            assert last["summary"]["different"] == len(lines)
            second.until("Got a new order! Order ID: ")
            recorded = {json.loads(line)["id"] for line in file.read_text().splitlines()}
            assert {each["id"] for each in lines} <= recorded
            orders = [
                int(each) for each in re.findall(r"== APP - other == Got a new order! Order ID: (\d+)", second.text)
            ]
            assert orders == sorted(orders)
            found = home.mesh(*words, "--speed", "max", "--ignore", "status")
            assert (found.returncode, found.stdout.count("  same")) == (0, len(lines))
        assert demo.stop(signal.SIGINT) == 130
