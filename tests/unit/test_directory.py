"""Presence: who is seen, for how long, and what strangers may say."""

from __future__ import annotations

import asyncio
import math

import orjson
import pytest

from brokers.memory import MemoryBroker, MemoryHub
from mesh import address
from mesh.broker import Frame, Message
from mesh.errors import BrokerUnavailableError
from mesh.node.directory import MAX_APPS, SEEN_WINDOW, Directory
from tests.support.eventually import eventually


class Clock:
    """A clock that the test moves."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def is_seen(directory: Directory, app_id: str, *, seen: bool = True) -> None:
    assert (directory.last_seen(app_id) is not None) == seen


def announcement(node: str = "other", seen: object = None, **more: object) -> Frame:
    body = {"node": node, "query": False, "ready": [], "seen": {"app": 0.0} if seen is None else seen, **more}
    return Frame(Message({}, orjson.dumps(body)), "", "")


async def test_nodes_see_each_other() -> None:
    """One that starts later asks, one that leaves is remembered, and what one saw it passes on."""
    hub, clock = MemoryHub(), Clock()
    async with MemoryBroker(hub) as a, MemoryBroker(hub) as b, MemoryBroker(hub) as c:
        first, second, third = (Directory(broker, "ns", clock) for broker in (a, b, c))
        async with second.run():
            async with first.run():
                first.host("app", ready=True)
                await eventually(lambda: is_seen(second, "app"))
            clock.now += SEEN_WINDOW / 2
            async with third.run():
                await eventually(lambda: is_seen(third, "app"))
                assert third.last_seen("app") == pytest.approx(SEEN_WINDOW / 2)
        clock.now += SEEN_WINDOW
        assert third.last_seen("app") is None
        assert third.last_seen("nobody") is None


async def test_namespaces_are_apart() -> None:
    """Another namespace's applications are unknown."""
    hub = MemoryHub()
    async with MemoryBroker(hub) as a, MemoryBroker(hub) as b:
        here, there = Directory(a, "ns"), Directory(b, "other")
        async with here.run(), there.run():
            here.host("app", ready=True)
            await eventually(lambda: is_seen(here, "app"))
            assert there.last_seen("app") is None


async def test_news_wakes_those_who_wait() -> None:
    """Any announcement of another node."""
    async with MemoryBroker() as broker:
        directory = Directory(broker, "ns")
        async with directory.run(), asyncio.TaskGroup() as tasks, asyncio.timeout(5):
            waiting = tasks.create_task(directory.until_news())
            await asyncio.sleep(0)
            directory._receive(announcement(directory.node_id))
            assert not waiting.done()
            directory._receive(announcement())
            await waiting


async def test_what_changes_while_an_announcement_is_sent_is_sent_next(monkeypatch: pytest.MonkeyPatch) -> None:
    """It does not wait for the next interval."""
    heard: list[object] = []
    sending, go_on = asyncio.Event(), asyncio.Event()

    async def slow(where: object, message: Message) -> None:
        heard.append(orjson.loads(message.body)["ready"])
        sending.set()
        await go_on.wait()

    async with MemoryBroker() as broker:
        directory = Directory(broker, "ns")
        go_on.set()
        async with directory.run():
            go_on.clear()
            sending.clear()
            monkeypatch.setattr(broker, "broadcast", slow)
            directory.host("a", ready=True)
            await sending.wait()
            directory.host("b", ready=True)
            go_on.set()
            await eventually(lambda: _is(["a", "b"] in heard), within=2.0)


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
async def test_malformed_announcements_are_ignored(body: bytes, caplog: pytest.LogCaptureFixture) -> None:
    """They are noted, and nobody is seen."""
    async with MemoryBroker() as broker:
        directory = Directory(broker, "ns")
        directory._receive(Frame(Message({}, body), "", ""))
        directory._receive(Frame(None, "", ""))
        assert directory._seen == {}
    assert "malformed announcement" in caplog.text


async def test_ages_from_elsewhere() -> None:
    """The latest sight counts; nobody is seen in the future, or after too long."""
    clock = Clock()
    async with MemoryBroker() as broker:
        directory = Directory(broker, "ns", clock)
        for age in (30.0, 10.0, 20.0):
            directory._receive(announcement(seen={"app": age}))
        assert directory.last_seen("app") == 10.0
        directory._receive(announcement(seen={"app": -1000.0}))
        assert directory.last_seen("app") == 0.0
        directory._receive(announcement(seen={"old": SEEN_WINDOW + 1}))
        assert directory.last_seen("old") is None
        assert not math.isinf(clock.now)


async def test_the_number_of_applications_is_bounded() -> None:
    """Beyond it new ones are not noted, known ones still are."""
    clock = Clock()
    async with MemoryBroker() as broker:
        directory = Directory(broker, "ns", clock)
        directory._receive(announcement(seen={f"a{number}": 5.0 for number in range(MAX_APPS + 5)}))
        assert len(directory._seen) == MAX_APPS
        directory._receive(announcement(seen={"a0": 0.0}))
        assert directory.last_seen("a0") == 0.0


async def test_it_announces_from_time_to_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """And forgets who was not seen for long; a broker that is away does not end it."""
    monkeypatch.setattr("mesh.node.directory.ANNOUNCE_INTERVAL", 0.01)
    hub, clock = MemoryHub(), Clock()
    heard: list[dict[str, object]] = []
    async with MemoryBroker(hub) as broker, MemoryBroker(hub) as other:
        directory = Directory(broker, "ns", clock)
        listening = other.listen(address.nodes("ns"), lambda frame: heard.append(orjson.loads(frame.message.body)))  # type: ignore[union-attr]
        async with listening, directory.run():
            directory._receive(announcement(seen={"gone": 0.0}))
            clock.now += SEEN_WINDOW + 1
            directory.host("app", ready=True)

            def announced() -> None:
                assert len(heard) > 5
                assert heard[-1]["ready"] == ["app"]
                assert heard[-1]["seen"] == {"app": 0.0}

            await eventually(announced)
            assert "gone" not in directory._seen

            async def away(*_: object) -> None:
                raise BrokerUnavailableError("away")

            count = len(heard)
            monkeypatch.setattr(broker, "broadcast", away)
            await asyncio.sleep(0.05)
            monkeypatch.undo()
            monkeypatch.setattr("mesh.node.directory.ANNOUNCE_INTERVAL", 0.01)
            directory.host("app", ready=True)

            def again() -> None:
                assert len(heard) > count

            await eventually(again)
        await eventually(lambda: _is(heard[-1]["ready"] == []))


def _is(true: bool) -> None:
    assert true
