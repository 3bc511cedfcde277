"""A pub/sub component on MQTT beside another backbone: devices, other gateways, and a server that breaks."""

from __future__ import annotations

import asyncio
import base64
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.http.harness import App, Backbone, Node, component, gateway, yaml
from tests.support.eventually import eventually
from tests.support.mqtt_server import MQTTServer
from tests.support.proxy import Proxy


@pytest.fixture
async def mosquitto(tmp_path: Path) -> AsyncIterator[MQTTServer]:
    async with MQTTServer(tmp_path / "mosquitto") as server:
        yield server


def resources(port: int, **settings: str) -> str:
    """The backbone's own pub/sub, and one on MQTT, on topics of the mesh's own."""
    named = {
        "layout": "mesh",
        "url": f"tcp://127.0.0.1:{port}",
        "qos": "1",
        "retain": "false",
        "cleanSession": "false",
        **settings,
    }
    return component("pubsub", "pubsub.mesh") + component("sensors", "pubsub.mqtt3", **named)


def subscribed(topic: str, **metadata: str) -> dict[str, object]:
    return {"pubsubname": "sensors", "topic": topic, "route": "/" + topic.replace("/", "-"), "metadata": metadata}


async def publish_plainly(server: MQTTServer, topic: str, body: str, *options: str) -> None:
    command = ["mosquitto_pub", "-p", str(server.port), "-q", "1", "-t", topic, "-m", body, *options]
    await asyncio.to_thread(subprocess.run, command, check=True, timeout=60)


async def publish(node: Node, topic: str, body: object) -> None:
    reply = await node.post(f"/v1.0/publish/sensors/{topic}", body, "application/json")
    assert (reply.status, reply.body) == (204, b"")


@pytest.mark.costly
async def test_devices_and_other_gateways(nats: Backbone, tmp_path: Path, mosquitto: MQTTServer) -> None:
    """An application gets raw payloads wrapped, and events as they are; of its two instances one gets each."""
    subscriptions = [subscribed("raw/+/temp", rawPayload="true"), subscribed("events/#"), subscribed("shared/x")]
    own = resources(mosquitto.port)
    async with (
        App(subscriptions) as one,
        App(subscriptions) as two,
        gateway(nats, tmp_path, app=one, app_id="consumer", resources=own) as node,
        gateway(nats, tmp_path, app=two, app_id="consumer", resources=own),
        gateway(nats, tmp_path, app_id="producer", resources=own) as producer,
    ):
        apps = (one, two)

        async def arrived(route: str, count: int) -> list[dict[str, object]]:
            def check() -> None:
                assert sum(len(app.at(route)) for app in apps) >= count

            await eventually(check)
            return [got.json for app in apps for got in app.at(route)]

        await publish_plainly(mosquitto, "raw/kitchen/temp", "21.5", "-V", "311")
        [raw] = await arrived("/raw-+-temp", 1)
        assert base64.b64decode(str(raw["data_base64"])) == b"21.5"
        assert (raw["topic"], raw["pubsubname"], raw["type"]) == ("raw/kitchen/temp", "sensors", "com.dapr.event.sent")

        event = '{"specversion":"1.0","id":"1","source":"/structured","type":"measured","data":{"t":21}}'
        await publish_plainly(mosquitto, "events/structured", event)
        attributes = {"specversion": "1.0", "id": "2", "source": "/binary", "type": "measured"}
        options = [word for pair in attributes.items() for word in ("-D", "PUBLISH", "user-property", *pair)]
        json = ("-D", "PUBLISH", "content-type", "application/json")
        await publish_plainly(mosquitto, "events/binary", '{"t":22}', "-V", "5", *options, *json)
        await publish(producer, "events/gateway", {"t": 23})
        found = {str(each["source"]): each for each in await arrived("/events-#", 3)}
        assert {name: each["data"] for name, each in found.items()} == {
            "/structured": {"t": 21},
            "/binary": {"t": 22},
            "producer": {"t": 23},
        }
        assert (found["/binary"]["topic"], found["producer"]["topic"]) == ("events/binary", "events/gateway")

        for number in range(40):
            await publish(producer, "shared/x", number)
        assert sorted(int(str(each["data"])) for each in await arrived("/shared-x", 40)) == list(range(40))
        assert all(app.at("/shared-x") for app in apps)
        assert (await node.get("/v1.0/healthz")).status == 204


