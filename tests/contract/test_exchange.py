"""Request and reply over this broker's frames: deadlines, streams, flow control, and ends of all kinds."""

from __future__ import annotations

import asyncio
import time
import tracemalloc
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack

import pytest

from mesh.address import Address
from mesh.broker import Broker, Message
from mesh.calls.exchange import PART_BYTES, Exchange, Reply, Request
from mesh.calls.link import WINDOW_BYTES
from mesh.errors import BrokerError, DeadlineExceededError, NoResponderError, StreamBrokenError
from tests.support.contract import Place, no_tasks_besides
from tests.support.eventually import PATIENCE, eventually
from tests.support.guards import Guards

pytestmark = pytest.mark.requires("frames")

LARGE = 32_000_000
SILENCE = 1.5
PIECE = bytes(range(250)) * 1000
BOTH = pytest.mark.parametrize("guards", [False, True], ids=["claimed", "proven"], indirect=True)


def soon(seconds: float = 30.0) -> float:
    return time.time() + seconds


async def pieces(size_bytes: int = LARGE) -> AsyncIterator[bytes]:
    for _ in range(size_bytes // len(PIECE)):
        yield PIECE


async def size_of(parts: AsyncIterator[bytes]) -> int:
    return sum([len(part) async for part in parts])


@pytest.fixture
async def caller(broker: Broker, guards: Guards) -> AsyncIterator[Exchange]:
    async with Exchange(broker, ping_interval=0.1, silence_limit=SILENCE, guard=guards("caller")) as exchange:
        yield exchange
        await eventually(lambda: _no_links(exchange))


@pytest.fixture
async def callee(other: Broker, guards: Guards) -> AsyncIterator[Exchange]:
    async with Exchange(other, ping_interval=0.1, silence_limit=SILENCE, guard=guards("app")) as exchange:
        yield exchange
        await eventually(lambda: _no_links(exchange))


def _no_links(exchange: Exchange) -> None:
    assert not exchange.links, "a stream was never closed"


async def echo(request: Request) -> None:
    if request.streamed:
        await request.begin({"kind": "stream"})
        async for part in request.parts():
            await request.write(part)
        await request.end()
    else:
        await request.reply({**request.headers, "kind": "whole"}, request.body)


async def test_request_and_reply_carry_what_was_given(caller: Exchange, callee: Exchange, place: Place) -> None:
    async with callee.serve(place.app(), "g", echo):
        for body in (b"", b"x", bytes(range(256))):
            reply = await caller.request(place.app(), Message({"Name": "a: b", "empty": ""}, body), soon())
            assert (reply.body, reply.streamed) == (body, False)
            assert reply.headers["Name"] == "a: b"
            assert reply.headers["empty"] == ""
            assert [part async for part in reply.parts()] == ([body] if body else [])


@pytest.mark.parametrize("size", [0, 10, 3_000_000])
@pytest.mark.parametrize("streams", [False, True])
async def test_what_is_known_only_at_the_end(
    caller: Exchange, callee: Exchange, place: Place, size: int, streams: bool
) -> None:
    """Headers come behind the body, whole or in parts; who does not ask for them notices nothing."""

    async def answer(request: Request) -> None:
        if not streams:
            await request.reply({"first": "1"}, bytes(size), {"last": "2"})
            return
        await request.begin({"first": "1"})
        await request.write(bytes(size))
        await request.end({"last": "2"})

    async with callee.serve(place.app(), "g", answer):
        reply = await caller.request(place.app(), Message({}, b"x"), soon())
        assert reply.headers["first"] == "1"
        assert await size_of(reply.parts()) == size
        assert reply.last["last"] == "2"


@BOTH
async def test_no_responder_is_known_at_once(caller: Exchange, place: Place) -> None:
    began = time.monotonic()
    with pytest.raises(NoResponderError):
        await caller.request(place.app(), Message({}, b"x"), soon())
    with pytest.raises(NoResponderError):
        await caller.request(place.app(), Message({}, b""), soon(), pieces())
    assert time.monotonic() - began < 25, "not before the deadline"


async def test_streamed_body_is_untouched_without_a_responder(caller: Exchange, place: Place) -> None:
    touched = False

    async def body() -> AsyncIterator[bytes]:
        nonlocal touched
        touched = True
        yield b"x"

    with pytest.raises(NoResponderError):
        await caller.request(place.app(), Message({}, b""), soon(), body())
    assert not touched


@BOTH
async def test_two_hundred_requests_at_once(caller: Exchange, callee: Exchange, place: Place) -> None:
    waiting = 0
    everybody = asyncio.Event()

    async def answer(request: Request) -> None:
        nonlocal waiting
        waiting += 1
        if waiting == 200:
            everybody.set()
        await everybody.wait()
        await request.reply({}, request.body)

    async with callee.serve(place.app(), "g", answer), asyncio.TaskGroup() as tasks:
        calls = [
            tasks.create_task(caller.request(place.app(), Message({}, b"%d" % number), soon())) for number in range(200)
        ]
    assert [int(call.result().body) for call in calls] == list(range(200))


async def test_deadline_ends_the_wait(caller: Exchange, callee: Exchange, place: Place) -> None:
    go_on = asyncio.Event()

    async def wait(request: Request) -> None:
        await go_on.wait()
        await request.reply({}, b"late")

    async with callee.serve(place.app(), "g", wait):
        began = time.monotonic()
        with pytest.raises(DeadlineExceededError):
            await caller.request(place.app(), Message({}, b"x"), soon(0.2))
        assert time.monotonic() - began > 0.15
        with pytest.raises(DeadlineExceededError):
            await caller.request(place.app(), Message({}, b"x"), soon(-1))
        go_on.set()
        reply = await caller.request(place.app(), Message({}, b"x"), soon())
        assert reply.body == b"late"


async def test_expired_request_never_runs(broker: Broker, callee: Exchange, place: Place) -> None:
    ran: list[bytes] = []

    async def run(request: Request) -> None:
        ran.append(request.body)
        await request.reply({}, b"")

    async with callee.serve(place.app(), "g", run):
        for deadline, body in ((soon(-0.1), b"expired"), (soon(), b"in time")):
            headers = {"mesh-deadline": str(int(deadline * 1000))}
            await broker.send(place.app(), Message(headers, body), f"{broker.inbox}.t")
        await eventually(lambda: _equal(ran, [b"in time"]))
    assert callee.expired == 1


def _equal(one: object, another: object) -> None:
    assert one == another


async def test_servers_of_one_group_share_the_requests(caller: Exchange, callee: Exchange, place: Place) -> None:
    served: list[str] = []

    def server(name: str) -> Callable[[Request], Awaitable[None]]:
        async def answer(request: Request) -> None:
            served.append(name)
            await request.reply({}, b"")

        return answer

    async with (
        Exchange(await place.connect()) as third,
        callee.serve(place.app(), "g", server("a")),
        third.serve(place.app(), "g", server("b")),
    ):
        for _ in range(100):
            await caller.request(place.app(), Message({}, b""), soon())
    assert len(served) == 100
    assert set(served) == {"a", "b"}


async def test_rolling_hand_over_loses_no_request(caller: Exchange, callee: Exchange, place: Place) -> None:
    done = 0
    failures: list[Exception] = []
    going = True

    async def answer(request: Request) -> None:
        await asyncio.sleep(0.002)
        await request.reply({}, request.body)

    async def call() -> None:
        nonlocal done
        while going:
            try:
                reply = await caller.request(place.app(), Message({}, b"x"), soon(5))
                assert reply.body == b"x"
                done += 1
            except (BrokerError, AssertionError) as error:
                failures.append(error)
                return

    async with Exchange(await place.connect()) as third, AsyncExitStack() as serving:
        current = await serving.enter_async_context(AsyncExitStack())
        await current.enter_async_context(callee.serve(place.app(), "g", answer))
        async with asyncio.TaskGroup() as tasks:
            for _ in range(16):
                tasks.create_task(call())
            for turn in range(20):
                following = await serving.enter_async_context(AsyncExitStack())
                await following.enter_async_context((third, callee)[turn % 2].serve(place.app(), "g", answer))
                await current.aclose()
                current = following
            going = False
    assert failures == []
    assert done > 100


async def test_leaving_serve_waits_for_requests_in_flight(caller: Exchange, callee: Exchange, place: Place) -> None:
    begun = asyncio.Event()

    async def answer(request: Request) -> None:
        begun.set()
        await asyncio.sleep(0.2)
        await request.reply({}, b"done")

    async with asyncio.TaskGroup() as tasks, callee.serve(place.app(), "g", answer):
        call = tasks.create_task(caller.request(place.app(), Message({}, b""), soon()))
        await begun.wait()
    assert call.result().body == b"done"


@BOTH
async def test_handler_that_raises_breaks_its_call_only(
    caller: Exchange, callee: Exchange, place: Place, caplog: pytest.LogCaptureFixture
) -> None:
    async def fail(request: Request) -> None:
        match request.body:
            case b"raise":
                raise ValueError("for the test")
            case b"forget":
                return
            case b"midway":
                await request.begin({})
                await request.write(b"some")
                raise ValueError("midway")
        await request.reply({}, b"fine")

    async with callee.serve(place.app(), "g", fail):
        with pytest.raises(StreamBrokenError, match="for the test"):
            await caller.request(place.app(), Message({}, b"raise"), soon())
        with pytest.raises(StreamBrokenError, match="not answered"):
            await caller.request(place.app(), Message({}, b"forget"), soon())
        reply = await caller.request(place.app(), Message({}, b"midway"), soon())
        with pytest.raises(StreamBrokenError, match="midway"):
            await size_of(reply.parts())
        await reply.aclose()
        assert (await caller.request(place.app(), Message({}, b""), soon())).body == b"fine"


async def test_busy_callee_says_so_at_once(caller: Exchange, callee: Exchange, place: Place) -> None:
    begun, go_on = asyncio.Event(), asyncio.Event()

    async def answer(request: Request) -> None:
        begun.set()
        await go_on.wait()
        await request.reply({}, b"")

    async with callee.serve(place.app(), "g", answer, max_in_flight=1), asyncio.TaskGroup() as tasks:
        tasks.create_task(caller.request(place.app(), Message({}, b""), soon()))
        await begun.wait()
        with pytest.raises(NoResponderError):
            await caller.request(place.app(), Message({}, b""), soon())
        with pytest.raises(NoResponderError):
            await caller.request(place.app(), Message({}, b""), soon(), pieces())
        go_on.set()


async def test_large_whole_bodies(caller: Exchange, callee: Exchange, place: Place) -> None:
    body = PIECE * 20

    async def answer(request: Request) -> None:
        assert len(body) > request.whole_limit_bytes
        await request.reply({"n": "1"}, body)

    async with callee.serve(place.app(), "g", answer):
        reply = await caller.request(place.app(), Message({}, b""), soon())
        assert reply.streamed
        assert reply.headers["n"] == "1"
        assert b"".join([part async for part in reply.parts()]) == body


@pytest.mark.costly
async def test_large_bodies_there_and_back_in_bounded_memory(caller: Exchange, callee: Exchange, place: Place) -> None:
    async with callee.serve(place.app(), "g", echo):
        tracemalloc.start()
        try:
            reply = await caller.request(place.app(), Message({}, b""), soon(), pieces())
            total = await size_of(reply.parts())
            _, most = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
    assert total == LARGE
    assert most < LARGE / 3


@BOTH
async def test_streamed_content_is_exact(caller: Exchange, callee: Exchange, place: Place) -> None:
    sent = [bytes([number % 256]) * size for number, size in enumerate([1, 0, PART_BYTES, PART_BYTES + 1, 3, 700_000])]

    async def body() -> AsyncIterator[bytes]:
        for piece in sent:
            yield piece

    async with callee.serve(place.app(), "g", echo):
        reply = await caller.request(place.app(), Message({}, b""), soon(), body())
        assert b"".join([part async for part in reply.parts()]) == b"".join(sent)
        reply = await caller.request(place.app(), Message({}, b""), soon(), pieces(0))
        assert [part async for part in reply.parts()] == []


async def test_slow_reader_holds_the_writer_back(caller: Exchange, callee: Exchange, place: Place) -> None:
    written = 0

    async def answer(request: Request) -> None:
        nonlocal written
        await request.begin({})
        async for piece in pieces():
            await request.write(piece)
            written += len(piece)
        await request.end()

    async with callee.serve(place.app(), "g", answer):
        reply = await caller.request(place.app(), Message({}, b""), soon())
        await asyncio.sleep(SILENCE + 0.3)  # Longer than the limit of silence: a slow reader is alive.
        assert written <= WINDOW_BYTES + 2 * len(PIECE)
        assert await size_of(reply.parts()) == LARGE


async def test_slow_callee_holds_the_caller_back(caller: Exchange, callee: Exchange, place: Place) -> None:
    sent = 0
    go_on = asyncio.Event()

    async def body() -> AsyncIterator[bytes]:
        nonlocal sent
        async for piece in pieces(20_000_000):
            sent += len(piece)
            yield piece

    async def answer(request: Request) -> None:
        parts = request.parts()
        size = len(await anext(parts))
        await go_on.wait()
        await request.reply({}, str(size + await size_of(parts)).encode())

    async with callee.serve(place.app(), "g", answer), asyncio.TaskGroup() as tasks:
        call = tasks.create_task(caller.request(place.app(), Message({}, b""), soon(), body()))
        await asyncio.sleep(SILENCE + 0.3)
        assert 0 < sent <= WINDOW_BYTES + 2 * len(PIECE)
        go_on.set()
    assert int(call.result().body) == 20_000_000


async def test_callee_that_begins_late_is_not_taken_for_dead(caller: Exchange, callee: Exchange, place: Place) -> None:
    async def answer(request: Request) -> None:
        await asyncio.sleep(SILENCE + 0.3)  # Longer than the limit of silence; the deadline alone bounds this.
        await request.reply({}, str(await size_of(request.parts())).encode())

    async with callee.serve(place.app(), "g", answer):
        reply = await caller.request(place.app(), Message({}, b""), soon(), pieces(1_000_000))
    assert int(reply.body) == 1_000_000


async def test_early_reply_ends_the_upload(caller: Exchange, callee: Exchange, place: Place) -> None:
    async def answer(request: Request) -> None:
        await anext(request.parts())
        await request.reply({}, b"enough")

    async with callee.serve(place.app(), "g", answer):
        reply = await caller.request(place.app(), Message({}, b""), soon(), pieces())
        assert reply.body == b"enough"


async def test_callee_that_reads_on_after_its_reply_learns_that_nothing_comes(
    caller: Exchange, callee: Exchange, place: Place
) -> None:
    ended: list[Exception] = []

    async def answer(request: Request) -> None:
        parts = request.parts()
        await anext(parts)
        await request.reply({}, b"enough")
        try:
            await size_of(parts)
        except StreamBrokenError as error:
            ended.append(error)

    async with callee.serve(place.app(), "g", answer):
        reply = await caller.request(place.app(), Message({}, b""), soon(), pieces())
        assert reply.body == b"enough"
    assert len(ended) == 1


async def test_early_streamed_reply_lets_the_upload_go_on(caller: Exchange, callee: Exchange, place: Place) -> None:
    async def answer(request: Request) -> None:
        await request.begin({})
        await request.write(b"begun")
        await request.write(str(await size_of(request.parts())).encode())
        await request.end()

    async with callee.serve(place.app(), "g", answer):
        reply = await caller.request(place.app(), Message({}, b""), soon(), pieces(5_000_000))
        assert b"".join([part async for part in reply.parts()]) == b"begun5000000"


@BOTH
async def test_caller_that_closes_breaks_the_callee_s_write(caller: Exchange, callee: Exchange, place: Place) -> None:
    broken: list[Exception] = []

    async def answer(request: Request) -> None:
        await request.begin({})
        try:
            async for piece in pieces():
                await request.write(piece)
        except StreamBrokenError as error:
            broken.append(error)
            raise

    async with callee.serve(place.app(), "g", answer):
        reply = await caller.request(place.app(), Message({}, b""), soon())
        async for _ in reply.parts():
            break
        await reply.aclose()
    assert len(broken) == 1


@pytest.mark.parametrize("body", ["whole", "not read", "read"])
async def test_cancelled_caller_ends_the_callee_s_work(
    caller: Exchange, callee: Exchange, place: Place, body: str
) -> None:
    """Before an answer began, the caller does not know who took its call, unless that one reads a body."""
    begun, ended = asyncio.Event(), asyncio.Event()

    async def answer(request: Request) -> None:
        if body == "read":
            await anext(request.parts())
        begun.set()
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()

    async with callee.serve(place.app(), "g", answer), asyncio.timeout(PATIENCE):
        given = None if body == "whole" else pieces()
        call = asyncio.ensure_future(caller.request(place.app(), Message({}, b""), time.time() + 600, given))
        await begun.wait()
        call.cancel()
        await asyncio.wait([call])
        await ended.wait()


async def test_many_cancelled_callers(caller: Exchange, callee: Exchange, place: Place) -> None:
    """Callers that leave all at once are told of in few frames."""
    running = 0

    async def answer(request: Request) -> None:
        nonlocal running
        running += 1
        try:
            await asyncio.Event().wait()
        finally:
            running -= 1

    def counted(number: int) -> None:
        assert running == number

    async with callee.serve(place.app(), "g", answer), asyncio.timeout(PATIENCE):
        requests = [caller.request(place.app(), Message({}, b""), time.time() + 600) for _ in range(500)]
        calls = [asyncio.ensure_future(request) for request in requests]
        await eventually(lambda: counted(500))
        for call in calls:
            call.cancel()
        await asyncio.wait(calls)
        await eventually(lambda: counted(0))


async def test_caller_that_vanishes_breaks_the_callee_s_write(callee: Exchange, place: Place) -> None:
    broken: list[Exception] = []

    async def answer(request: Request) -> None:
        await request.begin({})
        try:
            async for piece in pieces():
                await request.write(piece)
        except StreamBrokenError as error:
            broken.append(error)
            raise

    async with callee.serve(place.app(), "g", answer):
        node = await place.connect()
        vanishing = Exchange(node)
        await vanishing.__aenter__()
        await vanishing.request(place.app(), Message({}, b""), soon())
        await place.leave(node)  # Without a word: the exchange is still open.
        await eventually(lambda: _equal(len(broken), 1))
        await vanishing.__aexit__(None, None, None)


async def test_callee_that_vanishes_breaks_the_caller_s_read(caller: Exchange, place: Place) -> None:
    begun = asyncio.Event()

    async def answer(request: Request) -> None:
        await request.begin({})
        await request.write(b"some")
        begun.set()
        await asyncio.Event().wait()

    node = await place.connect()
    vanishing = Exchange(node)
    await vanishing.__aenter__()
    serving = vanishing.serve(place.app(), "g", answer)
    await serving.__aenter__()
    reply = await caller.request(place.app(), Message({}, b""), soon())
    await begun.wait()
    await place.leave(node)
    with pytest.raises(StreamBrokenError):
        await size_of(reply.parts())
    await reply.aclose()
    leaving = asyncio.ensure_future(serving.__aexit__(None, None, None))
    await asyncio.sleep(0)
    leaving.cancel()
    await asyncio.wait([leaving])
    await vanishing.__aexit__(None, None, None)


async def test_body_that_raises_breaks_its_call_only(caller: Exchange, callee: Exchange, place: Place) -> None:
    async def body() -> AsyncIterator[bytes]:
        yield b"some"
        raise ValueError("for the test")

    async def answer(request: Request) -> None:
        await request.reply({}, str(await size_of(request.parts())).encode())

    async with callee.serve(place.app(), "g", answer):
        with pytest.raises(StreamBrokenError):
            await caller.request(place.app(), Message({}, b""), soon(), body())
        reply = await caller.request(place.app(), Message({}, b""), soon(), pieces(250_000))
        assert int(reply.body) == 250_000


async def test_many_streams_at_once(broker: Broker, other: Broker, place: Place) -> None:
    """With the limits that applications have: a busy machine may be silent for half a second."""

    async def call() -> int:
        reply: Reply = await caller.request(place.app(), Message({}, b""), soon(), pieces(2_000_000))
        return await size_of(reply.parts())

    async with (
        Exchange(broker) as caller,
        Exchange(other) as callee,
        callee.serve(place.app(), "g", echo),
        asyncio.TaskGroup() as tasks,
    ):
        calls = [tasks.create_task(call()) for _ in range(20)]
    assert {task.result() for task in calls} == {2_000_000}


async def test_calls_in_both_directions(caller: Exchange, callee: Exchange, place: Place) -> None:
    async def forward(request: Request) -> None:
        reply = await callee.request(place.app("b"), Message({}, request.body), request.deadline)
        await request.reply({}, reply.body + b"!")

    async with callee.serve(place.app("a"), "g", forward), caller.serve(place.app("b"), "g", echo):
        reply = await caller.request(place.app("a"), Message({}, b"x"), soon())
    assert reply.body == b"x!"


async def test_cancelled_requests_leave_nothing_behind(caller: Exchange, callee: Exchange, place: Place) -> None:
    async def hang(request: Request) -> None:
        if request.body == b"answer":
            await request.reply({}, b"")
        else:
            await asyncio.sleep(0.05)

    async with callee.serve(place.app(), "g", hang):
        before = asyncio.all_tasks()
        for turns in range(15):
            body = pieces() if turns % 2 else None
            call = asyncio.ensure_future(caller.request(place.app(), Message({}, b""), soon(), body))
            for _ in range(turns):
                await asyncio.sleep(0)
            call.cancel()
            await asyncio.wait([call])
            assert call.cancelled()
        await no_tasks_besides(before)
        await caller.request(place.app(), Message({}, b"answer"), soon())


async def test_leaving_the_exchange_ends_its_calls(broker: Broker, callee: Exchange, place: Place) -> None:
    begun = asyncio.Event()

    async def hang(request: Request) -> None:
        begun.set()
        await asyncio.sleep(0.1)

    address: Address = place.app()
    async with callee.serve(address, "g", hang):
        async with Exchange(broker) as exchange:
            call = asyncio.ensure_future(exchange.request(address, Message({}, b""), soon()))
            await begun.wait()
        with pytest.raises(BrokerError):
            await call
