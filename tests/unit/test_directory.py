"""Presence: who is known to have been there, for how long, who is asked, and what it costs."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import orjson
import pytest

from brokers.memory import MemoryBroker, MemoryHub
from mesh import address
from mesh.address import Address
from mesh.broker import Message
from mesh.calls.exchange import Exchange, Request
from mesh.errors import BrokerUnavailableError, NoResponderError
from mesh.node import directory as module
from mesh.node.directory import LEAVE_WITHIN, MAX_APPS, MAX_KEPT, SEEN_WINDOW, Directory
from tests.support.eventually import eventually


class Clock:
    """A clock that the test moves."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


class Broker(MemoryBroker):
    """Counts what it is given to send, and refuses it while away.

    Attributes:
        sent: How often, by kind of address.
        away: Whether there is no connection.
    """

    def __init__(self, hub: MemoryHub) -> None:
        super().__init__(hub)
        self.sent: Counter[str] = Counter()
        self.away = False

    async def check(self) -> None:
        if self.away:
            raise BrokerUnavailableError("away")
        await super().check()

    async def send(self, to: str | Address, message: Message, reply_to: str = "") -> None:
        await super().send(to, message, reply_to)
        self.sent[to.text.split(".")[2] if isinstance(to, Address) else "inbox"] += 1

    async def broadcast(self, address: Address, message: Message) -> None:
        await super().broadcast(address, message)
        self.sent[address.text.split(".")[2]] += 1


class Mesh:
    """Nodes on one hub, with one clock."""

    def __init__(self) -> None:
        self.hub = MemoryHub()
        self.clock = Clock()

    @asynccontextmanager
    async def node(self, app_id: str = "", *, ready: bool = True, namespace: str = "ns") -> AsyncIterator[Node]:
        """Run a node, which is known to the others if it has an application and is not alone."""
        async with Broker(self.hub) as broker, Exchange(broker) as exchange:
            directory = Directory(exchange, namespace, self.clock)
            async with directory.run():
                node = Node(directory, broker, exchange)
                if app_id:
                    directory.host(app_id, ready=ready)
                    await eventually(lambda: _is(app_id in served(self.hub, namespace)))
                yield node


class Node:
    """One of them."""

    def __init__(self, directory: Directory, broker: Broker, exchange: Exchange) -> None:
        self.directory = directory
        self.broker = broker
        self.exchange = exchange

    async def saw(self, app_id: str) -> bool:
        """Ask it."""
        return await self.directory.was_seen(app_id, time.time() + 10)

    async def tell(self, body: bytes) -> Any:
        """Send a sign of life to any node, and give what it answers."""
        reply = await self.exchange.request(address.keepers("ns"), Message({}, body), time.time() + 10)
        return orjson.loads(reply.body)["keeper"]


def served(hub: MemoryHub, namespace: str = "ns") -> Counter[str]:
    """Count who answers questions about each application."""
    prefix = f"mesh.{namespace}.seen."
    found = {name: groups for name, groups in hub.served.items() if name.startswith(prefix)}
    return Counter({name.removeprefix(prefix): len(groups["seen"]) for name, groups in found.items() if groups["seen"]})


async def kept(hub: MemoryHub, app_id: str, by: int = 2) -> None:
    """Wait until that many nodes answer questions about an application: itself and its keeper, say."""
    await eventually(lambda: _is(served(hub)[app_id] == by))


async def age(exchange: Exchange, app_id: str) -> float | None:
    """Ask as a stranger to the mesh; None when nobody knows."""
    try:
        reply = await exchange.request(address.seen("ns", app_id), Message({}, b""), time.time() + 5)
    except NoResponderError:
        return None
    return float(orjson.loads(reply.body))


def _is(true: bool) -> None:
    assert true


# Who is known


async def test_an_application_that_was_never_there_is_unknown_at_once() -> None:
    """Nobody is asked but the broker, which says that nobody knows."""
    mesh = Mesh()
    async with mesh.node() as caller, mesh.node("other") as other:
        await kept(mesh.hub, "other")
        before = other.broker.sent.total()
        assert not await caller.saw("nobody")
        assert caller.broker.sent == {"seen": 1, "inbox": 1}
        assert other.broker.sent.total() == before


