"""``mesh tap``, ``mesh record`` and ``mesh replay`` as processes, against gateways with applications."""

from __future__ import annotations

import asyncio
import os
import re
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson
import pytest
from aiohttp import web

from gateway.cli.dispatch import main
from mesh.tap.sight import Content, Seen, Sight
from mesh.tap.wire import as_event
from tests.http.harness import App, Backbone, Got, Node, gateway, subscription, yaml
from tests.support.eventually import eventually
from tests.support.gateways import MESH, MeshHome

OPEN = yaml("Configuration", "open", {"accessControl": {"tap": {"values": ["shop", "orders", "orders-v2"]}}})


def _priced(extra: int, sent: str = "SUCCESS") -> App:
    """Make an application with a price, which takes orders."""
    app = App([subscription("pubsub", "orders")])

    def price(got: Got, request: web.BaseRequest) -> web.Response:
        asked = got.json
        told = {
            "id": asked["id"],
            "total": 3 * asked["id"] + extra,
            "at": os.urandom(4).hex(),
            "currency": got.target[-3:],
        }
        return web.json_response(told)

    app.answers["/price"] = price
    app.answer("/orders", 200, {"status": sent})
    return app


@dataclass
class Mesh:
    """Three gateways, and commands beside them."""

    home: MeshHome
    shop: Node
    nodes: list[Node]
    v1: App
    v2: App

    async def start(self, *words: str) -> asyncio.subprocess.Process:
        pipe = asyncio.subprocess.PIPE
        environ = self.home.environ()
        return await asyncio.create_subprocess_exec(*MESH, *words, env=environ, stdout=pipe, stderr=pipe)

    async def run(self, *words: str) -> tuple[int, str, str]:
        return await self.ended(await self.start(*words))

    @staticmethod
    async def ended(process: asyncio.subprocess.Process) -> tuple[int, str, str]:
        async with asyncio.timeout(60):
            out, err = await process.communicate()
        return process.returncode or 0, out.decode(), err.decode()

    async def watched(self) -> None:
        """Wait until all nodes are."""

        def check() -> None:
            assert all(node.gateway._runtime.parts.taps.on for node in self.nodes)

        await eventually(check)

    async def ask(self, number: int) -> None:
        reply = await self.shop.post("/v1.0/invoke/orders/method/price?in=eur", {"id": number}, "application/json")
        assert reply.status == 200

    async def record(self, file: Path, *words: str, calls: int = 3, events: int = 2) -> tuple[int, str]:
        """Record calls and events; give the exit code and what was said."""
        process = await self.start("record", "-o", str(file), *words)
        await self.watched()
        for number in range(1, calls + 1):
            await self.ask(number)
        for number in range(events):
            await self.shop.publish("orders", {"number": number})

        def check() -> None:
            lines = file.read_bytes().splitlines()
            assert sum(b'"mesh.tap.pubsub.deliver"' in line for line in lines) == events
            assert sum(b'"seen":"asked"' in line for line in lines) >= calls + events

        await eventually(check)
        process.send_signal(signal.SIGINT)
        code, _, err = await self.ended(process)
        return code, err


@asynccontextmanager
async def running(backbone: Backbone, folder: Path, configuration: str = OPEN) -> AsyncIterator[Mesh]:
    file = folder / "configuration.yaml"
    file.write_text(configuration)
    settings: dict[str, Any] = {"registered": True, "configuration_files": (file,)}
    async with (
        _priced(0) as v1,
        _priced(1) as v2,
        gateway(backbone, folder, app=v1, app_id="orders", **settings) as orders,
        gateway(
            backbone, folder, app=v2.port, app_id="orders-v2", **{**settings, "init_endpoints_off": {"subscribe"}}
        ) as v2_node,
        gateway(backbone, folder, app_id="shop", **settings) as shop,
    ):
        yield Mesh(MeshHome(folder), shop, [orders, v2_node, shop], v1, v2)


def _differences(out: str) -> list[str]:
    return re.findall(r"^ {7}(?!trace)(\S.*)$", out, re.MULTILINE)


