"""``pubsub.redis`` in the native layout: what stands in the streams, together with programs that are not ours."""

from __future__ import annotations

import asyncio
import base64
import json
import subprocess
from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path
from typing import Any

import orjson
import pytest
import pytest_asyncio
from aiohttp import web

from tests.http.harness import App, Backbone, component, gateway, subscription
from tests.support.eventually import eventually
from tests.support.redis_server import RedisCluster, RedisServer
from tests.support.reference.redis import Sidecar


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def server(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[RedisServer]:
    async with RedisServer(tmp_path_factory.mktemp("redis")) as server:
        yield server


async def cli(server: RedisServer, *words: str | bytes) -> Any:
    """Ask by Redis's own program; give its JSON."""
    command = ["redis-cli", "-p", str(server.port), "--json", *words]
    done = await asyncio.to_thread(subprocess.run, command, check=True, timeout=60, capture_output=True)
    return json.loads(done.stdout)


def resources(server: RedisServer, **settings: str) -> str:
    return component("predis", "pubsub.redis", redisHost=f"127.0.0.1:{server.port}", **settings)


subscribed = partial(subscription, "predis")


async def test_an_entry_is_what_others_expect(server: RedisServer, backbone: Backbone, tmp_path: Path) -> None:
    """Stream = topic, two fields, metadata as JSON; raw is the body."""
    async with gateway(backbone, tmp_path, app_id="obs", resources=resources(server)) as node:
        path = "/v1.0/publish/predis/written"
        await node.post(path, {"a": 1, "s": "json"}, "application/json")
        query = "?metadata.ttlInSeconds=60&metadata.partitionKey=pk1&metadata.foo=bar&metadata.priority=3"
        await node.post(path + query, b"text", "text/plain")
        await node.post(f"{path}?metadata.rawPayload=true", b'{"raw":true}', "application/json")
        reply = await node.post(f"{path}?metadata.cloudevents=binary", {"b": 1}, "application/json")
        assert reply.status == 204
    entries = await cli(server, "XRANGE", "written", "-", "+")
    first, second, third, fourth = [dict(zip(fields[::2], fields[1::2], strict=True)) for _, fields in entries]
    event = json.loads(first["data"])
    assert list(event) == sorted(event)
    assert event == {
        "data": {"a": 1, "s": "json"},
        "datacontenttype": "application/json",
        "id": event["id"],
        "pubsubname": "predis",
        "source": "obs",
        "specversion": "1.0",
        "time": event["time"],
        "topic": "written",
        "traceid": event["traceid"],
        "traceparent": event["traceid"],
        "tracestate": "",
        "type": "com.dapr.event.sent",
    }
    assert first["metadata"] == "{}"
    assert json.loads(second["metadata"]) == {
        "ttlInSeconds": "60", "partitionKey": "pk1", "foo": "bar", "priority": "3"
    }  # fmt: skip
    assert "expiration" in json.loads(second["data"])
    assert (third["data"], json.loads(third["metadata"])) == ('{"raw":true}', {"rawPayload": "true"})
    beside = json.loads(fourth["metadata"])
    assert (fourth["data"], beside["ce_source"], beside["content-type"]) == ('{"b":1}', "obs", "application/json")


async def test_others_entries_reach_the_application(server: RedisServer, backbone: Backbone, tmp_path: Path) -> None:
    """Objects as they are, binary mode as an event, fields without an envelope as an object, raw as base64."""
    app = App([subscribed("mixed"), subscribed("bytes", rawPayload="true")])
    async with app, gateway(backbone, tmp_path, app=app, resources=resources(server)):
        plain = '{ "order" : 7 }'
        await cli(server, "XADD", "mixed", "*", "data", plain, "metadata", '{"Foo":"bar","n":5}')
        attributes = {"ce_specversion": "1.0", "ce_id": "9", "ce_source": "/till", "ce_type": "sold"}
        beside = json.dumps({**attributes, "content-type": "application/json"})
        await cli(server, "XADD", "mixed", "*", "data", '{"sum":3}', "metadata", beside)
        await cli(server, "XADD", "mixed", "*", "customer", "7", "total", "5")
        await cli(server, "XADD", "bytes", "*", "data", b"\x89PNG\r\n", "metadata", "no json")
        first, second, third = await app.until("/mixed", 3)
        assert (first.body, first.headers["foo"], first.headers["n"]) == (plain.encode(), "bar", "5")
        assert (first.headers["content-type"], first.headers["pubsubname"]) == (
            "application/cloudevents+json",
            "predis",
        )
        assert (second.json["id"], second.json["source"], second.json["data"]) == ("9", "/till", {"sum": 3})
        assert second.headers["ce_id"] == "9"
        assert third.json == {"customer": "7", "total": "5"}
        [raw] = await app.until("/bytes")
        assert base64.b64decode(raw.json["data_base64"]) == b"\x89PNG\r\n"
        assert raw.json["datacontenttype"] == "application/octet-stream"


async def test_what_is_no_event_is_a_dead_letter(server: RedisServer, backbone: Backbone, tmp_path: Path) -> None:
    """With its bytes as they were; without a topic for it, it is told, and the stream goes on."""
    app = App([subscribed("texts", letters="refused"), subscribed("refused", rawPayload="true")])
    async with app, gateway(backbone, tmp_path, app=app, resources=resources(server)):
        await cli(server, "XADD", "texts", "*", "data", "hello text", "metadata", '{"from":"till"}')
        await cli(server, "XADD", "texts", "*", "data", '{"next":1}')
        [letter] = await app.until("/refused")
        [following] = await app.until("/texts")
    assert base64.b64decode(letter.json["data_base64"]) == b"hello text"
    assert (letter.headers["from"], letter.headers["mesh-dead-letter-topic"]) == ("till", "texts")
    assert "rawPayload" in letter.headers["mesh-dead-letter-reason"]
    assert following.json == {"next": 1}
    [[_, fields]] = await cli(server, "XRANGE", "refused", "-", "+")
    assert json.loads(dict(zip(fields[::2], fields[1::2], strict=True))["metadata"])["pubsubName"] == "predis"
    [pending, *_] = await cli(server, "XPENDING", "texts", "app")
    assert pending == 0


async def test_what_the_application_refuses_comes_again(
    server: RedisServer, backbone: Backbone, tmp_path: Path
) -> None:
    """Where a sidecar acknowledges it and loses it; the entry stays in the stream, and its group lets go of it."""
    app, statuses = App([subscribed("refusing")]), iter([500, 500])
    app.answers["/refusing"] = lambda got, request: web.Response(status=next(statuses, 200))
    async with app, gateway(backbone, tmp_path, app=app, resources=resources(server)):
        await Sidecar(server.port, "other").publish("refusing", {"n": 1})
        await app.until("/refusing", 3)

        async def is_settled() -> None:
            assert (await cli(server, "XPENDING", "refusing", "app"))[0] == 0

        await eventually(is_settled)
    assert len(await cli(server, "XRANGE", "refusing", "-", "+")) == 1


@pytest.mark.parametrize("first", ["sidecar", "gateway"])
async def test_a_group_of_both_kinds(server: RedisServer, backbone: Backbone, tmp_path: Path, first: str) -> None:
    """Members join and leave; each event is handled, and by one of them."""
    topic, handled = f"shared-{first}", []

    async def take(body: bytes) -> None:
        handled.append(json.loads(body)["data"]["n"])

    app, sidecar = App([subscribed(topic)]), Sidecar(server.port, "shop")
    publisher = Sidecar(server.port, "till")

    def all_of(count: int) -> Any:
        def check() -> None:
            ours = [got.json["data"]["n"] for got in app.at(f"/{topic}")]
            assert sorted(handled + ours) == list(range(count))

        return check

    async with app:
        ours = gateway(backbone, tmp_path, app=app, app_id="shop", resources=resources(server))
        theirs = sidecar.subscribed(topic, take)
        outer, inner = (theirs, ours) if first == "sidecar" else (ours, theirs)
        async with outer:
            for number in range(20):
                await publisher.publish(topic, {"n": number})
            async with inner:
                for number in range(20, 60):
                    await publisher.publish(topic, {"n": number})
                await eventually(all_of(60))
            for number in range(60, 80):
                await publisher.publish(topic, {"n": number})
            await eventually(all_of(80))
    [group] = await cli(server, "XINFO", "GROUPS", topic)
    assert group["name"] == "shop"


async def test_what_we_publish_a_sidecar_takes(server: RedisServer, backbone: Backbone, tmp_path: Path) -> None:
    """In order, byte for byte as from another sidecar."""
    got: list[Any] = []

    async def take(body: bytes) -> None:
        got.append(orjson.loads(body))

    async with (
        Sidecar(server.port, "ledger").subscribed("onward", take),
        gateway(backbone, tmp_path, app_id="shop", resources=resources(server)) as node,
    ):
        for number in range(20):
            reply = await node.post("/v1.0/publish/predis/onward", {"n": number}, "application/json")
            assert reply.status == 204

        def check() -> None:
            assert [each["data"]["n"] for each in got] == list(range(20))

        await eventually(check)
    assert {(each["source"], each["pubsubname"], each["topic"]) for each in got} == {("shop", "predis", "onward")}


async def test_streams_are_trimmed_when_asked(server: RedisServer, backbone: Backbone, tmp_path: Path) -> None:
    """About so many entries stay."""
    own = resources(server, maxLenApprox="100")
    async with gateway(backbone, tmp_path, app_id="obs", resources=own) as node:
        entries = [{"entryId": str(n), "event": n, "contentType": "application/json"} for n in range(500)]
        reply = await node.post("/v1.0/publish/bulk/predis/trimmed", entries, "application/json")
        assert reply.status == 204
    assert await cli(server, "XLEN", "trimmed") < 400


async def test_what_the_layout_lacks_is_refused(
    server: RedisServer, backbone: Backbone, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """With the line that gives it; other subscriptions work."""
    app = App([subscribed("inorder", ordered="true"), subscribed("works", queueType="quorum")])
    async with app, gateway(backbone, tmp_path, app=app, resources=resources(server)) as node:
        assert "layout: mesh" in caplog.text
        assert "'queueType' have no effect on redis, native layout" in caplog.text
        delayed = await node.post("/v1.0/publish/predis/works?metadata.delay=5s", {"n": 1})
        assert delayed.status >= 400
        assert "layout: mesh" in delayed.body.decode()
        await node.post("/v1.0/publish/predis/works", {"n": 1})
        await app.until("/works")


async def test_both_layouts_on_one_server(server: RedisServer, backbone: Backbone, tmp_path: Path) -> None:
    """Their topics of one name are different ones."""
    app = App([subscribed("twice"), {**subscribed("twice"), "pubsubname": "own", "route": "/own"}])
    own = resources(server) + component(
        "own", "pubsub.redis", redisHost=f"127.0.0.1:{server.port}", layout="mesh", streamTTL="1h"
    )
    async with app, gateway(backbone, tmp_path, app=app, resources=own) as node:
        await node.post("/v1.0/publish/own/twice", {"n": 1}, "application/json")
        await node.post("/v1.0/publish/predis/twice", {"n": 2}, "application/json")
        [ours] = await app.until("/own")
        [theirs] = await app.until("/twice")
    assert (ours.json["data"], theirs.json["data"]) == ({"n": 1}, {"n": 2})


@pytest.mark.costly
async def test_a_cluster(backbone: Backbone, tmp_path: Path) -> None:
    """Topics lie on several of its nodes."""
    async with RedisCluster(tmp_path / "cluster") as cluster:
        topics = [f"orders-{number}" for number in range(6)]
        app = App([subscribed(topic) for topic in topics])
        own = component("predis", "pubsub.redis", redisHost=cluster.hosts, redisType="cluster")
        async with app, gateway(backbone, tmp_path, app=app, resources=own) as node:
            for topic in topics:
                for number in range(10):
                    reply = await node.post(f"/v1.0/publish/predis/{topic}", {"n": number}, "application/json")
                    assert reply.status == 204
            for topic in topics:
                got = await app.until(f"/{topic}", 10)
                assert sorted(each.json["data"]["n"] for each in got) == list(range(10))