async def test_one_that_starts_counts_as_seen() -> None:
    """So that calls wait for it, for a minute; also when its node is alone with the caller's."""
    mesh = Mesh()
    async with mesh.node() as caller, mesh.node("app", ready=False):
        await kept(mesh.hub, "app")
        assert await caller.saw("app")
        mesh.clock.now += SEEN_WINDOW + 1
        assert not await caller.saw("app")


@pytest.mark.parametrize("leaves", [True, False])
async def test_one_that_is_gone_is_known_for_a_minute(leaves: bool) -> None:
    """Whether it left or was killed; to a node that started afterwards, too, and no longer."""
    mesh = Mesh()
    async with mesh.node("bystander"):
        async with mesh.node("app") as app:
            await kept(mesh.hub, "app")
            app.broker.away = not leaves
        await kept(mesh.hub, "app", by=1)
        async with mesh.node() as late:
            mesh.clock.now += SEEN_WINDOW / 2
            assert await late.saw("app")
        async with mesh.node() as later:
            mesh.clock.now += SEEN_WINDOW / 2 + 1
            assert not await later.saw("app")


async def test_who_leaves_hands_on_what_it_keeps() -> None:
    """In a rolling restart keepers go, too: what they knew stays, and stays as old as it is."""
    mesh = Mesh()
    old = AsyncExitStack()
    await old.enter_async_context(mesh.node())
    async with mesh.node("app"):
        await kept(mesh.hub, "app")
    for _ in range(3):
        new = AsyncExitStack()
        await new.enter_async_context(mesh.node())
        mesh.clock.now += 10.0
        await old.aclose()
        old = new
    async with old, mesh.node() as late:
        assert await late.saw("app")
        mesh.clock.now += SEEN_WINDOW - 29.0
        assert not await late.saw("app")


async def test_a_killed_keeper_is_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    """With the next sign of life."""
    monkeypatch.setattr(module, "SIGN_INTERVAL", 0.02)
    mesh = Mesh()
    async with mesh.node("app"):
        for _ in range(2):
            async with mesh.node() as keeper:
                await kept(mesh.hub, "app")
                keeper.broker.away = True
            assert served(mesh.hub) == {"app": 1}
        async with mesh.node():
            await kept(mesh.hub, "app")


async def test_who_was_called_is_known_to_its_caller() -> None:
    """Also when nobody else is left."""
    mesh = Mesh()
    async with mesh.node() as caller:
        caller.directory.saw("app")
        assert await caller.saw("app")
        assert not caller.broker.sent["seen"]
        mesh.clock.now += SEEN_WINDOW + 1
        assert not await caller.saw("app")


async def test_an_application_that_its_node_has_lost_is_known_for_a_minute() -> None:
    """Counted from when it was ready last."""
    mesh = Mesh()
    async with Broker(mesh.hub) as broker, Exchange(broker) as exchange, mesh.node("app") as app:
        mesh.clock.now += 1_000.0
        assert await age(exchange, "app") == 0.0
        for _ in range(2):
            app.directory.host("app", ready=False)
            mesh.clock.now += 10.0
        assert await age(exchange, "app") == 20.0
        app.directory.host("app", ready=True)
        mesh.clock.now += 10.0
        assert await age(exchange, "app") == 0.0


async def test_namespaces_are_apart() -> None:
    """Another namespace's applications are unknown."""
    mesh = Mesh()
    async with mesh.node("app", namespace="other"), mesh.node() as caller:
        assert not await caller.saw("app")


async def test_the_last_node_leaves_at_once() -> None:
    """There is nobody to hand anything on to, or nobody can be reached."""
    mesh = Mesh()
    for away in (False, True):
        async with asyncio.timeout(LEAVE_WITHIN * 0.9), mesh.node("app") as node:
            node.broker.away = away
        assert not served(mesh.hub)


# Asking


