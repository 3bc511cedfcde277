"""Events by a stream while processes die: what was answered 204 is delivered, whoever is killed."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from tests.faults.conftest import Figures, everything_arrives, portion
from tests.support.load import Publishing
from tests.support.mesh import AppProcess, GatewayProcess
from tests.support.processes import free_port

EVENTS = portion(3_000)


@pytest.mark.parametrize("killed", ["client", pytest.param("gateway", marks=pytest.mark.slow)])
async def test_one_side_of_a_stream_is_killed_twice(mesh_home: Path, figures: Figures, killed: str) -> None:
    """What the client has not answered comes again, and it has answered nothing that it had not recorded."""
    port = free_port()
    environ = {"DAPR_GRPC_PORT": str(port), "APP_TOPIC": "orders"}
    async with (
        GatewayProcess("publisher", mesh_home) as publisher,
        GatewayProcess("subscriber", mesh_home, arguments=["--dapr-grpc-port", str(port)]) as subscriber,
        AppProcess(mesh_home, "streaming", environ=environ) as app,
        asyncio.TaskGroup() as tasks,
    ):
        process = app if killed == "client" else subscriber
        publishing = Publishing(publisher, "orders", EVENTS)
        work = tasks.create_task(publishing.run())
        for count in (EVENTS // 3, EVENTS * 2 // 3):
            await publishing.until(count)
            await process.kill()
            await process.start()
        await work
        await everything_arrives(publishing, app, figures)
        assert publishing.failed == set()
