"""Workflows on the official SDKs, unmodified: everything that each has, in one process a language."""

from __future__ import annotations

import json
import os
import re
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from tests.faults.conftest import mesh_home
from tests.sdk.harness import HERE, NODE, PATIENT, PYTHON, Program, needs, resources, run
from tests.sdk.test_programs import JAVA, built
from tests.support.gateways import MeshHome
from tests.support.mesh import GatewayProcess
from tests.support.processes import free_port

__all__ = ["mesh_home"]

WIDE = 1000
DOUBLED = WIDE * (WIDE - 1)


@asynccontextmanager
async def hubs(home: Path) -> AsyncIterator[Mapping[str, object]]:
    """Run the gateways of two applications; gives their ports as a program reads them."""
    ports = {name: free_port() for name in ("shop", "billing")}
    gateways = [GatewayProcess(name, home, arguments=("--dapr-grpc-port", str(port))) for name, port in ports.items()]
    async with gateways[0], gateways[1]:
        try:
            yield {**PATIENT, **{f"{name.upper()}_GRPC_PORT": port for name, port in ports.items()}}
        except BaseException:
            for gateway in gateways:
                gateway.show_log()
            raise


TURNS = [
    "WORKFLOW_STARTED",
    "EXECUTION_STARTED",
    "TASK_SCHEDULED",
    *["WORKFLOW_STARTED", "TASK_COMPLETED", "TASK_SCHEDULED"] * 4,
    "WORKFLOW_STARTED",
    "TASK_COMPLETED",
    "EXECUTION_COMPLETED",
]


async def test_python(mesh_home: Path) -> None:
    """Sequences, fan-out, races, timers, children, other applications, retries, versions, management, reruns."""
    needs(PYTHON)
    async with hubs(mesh_home) as environ:
        seen = await run(str(PYTHON), "python_workflows.py", environ=environ)
    check_python_ends(seen["ends"])
    assert seen["managed"] == {
        "paused": "SUSPENDED",
        "still": "SUSPENDED",
        "held": ["COMPLETED", [1, 2]],
        "long": "RESOURCE_EXHAUSTED",
        "taken": "ALREADY_EXISTS",
        "not ended": "FAILED_PRECONDITION",
        "terminated": [["TERMINATED", {"why": "late"}], "TERMINATED"],
        "alone": ["TERMINATED", "RUNNING"],
        "purged": [None, None],
        "purged alone": [None, "RUNNING"],
        "orphan": ["COMPLETED", [None, None]],
        "again": ["held", ["COMPLETED", [24, "ü!", None]]],
        "nobody": [None, "NOT_FOUND", "NOT_FOUND", "NOT_FOUND"],
    }
    looked_at = seen["looked at"]
    assert looked_at == {
        "history": TURNS,
        "rerun": ["second", ["COMPLETED", [80, "ü!", None]], ["COMPLETED", [400, "ü!", None]]],
        "rerun again": "ALREADY_EXISTS",
        "rerun nothing": "NOT_FOUND",
        "page": [2, True],
        "listed": ["fan", "first", "second"],
        "no history": "NOT_FOUND",
    }
    assert seen["left"] == []


async def test_python_hands_history_on(mesh_home: Path) -> None:
    """By both scopes, to children and activities here and of another application, over reruns and new beginnings."""
    needs(PYTHON)
    async with hubs(mesh_home) as environ:
        seen = await run(str(PYTHON), "python_propagation.py", environ=environ)
    for root, total in (("c-1", 7), ("c-2", 8)):
        first, second = ["shop", root, "checkout"], ["shop", f"{root}:0002", "pay"]
        valid = [f"{total}", f'"{total} is good"', True]
        lineage = ["LINEAGE", [first, second], ["shop"], valid]
        own = ["OWN_HISTORY", [second], ["shop"], "unknown"]
        audited = [lineage, [first, second, ["billing", f"{root}:0002:0004", "audit"]]]
        paid = {"own": own, "lineage": lineage, "nothing": None, "audited": audited, "trusted": own}
        tried_again = [["OWN_HISTORY", [first], ["shop"], valid], 18]
        assert seen.pop(root) == ["COMPLETED", [None, None, paid, tried_again]]
    assert seen.pop("fits") == [
        "COMPLETED",
        [
            ["OWN_HISTORY", [["shop", "fits", "much"]], ["shop"], "unknown"],
            ["LINEAGE", [["shop", "fits", "much"]], ["shop"], "unknown"],
            None,
        ],
    ]
    status, (activity, child, plain) = seen.pop("too-much")
    assert (status, plain, seen) == ("COMPLETED", None, {})
    assert "propagation: the history for the activity 'look' has 11" in activity
    assert "propagation: the history for the child workflow 'knows' has 11" in child


def check_python_ends(seen: dict[str, Any]) -> None:
    done = "COMPLETED"
    named, unnamed, failed, shipped, charged = seen["parent"][1]
    assert (named, unnamed, shipped, charged) == (8, 16, ["shipped", "book", 1], ["parent", 7])
    assert "child is lost" in failed
    assert "has at most 1000 bytes, this one 2000" in seen.pop("nowhere")[1]
    assert seen["failing"] == ["FAILED", "LookupError", "it is lost"]
    del seen["parent"], seen["failing"]
    assert seen == {
        "sequence": [done, [8, "ü!", None]],
        "fan": [done, DOUBLED],
        "race-timer": [done, "late"],
        "race-event": [done, {"by": "ü"}],
        "timers": [done, [True, True]],
        "late": [done, "timed out"],
        "patched": [done, [True, True]],
        "retried": [done, ["r-twice", "r-child", True]],
        "again": [done, ["a", "b", "c"]],
        "counts": [done, "counts"],
        "versions": [done, "two"],
        "scheduled": [done, [40, "ü!", None]],
        "pending": "PENDING",
        "not early": True,
        "state": ["sequence", "1", "at 8"],
        "without texts": None,
        "started there": [done, ["started-there", "remote", 1]],
        "tries": [3, 2, 3],
    }


