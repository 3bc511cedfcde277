"""What several workers tell as one gateway, the permits that they share, and how they speak to their parent."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest

from gateway.config import GatewayConfig
from gateway.descriptors import ABSENT, counts_of, receive, send, shared_counts
from gateway.http.passing import AGAIN, Passing
from gateway.logs import LogRing
from gateway.metrics.recording import Recorder
from gateway.metrics.sources import ACTORS, BREAKERS, GATEWAY, HTTP_SERVED
from gateway.socket_file import place_of
from gateway.workers import merging
from gateway.workers.kept import Kept
from gateway.workers.parent import _Parent
from gateway.workers.permits import Permits, Pool
from gateway.workers.sockets import Opened
from gateway.workers.wire import Link, LinkError
from tests.support.eventually import eventually


def about(**more: object) -> dict[str, Any]:
    return {"node": "n", "ready": [], "about": {"app": "shop", "serves": True, **more}}


def test_one_presence() -> None:
    """Counts are added, what only one has is there, and what all have is there once."""
    one = about(actors=[("cart", 2)], subscriptions=[("p", "a", "")], components=[("s", "t")], methods=None)
    other = about(actors=[("cart", 3), ("till", 1)], subscriptions=[("p", "a", ""), ("p", "b", "")], methods=["/x"])
    other["ready"] = ["shop"]
    merged = merging.presence([one, other])
    assert merged["ready"] == ["shop"]
    assert merged["about"]["actors"] == [["cart", 5], ["till", 1]]
    assert merged["about"]["subscriptions"] == [("p", "a", ""), ("p", "b", "")]
    assert merged["about"]["components"] == [("s", "t")]
    assert merged["about"]["methods"] == ["/x"]


def told(**more: object) -> dict[str, Any]:
    runtime = {"runtimeStatus": "RUNNING", "activeActors": [], "hostReady": True}
    return {"id": "shop", "actorRuntime": runtime, "workflows": {"connectedWorkers": 0}, **more}


def test_one_metadata() -> None:
    """Of what workers see differently, the worst is told; what each counts is added, what the broker says is not."""
    backlog = {"pubsubname": "p", "topic": "a", "waiting": 7, "deadLetters": 1}
    breaker = {"name": "b", "target": "app till"}
    one = told(
        workflows={"connectedWorkers": 1},
        componentStatus=[{"name": "s", "health": "ok"}],
        backlogs=[{**backlog, "attempts": {"success": 1, "retry": 0}}],
        circuitBreakers=[{**breaker, "state": "closed"}],
        conditions=[{"target": "application", "state": "away"}],
    )
    other = told(
        workflows={"connectedWorkers": 2},
        componentStatus=[{"name": "s", "health": "failing"}],
        backlogs=[{**backlog, "attempts": {"success": 2, "retry": 5}}],
        circuitBreakers=[{**breaker, "state": "open"}],
        actors=[{"type": "cart", "count": 2}],
    )
    merged = merging.metadata([one, other])
    assert merged["workflows"] == {"connectedWorkers": 3}
    assert merged["componentStatus"] == [{"name": "s", "health": "failing"}]
    assert merged["backlogs"] == [
        {"pubsubname": "p", "topic": "a", "waiting": 7, "deadLetters": 2, "attempts": {"success": 3, "retry": 5}}
    ]
    assert merged["circuitBreakers"] == [{**breaker, "state": "open"}]
    assert "conditions" not in merged  # One of them serves the application.
    assert merged["actors"] == merged["actorRuntime"]["activeActors"] == [{"type": "cart", "count": 2}]


def test_an_application_that_no_worker_serves_is_away() -> None:
    away = {"target": "application", "state": "away"}
    assert merging.metadata([told(conditions=[away]), told(conditions=[away])])["conditions"] == [away]


def sent(times: int, **now: float) -> merging.Sent:
    recorder = Recorder()
    for _ in range(times):
        recorder(HTTP_SERVED, ("GET", "/", "200"), 1, 0.003)
    made = merging.as_sent(recorder.measured())
    return made | {name: [[["x"], value, 0.0, [0], []]] for name, value in now.items()}


def test_one_scrape() -> None:
    """Counts and buckets are added, those of workers that have gone as well; what is so now is not, of those."""
    gone = merging.totals({}, sent(3, **{ACTORS: 9, GATEWAY: 1}))
    gone = merging.totals(gone, sent(2))
    one, other = sent(4, **{ACTORS: 1, BREAKERS: 0, GATEWAY: 1}), sent(1, **{ACTORS: 2, BREAKERS: 1, GATEWAY: 1})
    found = merging.measured(one, other, gone)
    ((labels, series),) = found[HTTP_SERVED]
    assert (labels, series.times, sum(series.buckets)) == (("GET", "/", "200"), 10, 10)
    assert series.total == pytest.approx(30.0)
    assert {name: rows[0][1].times for name, rows in found.items() if name != HTTP_SERVED} == {
        ACTORS: 3,
        BREAKERS: 1,
        GATEWAY: 1,
    }


def test_one_process() -> None:
    """The start is that of the process that was started, and CPU time that was used is never less than before."""
    names = ("process_cpu_seconds_total", "process_resident_memory_bytes", "process_start_time_seconds")
    measured = [dict(zip(names, values, strict=True)) for values in ((1.0, 10, 100), (2.0, 20, 101), (3.0, 30, 102))]
    assert merging.process(measured, 4.0) == dict(zip(names, (10.0, 60, 100), strict=True))


class Workers:
    """Permits of some workers, and the pool; what they tell each other arrives at once."""

    def __init__(self, limit: int, count: int) -> None:
        self.pool = Pool(limit, lambda worker, what: getattr(self.permits[worker], what)())
        self.permits = [
            Permits(lambda what, worker=worker: getattr(self.pool, what)(worker)) for worker in range(count)
        ]


@pytest.mark.parametrize("limit", [1, 2, 3])
async def test_there_are_never_more_calls_than_permits(limit: int) -> None:
    """However workers share them, and every one that waits is served."""
    workers = Workers(limit, 3)
    running = peak = done = 0

    async def call(worker: int) -> None:
        nonlocal running, peak, done
        await workers.permits[worker].acquire()
        running += 1
        peak = max(peak, running)
        await asyncio.sleep(0)
        running -= 1
        done += 1
        workers.permits[worker].release()

    async with asyncio.timeout(5), asyncio.TaskGroup() as tasks:
        for number in range(60):
            tasks.create_task(call(number % 3))
    assert (peak, done) == (limit, 60)


async def test_a_worker_that_is_busy_again_and_again_keeps_nobody_out() -> None:
    """It has asked for more than it needed in the end, and that stands before what another one asks for."""
    workers = Workers(1, 2)
    first, second = workers.permits
    await second.acquire()
    async with asyncio.timeout(5), asyncio.TaskGroup() as tasks:
        waiting = [tasks.create_task(first.acquire()) for _ in range(2)]
        await asyncio.sleep(0)
        second.release()
        await waiting[0]
        first.release()
        await waiting[1]
        first.release()
        await second.acquire()


async def test_what_a_worker_wants_does_not_pile_up() -> None:
    """While calls of one worker make room for each other, and some give up: then comes another one's turn."""
    workers = Workers(1, 2)
    first, second = workers.permits
    await first.acquire()
    async with asyncio.timeout(5), asyncio.TaskGroup() as tasks:
        for _ in range(100):
            waiting, given_up = (tasks.create_task(first.acquire()) for _ in range(2))
            await asyncio.sleep(0)
            given_up.cancel()
            first.release()
            await waiting
        assert len(workers.pool._wants) <= 2
        waiting = tasks.create_task(second.acquire())
        await asyncio.sleep(0)
        first.release()
        await waiting


