"""``GET /v1.0/mesh/tap``: what a client is told, in which form, and how it ends."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import orjson
import pytest

from gateway.routes import taps
from tests.http.harness import ANY, App, Backbone, Case, Node, cases, check, error, gateway, matches, yaml
from tests.support.eventually import eventually

pytestmark = pytest.mark.asyncio
TAP = "/v1.0/mesh/tap"
OPEN = yaml(
    "Configuration", "open", {"accessControl": {"defaultAction": "allow", "tap": {"values": ["app", "caller"]}}}
)


def _configuration(folder: Path, text: str = OPEN) -> tuple[Path, ...]:
    file = folder / "configuration.yaml"
    file.write_text(text)
    return (file,)


class Reader:
    """Reads a tap's answer."""

    def __init__(self, response: Any, *, events: bool = False) -> None:
        self.response, self._events = response, events
        self.rest = b""

    async def next(self) -> dict[str, Any]:
        """Give the next event; the name that it has among server-sent ones as ``_name``."""
        while True:
            end = b"\n\n" if self._events else b"\n"
            piece, found, rest = self.rest.partition(end)
            if found:
                self.rest = rest
                if told := self._read(piece):
                    return told
                continue
            data = await self.response.content.readany()
            if not data:
                raise EOFError
            self.rest += data

    def _read(self, piece: bytes) -> dict[str, Any]:
        if not self._events:
            return dict(orjson.loads(piece)) if piece else {}
        fields = dict(line.split(b": ", 1) for line in piece.split(b"\n") if not line.startswith(b":"))
        return {**orjson.loads(fields[b"data"]), "_name": fields[b"event"].decode()} if fields else {}

    async def until(self, type_: str, **members: object) -> dict[str, Any]:
        """Give the first event of a type, with members of its data."""
        while True:
            event = await self.next()
            if event["type"] == type_ and all(event["data"].get(name) == value for name, value in members.items()):
                return event


@asynccontextmanager
async def tapping(node: Node, query: str = "", *, events: bool = False) -> AsyncIterator[Reader]:
    """Open a tap that every node of the namespace has heard of: each tells its rates."""
    headers = {"Accept": "text/event-stream"} if events else {}
    async with asyncio.timeout(90), node.open("GET", f"{TAP}?rates=1&{query}", headers) as response:
        assert response.status == 200
        reader = Reader(response, events=events)
        await reader.until("mesh.tap.rates")
        yield reader


@cases(
    Case(
        "cel",
        ("GET", f"{TAP}?where=event.data.outcome%20%3D%3D"),
        400,
        error("ERR_BAD_REQUEST", matches(re.compile("where: .*does not compile").search)),
    ),
    Case(
        "cel of another name",
        ("GET", f"{TAP}?where=x%3D%3D1"),
        400,
        error("ERR_BAD_REQUEST", matches(re.compile("unknown variable 'x'").search)),
    ),
    Case(
        "block",
        ("GET", f"{TAP}?block=pubsub&block=invocatoin"),
        400,
        error("ERR_BAD_REQUEST", matches(re.compile("no building block 'invocatoin'; did you mean 'invoc").search)),
    ),
    Case(
        "sample",
        ("GET", f"{TAP}?sample=half"),
        400,
        error("ERR_BAD_REQUEST", "invalid request: sample: 'half' is no number"),
    ),
    Case(
        "sample beyond", ("GET", f"{TAP}?sample=2"), 400, error("ERR_BAD_REQUEST", matches(re.compile("sample").search))
    ),
    Case(
        "body",
        ("GET", f"{TAP}?maxBody=2Mi"),
        400,
        error("ERR_BAD_REQUEST", matches(re.compile("maxBody is 2097152").search)),
    ),
    Case("rates", ("GET", f"{TAP}?rates=0.1"), 400, error("ERR_BAD_REQUEST", matches(re.compile("rates").search))),
    Case(
        "nothing",
        ("GET", f"{TAP}?sights=false"),
        400,
        error("ERR_BAD_REQUEST", matches(re.compile("nothing would be told").search)),
    ),
    Case(
        "switch",
        ("GET", f"{TAP}?values=perhaps"),
        400,
        error("ERR_BAD_REQUEST", matches(re.compile("^invalid request: values: ").search)),
    ),
    Case(
        "time",
        ("GET", f"{TAP}?for=soon"),
        400,
        error("ERR_BAD_REQUEST", matches(re.compile("^invalid request: for: ").search)),
    ),
    Case(
        "no time",
        ("GET", f"{TAP}?for=0s"),
        400,
        error("ERR_BAD_REQUEST", matches(re.compile("no time that something lasts").search)),
    ),
    Case("pattern", ("GET", f"{TAP}?app=%5B"), 400, error("ERR_BAD_REQUEST", matches(re.compile("no pattern").search))),
    Case(
        "unknown",
        ("GET", f"{TAP}?apps=x"),
        400,
        error("ERR_BAD_REQUEST", matches(re.compile("no parameter 'apps' of a tap; there are app, block").search)),
    ),
    Case("verb", ("POST", TAP, None, b""), 404, ANY),
)
async def test_what_is_wrong_is_named(case: Case, memory: Backbone, tmp_path: Path) -> None:
    async with gateway(memory, tmp_path) as node:
        await check(node, case)


