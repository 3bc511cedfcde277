"""Actors on the official SDKs, unmodified: hosted in every way that these have, and called through another gateway."""

from __future__ import annotations

import asyncio
import json
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest

from tests.faults.conftest import mesh_home
from tests.sdk.harness import HERE, NODE, PATIENT, PYTHON, Program, actor_resources, needs, run
from tests.sdk.test_programs import built
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
            environ = {**PATIENT, **ports, "DAPR_HTTP_PORT": gateway.port}
            program = Program(mesh_home, str(PYTHON), str(HERE / "python_actors.py"), host, environ=environ)
            await stack.enter_async_context(program)
            gateways.append(gateway)
        for gateway in gateways:
            await stack.enter_async_context(gateway)
        to = {"DAPR_HTTP_PORT": client.port}
        seen = await run(str(PYTHON), "python_actors.py", "client", *hosts, environ=to)
    assert "did not find address for actor 'Nobody/1'" in seen["nobody"]
    for host in hosts:
        check_python(host, seen[host])


def check_python(host: str, seen: dict[str, Any]) -> None:
    assert seen["echo"] == {"a": [1, None, "ü"]}
    assert (seen["nothing"], json.loads(seen["raw"])) == (None, {"raw": 1})
    assert "ERR_ACTOR_INVOKE_METHOD" in seen["unknown"]
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


@pytest.mark.parametrize("protocol", ["http", "grpc"])
async def test_node(mesh_home: Path, protocol: str) -> None:
    """Methods, state, timers, reminders, deactivation; all speak to their gateways by the protocol."""
    needs(NODE)
    app_port, ports = free_port(), {"client": free_port(), "javascript": free_port()}
    shared = ("--resources-path", str(actor_resources(mesh_home)), "--dapr-grpc-port")
    application = GatewayProcess("javascript", mesh_home, app=app_port, arguments=(*shared, str(ports["javascript"])))
    async with GatewayProcess("client", mesh_home, arguments=(*shared, str(ports["client"]))) as client:
        await application.start(ready=False)  # The SDK's server waits for its gateway, which waits for the server.
        if protocol == "http":
            ports = {"client": client.port, "javascript": application.port}
        environ = {"APP_PORT": app_port, "PROTOCOL": protocol, "CLIENT_HTTP_PORT": client.port}
        environ |= {"CLIENT_GATEWAY_PORT": ports["client"], "APP_GATEWAY_PORT": ports["javascript"]}
        try:
            seen = await run("node", "actors.js", environ=environ)
        except BaseException:
            application.show_log()
            raise
        finally:
            await application.kill()
    assert seen["registered"] == ["ShopActor"]
    assert seen["echo"] == [{"a": [1, None, "ü"]}, "second"]
    for refused in ("failed", "unknown"):
        assert "error from actor service: (500)" in seen[refused]
    assert sorted(seen["added"]) == list(range(1, 9)), "one turn at a time"
    assert seen["keep"] == ["plain", False, False]
    assert seen["kept"] == {"text": [True, "plain"], "gone": False, "list": [1]}
    assert max(seen["after"]) <= 1, "a firing may wait for the turn that stops it"
    assert seen["times"][0] == 1
    assert seen["times"][1] in (1, 2), "its time is over"
    assert (seen["other"], seen["later"], seen["activated"]) == (5, [9, 6], [2, 2])


async def test_go(mesh_home: Path) -> None:
    """Methods, state, timers, reminders, by a client of another gateway; hosted over HTTP, and over a stream."""
    program = str(built("go") / "program")
    seen: dict[str, dict[str, Any]] = {}
    arguments = ("--resources-path", str(actor_resources(mesh_home)), "--dapr-grpc-port")
    client_port = free_port()

    async def use(protocol: str) -> None:
        app_port, grpc_port = free_port(), free_port()
        spoken = (*arguments, str(grpc_port), "--app-protocol", protocol)
        gateway = GatewayProcess(f"go-{protocol}", mesh_home, app=app_port, arguments=spoken)
        await gateway.start(ready=False)  # It waits for the application, which waits for it.
        ports = {**PATIENT, "APP_PORT": app_port, "DAPR_GRPC_PORT": grpc_port, "CLIENT_GRPC_PORT": client_port}
        try:
            seen[protocol] = await run(program, "actors", protocol, environ=ports)
        except BaseException:
            gateway.show_log()
            raise
        finally:
            await gateway.kill()

    client = GatewayProcess("client", mesh_home, arguments=(*arguments, str(client_port)))
    async with client, asyncio.TaskGroup() as tasks:
        for protocol in ("http", "grpc"):
            tasks.create_task(use(protocol))
    assert (seen["grpc"].pop("visited"), seen["grpc"].pop("tooDeep")) == (["one", "two", "one"], True)
    for each in seen.values():
        assert max(each.pop("after")) <= 1, "a firing may wait for the turn that stops it"
        assert each == {
            "echo": {"number": 7, "text": "ü"},
            "refused": ["Internal"] * 2,
            "added": 8,
            "state": ['{"number":7,"text":"ü"}', "", "8"],
            "times": [1, 2, 1, 2],
        }
