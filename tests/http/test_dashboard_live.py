"""What the dashboard hears of a mesh of several gateways, for whom, and what it asks of others."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote

import orjson
import pytest

from gateway.config import DashboardConfig
from gateway.dashboard import live, presence, taps, viewers
from mesh import address
from mesh.broker import Frame
from tests.http.harness import App, Backbone, Node, gateway, subscription
from tests.support.eventually import eventually

TOKEN = "the-token-of-these-tests"
KNOWN = {"dashboard-token": TOKEN}
SECONDS = 30.0
Event = tuple[str, Any]


@asynccontextmanager
async def desk(backbone: Backbone, home: Path, **settings: Any) -> AsyncIterator[Node]:
    """A dashboard on a mesh of which it is said that it is on one machine."""
    own = DashboardConfig(TOKEN)
    async with gateway(backbone, home, app_id="desk", dashboard=own, single_host=True, **settings) as node:
        yield node


class Page:
    """An open page: what it was told."""

    def __init__(self, response: Any) -> None:
        self._response = response

    async def next(self) -> Event | None:
        """Give the next event; None = it is the end."""
        kind, data = "", b""
        async with asyncio.timeout(SECONDS):
            async for line in self._response.content:
                if line.startswith(b"event: "):
                    kind = line[7:].strip().decode()
                elif line.startswith(b"data: "):
                    data = line[6:]
                elif not line.strip() and kind:
                    return kind, orjson.loads(data)
        return None

    async def until(self, kind: str, fits: Callable[[Any], object] = bool) -> Any:
        """Give the next event of a kind that fits."""
        async with asyncio.timeout(SECONDS):
            while (event := await self.next()) is not None:
                if event[0] == kind and fits(event[1]):
                    return event[1]
        raise AssertionError(f"the stream ended before there was {kind}")


@asynccontextmanager
async def page(node: Node, query: str = "") -> AsyncIterator[Page]:
    """Open a page."""
    async with node.open("GET", f"/dashboard/api/live{query}", KNOWN) as response:
        assert (response.status, response.headers["Content-Type"]) == (200, "text/event-stream")
        yield Page(response)


def _apps(*wanted: str) -> Callable[[Any], bool]:
    return lambda told: [each["id"] for each in told["apps"]] == list(wanted)


async def test_nodes_come_and_go(nats: Backbone, tmp_path: Path) -> None:
    """A page that is open is told so, with what they have."""
    shop = App([subscription("pubsub", "orders", letters="lost")])
    async with desk(nats, tmp_path) as node, page(node) as opened:
        await opened.until("mesh", _apps())
        async with shop, gateway(nats, tmp_path, app=shop, app_id="shop") as first:
            await first.publish("news")
            told = await opened.until("mesh", lambda told: _apps("shop")(told) and len(told["topics"]) == 3)
            [app] = told["apps"]
            assert app["instances"] == [{"node": first.gateway.node_id, "ready": True, "serves": True}]
            assert app["subscriptions"] == [{"component": "pubsub", "topic": "orders", "deadLetterTopic": "lost"}]
            assert told["topics"] == [
                {"component": "pubsub", "topic": "lost", "publishers": [], "subscribers": []}
                | {"deadLetterOf": [{"component": "pubsub", "topic": "orders"}]},
                {"component": "pubsub", "topic": "news", "publishers": ["shop"], "subscribers": [], "deadLetterOf": []},
                {
                    "component": "pubsub",
                    "topic": "orders",
                    "publishers": [],
                    "subscribers": ["shop"],
                    "deadLetterOf": [],
                },
            ]
            assert {"name": "pubsub", "type": "pubsub.mesh", "apps": ["shop"]} in told["components"]
            async with gateway(nats, tmp_path, app_id="caller"):
                told = await opened.until("mesh", _apps("caller", "shop"))
                assert told["apps"][0]["instances"][0] | {"node": ""} == {"node": "", "ready": True, "serves": False}
            await opened.until("mesh", _apps("shop"))
        await opened.until("mesh", _apps())


async def test_who_comes_back_is_told_what_there_is_although_nothing_changed(
    nats: Backbone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was heard of old is asked anew, and then told."""
    monkeypatch.setattr(presence, "STALE_SECONDS", 0.0)
    async with desk(nats, tmp_path) as node:
        for _ in range(2):
            async with page(node) as opened:
                await opened.until("mesh", _apps())