async def test_many_calls_ask_once() -> None:
    """One question for an application is in flight at a time, and a caller that goes does not end it for others."""
    mesh = Mesh()
    questions: list[Request] = []

    async def answer(request: Request) -> None:
        questions.append(request)
        await asyncio.sleep(0.01)
        await request.reply({}, b"1.5")

    async with mesh.node() as other, mesh.node() as caller:
        async with other.exchange.serve(address.seen("ns", "app"), "seen", answer), asyncio.TaskGroup() as tasks:
            leaving = tasks.create_task(caller.saw("app"))
            asking = [tasks.create_task(caller.saw("app")) for _ in range(100)]
            await eventually(lambda: _is(bool(questions)))
            leaving.cancel()
        assert {await each for each in asking} == {True}
        assert len(questions) == 1
        assert caller.directory._age("app") == 1.5


@pytest.mark.parametrize("body", [b"", b"null", b"[]", b'"x"'])
async def test_whoever_answers_nonsense_knows(body: bytes) -> None:
    """It is waited for, and nothing is noted."""
    mesh = Mesh()

    async def answer(request: Request) -> None:
        await request.reply({}, body)

    async with mesh.node() as other, mesh.node() as caller:
        async with other.exchange.serve(address.seen("ns", "app"), "seen", answer):
            assert await caller.saw("app")
        assert not await caller.saw("app")


async def test_no_answer_is_no_denial() -> None:
    """In time for the caller; nor is it when there is no connection."""
    mesh = Mesh()

    asked = asyncio.Event()

    async def answer(request: Request) -> None:
        await asked.wait()
        await request.reply({}, b"0")

    async with mesh.node() as other, mesh.node() as caller:
        async with other.exchange.serve(address.seen("ns", "app"), "seen", answer):
            assert await caller.directory.was_seen("app", time.time() + 0.05)
            asked.set()
        caller.broker.away = True
        assert await caller.saw("another")


async def test_a_question_to_who_leaves_is_answered() -> None:
    """Or it is told that nobody is there, whenever it comes: nobody waits for an answer that got lost."""
    mesh = Mesh()

    async def ask(exchange: Exchange, steps: int) -> float | None:
        for _ in range(steps):
            await asyncio.sleep(0)
        return await age(exchange, "app")

    async with Broker(mesh.hub) as broker, Exchange(broker) as exchange:
        answers = []
        for steps in range(40):
            async with asyncio.TaskGroup() as tasks, mesh.node("app"):
                asking = tasks.create_task(ask(exchange, steps))
            answers.append(asking.result())
        assert answers[0] == 0.0
        assert answers[-1] is None


# News


async def test_those_who_wait_hear_that_it_is_back() -> None:
    """From the application, or from another call that it answered; nobody hears of what he does not wait for."""
    mesh = Mesh()
    async with mesh.node("app", ready=False) as app, mesh.node() as caller, mesh.node():
        listening = mesh.hub.listening
        for tell in (lambda: app.directory.host("app", ready=True), lambda: caller.directory.saw("app")):
            async with asyncio.timeout(5.0), asyncio.TaskGroup() as tasks:
                waiting = [tasks.create_task(caller.directory.until_news("app")) for _ in range(10)]
                await eventually(lambda: _is(len(listening.get("mesh.ns.back.app", ())) == 1))
                caller.directory.saw("other")
                await asyncio.sleep(0)
                assert not any(each.done() for each in waiting)
                tell()
            await eventually(lambda: _is(not listening["mesh.ns.back.app"]))


async def test_nobody_listens_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    """When it counts as seen no more, or cannot be listened for, those who wait go by their own time."""
    monkeypatch.setattr(module, "SEEN_WINDOW", 0.02)
    mesh = Mesh()
    async with mesh.node() as caller:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.1):
                await caller.directory.until_news("app")
        assert not mesh.hub.listening["mesh.ns.back.app"]
        assert not caller.directory._news


# Bounds