async def test_another_version_is_compared(nats: Backbone, tmp_path: Path) -> None:
    """Calls, and events that arrived, go to it as they were; the one field that differs is told, and no other."""
    file = tmp_path / "r.jsonl"
    async with running(nats, tmp_path) as mesh:
        code, said = await mesh.record(file)
        assert code == 0
        assert re.search(rf"^\d+ recorded, \S+ KiB of orders, shop: {file}$", said, re.MULTILINE)
        code, out, said = await mesh.run(
            *("replay", str(file), "--to", "app=orders-v2", "--diff", "--ignore", "body.at", "--speed", "max")
        )
        assert code == 1
        assert _differences(out) == [f"body.total: {3 * number} → {3 * number + 1}" for number in (1, 2, 3)]
        assert out.count("  same") == 2
        assert re.search(r"sent 5 of 5 \(\d \w+, \d \w+\) in \S+ \w+: 2 the same, 3 differ$", said, re.MULTILINE)
        calls = [got for got in mesh.v2.got if got.path == "/price"]
        assert [(got.target, got.json) for got in calls] == [("/price?in=eur", {"id": number}) for number in (1, 2, 3)]
        recorded = [orjson.loads(line) for line in file.read_bytes().splitlines()]
        asked = [each["id"] for each in recorded if each["data"].get("seen") == "asked" and each["subject"] == "orders"]
        assert [got.headers["meshreplayed"] for got in calls] == asked
        traces = {got.headers["traceparent"].split("-")[1] for got in calls}
        assert len(traces) == 3
        assert not traces & {each.get("traceparent", "--").split("-")[1] for each in recorded}
        came = [got.json for got in mesh.v2.got if got.path == "/orders"]
        assert sorted(event["data"]["number"] for event in came) == [0, 1]
        assert all("meshreplayed" in event for event in came)
        assert len(mesh.v1.got) == 5


async def test_scripts_are_told_of_each(nats: Backbone, tmp_path: Path) -> None:
    """As lines of JSON, the sum last; chosen by id, by a rule, by kind."""
    file = tmp_path / "r.jsonl"
    async with running(nats, tmp_path) as mesh:
        assert (await mesh.record(file))[0] == 0
        words = ("replay", str(file), "-o", "json", "--speed", "max", "--to", "app=orders-v2", "--diff")
        rule = "event.data.request.json.id == 2"
        code, out, _ = await mesh.run(*words, "--only", "calls", "--where", rule)
        one, summary = map(orjson.loads, out.splitlines())
        assert code == 1
        assert (one["kind"], one["from"], one["target"], one["status"]) == ("call", "shop", "orders-v2", 200)
        assert {each["path"] for each in one["differences"]} == {"body.at", "body.total"}
        assert summary == {"summary": {"sent": 1, "of": 1, "same": 0, "different": 1, "failed": 0, "skipped": {}}}
        code, out, _ = await mesh.run(*words, "--id", one["id"], "--ignore", "body")
        assert (code, orjson.loads(out.splitlines()[0])["differences"]) == (0, [])
        code, out, said = await mesh.run(*words, "--id", "nothing")
        assert (code, out) == (1, "")
        assert said == f"error: {file} has nothing to send that is wanted\n"


async def test_events_are_published_again(nats: Backbone, tmp_path: Path) -> None:
    """To their topic, under other ids, so that they arrive again; a tap tells that they are replayed."""
    file, again = tmp_path / "r.jsonl", tmp_path / "again.jsonl"
    async with running(nats, tmp_path) as mesh:
        assert (await mesh.record(file, "--topic", "orders", calls=0))[0] == 0
        first = [got.json for got in mesh.v1.got]
        process = await mesh.start("record", "-o", str(again), "--where", "has(event.data.details.meshreplayed)")
        await mesh.watched()
        code, out, said = await mesh.run("replay", str(file), "--diff", "--speed", "100x")
        assert (code, out.count("published"), out.count("  same")) == (0, 2, 2)
        assert "sent 2 of 2 (2 events)" in said
        await mesh.v1.until("/orders", 4)
        second = [got.json for got in mesh.v1.got][2:]
        assert [each["data"] for each in second] == [each["data"] for each in first]
        assert [each["meshreplayed"] for each in second] == [each["id"] for each in first]
        assert not {each["id"] for each in first} & {each["id"] for each in second}

        def check() -> None:
            assert again.read_bytes().count(b'"mesh.tap.pubsub.deliver"') == 2

        await eventually(check)
        process.send_signal(signal.SIGTERM)
        assert (await mesh.ended(process))[0] == 0