@pytest.mark.costly
async def test_nothing_confirmed_is_lost_through_cuts(nats: Backbone, tmp_path: Path, mosquitto: MQTTServer) -> None:
    async with (
        Proxy(mosquitto.port) as proxy,
        App([subscribed("cut/x")]) as app,
        gateway(nats, tmp_path, app=app, app_id="consumer", resources=resources(proxy.port)),
        gateway(nats, tmp_path, app_id="producer", resources=resources(proxy.port)) as producer,
    ):
        for number in range(60):
            if number % 12 == 5:
                proxy.cut()
            await publish(producer, "cut/x", number)

        def all_arrived() -> None:
            assert {got.json["data"] for got in app.at("/cut-x")} == set(range(60))

        await eventually(all_arrived, within=40)


@pytest.mark.costly
async def test_application_that_comes_back_finds_what_it_missed(
    nats: Backbone, tmp_path: Path, mosquitto: MQTTServer
) -> None:
    """Also what the server had saved before it was killed; both gateways go on by themselves."""
    own = resources(mosquitto.port, sharedSubscriptions="false")
    async with gateway(nats, tmp_path, app_id="producer", resources=own) as producer:
        async with (
            App([subscribed("missed/x")]) as app,
            gateway(nats, tmp_path, app=app, app_id="consumer", resources=own),
        ):
            await publish(producer, "missed/x", 0)
            await app.until("/missed-x")
        for number in range(1, 20):
            await publish(producer, "missed/x", number)
        await mosquitto.save()
        await mosquitto.kill()
        waiting = asyncio.ensure_future(publish(producer, "missed/x", 20))
        await mosquitto.start()
        await waiting
        async with (
            App([subscribed("missed/x")]) as app,
            gateway(nats, tmp_path, app=app, app_id="consumer", resources=own),
        ):

            def has(numbers: set[int]) -> None:
                assert {got.json["data"] for got in app.at("/missed-x")} >= numbers

            await eventually(lambda: has(set(range(1, 21))))
            await mosquitto.save()
            await mosquitto.restart(kill=True)
            await publish(producer, "missed/x", 21)
            await eventually(lambda: has({21}), within=40)


async def test_failing_application_gets_it_again_and_then_the_dead_letter_topic(
    nats: Backbone, tmp_path: Path, mosquitto: MQTTServer
) -> None:
    policy = yaml(
        "Resiliency",
        "retries",
        {
            "policies": {"retries": {"twice": {"policy": "constant", "duration": "50ms", "maxRetries": 2}}},
            "targets": {"components": {"sensors": {"inbound": {"retry": "twice"}}}},
        },
    )
    dead = {**subscribed("bad/x"), "deadLetterTopic": "bad/dead"}
    async with (
        App([dead, subscribed("bad/dead")]) as app,
        gateway(nats, tmp_path, app=app, resources=resources(mosquitto.port) + policy),
    ):
        app.answer("/bad-x", 500)
        await publish_plainly(mosquitto, "bad/x", '{"specversion":"1.0","id":"1","source":"/d","type":"t","data":1}')
        [got] = await app.until("/bad-dead")
        assert (got.json["id"], len(app.at("/bad-x"))) == ("1", 3)
        assert got.headers["mesh-dead-letter-attempts"] == "3"


async def test_what_mqtt_cannot_do_is_refused(nats: Backbone, tmp_path: Path, mosquitto: MQTTServer) -> None:
    """A delayed event would hold up those behind it; a topic with wildcards is none."""
    async with gateway(nats, tmp_path, resources=resources(mosquitto.port)) as node:
        for target, reason in (
            ("x?metadata.delay=5s", "does not support delayed events"),
            ("a/%23", "no '+' and no '#'"),
        ):
            reply = await node.post(f"/v1.0/publish/sensors/{target}", b"1", "text/plain")
            asked = "metadata." in target
            error = (400, "ERR_PUBSUB_REQUEST_METADATA") if asked else (500, "ERR_PUBSUB_PUBLISH_MESSAGE")
            assert (reply.status, reply.json["errorCode"]) == error
            assert reason in reply.json["message"]
