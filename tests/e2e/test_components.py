"""Several brokers at once in one gateway, declared as the tutorials declare them, beside the backbone."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack
from pathlib import Path
from urllib.parse import urlsplit

import aiohttp
import pytest

from tests.support.backends import BACKENDS
from tests.support.eventually import eventually
from tests.support.mesh import AppProcess, GatewayProcess

# The names are those of the components' files in tutorials and quickstarts.
COMPONENT = """
apiVersion: dapr.io/v1alpha1
kind: Component
metadata:
  name: {name}
spec:
  type: {type}
  version: v1
  metadata:
"""
COMPONENTS: Mapping[str, tuple[str, str, Mapping[str, str]]] = {
    "messagebus": ("redis", "pubsub.redis", {"redisHost": "{host}:{port}", "redisPassword": '""'}),
    "order-pub-sub": ("rabbitmq", "pubsub.rabbitmq", {"host": "amqp://{host}:{port}"}),
    "kafka-pubsub": (
        "kafka-native",  # Its server makes topics that are asked for, as brokers do unless told otherwise.
        "pubsub.kafka",
        {"brokers": "{host}:{port}", "authType": "none", "consumerGroup": "group1", "disableTls": '"true"'},
    ),
    "jetstream": (
        "nats",
        "pubsub.jetstream",
        {"natsURL": "nats://{host}:{port}", "streamName": "my-stream", "createStream": '"true"'},
    ),
    "mqtt-pubsub": ("mqtt", "pubsub.mqtt3", {"url": "tcp://{host}:{port}", "qos": "1", "cleanSession": '"false"'}),
    "local": ("", "pubsub.in-memory", {}),
    "pubsub": ("", "pubsub.mesh", {}),
}


@pytest.fixture
async def resources(tmp_path: Path) -> AsyncIterator[Path]:
    """The components' files, one each, for servers that run."""
    directory = tmp_path / "resources"
    directory.mkdir()
    async with AsyncExitStack() as stack:
        for name, (broker, kind, settings) in COMPONENTS.items():
            place: Mapping[str, object] = {}
            if broker:
                server = await stack.enter_async_context(BACKENDS[broker](tmp_path / broker))
                place = {"host": urlsplit(server.url).hostname, "port": server.port}
            lines = [f"  - name: {each}\n    value: {value.format(**place)}" for each, value in settings.items()]
            text = COMPONENT.format(name=name, type=kind) + "\n".join(lines) + "\n"
            (directory / f"{name}.yaml").write_text(text)
        yield directory


async def test_all_at_once(resources: Path, mesh_home: Path) -> None:
    """An event goes from one gateway to the other over each broker, and over that one alone."""
    arguments = ["--resources-path", str(resources)]
    subscriptions = [{"pubsubname": name, "topic": "orders", "route": f"/events/{name}"} for name in COMPONENTS]
    async with (
        AppProcess(mesh_home, subscriptions=subscriptions) as app,
        GatewayProcess("shop", mesh_home, app=app, arguments=arguments) as shop,
        GatewayProcess("publisher", mesh_home, arguments=arguments) as publisher,
        aiohttp.ClientSession() as session,
    ):
        for name, (broker, *_) in COMPONENTS.items():
            gateway = shop if name == "local" else publisher  # What is in memory reaches no other process.
            async with session.post(f"{gateway.api}/publish/{name}/orders", json={"id": name}) as response:
                assert response.status == 204, f"{name} ({broker}): {await response.text()}"

        def check() -> None:
            assert {name: app.recorded(name) for name in COMPONENTS} == {name: [name] for name in COMPONENTS}

        await eventually(check, 40.0)
        async with session.get(f"{shop.api}/metadata") as response:
            loaded = {each["name"]: each["type"] for each in (await response.json())["components"]}
        assert {name: kind for name, (_, kind, _) in COMPONENTS.items()}.items() <= loaded.items()