async def test_a_page_may_leave_out_what_it_does_not_show(nats: Backbone, tmp_path: Path) -> None:
    """One that lists what passes hears neither of the mesh nor of rates; others still do."""
    async with (
        desk(nats, tmp_path) as node,
        gateway(nats, tmp_path, app_id="shop", single_host=True) as shop,
        page(node, "?sights=true&topic=pubsub/orders&mesh=0&rates=0") as listing,
        page(node) as other,
    ):
        await other.until("mesh", _apps("shop"))
        await other.until("rates", lambda told: True)
        assert (await shop.post("/v1.0/publish/pubsub/orders", {"a": 1})).status == 204
        kind, told = await listing.next() or ("", None)
        assert (kind, told["data"]["target"]) == ("sight", "pubsub/orders")


async def test_names_may_be_any(nats: Backbone, tmp_path: Path) -> None:
    """Of applications as long as they may be, and in any script; what they answer is found by them."""
    names = ["a" * 256, "ä" * 128, "заказы", "a%2Fb?c#d&e=f", "<img-src=x-onerror=alert(1)>"]
    async with desk(nats, tmp_path) as node, page(node) as opened, AsyncExitStack() as stack:
        for name in names:
            await stack.enter_async_context(gateway(nats, tmp_path, app_id=name, single_host=True))
        await opened.until("mesh", _apps(*sorted(names)))
        for name in names:
            reply = await node.get(f"/dashboard/api/apps/{quote(name, safe='')}/v1.0/metadata", **KNOWN)
            assert (reply.status, reply.json["id"]) == (200, name)


async def test_what_flows_is_told_to_all_by_one_watch(nats: Backbone, tmp_path: Path) -> None:
    """Two pages of one filter share it; each hears of the same, and of nothing once it is closed."""
    async with App() as app, gateway(nats, tmp_path, app=app, app_id="shop") as shop, desk(nats, tmp_path) as node:
        app.answer("/hello", 200, {"a": 1}, Content_Type="application/json")
        query = "?sights=1&app=shop&block=invocation&values=1"
        async with page(node, query) as first, page(node, query) as second:
            await eventually(lambda: _assert(shop.gateway._runtime.parts.taps.on))
            calls = 0

            async def call() -> None:
                nonlocal calls
                assert (await shop.post("/v1.0/invoke/shop/method/hello")).status == 200
                calls += 1

            await call()
            asked = await first.until("sight", lambda event: event["data"]["seen"] == "asked")
            assert asked == await second.until("sight", lambda event: event["data"]["seen"] == "asked")
            assert asked["data"]["from"] == asked["data"]["target"] == asked["data"]["app"] == "shop"
            assert len(_dashboard(node)._taps._feeds) == 2
            rates = await first.until("rates", lambda told: told["edges"])
            edge = next(each for each in rates["edges"] if each["seen"] == "asked")
            assert (edge["block"], edge["from"], edge["target"], edge["count"]) == ("invocation", "shop", "shop", calls)
            assert sum(edge["buckets"]) == calls
            assert (await first.until("rates", lambda told: not told["edges"]))["seconds"] > 0.5
        await eventually(lambda: _assert(not _dashboard(node)._taps._feeds))
        await eventually(lambda: _assert(not shop.gateway._runtime.parts.taps.on))


def _assert(so: object) -> None:
    assert so


_LIVE: list[live.Live] = []


