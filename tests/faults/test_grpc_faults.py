"""Calls of an application's own gRPC service while processes and the broker die."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, NamedTuple

import grpc
import grpc.aio
import pytest

from mesh.calls.asking import MARGIN
from mesh.calls.exchange import ASK_AFTER, PING_INTERVAL, SILENCE_LIMIT
from tests.faults.conftest import Figures
from tests.support.eventually import PATIENCE, eventually
from tests.support.mesh import AppProcess, GatewayProcess
from tests.support.nats import NatsServer
from tests.support.processes import free_port

AT_ONCE = 20
# Seconds until instances vouch for each other: of an earlier call they cannot say that nobody took it.
VOUCHED_AFTER = MARGIN * ASK_AFTER + 1.0


class Mesh(NamedTuple):
    app: AppProcess
    callee: GatewayProcess
    channel: grpc.aio.Channel

    def call(self, kind: str, method: str, request: object, timeout: float | None = None) -> Any:
        metadata = [("dapr-app-id", "callee")]
        return getattr(self.channel, kind)(f"/test.Echo/{method}")(request, metadata=metadata, timeout=timeout)

    async def works(self) -> None:
        try:
            assert await self.call("unary_unary", "Unary", b"x", PATIENCE) == b"x"
        except grpc.aio.AioRpcError as error:
            raise AssertionError(error.details()) from None


@asynccontextmanager
async def running(home: Path, backbone: str | None = None) -> AsyncIterator[Mesh]:
    number = free_port()
    told = ("--app-protocol", "grpc")
    async with (
        AppProcess(home, "grpc_echo", ready_path="") as app,
        GatewayProcess("caller", home, backbone=backbone, arguments=("--dapr-grpc-port", str(number))),
        GatewayProcess("callee", home, app=app, backbone=backbone, arguments=told) as callee,
        grpc.aio.insecure_channel(f"127.0.0.1:{number}") as channel,
    ):
        yield Mesh(app, callee, channel)


async def code(call: Any) -> str:
    """Give the status that a call ends with."""
    try:
        await call if hasattr(call, "__await__") else [message async for message in call]
    except grpc.aio.AioRpcError as error:
        return error.code().name
    return "OK"


@pytest.mark.parametrize("who", ["app", "callee"])
async def test_who_answers_is_killed(mesh_home: Path, who: str) -> None:
    """Calls without a deadline end soon: in the middle of a stream, and before any answer. Then it works again."""

    async def silence() -> AsyncIterator[bytes]:
        yield b"x"
        await asyncio.Event().wait()

    async with running(mesh_home) as mesh, asyncio.TaskGroup() as tasks:
        ticking = mesh.call("unary_stream", "Ticks", b"")
        talking = mesh.call("stream_stream", "Talk", silence())
        waiting = mesh.call("unary_unary", "Hang", b"")
        assert await ticking.read() == b"0"
        assert await talking.read() == b"x"
        await mesh.works()
        killed = mesh.app if who == "app" else mesh.callee
        await killed.kill()
        async with asyncio.timeout(SILENCE_LIMIT + 2 * PING_INTERVAL + PATIENCE):
            ends = [tasks.create_task(code(each)) for each in (_rest(ticking), _rest(talking), waiting)]
            assert [await end for end in ends] == ["UNAVAILABLE"] * 3
        await killed.start()
        await eventually(mesh.works, 60.0)


async def _rest(call: Any) -> None:
    while await call.read() is not grpc.aio.EOF:
        pass


async def test_the_broker_restarts(mesh_home: Path, nats_server: NatsServer, figures: Figures) -> None:
    """Killed under load: no call that has the time to wait fails, and none without a deadline hangs."""
    ends: list[str] = []
    stopping = asyncio.Event()

    async def calls(mesh: Mesh, timeout: float | None) -> None:
        while not stopping.is_set():
            ends.append(await code(mesh.call("unary_unary", "Unary", b"x", timeout)))
            await asyncio.sleep(0.02)

    async with running(mesh_home, nats_server.url) as mesh:
        await mesh.works()
        await asyncio.sleep(VOUCHED_AFTER)
        async with asyncio.timeout(120), asyncio.TaskGroup() as tasks:
            for number in range(AT_ONCE):
                tasks.create_task(calls(mesh, 60.0 if number % 2 else None))
            await eventually(lambda: _made(ends, 100))
            await nats_server.restart(kill=True)
            await mesh.works()
            stopping.set()
        failed = [end for end in ends if end != "OK"]
        figures.note(calls=len(ends), failed=len(failed))
        assert not failed


def _made(ends: list[str], count: int) -> None:
    assert len(ends) >= count