async def test_permits_of_a_killed_worker_are_free_again() -> None:
    workers = Workers(1, 2)
    await workers.permits[0].acquire()
    async with asyncio.timeout(5), asyncio.TaskGroup() as tasks:
        waiting = tasks.create_task(workers.permits[1].acquire())
        await asyncio.sleep(0)
        assert not waiting.done()
        workers.pool.gone(0)


async def test_a_permit_that_nobody_takes_any_more_is_not_lost() -> None:
    """Who waited was cancelled in the moment in which it was given one."""
    workers = Workers(1, 1)
    await workers.permits[0].acquire()
    async with asyncio.TaskGroup() as tasks:
        waiting = tasks.create_task(workers.permits[0].acquire())
        await asyncio.sleep(0)
        workers.permits[0].release()
        waiting.cancel()
    async with asyncio.timeout(5):
        await workers.permits[0].acquire()


async def test_calls_over_a_link() -> None:
    """Both ways; a failure there is one here, and so is the end of the other process."""
    heard: list[object] = []
    stuck = asyncio.Event()

    async def double(value: int) -> int:
        return 2 * value

    async def fail() -> None:
        raise ValueError("no")

    async def hang() -> None:
        await stuck.wait()

    one, other = socket.socketpair()
    asking, answering = Link({"heard": heard.append}), Link({"double": double, "fail": fail, "hang": hang})
    async with asking.running(one):
        async with answering.running(other):
            assert await asking.call("double", 21) == 42
            with pytest.raises(LinkError, match="ValueError: no"):
                await asking.call("fail")
            await asyncio.to_thread(answering.tell, "heard", "from a thread")
            await eventually(lambda: _is(heard, ["from a thread"]))
            async with asyncio.TaskGroup() as tasks:
                hanging = tasks.create_task(_refused(asking.call("hang")))
                await asyncio.sleep(0)
                stuck.set() if hanging.done() else None
                answering._writer.close()  # type: ignore[union-attr]  # as when its process is killed
                await hanging
            stuck.set()
        assert asking.closed.is_set()
        with pytest.raises(LinkError):
            await asking.call("double", 1)


