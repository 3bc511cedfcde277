"""Actors on the official SDKs, unmodified: hosted in every way that these have, and called through another gateway."""

from __future__ import annotations

import json
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest

from tests.faults.conftest import mesh_home
from tests.sdk.harness import HERE, PYTHON, Program, actor_resources, needs, run
from tests.support.mesh import GatewayProcess
from tests.support.processes import free_port

__all__ = ["mesh_home"]


async def test_python(mesh_home: Path) -> None:
    """Methods, state, timers, reminders, reentrancy, deactivation: hosted by FastAPI, by Flask and over a stream."""
    needs(PYTHON)
    hosts = {"fastapi": "http", "flask": "http", "grpc": "grpc"}
    arguments = ("--resources-path", str(actor_resources(mesh_home)))
    client = GatewayProcess("client", mesh_home, arguments=arguments)
    async with AsyncExitStack() as stack:
        await stack.enter_async_context(client)
        gateways = []
        for host, protocol in hosts.items():
            ports = {"APP_PORT": free_port(), "DAPR_GRPC_PORT": free_port()}
            spoken = ("--app-protocol", protocol, "--dapr-grpc-port", str(ports["DAPR_GRPC_PORT"]))
            gateway = GatewayProcess(host, mesh_home, app=ports["APP_PORT"], arguments=(*arguments, *spoken))
            environ = {**ports, "DAPR_HTTP_PORT": gateway.port, "DAPR_HEALTH_TIMEOUT": 60}
            program = Program(mesh_home, str(PYTHON), str(HERE / "python_actors.py"), host, environ=environ)
            await stack.enter_async_context(program)
            gateways.append(gateway)
        for gateway in gateways:
            await stack.enter_async_context(gateway)
        to = {"DAPR_HTTP_PORT": client.port}
        seen = await run(str(PYTHON), "python_actors.py", "client", *hosts, environ=to)
    for host in hosts:
        check_python(host, seen[host])


def check_python(host: str, seen: dict[str, Any]) -> None:
    assert seen["echo"] == {"a": [1, None, "ü"]}
    assert (seen["nothing"], json.loads(seen["raw"])) == (None, {"raw": 1})
    for refused in ("no_type", "unknown"):
        assert "ERR_ACTOR_INVOKE_METHOD" in seen[refused]
    if host == "grpc":  # What an application answers as an error over the stream is the caller's as it stands.
        assert seen["failed"][1].items() >= {"message": "the shop is closed", "errorCode": "SHOP_CLOSED"}.items()
        assert seen["too_deep"][1][-2:] == ["message", "errorCode"]
    else:
        assert "error from actor service: (500)" in seen["failed"]
        assert "the shop is closed" in seen["failed"]
        assert "ERR_ACTOR_INVOKE_METHOD" in seen["too_deep"]
    assert seen["added"] == list(range(1, 9)), "one turn at a time"
    assert seen["keep"] == {"added": True, "again": False, "changed": 5}
    assert seen["kept"] == {
        "json": [True, {"a": [1, None, "ü"]}],
        "text": [True, "plain"],
        "gone": [False, None],
        "brief": [False, None],
        "new": [True, 5],
    }
    assert seen["deep"] == ["one", "two", "one"]
    # A firing may wait for the turn that stops it.
    assert {name: each for name, each in seen["after"].items() if each > (name in ("often", "reminded"))} == {}
    assert (seen["times"]["once"], seen["times"]["dropped"]) == (1, 1)
    assert max(seen["times"]["brief"], seen["times"]["briefly"]) <= 2, "its time is over"
    assert [each[0] for each in seen["life"]] == ["activated", "deactivated", "activated"]
    assert (seen["count"], seen["counted"]) == (1, 2)
