"""Locks whose holder's gateway dies, stops, or goes on too late: nobody else has them before the lease is over."""

from __future__ import annotations

import asyncio
import signal
import time
from pathlib import Path
from typing import Any

import aiohttp

from tests.support.eventually import eventually
from tests.support.mesh import GatewayProcess
from tests.support.nats import NatsServer

RESOURCES = """
apiVersion: dapr.io/v1alpha1
kind: Component
metadata: {name: locks}
spec: {type: lock.mesh, version: v1, metadata: [{name: keyPrefix, value: none}]}
"""
LEASE = 4


class Holder:
    """An application that takes a lock through a gateway of its own, which has the component."""

    def __init__(self, name: str, home: Path, server: NatsServer, session: aiohttp.ClientSession) -> None:
        (home / "resources").mkdir(exist_ok=True)
        (home / "resources" / "locks.yaml").write_text(RESOURCES)
        arguments = ["--resources-path", str(home / "resources")]
        self.gateway = GatewayProcess(name, home, backbone=server.url, arguments=arguments)
        self._name = name
        self._session = session

    async def _post(self, what: str, **body: object) -> tuple[Any, int]:
        url = f"{self.gateway.url}/v1.0-alpha1/{what}/locks"
        async with self._session.post(url, json={"resourceId": "r", "lockOwner": self._name, **body}) as response:
            assert response.status == 200, await response.text()
            return await response.json(), int(response.headers.get("mesh-fencing-token", 0))

    async def lock(self, seconds: int = LEASE, **body: object) -> int:
        """Take it; give the token, 0 when another has it."""
        answer, token = await self._post("lock", expiryInSeconds=seconds, **body)
        assert answer == {"success": token > 0}
        return token

    async def unlock(self) -> int:
        status: int = (await self._post("unlock"))[0]["status"]
        return status

    async def until_locked(self) -> int:
        """Ask until it is had."""

        async def had() -> int:
            token = await self.lock()
            assert token
            return token

        return await eventually(had, 40.0)


async def test_the_holders_gateway_is_killed(mesh_home: Path, nats_server: NatsServer) -> None:
    """Its lock is nobody's until its time is over, then another's, with a greater token."""
    async with aiohttp.ClientSession() as session:
        one, two = (Holder(name, mesh_home, nats_server, session) for name in ("one", "two"))
        async with two.gateway:
            await one.gateway.start()
            taken = time.monotonic()
            first = await one.lock()
            await one.gateway.kill()
            second = await two.until_locked()
            assert time.monotonic() - taken >= LEASE - 0.1
            assert second > first
            assert await two.unlock() == 0


async def test_the_holders_gateway_stops_for_longer_than_the_lease(mesh_home: Path, nats_server: NatsServer) -> None:
    """Then another has it; whoever wakes up is told so, and its token is the smaller one."""
    async with aiohttp.ClientSession() as session:
        one, two = (Holder(name, mesh_home, nats_server, session) for name in ("one", "two"))
        async with one.gateway, two.gateway:
            taken = time.monotonic()
            first = await one.lock()
            one.gateway.signal(signal.SIGSTOP)
            try:
                second = await two.until_locked()
                assert time.monotonic() - taken >= LEASE - 0.1
            finally:
                one.gateway.signal(signal.SIGCONT)
            assert second > first
            assert await two.unlock() == 0
            assert await two.lock(600) > second
            assert await one.unlock() == 2
            assert await one.lock() == 0


async def test_the_server_is_killed(mesh_home: Path, nats_server: NatsServer) -> None:
    """A lock is held when it is back, by whom it was."""
    async with aiohttp.ClientSession() as session:
        one, two = (Holder(name, mesh_home, nats_server, session) for name in ("one", "two"))
        async with one.gateway, two.gateway:
            first = await one.lock(600)
            await nats_server.restart(kill=True)

            async def held() -> None:
                assert await two.lock(600) == 0

            await eventually(held, 40.0)
            assert await one.unlock() == 0
            assert await two.lock() > first


async def test_many_ask_two_gateways_at_once(mesh_home: Path, nats_server: NatsServer) -> None:
    """Exactly one has it."""
    async with aiohttp.ClientSession() as session:
        one, two = (Holder(name, mesh_home, nats_server, session) for name in ("one", "two"))
        async with one.gateway, two.gateway:
            async with asyncio.TaskGroup() as tasks:
                locks = [each.lock(600, lockOwner=f"o{number}") for number in range(25) for each in (one, two)]
                asking = [tasks.create_task(lock) for lock in locks]
            assert sum(each.result() > 0 for each in asking) == 1