async def _refused(asked: Any) -> None:
    with pytest.raises(LinkError):
        await asked


def _is(found: object, wanted: object) -> None:
    assert found == wanted


async def test_what_is_not_understood_ends_no_link() -> None:
    """As when the workers are of another version than the process that has started them."""

    def fail() -> None:
        raise ValueError("no")

    heard: list[object] = []
    one, other = socket.socketpair()
    asking, answering = Link({}), Link({"fail": fail, "heard": heard.append})
    async with asking.running(one), answering.running(other), asyncio.timeout(5):
        asking.tell("fail")
        asking.tell("new")
        asking.tell("heard", "one", "too many")
        with pytest.raises(LinkError, match="'new' is not known here"):
            await asking.call("new", 1)
        asking.tell("heard", 1)
        await eventually(lambda: _is(heard, [1]))


async def test_what_was_said_last_arrives() -> None:
    heard: list[object] = []
    one, other = socket.socketpair()
    saying, hearing = Link({}), Link({"heard": lambda text: heard.append(len(text))})
    async with hearing.running(other):
        async with saying.running(one):
            saying.tell("heard", "x" * 3_000_000)
            assert saying.late
        await eventually(lambda: _is(heard, [3_000_000]))


@pytest.fixture
async def parent() -> AsyncIterator[tuple[_Parent, list[socket.socket]]]:
    """Two workers, and the ends of theirs over which they pass clients."""
    config = GatewayConfig("shop", Path("/nonexistent"), metrics=False)
    made, ends = _Parent([config], (), Opened([{}, {}]), LogRing()), list[socket.socket]()
    async with AsyncExitStack() as stack:
        for number in range(2):
            process = await asyncio.create_subprocess_exec("true")
            ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            for each in (ours, theirs):
                each.setblocking(False)
                stack.callback(each.close)
            made._workers[number] = Kept(number, number, process, Link({}), ours, opened={"shop"})
            ends.append(theirs)
            await process.wait()
        yield made, ends


