"""The official Python SDK, unmodified: its clients and its extensions for applications, over gRPC and HTTP."""

from __future__ import annotations

import asyncio
from pathlib import Path

import aiohttp

from tests.faults.conftest import mesh_home
from tests.sdk.harness import PYTHON, needs, resources, run
from tests.support.mesh import GatewayProcess
from tests.support.processes import free_port

__all__ = ["mesh_home"]


async def test_web_extensions(mesh_home: Path) -> None:
    """What the extensions for FastAPI and Flask subscribe to arrives."""
    needs(PYTHON)
    ports = {"fastapi": free_port(), "flask": free_port()}
    arguments = ("--resources-path", str(resources(mesh_home)))
    gateways = [GatewayProcess(name, mesh_home, app=port, arguments=arguments) for name, port in ports.items()]
    environ = {"FASTAPI_PORT": ports["fastapi"], "FLASK_PORT": ports["flask"]}
    async with asyncio.TaskGroup() as tasks:
        program = tasks.create_task(run(str(PYTHON), "python_web.py", environ=environ))
        async with gateways[0], gateways[1], aiohttp.ClientSession() as session:
            for topic in ("plain", "routed"):
                async with session.post(f"{gateways[0].api}/publish/pubsub/{topic}", json={"of": topic}) as response:
                    assert response.status == 204
            seen = await program
    assert seen["fastapi"] == seen["flask"] == {"plain": {"of": "plain"}, "routed": {"of": "routed"}}