@pytest.mark.parametrize("events", [False, True], ids=["lines", "server-sent events"])
async def test_a_call_is_told_with_its_values(events: bool, nats: Backbone, app: App, tmp_path: Path) -> None:
    """What was asked and what arrived, each as a CloudEvent, in either form."""
    app.answer("/greet", 201, {"said": "hello"}, content_type="application/json")
    async with (
        gateway(nats, tmp_path, app=app, configuration_files=_configuration(tmp_path)),
        gateway(nats, tmp_path, app_id="caller", configuration_files=_configuration(tmp_path)) as node,
        tapping(node, "values=true&block=invocation", events=events) as reader,
    ):
        await reader.until("mesh.tap.rates", app="app")
        kind = reader.response.headers["Content-Type"]
        assert kind == ("text/event-stream" if events else "application/x-ndjson")
        reply = await node.post("/v1.0/invoke/app/method/greet?loud=1", {"name": "Ada"}, "application/json")
        assert reply.status == 201
        calls: dict[str, dict[str, Any]] = {}
        while len(calls) < 2:  # Two nodes tell of it, and either may be the first.
            event = await reader.until("mesh.tap.invocation.invoke")
            calls[event["data"]["seen"]] = event
        asked, arrived = calls["asked"], calls["arrived"]
        assert asked.get("_name", "sight") == "sight"
        assert (asked["specversion"], asked["subject"]) == ("1.0", "app")
        assert asked["data"]["details"] == {"verb": "POST", "path": "/greet", "query": "loud=1", "status": 201}
        assert asked["data"]["request"]["json"] == arrived["data"]["request"]["json"] == {"name": "Ada"}
        assert asked["data"]["reply"]["json"] == {"said": "hello"}
        told = await reader.until("mesh.tap.rates")
        assert told.get("_name", "rates") == "rates"


async def test_only_what_is_wanted_is_told(memory: Backbone, app: App, tmp_path: Path) -> None:
    """By block and by a rule; without values there is none, not even of the query."""
    where = "event.data.details.path%20%3D%3D%20'/b'"
    async with gateway(memory, tmp_path, app=app) as node, tapping(node, f"block=invocation&where={where}") as reader:
        for path in ("a", "b?key=1"):
            await node.post(f"/v1.0/invoke/app/method/{path}", b"body")
        await node.post("/v1.0/state/statestore", [{"key": "k", "value": 1}])
        seen = await reader.until("mesh.tap.invocation.invoke", seen="asked")
        assert (seen["data"]["details"]["path"], seen["data"]["request"]) == ("/b", {"size": 4})
        assert "query" not in seen["data"]["details"]


async def test_a_time_ends_it(memory: Backbone, tmp_path: Path) -> None:
    """An answer that is complete, so that a client knows that it was not broken off."""
    async with gateway(memory, tmp_path) as node:
        reply = await node.get(f"{TAP}?for=200ms&rates=1")
        assert (reply.status, reply.headers["content-type"]) == (200, "application/x-ndjson")