async def test_a_gateway_that_starts_again_in_its_worker_takes_no_count_back(
    parent: tuple[_Parent, list[socket.socket]],
) -> None:
    """It begins at zero; what it had counted is counted once, also if it is told late."""
    kept, _ = parent
    worker, other = kept._workers.values()
    kept._counted(other, "shop", sent(10))
    kept._counted(worker, "shop", sent(3))
    kept._closed(worker, "shop")
    kept._counted(worker, "shop", sent(3))
    worker.opened.add("shop")
    kept._counted(worker, "shop", sent(1))
    counted = [each.counted["shop"] for each in (worker, other)]
    ((_, series),) = merging.measured(*counted, kept._apps["shop"].gone)[HTTP_SERVED]
    assert series.times == 14


async def test_who_joins_later_knows_how_the_application_is(parent: tuple[_Parent, list[socket.socket]]) -> None:
    """One of the workers asks it, now and then; until the next time another one would take it for away."""
    kept, _ = parent
    worker, other = kept._workers.values()
    told: list[object] = []
    hearing = Link({"health": lambda *said: told.append(said)})
    one, two = socket.socketpair()
    async with hearing.running(two), other.link.running(one):
        kept._joined(other)
        kept._health(worker, "shop", True)
        await eventually(lambda: _is(told, [("shop", True)]))
        kept._joined(other)
        await eventually(lambda: _is(told, [("shop", True)] * 2))


async def test_clients_of_a_gateway_that_drains_are_passed_on(parent: tuple[_Parent, list[socket.socket]]) -> None:
    """All of its workers stop then, and take clients until they have finished."""
    kept, (own, of_other) = parent
    worker, other = kept._workers.values()
    kept._stopping.set()
    worker.stopping = other.stopping = True
    one, two = socket.socketpair()
    with one, two:
        assert send(own, "http 3500", one.fileno())
        kept._pass(worker)
        ((name, passed),) = receive(of_other)
        assert name == "http 3500"
        os.close(passed)


async def test_a_client_whom_no_worker_takes_does_not_go_round() -> None:
    made, counts = shared_counts()
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    one, two = socket.socketpair()
    came: list[tuple[str, int]] = []
    with ours, one, two:
        ours.setblocking(False)
        async with Passing(0, theirs, made).running(2):
            assert send(ours, "http 3500", one.fileno())
            await eventually(lambda: _is(bool(found := receive(ours)) and came.extend(found) is None, True))
            ((name, descriptor),) = came
            assert name == f"{AGAIN}http 3500"
            assert send(ours, name, descriptor)
            os.close(descriptor)
            one.close()
            assert await asyncio.get_running_loop().run_in_executor(None, two.recv, 1) == b"", "it is closed"
    counts.release()
    os.close(made)


def test_where_clients_come_from_has_a_name_of_its_own(tmp_path: Path) -> None:
    """Else one application would get clients of another: socket files have no port, and port 0 is any."""
    with socket.socket(socket.AF_UNIX) as one, socket.socket(socket.AF_UNIX) as other, socket.socket() as port:
        for each, name in ((one, "a"), (other, "b")):
            each.bind(str(tmp_path / name))
        port.bind(("127.0.0.1", 0))
        places = [place_of(each) for each in (one, other, port)]
    assert len({*places}) == 3
    assert places[2] not in ("", "0")


def test_descriptors_go_to_another_process() -> None:
    """What was written into it before is read behind it; a socket that nobody reads takes no more at some time."""
    one, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with one, other:
        for each in (one, other):
            each.setblocking(False)
        read, write = os.pipe()
        assert send(one, "http 3500", read)
        os.close(read)
        os.write(write, b"hello")
        ((name, passed),) = receive(other)
        assert (name, os.read(passed, 10)) == ("http 3500", b"hello")
        os.close(passed)
        times = 0
        while send(one, "x" * 500, write):
            times += 1
            assert times < 100_000
        assert len(receive(other)) == times
        os.close(write)


def test_counts_are_shared() -> None:
    made, counts = shared_counts()
    with counts_of(made) as others:
        assert set(others) == {ABSENT}
        others[3] = 7
        assert counts[3] == 7
    counts.release()
    os.close(made)
