"""Bridges between two clusters: what they carry, and what becomes of that when one of the three is killed."""

from __future__ import annotations

import asyncio
import io
import itertools
import json
import os
import sys
import time
from asyncio.subprocess import PIPE, STDOUT
from collections import Counter
from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path
from typing import Any

import aiohttp
import grpc
import grpc.aio
import pytest

from tests.faults.conftest import Figures, everything_arrives, portion
from tests.support.bridges import BridgeProcess, Clusters, ask, clusters
from tests.support.eventually import eventually
from tests.support.load import Publishing
from tests.support.mesh import AppProcess
from tests.support.processes import free_port

EVENTS = portion(3_000)
CALLS = portion(240)
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
        async with (
            joined.bridge("--apps", "orders@west"),
            AppProcess(tmp_path) as app,
            west.gateway("orders", app),
        ):

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


TOPIC = {"pubsubname": "pubsub", "topic": "orders", "route": "/events/orders", "metadata": {"ordered": "true"}}
PADDING = "x" * 3 * 1024 * 1024  # Above what a message of any of these brokers holds.


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

        large = io.BytesIO(json.dumps({"id": "large", "padding": PADDING}).encode())
        url = f"{gateway.api}/publish/pubsub/orders"
        assert (await ask(url, method="POST", body=large, content_type="application/json"))[0] == 204

        def check() -> None:
            for app in (eastern, western):
                assert len(set(app.recorded("orders"))) == 41

        await eventually(check, 60.0)
        for app, name in ((eastern, "w"), (western, "e")):
            told = [each for each in app.recorded("orders") if each.startswith(name)]
            assert told == [f"{name}{number}" for number in range(20)], "those of one key keep their order"

        async def looped() -> None:
            _, told = await ask(f"{bridge.api}/metadata")
            assert told["bridge"]["topics"] == ["pubsub/orders@east", "pubsub/orders@west"]
            text = await metrics_of(bridge)
            lines = [line for line in text.splitlines() if 'outcome="looped"' in line and "mesh_bridged" in line]
            assert sum(float(line.rpartition(" ")[2]) for line in lines) >= 41, lines

        await eventually(looped, 30.0)
        for app in (eastern, western):  # One that went round would come again and again; a broker may repeat one.
            assert max(Counter(app.recorded("orders")).values()) <= 2


async def metrics_of(bridge: BridgeProcess) -> str:
    url = f"http://127.0.0.1:{bridge.metrics_port}/metrics"
    async with aiohttp.ClientSession() as session, session.get(url) as answer:
        return await answer.text()