@pytest.mark.parametrize("nodes", [4, 64])
async def test_an_idle_node_costs_the_same_in_a_mesh_of_any_size(nodes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A sign of life to its keeper and an answer to another's; it knows its application and what it keeps."""
    interval = 0.1
    monkeypatch.setattr(module, "SIGN_INTERVAL", interval)
    mesh = Mesh()
    async with AsyncExitStack() as stack:
        running = [await stack.enter_async_context(mesh.node(f"app{number}")) for number in range(nodes)]
        for number in range(nodes):
            await kept(mesh.hub, f"app{number}")
        began = time.monotonic()
        for node in running:
            node.broker.sent.clear()
        await eventually(lambda: _is(all(node.broker.sent["keepers"] >= 5 for node in running)))
        sent = sum((node.broker.sent for node in running), Counter[str]())
        signs = 1 + (time.monotonic() - began) / (0.8 * interval)
        assert set(sent) == {"keepers", "inbox"}
        assert sent.total() <= 2 * signs * nodes
        assert sum(len(node.directory._seen) for node in running) == 2 * nodes


async def test_what_a_node_keeps_is_bounded() -> None:
    """One that is full sends the next one on to another."""
    mesh = Mesh()
    async with mesh.node() as full, mesh.node() as other:
        body = orjson.dumps({"node": "x", "seen": {f"a{number}": 0.0 for number in range(MAX_KEPT)}})
        first = await full.tell(body)
        found = {await other.tell(orjson.dumps({"node": "x", "seen": {"more": 0.0}})) for _ in range(4)}
        assert found == {"", ({full.directory.node_id, other.directory.node_id} - {first}).pop()}
        for number in range(MAX_APPS + 5):
            full.directory.saw(f"b{number}")
        assert len(full.directory._seen) == MAX_APPS


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"[]",
        b"1",
        b"null",
        b'{"node":"x"}',
        b'{"node":"x","seen":[]}',
        b'{"node":"x","seen":{"a":"b"}}',
        b'{"node":"x","seen":{"a":null}}',
        b'{"seen":{"a":1}}',
    ],
)
async def test_malformed_signs_are_refused(body: bytes, caplog: pytest.LogCaptureFixture) -> None:
    """They are noted, and nobody is seen."""
    mesh = Mesh()
    async with mesh.node() as node:
        assert await node.tell(body) == ""
        assert not node.directory._seen
    assert "malformed sign of life" in caplog.text


async def test_ages_from_elsewhere() -> None:
    """The latest sight counts; nobody is seen in the future, or after too long."""
    mesh = Mesh()
    async with mesh.node() as node:
        for age, expected in ((30.0, 30.0), (10.0, 10.0), (20.0, 10.0), (-1_000.0, 0.0)):
            assert await node.tell(orjson.dumps({"node": "x", "seen": {"app": age}})) == node.directory.node_id
            assert node.directory._age("app") == expected
        await node.tell(orjson.dumps({"node": "x", "seen": {"old": SEEN_WINDOW + 1}}))
        assert served(mesh.hub) == {"app": 1}


async def test_what_is_forgotten_is_answered_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    """The broker then says at once that nobody knows."""
    monkeypatch.setattr(module, "SIGN_INTERVAL", 0.01)
    mesh = Mesh()
    async with mesh.node() as caller, mesh.node() as node:
        await node.tell(orjson.dumps({"node": "x", "seen": {"app": 0.0}}))
        assert served(mesh.hub) == {"app": 1}
        mesh.clock.now += SEEN_WINDOW + 1
        await eventually(lambda: _is(not served(mesh.hub)))
        assert await age(caller.exchange, "app") is None
        await eventually(lambda: _is(not node.directory._seen and not caller.directory._seen))


async def test_a_broker_that_is_away_does_not_end_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Signs of life go on when it is back."""
    monkeypatch.setattr(module, "SIGN_INTERVAL", 0.01)
    mesh = Mesh()
    async with mesh.node("app") as app, mesh.node():
        await kept(mesh.hub, "app")
        app.broker.away = True
        await asyncio.sleep(0.05)
        before = app.broker.sent.total()
        app.broker.away = False
        await eventually(lambda: _is(app.broker.sent.total() > before))
