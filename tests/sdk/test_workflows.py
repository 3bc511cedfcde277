"""Workflows on the official SDKs, unmodified: everything that each has, in one process a language."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.faults.conftest import mesh_home
from tests.sdk.harness import HERE, NODE, PATIENT, PYTHON, needs, resources, run
from tests.sdk.test_programs import JAVA, built
from tests.support.eventually import eventually
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


def check_python_ends(seen: dict[str, Any]) -> None:
    done = "COMPLETED"
    named, unnamed, failed, shipped, charged = seen["parent"][1]
    assert (named, unnamed, shipped, charged) == (8, 16, ["shipped", "book", 1], ["parent", 7])
    assert "child is lost" in failed
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