async def test_the_bridge_and_both_brokers_are_killed(joined: Clusters, tmp_path: Path, figures: Figures) -> None:
    """What was acknowledged on one side comes to the other, whatever dies in between; others share the work."""
    east, west = joined.east, joined.west
    words = "--topics", "pubsub/orders@east"
    async with (
        AppProcess(tmp_path, subscriptions=[TOPIC]) as app,
        west.gateway("shop", app),
        east.gateway("publisher") as publisher,
        joined.bridge(*words) as first,
        joined.bridge(*words) as second,
    ):
        publishing = Publishing(publisher, "orders", EVENTS, connections=16)
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(publishing.run())
            await publishing.until(EVENTS // 6)
            await first.kill()
            await publishing.until(EVENTS // 3)
            await west.backend.restart(kill=True)
            await publishing.until(EVENTS // 2)
            await second.kill()
            await first.start()
            await publishing.until(2 * EVENTS // 3)
            await east.backend.restart(kill=True)
        await everything_arrives(publishing, app, figures, within=120.0)
        text = await metrics_of(first)
        assert 'kind="event",from="east",to="west",of="pubsub/orders",outcome="carried' in text


async def test_the_other_side_is_away(joined: Clusters, tmp_path: Path) -> None:
    """Events wait on their own side as long as they are of use, calls fail by their deadline, and status says so."""
    east, west = joined.east, joined.west
    async with (
        AppProcess(tmp_path, subscriptions=[TOPIC]) as app,
        west.gateway("shop", app),
        east.gateway("frontend") as gateway,
        joined.bridge("--topics", "pubsub/orders@east", "--apps", "shop@west") as bridge,
    ):
        call = f"{gateway.api}/invoke/shop@west/method/echo"
        assert (await ask(call))[0] == 200
        await west.backend.stop()

        async def away() -> None:
            _, told = await ask(f"{bridge.api}/metadata")
            assert [each["connected"] for each in told["bridge"]["sides"]] == [True, False]

        await eventually(away, 30.0)
        stale, late = "?metadata.ttlInSeconds=1", "?metadata.delay=5s"
        for query, name in ((stale, "stale"), (late, "late"), *(("", str(number)) for number in range(10))):
            url, event = f"{gateway.api}/publish/pubsub/orders{query}", json.dumps({"id": name}).encode()
            assert (await ask(url, method="POST", body=event, content_type="application/json"))[0] == 204
        begin = time.monotonic()
        status, told = await ask(call, mesh_timeout="3s")
        assert status >= 500, told
        assert 1.0 < time.monotonic() - begin < 10.0  # Meanwhile nobody needs the first event any more.
        await west.backend.start()

        def check() -> None:
            assert set(app.recorded("orders")) == {"late", *map(str, range(10))}

        await eventually(check, 60.0)

        async def answers() -> None:
            assert (await ask(call, mesh_timeout="5s"))[0] == 200

        await eventually(answers, 40.0)


@pytest.mark.parametrize("pair", ["nats-nats"], indirect=True)
async def test_both_brokers_are_waited_for_at_the_start(joined: Clusters, tmp_path: Path) -> None:
    """However long that takes; told to stop, it does so at once."""
    east, west = joined.east, joined.west
    await east.backend.stop()
    environ = {**os.environ, "MESH_HOME": str(tmp_path)}
    words = [
        "--from",
        east.backend.url,
        "--as",
        "east",
        "--to",
        west.backend.url,
        "--peer",
        "west",
        "--apps",
        "shop@west",
    ]
    command = sys.executable, "-m", "gateway.cli", "bridge", *words, "--metrics-port", str(free_port())
    for stops in (True, False):
        process = await asyncio.create_subprocess_exec(*command, env=environ, stdout=PIPE, stderr=STDOUT)
        try:
            assert process.stdout is not None
            async with asyncio.timeout(30.0):
                for _ in range(2):  # Now and then.
                    await line_with(process.stdout, b"waiting for the backbone")
                if stops:
                    process.terminate()
                    assert await process.wait() == 0
                else:
                    await east.backend.start()
                    await line_with(process.stdout, b"bridge between east and west")
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()


async def line_with(lines: asyncio.StreamReader, text: bytes) -> None:
    while text not in (line := await lines.readline()):
        assert line, "it has ended"


@pytest.mark.parametrize("pair", ["nats-nats", "redis-nats"], indirect=True)
async def test_durable_calls_while_the_bridge_and_a_broker_are_killed(
    joined: Clusters, tmp_path: Path, figures: Figures
) -> None:
    async with (
        AppProcess(tmp_path) as app,
        joined.west.gateway("orders", app),
        joined.east.gateway("frontend") as gateway,
        joined.bridge("--apps", "orders@west") as bridge,
    ):
        accepted: list[str] = []

        async def call(first: int, last: int) -> None:
            for number in range(first, last):
                url = f"{gateway.api}/invoke/orders@west/method/echo?id={number}"
                status, told = await ask(url, method="POST", mesh_delivery="durable")
                assert status == 202, told
                accepted.append(told["id"])

        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(call(0, CALLS // 2))
            await eventually(lambda: _called(app, CALLS // 8), 60.0)
            await bridge.kill()
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(call(CALLS // 2, CALLS))
            await bridge.start()
            await eventually(lambda: _called(app, CALLS // 2), 60.0)
            await joined.west.backend.restart(kill=True)
        await eventually(lambda: _called(app, CALLS), 90.0)
        left = set(accepted)

        async def outcomes() -> None:
            for identity in sorted(left):
                status, told = await ask(f"{gateway.api}/mesh/invocations/{identity}")
                assert (status, told["state"]) == (200, "succeeded"), told
                left.discard(identity)

        await eventually(outcomes, 90.0)
        ran = app.recorded("call")
        figures.note(accepted=len(accepted), missing=CALLS - len(set(ran)), duplicates=len(ran) - len(set(ran)))


def _called(app: AppProcess, count: int) -> None:
    assert len(set(app.recorded("call"))) >= count


async def test_grpc_over_the_bridge(joined: Clusters, tmp_path: Path) -> None:
    east, west = joined.east, joined.west
    number, on_grpc = free_port(), ("--app-protocol", "grpc")
    async with (
        AppProcess(tmp_path, "grpc_echo", ready_path="") as app,
        west.gateway("callee", app, on_grpc),
        east.gateway("caller", arguments=("--dapr-grpc-port", str(number))),
        joined.bridge("--apps", "callee@west"),
        grpc.aio.insecure_channel(f"127.0.0.1:{number}") as channel,
    ):
        metadata = [("dapr-app-id", "callee@west")]
        assert await channel.unary_unary("/test.Echo/Unary")(b"x", metadata=metadata, timeout=20.0) == b"x"
        talk = channel.stream_stream("/test.Echo/Talk")(metadata=metadata)
        for text in (b"one", b"two"):
            await talk.write(text)
            assert await talk.read() == text
        await talk.done_writing()
        assert await talk.read() is grpc.aio.EOF
        ticks = channel.unary_stream("/test.Echo/Ticks")(b"", metadata=metadata)
        assert [await ticks.read() for _ in range(3)] == [b"0", b"1", b"2"]
        ticks.cancel()
        absent = channel.unary_unary("/test.Echo/Unary")(b"x", metadata=[("dapr-app-id", "callee@north")], timeout=20.0)
        with pytest.raises(grpc.aio.AioRpcError, match="no bridge to north"):
            await absent


FILE = """
from: {cluster: east, backbone: "%s"}
to: {cluster: west, backbone: "%s"}
apps: [%s]
topics: [%s]
"""


async def mesh(home: Path, *words: str) -> tuple[int, str]:
    """Run a command."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "gateway.cli", *words),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
        env={**os.environ, "MESH_HOME": str(home)},
    )
    told, _ = await process.communicate()
    return process.returncode or 0, told.decode()


@pytest.mark.parametrize("pair", ["nats-nats"], indirect=True)
async def test_its_file_is_read_again_and_the_commands_know_it(joined: Clusters, tmp_path: Path) -> None:
    east, west, file = joined.east, joined.west, tmp_path / "bridge.yaml"
    urls = east.backend.url, west.backend.url
    file.write_text(FILE % (*urls, "", ""))
    async with (
        AppProcess(tmp_path, subscriptions=[TOPIC]) as app,
        west.gateway("shop", app),
        east.gateway("frontend") as gateway,
        joined.bridge_by(["--file", str(file)]) as bridge,
    ):
        call = f"{gateway.api}/invoke/shop@west/method/echo"
        assert (await ask(call))[0] == 403
        event = b'{"id": "1"}'
        publish = partial(ask, f"{gateway.api}/publish/pubsub/orders", method="POST", content_type="application/json")
        assert (await publish(body=event))[0] == 204
        file.write_text(FILE % (*urls, "shop@west", "pubsub/orders@east"))

        async def allowed() -> None:
            assert (await ask(call))[0] == 200
            assert app.recorded("orders") == ["1"], "a topic keeps what was published before it was listed"

        await eventually(allowed, 30.0)
        file.write_text(FILE % (*urls, "shop@nowhere", ""))

        def refused() -> None:
            assert "the bridge carries what it did" in bridge.log.read_text()
            assert "shop@nowhere is neither in east nor in west" in bridge.log.read_text()

        await eventually(refused, 30.0)
        assert (await ask(call))[0] == 200
        words = "invoke", "--app-id", "shop@west", "--method", "echo", "--verb", "GET"
        code, told = await mesh(east.home, *words)
        assert (code, "/echo" in told) == (0, True), told
        code, told = await mesh(east.home, "status")
        assert "joins east (nats://" in told, told
        assert "apps: shop@west" in told, told
        assert "topics: pubsub/orders@east" in told, told
        code, told = await mesh(east.home, "list")
        assert "mesh-bridge-west" in told, told
        file.write_text(FILE % (*urls, "", ""))

        async def closed() -> None:
            assert (await ask(call))[0] == 403

        await eventually(closed, 30.0)