async def test_what_is_hidden_is_said_and_skipped(nats: Backbone, tmp_path: Path) -> None:
    """A recording without values is made, with a warning; nothing of it can be sent."""
    file = tmp_path / "r.jsonl"
    async with running(nats, tmp_path, yaml("Configuration", "closed", {})) as mesh:
        code, said = await mesh.record(file, "--via", "shop")
        assert code == 0
        assert "orders tells less than was asked for: " in said
        assert "tap: {values: [shop]" in said
        assert "are without headers and bodies" in said
        code, out, said = await mesh.run("replay", str(file))
        assert (code, out) == (1, "")
        assert re.match(r"skipped 5 \(line [\d, ]+\): its values are hidden: shop does not let them be told\n", said)
        assert said.endswith(f"error: {file} has nothing to send\n")


async def test_a_recording_ends_as_it_is_told(nats: Backbone, tmp_path: Path) -> None:
    """After a time, at a size, with its gateway; each has whole lines."""
    async with running(nats, tmp_path) as mesh:
        file = tmp_path / "time.jsonl"
        file.write_text("of everybody")
        file.chmod(0o644)
        code, _, said = await mesh.run("record", "-o", str(file), "--for", "300ms", "--app", "orders")
        assert (code, "error" in said) == (0, False)
        (head,) = map(orjson.loads, file.read_bytes().splitlines())
        assert head["type"] == "mesh.tap.recording"
        assert head["data"]["filter"] == {"app": ["orders"], "values": "true", "maxBody": 1048576, "for": "0.3s"}
        assert file.stat().st_mode & 0o777 == 0o600

        file = tmp_path / "size.jsonl"
        process = await mesh.start("record", "-o", str(file), "--max-size", "2k")
        await mesh.watched()
        await mesh.ask(1)
        await mesh.ask(2)
        code, _, said = await mesh.ended(process)
        assert (code, "warning: it ends at 2.0 KiB" in said) == (0, True)
        assert all(map(orjson.loads, file.read_bytes().splitlines()))

        file = tmp_path / "gateway.jsonl"
        process = await mesh.start("record", "-o", str(file), "--via", "orders-v2")
        await mesh.watched()
        mesh.nodes[1].gateway._runtime.streams.ending.set()
        code, _, said = await mesh.ended(process)
        assert code == 1
        assert f"error: the gateway of orders-v2 ended before; what came until then is in {file}\n" in said


async def test_a_replay_is_interrupted(nats: Backbone, tmp_path: Path) -> None:
    """At once, and what was done until then is told; so it is where answers do not come."""
    file = tmp_path / "r.jsonl"
    async with running(nats, tmp_path) as mesh:
        assert (await mesh.record(file, events=0))[0] == 0
        hanging = asyncio.Event()

        async def hang(got: Got, request: web.BaseRequest) -> web.Response:
            hanging.set()
            await asyncio.Event().wait()
            raise AssertionError

        mesh.v2.answers["/price"] = hang
        process = await mesh.start("replay", str(file), "--to", "app=orders-v2", "--speed", "max")
        async with asyncio.timeout(30):
            await hanging.wait()
        process.send_signal(signal.SIGINT)
        code, _, said = await mesh.ended(process)
        assert (code, "sent 0 of 3 in " in said) == (130, True)
        code, out, said = await mesh.run(
            *("replay", str(file), "--to", "app=orders-v2", "--speed", "max", "--timeout", "200ms")
        )
        assert (code, out.count("no answer in time")) == (1, 3)
        assert said.endswith(", 3 failed\n")


async def test_who_is_not_there_fails(nats: Backbone, tmp_path: Path) -> None:
    """Each call tells of it, and the exit code."""
    file = tmp_path / "r.jsonl"
    async with running(nats, tmp_path) as mesh:
        assert (await mesh.record(file, events=0))[0] == 0
        code, out, said = await mesh.run("replay", str(file), "--to", "app=nobody", "--speed", "max")
        assert (code, out.count("500 ERR_DIRECT_INVOKE")) == (1, 3)
        code, out, said = await mesh.run(
            "replay", str(file), "--via", "orders", "--speed", "max", "--diff", "--ignore", "body.at"
        )
        assert (code, out.count("  same")) == (0, 3)
        assert "shop does not run" not in said