@pytest.mark.parametrize(("events", "sign"), [(False, b"\n"), (True, b":\n\n")], ids=["lines", "server-sent events"])
async def test_silence_is_kept_alive(
    events: bool, sign: bytes, memory: Backbone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(taps, "KEEP_ALIVE_SECONDS", 0.1)
    headers = {"Accept": "text/event-stream"} if events else {}
    async with gateway(memory, tmp_path) as node, node.open("GET", TAP, headers) as response:
        got = b""
        while len(got) < 3 * len(sign):
            got += await response.content.readany()
        assert got.replace(sign, b"") == b""


async def test_a_client_that_goes_is_forgotten(memory: Backbone, tmp_path: Path) -> None:
    """Whoever closes the connection is watched for no more."""
    async with gateway(memory, tmp_path) as node:
        watches = node.gateway._runtime.parts.taps
        async with tapping(node):
            assert watches.on

        def check() -> None:
            assert not watches.on

        await eventually(check)
        assert not node.gateway._runtime._tapping._open


async def test_a_gateway_that_drains_ends_it(nats: Backbone, tmp_path: Path) -> None:
    """Soon, and with an answer that is complete; another node's tap goes on."""
    async with gateway(nats, tmp_path, app_id="other") as other, tapping(other) as lasting:
        async with gateway(nats, tmp_path) as node:
            reading = await _opened(node)
        async with asyncio.timeout(10):
            while await reading.response.content.readany():
                pass
        await lasting.until("mesh.tap.rates", app="other")


async def _opened(node: Node) -> Reader:
    reader = Reader(await node.open("GET", f"{TAP}?rates=1"))
    async with asyncio.timeout(30):
        await reader.until("mesh.tap.rates", app="app")
    return reader


async def test_a_client_that_does_not_read_holds_up_nothing(memory: Backbone, app: App, tmp_path: Path) -> None:
    """It is told what was left out, and the gateway drains in time."""
    app.answer("/big", 200, b"x" * 60_000)
    async with (
        gateway(memory, tmp_path, app=app, configuration_files=_configuration(tmp_path)) as node,
        tapping(node, "values=true&block=invocation") as reader,
    ):
        for _ in range(400):
            assert (await node.post("/v1.0/invoke/app/method/big", b"y" * 60_000)).status == 200
        dropped = await reader.until("mesh.tap.dropped")
        assert dropped["data"]["count"] > 0


async def test_several_nodes_are_told_of(nats: Backbone, app: App, tmp_path: Path) -> None:
    """A call over the mesh is seen where it is asked and where it arrives; a filter by application takes both."""
    async with (
        gateway(nats, tmp_path, app=app, app_id="callee"),
        gateway(nats, tmp_path, app_id="caller") as caller,
        gateway(nats, tmp_path, app_id="third") as third,
        tapping(third, "app=callee&block=invocation") as reader,
    ):
        for each in ("callee", "caller"):
            await reader.until("mesh.tap.rates", app=each)
        await caller.post("/v1.0/invoke/callee/method/x", b"")
        places = set()
        while len(places) < 2:
            event = await reader.until("mesh.tap.invocation.invoke")
            places.add((event["data"]["seen"], event["data"]["app"], event["data"]["from"]))
        assert places == {("asked", "caller", "caller"), ("arrived", "callee", "caller")}


async def test_a_node_that_refuses_says_what_would_allow_it(memory: Backbone, tmp_path: Path) -> None:
    denied = yaml("Configuration", "closed", {"accessControl": {"tap": {"action": "deny"}}})
    async with (
        gateway(memory, tmp_path, configuration_files=_configuration(tmp_path, denied)) as node,
        node.open("GET", TAP) as response,
        asyncio.timeout(30),
    ):
        event = await Reader(response).next()
        assert event["type"] == "mesh.tap.refused"
        assert "spec.accessControl.tap" in event["data"]["reason"]


async def test_it_can_be_taken_away(memory: Backbone, tmp_path: Path) -> None:
    """As the rest of the API, by ``spec.api``."""
    text = yaml("Configuration", "c", {"api": {"denied": [{"name": "mesh", "version": "v1.0", "protocol": "http"}]}})
    async with gateway(memory, tmp_path, configuration_files=_configuration(tmp_path, text)) as node:
        assert (await node.get(TAP)).status == 404
