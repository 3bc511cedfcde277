"""Bridges between two clusters: what they carry, and what becomes of that when one of the three is killed."""

from __future__ import annotations

import io
import itertools
import json
import os
import time
from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from tests.support.bridges import BridgeProcess, Clusters, clusters
from tests.support.eventually import eventually
from tests.support.mesh import AppProcess

PAIRS = ("nats-nats", "nats-kafka", "redis-rabbitmq")
_numbers = itertools.count()


@pytest.fixture(params=PAIRS)
def pair(request: pytest.FixtureRequest) -> str:
    chosen = request.config.getoption("--broker")
    if chosen and not set(request.param.split("-")) <= set(chosen):
        pytest.skip("other brokers were chosen")
    return str(request.param)


@pytest.fixture
async def joined(pair: str, mesh_home: Path, tmp_path: Path) -> AsyncIterator[Clusters]:
    async with clusters(pair, mesh_home, tmp_path, f"bridge{os.getpid()}-{next(_numbers)}") as both:
        yield both


async def ask(
    url: str, *, method: str = "GET", body: bytes | io.BytesIO | None = None, **headers: str
) -> tuple[int, Any]:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    async with aiohttp.ClientSession() as session, session.request(method, url, data=body, headers=named) as answer:
        text = await answer.read()
        try:
            return answer.status, json.loads(text)
        except ValueError:
            return answer.status, text


async def until_answered(url: str) -> Any:
    """Wait until a call over the bridge is answered, and give what is."""
    found: list[Any] = []

    async def check() -> None:
        status, told = await ask(url)
        assert status == 200, told
        found.append(told)

    await eventually(check, 30.0)
    return found[-1]


async def test_calls_by_every_name(joined: Clusters, tmp_path: Path) -> None:
    east, west = joined.east, joined.west
    async with (
        AppProcess(tmp_path) as app,
        west.gateway("orders", app),
        east.gateway("frontend") as gateway,
        joined.bridge("--apps", "orders@west,absent@west"),
    ):
        invoke = f"{gateway.api}/invoke"
        span = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
        status, told = await ask(f"{invoke}/orders@west/method/echo?a=b", traceparent=span)
        assert (status, told["path"]) == (200, "/echo?a=b")
        headers = {name.lower(): value for name, value in told["headers"].items()}
        assert headers["dapr-caller-app-id"] == "frontend@east"
        assert headers["dapr-callee-app-id"] == "orders"
        assert headers["traceparent"].split("-")[1] == span.split("-")[1]
        named = f"orders.{west.namespace}@west"
        assert (await ask(f"{invoke}/{named}/method/echo"))[0] == 200
        assert (await ask(f"{gateway.url}/echo", dapr_app_id="orders@west"))[0] == 200

        begin = time.monotonic()
        status, told = await ask(f"{invoke}/absent@west/method/echo")
        assert (status, told["errorCode"], "absent" in told["message"]) == (500, "ERR_DIRECT_INVOKE", True)
        assert time.monotonic() - begin < 5.0, "the other side has nobody, and says so at once"
        status, told = await ask(f"{invoke}/secret@west/method/echo")
        assert (status, "its list of apps" in told["message"]) == (403, True)
        status, told = await ask(f"{invoke}/orders@north/method/echo")
        assert (status, "no bridge to north" in told["message"]) == (500, True)

        large = os.urandom(3 * 1024 * 1024).hex().encode()
        status, told = await ask(f"{invoke}/orders@west/method/echo", method="POST", body=io.BytesIO(large))
        assert (status, told["body"].encode() == large) == (200, True)


async def test_a_stream_and_who_gives_it_up(joined: Clusters, tmp_path: Path) -> None:
    async with (
        AppProcess(tmp_path) as app,
        joined.west.gateway("orders", app),
        joined.east.gateway("frontend") as gateway,
        joined.bridge("--apps", "*@west"),
        aiohttp.ClientSession() as session,
    ):
        async with session.get(f"{gateway.api}/invoke/orders@west/method/calls/stream") as answer:
            for _ in range(3):
                await ask(f"{app.url}/tick", method="POST")
                assert await answer.content.readline() == b"tick\n"
        await eventually(lambda: _has(app, "cancelled", "stream"), 30.0)