async def test_a_tap_is_read(nats: Backbone, tmp_path: Path) -> None:
    """A line each; so many; as CloudEvents; with what they hold."""
    async with running(nats, tmp_path) as mesh:
        process = await mesh.start("tap", "-n", "1", "--block", "invocation", "--where", "event.data.seen == 'asked'")
        await mesh.watched()
        await mesh.ask(1)
        code, out, said = await mesh.ended(process)
        line = r"\d\d:\d\d:\d\d\.\d{3}  asked    shop → orders             POST /price +200  [\d.]+ ms\n"
        assert (code, said) == (0, "")
        assert re.fullmatch(line, out)

        process = await mesh.start("tap", "-n", "1", "--block", "invocation", "--values", "-a", "shop")
        await mesh.watched()
        await mesh.ask(1)
        code, out, _ = await mesh.ended(process)
        assert '    > {"id":1}\n' in out
        assert re.search(r'^    < \{"id": 1, "total": 3,', out, re.MULTILINE)

        process = await mesh.start("tap", "-o", "json", "--topic", "pubsub/orders")
        await mesh.watched()
        await mesh.shop.publish("orders", {"number": 1})
        assert process.stdout is not None
        async with asyncio.timeout(30):
            seen = [orjson.loads(await process.stdout.readline()) for _ in range(2)]
        assert {each["type"] for each in seen} == {"mesh.tap.pubsub.publish", "mesh.tap.pubsub.deliver"}
        process.send_signal(signal.SIGINT)
        assert (await mesh.ended(process))[0] == 0


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("tap --sample 2", "argument --sample: '2' is no part"),
        ("tap -n 0", "--count is at least 1"),
        ("record", "the following arguments are required: -o/--output"),
        ("record -o x --max-size big", "argument --max-size: "),
        ("replay", "the following arguments are required: FILE"),
        ("replay x --to orders", "argument --to: 'orders' is no target; an application is app=APP-ID"),
        ("replay x --speed fast", "argument --speed: 'fast' is no speed; such as 2x, 0.5x or max"),
        ("replay x --speed 0", "argument --speed: '0' is no speed"),
        ("replay x --timeout 0s", "argument --timeout: '0s' is no time that something lasts"),
        ("record -o x --for 0s", "argument --for: '0s' is no time that something lasts"),
        ("replay x --only deliveries", "--only deliveries needs --to"),
        ("replay x --only events --to app=o", "--only events goes without --to"),
        ("replay x --ignore total", "argument --ignore: 'total' is no path of an answer"),
        ("replay x --where event.", "--where: expression 'event.' does not compile"),
        ("replay x -H a", "--header: expected NAME=VALUE, got 'a'"),
    ],
)
def test_a_wrong_command_line(words: str, said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(words.split()) == 2
    assert said in capsys.readouterr().err


def test_nobody_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """What is to be done first is said."""
    monkeypatch.setenv("MESH_HOME", str(tmp_path))
    for words in (["tap"], ["record", "-o", str(tmp_path / "x")]):
        assert main(words) == 1
        assert "no gateway runs; start one with: mesh run" in capsys.readouterr().err
    assert not (tmp_path / "x").exists()
    assert main(["replay", str(tmp_path / "none")]) == 1
    assert "none: No such file or directory" in capsys.readouterr().err
    assert main(["tap", "--via", "shop"]) == 1
    assert "shop does not run; see: mesh list" in capsys.readouterr().err


def test_a_long_replay_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MESH_HOME", str(tmp_path))
    calls = [
        Sight(
            id=f"n-{at}",
            time=1_700_000_000.0 + at,
            seconds=0.1,
            seen=Seen.ASKED,
            block="invocation",
            method="invoke",
            target="shop",
            source="web",
            app="web",
            node="n",
            outcome="ok",
            details={"verb": "GET", "path": "/price"},
            request=Content((), size=0, body=b""),
        )
        for at in (0, 7200)
    ]
    file = tmp_path / "r.jsonl"
    file.write_bytes(b"\n".join(orjson.dumps(as_event("default", each, each.time)) for each in calls))
    assert main(["replay", str(file)]) == 1
    assert "2 are sent in their rhythm, which takes 120 minutes; --speed max" in capsys.readouterr().err
    assert main(["replay", str(file), "--speed", "200x"]) == 1
    assert "rhythm" not in capsys.readouterr().err
