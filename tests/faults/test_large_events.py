"""A large event while its publisher's gateway is killed: all of it is delivered, or nothing."""

from __future__ import annotations

import asyncio
import io
from pathlib import Path
from typing import Any

import aiohttp

from brokers.nats import NatsBroker
from mesh.address import encode_token, topic
from mesh.large import bodies_name
from tests.support.eventually import eventually
from tests.support.mesh import AppProcess, GatewayProcess
from tests.support.nats import NatsServer

ORDERS = [{"pubsubname": "pubsub", "topic": "orders", "route": "/events/orders"}]
MEBIBYTE = 1024 * 1024
EVENT = b'{"id":"%b","more":"%b"}'


async def _posted(gateway: GatewayProcess, body: bytes) -> int:
    """Publish; give the status, 0 when there was no answer."""
    url, headers = f"{gateway.api}/publish/pubsub/orders", {"Content-Type": "application/json"}
    try:
        async with (
            aiohttp.ClientSession() as session,
            session.post(url, data=io.BytesIO(body), headers=headers) as answer,
        ):
            return answer.status
    except aiohttp.ClientError:
        return 0


def _came(app: AppProcess, wanted: list[str]) -> None:
    assert app.recorded("orders") == wanted


async def test_the_publishers_gateway_is_killed_between_two_parts(mesh_home: Path, tmp_path: Path) -> None:
    """What it had stored by then is read by nobody, and what comes later is delivered."""
    more = ("--max-body-size", "64Mi")
    async with (
        NatsServer(tmp_path / "nats") as server,
        NatsBroker.from_url(server.url) as looking,
        AppProcess(mesh_home, subscriptions=ORDERS) as app,
        GatewayProcess("subscriber", mesh_home, app=app, backbone=server.url),
        GatewayProcess("publisher", mesh_home, backbone=server.url, arguments=more) as publisher,
    ):
        stream = f"STREAM.INFO.KV_{encode_token(bodies_name(topic('default', 'pubsub', 'orders').space))}"

        async def parts() -> None:
            told: Any = await looking._connection.api(stream)
            assert told.get("state", {}).get("messages", 0) > 0, told

        async with asyncio.TaskGroup() as tasks:
            publishing = tasks.create_task(_posted(publisher, EVENT % (b"killed", b"x" * 60 * MEBIBYTE)))
            await eventually(parts)
            await publisher.kill()
            assert await publishing == 0
        await publisher.start()
        assert await _posted(publisher, EVENT % (b"after", b"x" * 3 * MEBIBYTE)) == 204
        await eventually(lambda: _came(app, ["after"]))