def _has(app: AppProcess, kind: str, identity: str) -> None:
    assert identity in app.recorded(kind)


async def test_durable_calls_with_their_outcomes(joined: Clusters, tmp_path: Path) -> None:
    east, west = joined.east, joined.west
    replies = {"pubsubname": "pubsub", "topic": "replies", "route": "/events/replies"}
    async with AppProcess(tmp_path, subscriptions=[replies]) as caller, east.gateway("frontend", caller) as gateway:
        call = partial(ask, method="POST", mesh_delivery="durable", mesh_reply_topic="replies")
        invoke = f"{gateway.api}/invoke"
        status, early = await call(f"{invoke}/orders@west/method/echo?id=early", body=b"x")
        assert status == 202, early  # Before there is a bridge, and anybody in the west.
        status, refused = await call(f"{invoke}/secret@west/method/echo")
        assert status == 202, refused
        async with joined.bridge("--apps", "orders@west"), AppProcess(tmp_path) as app:
            async with west.gateway("orders", app):

                async def outcome(identity: str) -> Any:
                    found: list[Any] = []

                    async def check() -> None:
                        status, told = await ask(f"{gateway.api}/mesh/invocations/{identity}")
                        assert (status, told.get("state") != "pending") == (200, True), told
                        found.append(told)

                    await eventually(check, 40.0)
                    return found[0]

                told = await outcome(early["id"])
                assert (told["state"], told["status"], told["appId"]) == ("succeeded", 200, "orders@west")
                headers = {name.lower(): value for name, value in told["data"]["headers"].items()}
                assert headers["dapr-caller-app-id"] == "frontend@east"
                assert app.recorded("call") == ["early"]
                told = await outcome(refused["id"])
                assert (told["state"], "its list of apps" in told["reason"]) == ("failed", True)
                await eventually(lambda: _published(caller, 2), 30.0)


def _published(app: AppProcess, count: int) -> None:
    assert len(app.recorded("replies")) == count


TOPIC = {"pubsubname": "pubsub", "topic": "orders", "route": "/events/orders"}


async def test_topics_both_ways_go_round_once(joined: Clusters, tmp_path: Path) -> None:
    """Each side lists the topic for the other, so without a path every event would go round for ever."""
    east, west = joined.east, joined.west
    apps = [AppProcess(tmp_path, subscriptions=[TOPIC]) for _ in range(2)]
    async with (
        apps[0] as eastern,
        apps[1] as western,
        east.gateway("shop", eastern) as gateway,
        west.gateway("shop", western) as other,
        joined.bridge("--topics", "pubsub/orders@east,pubsub/orders@west") as bridge,
    ):
        for where, name in ((gateway, "e"), (other, "w")):
            for number in range(20):
                url = f"{where.api}/publish/pubsub/orders?metadata.partitionKey=one"
                event = json.dumps({"id": f"{name}{number}"}).encode()
                assert (await ask(url, method="POST", body=event, content_type="application/json"))[0] == 204

        def check() -> None:
            for app in (eastern, western):
                assert len(set(app.recorded("orders"))) == 40

        await eventually(check, 60.0)

        async def looped() -> None:
            _, told = await ask(f"{bridge.api}/metadata")
            assert told["bridge"]["topics"] == ["pubsub/orders@east", "pubsub/orders@west"]
            text = await metrics_of(bridge)
            lines = [line for line in text.splitlines() if 'outcome="looped"' in line and "mesh_bridged" in line]
            assert sum(float(line.rpartition(" ")[2]) for line in lines) == 40, text

        await eventually(looped, 30.0)
        for app in (eastern, western):
            assert sorted(app.recorded("orders")) == sorted({*app.recorded("orders")}), "none came twice"


async def metrics_of(bridge: BridgeProcess) -> str:
    url = f"http://127.0.0.1:{bridge.metrics_port}/metrics"
    async with aiohttp.ClientSession() as session, session.get(url) as answer:
        return await answer.text()