# The numbers of gRPC's codes, which is what the SDK tells.
NOT_FOUND, ALREADY_EXISTS = 5, 6


async def test_node(mesh_home: Path) -> None:
    """What the SDK has: it knows no retries, no other applications, no versions, no histories."""
    needs(NODE)
    async with hubs(mesh_home) as environ:
        seen = await run("node", "workflows.js", environ=environ)
    done = "COMPLETED"
    named, unnamed, failed = seen["ends"].pop("parent")[1]
    assert (named, unnamed) == (8, 16)
    assert "child is closed" in failed
    status, failed = seen["ends"].pop("failing")
    assert status == "FAILED"
    assert "it is closed" in failed
    assert seen["ends"] == {
        "pending": "PENDING",
        "sequence": [done, [8, None]],
        "fan": [done, DOUBLED],
        "race-timer": [done, "late"],
        "race-event": [done, {"by": "ü"}],
        "timers": [done, True],
        "again": [done, ["a", "b", "c"]],
        "scheduled": [done, [40, None]],
        "notEarly": True,
        "state": ["sequence", "1", "at 8"],
    }
    assert seen["managed"] == {
        "paused": "SUSPENDED",
        "still": "SUSPENDED",
        "held": [done, [1, 2]],
        "taken": ALREADY_EXISTS,
        "terminated": [["TERMINATED", {"why": "late"}], True],
        "purged": [True, None],
        "again": ["held", [done, [24, None]]],
        "nobody": [None, NOT_FOUND],
    }


ANCESTRY = [
    "nothing",
    "HISTORY_PROPAGATION_SCOPE_OWN_HISTORY shop/ancestor 6",
    "HISTORY_PROPAGATION_SCOPE_LINEAGE shop/ancestor 9",
    "HISTORY_PROPAGATION_SCOPE_LINEAGE shop/ancestor billing/heir 12",
]


async def test_go(mesh_home: Path) -> None:
    """Everything but a later start's time, with the names of what runs in another application."""
    program = str(built("go") / "program")
    async with hubs(mesh_home) as environ:
        seen = await run(program, "workflows", environ=environ)
    done = "COMPLETED"
    assert "child is lost" in seen["failed"]
    del seen["failed"]
    assert seen == {
        "sequence": [done, "[8,null]"],
        "fan": [done, str(DOUBLED)],
        "raceTimer": [done, '"late"'],
        "raceEvent": [done, '"ü"'],
        "timers": [done, "true"],
        "parent": [done, '[8,"shipped book",7]'],
        "retried": [done, "[3,true]"],
        "again": [done, '["a","b","c"]'],
        "ancestor": [done, json.dumps(ANCESTRY, separators=(",", ":"))],
        "versions": [done, '"two"'],
        "patched": [done, "true"],
        "customStatus": "at 8",
        "paused": "SUSPENDED",
        "held": [done, "[1,2]"],
        "terminated": ["TERMINATED", "TERMINATED"],
        "purged": ["no such instance exists"] * 2,
        "taken": "AlreadyExists",
        "history": 15,
        "rerun": [done, "[80,null]"],
        "listed": True,
    }


async def test_java(mesh_home: Path) -> None:
    """Sequences, fan-out, races, timers, children, other applications, retries, patches, and what a client does."""
    made = built("java")
    command = (*JAVA, "-cp", f"{made}:{made}/*", "Workflows")
    async with hubs(mesh_home) as environ, Program(mesh_home, *command, "billing", environ=environ):
        seen = await run(*command, environ=environ)
    done = "COMPLETED"
    named, failed, shipped, charged = seen.pop("parent")[1]
    assert (named, shipped, charged) == (8, "shipped book", 7)
    assert "child is lost" in failed
    assert seen == {
        "sequence": [done, 8],
        "fan": [done, DOUBLED],
        "raceTimer": [done, "late"],
        "raceEvent": [done, "ü"],
        "timers": [done, True],
        "retried": [done, 3],
        "again": [done, ["a", "b", "c"]],
        "patched": [done, True],
        "paused": "SUSPENDED",
        "held": [done, [1, 2]],
        "terminated": "TERMINATED",
        "purged": [True, True],
    }


def test_quickstarts(mesh_home: Path) -> None:
    """Order processors that are written for ``dapr run``: an inventory, an approval, a payment, all by ``mesh run``."""
    needs(PYTHON)
    needs(NODE)
    path = f"{PYTHON.parent}{os.pathsep}{os.environ['PATH']}"
    shared = ("--resources-path", str(resources(mesh_home)))
    words = ("-f", "orders.yaml", *shared)
    with MeshHome(mesh_home).run(*words, environ={"PATH": path}, cwd=HERE / "quickstart") as running:
        for line in (
            'order-processor == workflow of 1000 COMPLETED: {"processed": false}',
            'order-processor-js == orchestration of 1000 completed: {"processed":false}',
        ):
            running.until(re.escape(line))
        assert running.wait() == 0
        for line in (
            "order-processor == asking for the approval of 150000",
            "order-processor == there are now 90 cars left in stock",
            'order-processor == workflow of 10 COMPLETED: {"processed": true}',
            "order-processor == there are only 90 cars",
            "order-processor-js == there are now 90 item1 left in stock",
            "order-processor-js == asking for the approval of 6000",
            "order-processor-js == there are now 30 item1 left in stock",
            'order-processor-js == orchestration of 60 completed: {"processed":true}',
        ):
            assert f"== APP - {line}" in running.text
