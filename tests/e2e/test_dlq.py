"""``mesh dlq``: dead letters of real brokers, looked at, sent back and deleted without their application."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import orjson
import pytest
import pytest_asyncio
from msgspec.structs import replace

from brokers.redis import RedisBroker
from gateway.cli import main
from gateway.dead_letters import Chosen, replay
from mesh.blocks.envelope import PublishOptions
from mesh.blocks.pubsub import broker_of, component_on
from mesh.blocks.topics import PubSubComponent
from mesh.broker import Message, Topology
from mesh.inspection import Letters
from mesh.large import carrying, whole_letters
from mesh.registry import Registry
from mesh.resources.component import Component, MetadataEntry
from tests.e2e.test_doctor import COMPONENT, SUBSCRIPTION
from tests.support.eventually import eventually
from tests.support.gateways import MESH
from tests.support.nats import NatsServer
from tests.support.redis_server import RedisServer
from tests.support.server import Server


@pytest_asyncio.fixture(scope="module", loop_scope="module", params=["nats", "redis"])
async def server(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Server]:
    folder = tmp_path_factory.mktemp("dlq")
    made = NatsServer(folder) if request.param == "nats" else RedisServer(folder, ("--save", ""))
    async with made:
        yield made


@dataclass
class Case:
    """A component of one test, with its dead letter topic."""

    component: PubSubComponent
    folder: Path
    capsys: pytest.CaptureFixture[str]

    async def run(self, *words: str) -> tuple[int, str, str]:
        self.capsys.readouterr()
        code = await asyncio.to_thread(main, ["dlq", *words, "-d", str(self.folder)])
        out, err = self.capsys.readouterr()
        return code, out, err

    async def json(self, *words: str) -> tuple[int, Any]:
        code, out, _ = await self.run(*words, "-o", "json")
        return code, json.loads(out)

    def letter(self, number: int, topic: str = "orders") -> Message:
        """Make a letter as a gateway does."""
        wire, data = self.component.wire, orjson.dumps({"number": number})
        options = PublishOptions("shop", "pubsub", topic, "")
        message = wire.compose(options, "application/json", data, {}, raw=False, key=None)
        return wire.letter(message, "the application answered 500", 3, topic, "shop")

    async def put(self, *letters: Message, topic: str = "failed") -> None:
        results = await self.component.broker.publish_many(self.component.address(topic), letters)
        assert not any(results)

    async def numbers(self, topic: str) -> list[int]:
        """Give what lies in a topic."""
        broker = self.component.broker
        assert isinstance(broker, Letters)
        async with broker.letters(self.component.address(topic)) as pile:
            read = [self.component.wire.read(each.message, topic, raw=False, batch=False) async for each in pile]
        return [orjson.loads(each.body)["data"]["number"] for each in read]


@pytest.fixture
async def case(
    request: pytest.FixtureRequest,
    server: Server,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> AsyncIterator[Case]:
    namespace = f"dlq{os.getpid()}-{tmp_path.name}"
    monkeypatch.setenv("NAMESPACE", namespace)
    monkeypatch.setenv("MESH_HOME", str(tmp_path / "home"))
    folder = tmp_path / "resources"
    folder.mkdir()
    kind, settings = "pubsub.mesh", {}
    if isinstance(server, RedisServer):
        kind, settings = "pubsub.redis", {"redisHost": f"127.0.0.1:{server.port}", "consumerID": "{namespace}"}
        settings |= getattr(request, "param", {})
    entries = [{"name": name, "value": value} for name, value in settings.items()]
    text = COMPONENT.format(name="pubsub", type=kind, settings=json.dumps(entries)) + SUBSCRIPTION
    (folder / "all.yaml").write_text(text)
    metadata = tuple(MetadataEntry(name, value) for name, value in settings.items())
    component = Component("pubsub", kind, metadata, namespaced=bool(settings))
    if isinstance(server, RedisServer):
        broker, group = broker_of(component, "shop", Registry())
    else:
        monkeypatch.setenv("MESH_BACKBONE", server.url)
        broker, group = Registry().backbone(server.url).from_url(server.url), "shop"  # type: ignore[attr-defined]
    async with broker:
        made = component_on(broker, component, namespace, group)
        await broker.declare(Topology(made.address("x").space))
        yield Case(made, folder, capsys)


async def test_look_send_back_and_count(case: Case) -> None:
    """What a gateway made a letter is shown as one, goes back as it was, and is gone."""
    await case.put(*(case.letter(number) for number in range(4)))
    assert await case.json("list") == (0, [{"pubsub": "pubsub", "topic": "failed", "letters": 4, "of": ["orders"]}])
    _, found = await case.json("show", "pubsub", "failed")
    assert [each["event"]["data"]["number"] for each in found] == [0, 1, 2, 3]
    said = {(each["topic"], each["attempts"], each["reason"]) for each in found}
    assert said == {("orders", 3, "the application answered 500")}
    assert all(each["stored"] > 1e9 and each["size"] > 10 and not each["truncated"] for each in found)
    code, out, _ = await case.run("show", "pubsub", "failed", "--limit", "2")
    assert code == 0
    assert out.splitlines()[0].split() == ["ID", "STORED", "FROM", "ATTEMPTS", "BYTES", "REASON"]
    assert len(out.splitlines()) == 3
    code, out, _ = await case.run("show", "pubsub", "failed", "--id", found[1]["id"])
    assert code == 0
    assert '"number": 1' in out

    assert await case.json("replay", "pubsub", "failed", "--id", found[1]["id"]) == (
        0,
        {"replayed": 1, "left": 0, "why": {}, "to": {"orders": 1}},
    )
    code, _ = await case.json("replay", "pubsub", "failed", "--where", "event.data.number >= 3")
    assert code == 0
    assert await case.numbers("orders") == [1, 3]
    assert await case.numbers("failed") == [0, 2]
    broker = case.component.broker
    assert isinstance(broker, Letters)
    async with broker.letters(case.component.address("orders")) as pile:
        back = [each.message async for each in pile]
    assert not any(name.startswith("mesh-dead-letter") for each in back for name in each.headers)
    code, out, _ = await case.run("replay", "pubsub", "failed", "--all")
    assert (code, out) == (0, "2 sent back\n  2 to orders\n")
    assert sorted(await case.numbers("orders")) == [0, 1, 2, 3]
    assert (await case.json("list"))[1][0]["letters"] == 0


async def test_a_letter_that_is_too_large_for_a_message(case: Case) -> None:
    """It is shown with its event, chosen by it, and goes back with it."""
    large, address = case.letter(7), case.component.address
    large = replace(large, body=large.body.replace(b'"number":7', b'"number":7,"more":"' + b"x" * 1_500_000 + b'"'))
    await carrying(case.component.broker).publish(address("failed"), large)
    _, [found] = await case.json("show", "pubsub", "failed")
    assert (found["size"], found["truncated"]) == (len(large.body), True)
    assert (await case.json("replay", "pubsub", "failed", "--where", "event.data.number == 7"))[1]["replayed"] == 1
    assert isinstance(case.component.broker, Letters)
    async with whole_letters(case.component.broker).letters(address("orders")) as pile:
        assert [each.message.body for each in [each async for each in pile]] == [large.body]


@pytest.mark.parametrize("server", ["redis"], indirect=True)
@pytest.mark.parametrize("case", [{"layout": "mesh", "streamTTL": "720h"}], indirect=True)
async def test_the_body_of_what_goes_back_lives_as_long_as_its_topic_keeps_events(case: Case) -> None:
    broker, topic = case.component.broker, case.component.address("failed")
    assert isinstance(broker, RedisBroker)

    async def lives() -> int:
        """Give the ms for which every part is there."""
        keys = cast("list[bytes]", await broker._commands.call("KEYS", "mesh.kv:*bodies:*"))
        return min([cast("int", await broker._commands.call("PTTL", key)) for key in keys])

    await carrying(broker).publish(topic, replace(case.letter(7), body=b"x" * 1_500_000))
    assert await lives() > 29 * 24 * 3600 * 1000
    for key in cast("list[bytes]", await broker._commands.call("KEYS", "mesh.kv:*bodies:*")):
        await broker._commands.call("PEXPIRE", key, 60_000)
    assert (await case.json("replay", "pubsub", "failed", "--all"))[1]["replayed"] == 1
    assert await lives() > 29 * 24 * 3600 * 1000


async def test_where_letters_may_go(case: Case) -> None:
    """One that names a topic which has no letters there stays, as one that names none, until that is allowed."""
    foreign = case.letter(1, topic="payments")
    silent = replace(
        case.letter(2),
        headers={name: value for name, value in case.letter(2).headers.items() if "dead-letter" not in name},
        metadata={},
    )
    kafka = replace(silent, id="another", headers={**silent.headers, "__topic": f"{case.component.topic_prefix}orders"})
    itself = case.letter(4, topic="failed")
    await case.put(foreign, silent, kafka, itself)
    code, told = await case.json("replay", "pubsub", "failed", "--all")
    assert (code, told["replayed"], told["left"]) == (1, 1, 3)
    whys = sorted(told["why"])
    assert any("--topic 'payments' allows it" in each for each in whys)
    assert any("--topic says where it goes" in each for each in whys)
    assert await case.numbers("orders") == [2]
    code, told = await case.json("replay", "pubsub", "failed", "--all", "--topic", "payments")
    assert (code, told["replayed"], told["left"], told["to"]) == (1, 2, 1, {"payments": 2})
    assert sorted(await case.numbers("payments")) == [1, 2]
    assert await case.numbers("failed") == [4]


async def test_delete(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody is asked with ``--yes``; without it, only a terminal can answer."""
    await case.put(*(case.letter(number) for number in range(3)))
    code, _, err = await case.run("purge", "pubsub", "failed", "--all")
    assert code == 2
    assert "--yes says so" in err
    code, out, _ = await case.run("purge", "pubsub", "failed", "--where", "event.data.number == 1", "--yes")
    assert (code, out) == (0, "1 deleted\n")
    for answer, left in (("n", [0, 2]), ("y", [])):
        read, write = os.openpty()
        os.write(read, f"{answer}\n".encode())
        with open(write, encoding="utf-8") as terminal:
            monkeypatch.setattr("sys.stdin", terminal)
            code, out, _ = await case.run("purge", "pubsub", "failed", "--all")
        os.close(read)
        assert await case.numbers("failed") == left
        assert code == int(bool(left))
        assert "delete 2 dead letters of pubsub/failed? [y/N]" in out