@pytest.fixture(autouse=True)
def made(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep what a dashboard hears with, to look into it."""
    _LIVE.clear()
    begin = live.Live.__init__

    def noted(self: live.Live, *given: Any) -> None:
        begin(self, *given)
        _LIVE.append(self)

    monkeypatch.setattr(live.Live, "__init__", noted)


def _dashboard(node: Node) -> live.Live:
    [made] = _LIVE
    return made


async def test_a_page_that_reads_nothing_holds_nobody(
    nats: Backbone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is too much for it is left out and counted; it is cut off in the end, and the other hears of everything."""
    monkeypatch.setattr(live, "WRITE_SECONDS", 1.0)
    monkeypatch.setattr(viewers, "MAX_EVENTS", 50)
    async with (
        App() as app,
        gateway(nats, tmp_path, app=app, app_id="shop", single_host=True) as shop,
        desk(nats, tmp_path) as node,
    ):
        app.answer("/hello", 200, bytes(60_000), Content_Type="text/plain")
        query = "?sights=1&block=invocation&values=1"
        _, writer = await asyncio.open_connection("127.0.0.1", node.gateway.port, limit=1)
        writer.write(
            f"GET /dashboard/api/live{query} HTTP/1.1\r\nHost: localhost\r\ndashboard-token: {TOKEN}\r\n\r\n".encode()
        )
        async with page(node, query) as reading:
            await eventually(lambda: _assert(shop.gateway._runtime.parts.taps.on))
            stalled = asyncio.Event()

            async def calls() -> None:
                while not stalled.is_set():
                    await shop.post("/v1.0/invoke/shop/method/hello")

            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(calls())
                while len(_dashboard(node)._viewers._all) == 2:
                    await reading.until("sight")
                stalled.set()
            await reading.until("rates")
        writer.close()


async def test_there_is_a_bound_to_pages_and_filters(
    nats: Backbone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Beyond it a page is told so, and the next one has room when one is closed."""
    monkeypatch.setattr(viewers, "MAX_VIEWERS", 3)
    monkeypatch.setattr(taps, "MAX_FILTERS", 2)
    async with desk(nats, tmp_path) as node:
        async with page(node, "?sights=1&app=a"), page(node, "?sights=1&app=a"):
            other = await node.get("/dashboard/api/live?sights=1&app=b", **KNOWN)
            assert (other.status, other.json["errorCode"]) == (503, "ERR_DASHBOARD_FULL")
            async with page(node):
                more = await node.get("/dashboard/api/live", **KNOWN)
                assert (more.status, more.json["errorCode"]) == (503, "ERR_DASHBOARD_FULL")
        await eventually(lambda: _assert(not _dashboard(node)._viewers._all))
        async with page(node, "?sights=1&app=b") as opened:
            await opened.until("rates", lambda told: not told["edges"])


async def test_nothing_is_asked_when_nobody_looks(
    nats: Backbone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However many look, there is one question at a time; once nobody does, there is none."""
    monkeypatch.setattr(presence, "INTERVAL", 0.6)
    monkeypatch.setattr(presence, "FIRST_SECONDS", 0.1)
    monkeypatch.setattr(presence, "SECONDS", 0.1)
    questions: list[Frame] = []
    async with desk(nats, tmp_path) as node:
        broker = node.gateway._runtime.broker
        async with broker.listen(address.nodes(nats.namespace), questions.append):
            replies = [node.get("/dashboard/api/mesh", **KNOWN) for _ in range(10)]
            async with asyncio.TaskGroup() as tasks:
                for each in replies:
                    tasks.create_task(each)
            assert len(questions) == 1
            began = asyncio.get_running_loop().time()
            async with page(node), page(node), page(node):
                await eventually(lambda: _assert(len(questions) >= 4))
            assert len(questions) <= 2 + (asyncio.get_running_loop().time() - began) / 0.6
            looking = _dashboard(node).presence
            await eventually(lambda: _assert(not looking._lookers))
            heard = looking.heard
            asked = len(questions)
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(2.0):
                    await heard.wait()
                    asked = len(questions)  # The one that was asked when the last page was closed.
                    await looking.heard.wait()
            assert len(questions) == asked


async def test_pages_end_when_the_gateway_drains(nats: Backbone, tmp_path: Path) -> None:
    """Each stream is ended as it should be, and the drain does not wait for its readers."""
    async with (
        desk(nats, tmp_path) as node,
        page(node, "?sights=1") as opened,
        node.open("GET", "/dashboard/api/recording", KNOWN) as recording,
    ):
        first = orjson.loads(await recording.content.readline())
        assert first["type"] == "mesh.tap.recording"
        await opened.until("rates", lambda told: not told["edges"])
        node.gateway._runtime.streams.ending.set()
        while await opened.next() is not None:
            pass
        assert not (await recording.content.read()).strip()


async def test_what_another_node_answers(nats: Backbone, tmp_path: Path) -> None:
    """Status, type and body are passed on, of a node and of any instance of an application; what is away is said."""
    async with App() as app, desk(nats, tmp_path) as node:
        app.answer("/odd", 418, b"\xff\x00", Content_Type="image/x", Set_Cookie="a=b")
        async with gateway(nats, tmp_path, app=app, app_id="shop", single_host=True) as shop:
            for of in (f"nodes/{shop.gateway.node_id}", "apps/shop"):
                target = f"/dashboard/api/{of}/v1.0/invoke/shop/method/odd?a=%2F&b="
                reply = await node.request("PUT", target, {**KNOWN, "X-Mine": "ü", "Origin": node.url}, b"body")
                assert (reply.status, reply.body, reply.headers["content-type"]) == (418, b"\xff\x00", "image/x")
                assert "set-cookie" not in reply.headers
                got = app.got.pop()
                assert (got.method, got.target, got.body) == ("PUT", "/odd?a=%2F&b=", b"body")
                assert not {"dashboard-token", "origin", "host"} & (got.headers.keys() - {"host"})
            second = await node.get(f"/dashboard/api/nodes/{shop.gateway.node_id}/v1.0/mesh/node", **KNOWN)
            assert (second.status, second.json["app"]) == (200, "shop")
        gone = await node.get("/dashboard/api/apps/shop/v1.0/metadata", **KNOWN)
        assert (gone.status, gone.json["errorCode"]) == (404, "ERR_NODE_AWAY")


async def test_an_instance_that_is_gone_is_passed_over(nats: Backbone, tmp_path: Path) -> None:
    """Another one is asked in its place."""
    async with desk(nats, tmp_path) as node, gateway(nats, tmp_path, app_id="shop", single_host=True) as stays:
        async with gateway(nats, tmp_path, app_id="shop", single_host=True) as goes:
            await eventually(lambda: _both(node, stays, goes))
            order = [each.id for each in await _nodes(node)]
        assert sorted(order) == sorted((stays.gateway.node_id, goes.gateway.node_id))
        reply = await node.get("/dashboard/api/apps/shop/v1.0/mesh/node", **KNOWN)
        assert (reply.status, reply.json["node"]) == (200, stays.gateway.node_id)


async def _nodes(node: Node) -> list[Any]:
    return [each for each in _dashboard(node).presence.nodes.values() if each.app_id == "shop"]


async def _both(node: Node, *nodes: Node) -> None:
    await node.get("/dashboard/api/mesh", **KNOWN)
    assert {each.id for each in await _nodes(node)} == {each.gateway.node_id for each in nodes}


async def test_what_is_recorded_is_done_again(nats: Backbone, tmp_path: Path) -> None:
    """A recording has values; what is in it is sent again, and what is answered now is compared."""
    answers = iter([{"left": 3, "at": 1}, {"left": 2, "at": 1}])
    async with (
        App() as app,
        gateway(nats, tmp_path, app=app, app_id="shop", single_host=True),
        gateway(nats, tmp_path, app_id="till", single_host=True) as till,
        desk(nats, tmp_path) as node,
    ):

        def answer(got: Any, request: Any) -> Any:
            from aiohttp import web

            return web.json_response(next(answers))

        app.answers["/take"] = answer
        async with node.open("GET", "/dashboard/api/recording?block=invocation", KNOWN) as recording:
            assert recording.headers["Content-Disposition"].startswith('attachment; filename="mesh-')
            first = orjson.loads(await recording.content.readline())
            assert first["data"]["filter"] == {"block": ["invocation"]}
            await eventually(lambda: _assert(till.gateway._runtime.parts.taps.on))
            await till.post("/v1.0/invoke/shop/method/take?x=1", {"item": "a"}, "application/json")
            async with asyncio.timeout(SECONDS):
                while True:
                    event = orjson.loads((await recording.content.readline()).strip() or b"{}")
                    if event and event["data"].get("seen") == "asked":
                        break
        assert event["data"]["request"]["json"] == {"item": "a"}
        app.got.clear()
        reply = await node.request("POST", "/dashboard/api/replay", KNOWN, {"event": event})
        told = reply.json
        assert (reply.status, told["status"], told["outcome"], told["kind"]) == (200, 200, "ok", "call")
        assert told["differences"] == [{"path": "body.left", "recorded": 3, "replayed": 2}]
        assert told["reply"]["json"] == {"left": 2, "at": 1}
        [again] = app.got
        assert (again.method, again.target, again.json) == ("POST", "/take?x=1", {"item": "a"})
        hidden = {**event, "data": {**event["data"], "request": None}}
        refused = await node.request("POST", "/dashboard/api/replay", KNOWN, {"event": hidden})
        assert (refused.status, refused.json["errorCode"]) == (400, "ERR_BAD_REQUEST")
