"""A backbone that is lost for good ends the gateway, for whoever restarts it to notice."""

from __future__ import annotations

import asyncio
from pathlib import Path

from gateway.app import Gateway
from gateway.config import GatewayConfig
from mesh.node.runtime import Runtime
from tests.support.nats import NatsServer


async def test_a_revoked_user_ends_the_gateway(tmp_path: Path) -> None:
    """The server says that the credentials hold no more: trying again would be in vain."""
    async with NatsServer(tmp_path / "nats") as server:
        config = GatewayConfig("app", tmp_path, http_port=0, backbone=server.url, registered=False)
        gateway = Gateway(config)
        async with gateway.running():
            runtime: Runtime = gateway._runtime
            client = runtime.broker._connection.client  # type: ignore[attr-defined]
            async with asyncio.timeout(30), asyncio.TaskGroup() as tasks:
                tasks.create_task(gateway.until_ending())
                await client._process_err("'authorization violation'")  # What the server sends then.
        assert gateway.lost
        assert gateway.stopping.is_set()