async def test_what_comes_while_it_asks_stays(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    """The answer is about the letters that were there: also when one of them has gone meanwhile."""
    await case.put(case.letter(0), case.letter(1))
    loop, broker, where = asyncio.get_running_loop(), case.component.broker, case.component.address("failed")

    async def change() -> None:
        assert isinstance(broker, Letters)
        async with broker.letters(where) as pile:
            async for each in pile:
                await pile.remove([each])
                break
        await case.put(case.letter(2))

    def answer(question: str) -> str:
        assert "delete 2 dead letters" in question
        asyncio.run_coroutine_threadsafe(change(), loop).result(30)
        return "y"

    monkeypatch.setattr("builtins.input", answer)
    monkeypatch.setattr("sys.stdin.isatty", lambda: True, raising=False)
    assert await case.json("purge", "pubsub", "failed", "--all") == (0, {"purged": 1, "left": 0, "why": {}})
    assert await case.numbers("failed") == [2]


async def test_killed_in_the_middle_nothing_is_lost(case: Case) -> None:
    """Each letter is in the topic or still a letter, at any moment; another run sends the rest back."""
    broker, words = case.component.broker, [*MESH, "dlq", "replay", "pubsub", "failed", "--all", "-d", str(case.folder)]
    assert isinstance(broker, Letters)
    count, left = 0, list[int]()

    async def has_begun() -> None:
        async with broker.letters(case.component.address("orders")) as pile:
            assert await pile.count() > already or process.poll() is not None

    for _ in range(5):  # The kill may come too late.
        already = len(await case.numbers("orders"))
        await case.put(*(case.letter(number) for number in range(count, count + 800)))
        count += 800
        process = await asyncio.to_thread(subprocess.Popen, words, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
        try:
            await eventually(has_begun, within=60.0)
        finally:
            process.send_signal(signal.SIGKILL)
            await asyncio.to_thread(process.wait)
        sent, left = await case.numbers("orders"), await case.numbers("failed")
        assert {*sent, *left} == {*range(count)}
        assert len(sent) + len(left) <= count + 32  # Those that were under way together.
        if left:
            break
    assert left, "no kill came in the middle"
    code, _ = await case.json("replay", "pubsub", "failed", "--all")
    assert code == 0
    assert {*await case.numbers("orders")} == {*range(count)}
    assert await case.numbers("failed") == []


async def test_two_at_once(case: Case) -> None:
    """Each letter goes back once, by one of them; what the other has taken away meanwhile is no failure."""
    await case.put(*(case.letter(number) for number in range(300)))
    declared = [case.component.address("orders")]

    async def send_back() -> int:
        return (await replay(case.component, "failed", Chosen(), "", declared, lambda done: None)).done

    async with asyncio.TaskGroup() as tasks:
        both = [tasks.create_task(send_back()) for _ in range(2)]
    assert sum(each.result() for each in both) >= 300
    assert sorted(await case.numbers("orders")) == [*range(300)]
    assert await case.numbers("failed") == []
    await case.put(case.letter(300))
    assert await send_back() == 1, "nobody is at it any more"


async def test_what_is_not_there(case: Case) -> None:
    code, _, err = await case.run("show", "other", "failed")
    assert code == 1
    assert "there is no pub/sub component 'other' here (there are: pubsub)" in err
    code, _, err = await case.run("show", "pubsub", "failed", "--id", "7")
    assert code == 1
    assert "pubsub/failed has no letter 7" in err
    assert await case.json("purge", "pubsub", "failed", "--id", "7", "--yes") == (
        1,
        {"purged": 0, "left": 0, "why": {}},
    )
    code, out, _ = await case.run("replay", "pubsub", "never", "--all", "--undeclared")
    assert (code, out) == (0, "0 sent back\n")
    assert await case.json("list", "pubsub", "never") == (
        0,
        [{"pubsub": "pubsub", "topic": "never", "letters": 0, "of": []}],
    )


async def test_what_is_alive_is_no_letter(case: Case) -> None:
    """Of a topic that is none of dead letters nothing is deleted or moved, unless somebody says that it is one."""
    await case.put(case.letter(1), topic="orders")
    for words in (("purge", "--yes"), ("replay",)):
        code, _, err = await case.run(words[0], "pubsub", "orders", "--all", *words[1:])
        assert code == 1
        assert "it is subscribed to, and no subscription here has its dead letters there; they are in: failed" in err
    code, _, err = await case.run("show", "pubsub", "ordres")
    assert (code, "they are in: failed" in err) == (0, True)
    assert await case.numbers("orders") == [1]
    code, out, _ = await case.run("purge", "pubsub", "orders", "--all", "--yes", "--undeclared")
    assert (code, out) == (0, "1 deleted\n")


async def test_a_rule_that_judges_nothing(case: Case) -> None:
    """It is told, with its reason, instead of nothing found; some that it cannot judge do not matter."""
    await case.put(case.letter(1), case.letter(2))
    code, out, err = await case.run("replay", "pubsub", "failed", "--where", "event.dta.number > 1")
    assert (code, out) == (1, "0 sent back\n")
    assert "2 letters do not fit: expression 'event.dta.number > 1' cannot be evaluated: no such key 'dta'" in err
    code, _, err = await case.run("show", "pubsub", "failed", "--where", "event.dta.number > 1")
    assert (code, "no such key 'dta'" in err) == (1, True)
    code, out, _ = await case.run("show", "pubsub", "failed", "--where", "event.data.number == 1 || event.dta == 1")
    assert (code, len(out.splitlines())) == (0, 2)


@pytest.mark.parametrize(
    "words",
    [
        ["show", "pubsub"],
        ["replay", "pubsub", "failed"],
        ["replay", "pubsub", "failed", "--all", "--id", "1"],
        ["replay", "pubsub", "failed", "--where", "event.", "--topic", "x"],
        ["replay", "pubsub", "failed", "--where", "other == 1"],
        ["replay", "pubsub", "failed", "--where", "1 + 1"],
        ["show", "pubsub", "failed", "--all"],
        ["show", "pubsub", "failed", "--limit", "0"],
        ["show", "pubsub", "failed", "--topic", "x"],
        ["list", "--yes"],
        ["list", "--id", "1"],
        ["look"],
    ],
)
def test_wrong_command_lines(words: list[str]) -> None:
    assert main(["dlq", *words]) == 2
