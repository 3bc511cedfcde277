"""Calls over frames that get lost, one kind at a time; the contract suite has what every broker must do."""

from __future__ import annotations

import asyncio
import gc
import time
from collections.abc import AsyncIterator, Callable

import pytest

from brokers.memory import MemoryBroker, MemoryHub
from mesh import address
from mesh.address import Address
from mesh.broker import Message
from mesh.calls.exchange import PART_BYTES, Exchange, Reply, Request
from mesh.calls.link import FRAME_HEADER, WINDOW_BYTES
from mesh.errors import BrokerUnavailableError, DeadlineExceededError, NoResponderError, StreamBrokenError
from tests.support.eventually import eventually

APP = address.app("default", "app")
SILENCE_LIMIT = 1.0  # Longer than a busy machine may stop for.


class Lossy(MemoryBroker):
    """A node whose frames are looked at on their way out."""

    def __init__(self, hub: MemoryHub) -> None:
        super().__init__(hub)
        self.sent: list[str | None] = []
        self.loses: Callable[[str | None, Message], bool] = lambda kind, message: False
        self.broken = self.stalled = False

    async def send(self, to: str | Address, message: Message, reply_to: str = "") -> None:
        kind = message.headers.get(FRAME_HEADER)
        self.sent.append(kind)
        if self.stalled:
            await asyncio.Event().wait()
        if self.broken:
            raise BrokerUnavailableError("for the test")
        if not self.loses(kind, message):
            await super().send(to, message, reply_to)

    def lose_next(self, kind: str) -> None:
        left = [kind]

        def loses(found: str | None, message: Message) -> bool:
            if left and found == left[0]:
                left.pop()
                return True
            return False

        self.loses = loses


class Pair:
    def __init__(self) -> None:
        hub = self.hub = MemoryHub()
        self.one, self.two = Lossy(hub), Lossy(hub)


@pytest.fixture
async def pair() -> AsyncIterator[Pair]:
    pair = Pair()
    async with pair.one, pair.two:
        yield pair


@pytest.fixture
async def caller(pair: Pair) -> AsyncIterator[Exchange]:
    async with Exchange(pair.one, ping_interval=0.05, silence_limit=SILENCE_LIMIT) as exchange:
        yield exchange


@pytest.fixture
async def callee(pair: Pair) -> AsyncIterator[Exchange]:
    async with Exchange(pair.two, ping_interval=0.05, silence_limit=SILENCE_LIMIT) as exchange:
        yield exchange


def soon() -> float:
    return time.time() + 5


async def pieces(count: int, size_bytes: int = 100_000) -> AsyncIterator[bytes]:
    for _ in range(count):
        yield bytes(size_bytes)


async def echo(request: Request) -> None:
    await request.begin({})
    async for part in request.parts():
        await request.write(part)
    await request.end()


@pytest.mark.parametrize("side", ["one", "two"])
@pytest.mark.parametrize("kind", ["data", "end", "credit"])
async def test_lost_frame_breaks_the_stream_and_never_hangs_it(
    pair: Pair, caller: Exchange, callee: Exchange, side: str, kind: str
) -> None:
    node = getattr(pair, side)
    if kind == "credit":  # One lost credit only makes the window smaller.
        node.loses = lambda found, message: found == "credit"
    else:
        node.lose_next(kind)
    ended: list[Exception] = []

    async def served(request: Request) -> None:
        try:
            await echo(request)
        except StreamBrokenError as error:
            ended.append(error)
            raise

    async with asyncio.timeout(4), callee.serve(APP, "g", served):
        with pytest.raises((StreamBrokenError, DeadlineExceededError)):
            reply = await caller.request(APP, Message({}, b""), time.time() + 1.5, pieces(100))
            try:
                async for _ in reply.parts():
                    pass
            finally:
                await reply.aclose()
    await eventually(lambda: _empty(caller, callee))


def _empty(*exchanges: Exchange) -> None:
    assert not any(exchange.links for exchange in exchanges)


async def test_lost_abort_is_found_out_by_the_next_frame(pair: Pair, caller: Exchange, callee: Exchange) -> None:
    pair.one.lose_next("abort")
    async with asyncio.timeout(4), callee.serve(APP, "g", echo):
        reply = await caller.request(APP, Message({}, b""), soon(), pieces(1000))
        await reply.aclose()
    await eventually(lambda: _empty(caller, callee))
    assert "abort" in pair.one.sent


async def test_silence_ends_a_stream(pair: Pair, caller: Exchange, callee: Exchange) -> None:
    begun = asyncio.Event()

    async def hang(request: Request) -> None:
        await request.begin({})
        begun.set()
        await asyncio.Event().wait()

    async with callee.serve(APP, "g", hang):
        reply = await caller.request(APP, Message({}, b""), soon())
        await begun.wait()
        pair.two.loses = lambda kind, message: True
        with pytest.raises(StreamBrokenError, match="sign of life"):
            async for _ in reply.parts():
                pass
        await reply.aclose()


async def test_stream_lives_while_its_node_is_heard_on_others(pair: Pair, caller: Exchange, callee: Exchange) -> None:
    over = asyncio.Event()

    async def answer(request: Request) -> None:
        await request.begin({})
        if request.body == b"waits":
            await over.wait()
        for _ in range(20):
            await request.write(b"a")
            await asyncio.sleep(SILENCE_LIMIT / 15)
        await request.end()

    async with callee.serve(APP, "g", answer):
        waits = await caller.request(APP, Message({}, b"waits"), soon())
        pair.two.loses = lambda kind, message: kind == "ping"  # They would come too late.
        works = await caller.request(APP, Message({}, b"works"), soon())
        assert len([part async for part in works.parts()]) == 20
        over.set()
        assert len([part async for part in waits.parts()]) == 20


async def test_idle_stream_is_kept_by_signs_of_life(pair: Pair, caller: Exchange, callee: Exchange) -> None:
    async def slow(request: Request) -> None:
        await request.begin({})
        await request.write(b"a")
        await asyncio.sleep(SILENCE_LIMIT * 1.4)
        await request.write(b"b")
        await request.end()

    async with callee.serve(APP, "g", slow):
        reply = await caller.request(APP, Message({}, b""), soon())
        assert [part async for part in reply.parts()] == [b"a", b"b"]
    assert "ping" in pair.one.sent
    assert "ping" in pair.two.sent


async def test_pings_survive_a_connection_that_is_away_for_a_moment(
    pair: Pair, caller: Exchange, callee: Exchange
) -> None:
    async def slow(request: Request) -> None:
        await request.begin({})
        await asyncio.sleep(SILENCE_LIMIT * 1.4)
        await request.write(b"a")
        await request.end()

    async with callee.serve(APP, "g", slow):
        reply = await caller.request(APP, Message({}, b""), soon())
        pair.one.broken = True
        await asyncio.sleep(SILENCE_LIMIT / 2)
        pair.one.broken = False
        assert [part async for part in reply.parts()] == [b"a"]


async def test_small_streams_are_few_frames(pair: Pair, caller: Exchange, callee: Exchange) -> None:
    async with callee.serve(APP, "g", echo):
        reply = await caller.request(APP, Message({}, b""), soon(), pieces(1, 10))
        assert b"".join([part async for part in reply.parts()]) == bytes(10)
    assert pair.one.sent == ["open", "data", "end"]
    assert pair.two.sent == ["head", "credit", "data", "end"]


async def test_whole_call_is_two_frames(pair: Pair, caller: Exchange, callee: Exchange) -> None:
    async def answer(request: Request) -> None:
        await request.reply({}, b"")

    async with callee.serve(APP, "g", answer):
        await caller.request(APP, Message({}, b"x"), soon())
    assert (pair.one.sent, pair.two.sent) == ([None], [None])


async def test_parts_are_no_larger_than_the_broker_takes(pair: Pair, caller: Exchange, callee: Exchange) -> None:
    sizes: list[int] = []

    async def read(request: Request) -> None:
        async for part in request.parts():
            sizes.append(len(part))
        await request.reply({}, b"")

    async with callee.serve(APP, "g", read):
        await caller.request(APP, Message({}, b""), soon(), pieces(1, 3 * PART_BYTES + 1))
    assert sizes == [PART_BYTES, PART_BYTES, PART_BYTES, 1]


async def test_reading_again_grants_nothing_twice(pair: Pair, caller: Exchange, callee: Exchange) -> None:
    sent = 0

    async def body() -> AsyncIterator[bytes]:
        nonlocal sent
        async for piece in pieces(100):
            sent += len(piece)
            yield piece

    async def read(request: Request) -> None:
        await anext(request.parts())
        await anext(request.parts())
        await asyncio.sleep(0.2)
        total = 200_000 + sum([len(part) async for part in request.parts()])
        await request.reply({}, str((held, total)).encode())

    held = 0

    async def watch() -> None:
        nonlocal held
        await asyncio.sleep(0.15)
        held = sent

    async with callee.serve(APP, "g", read), asyncio.TaskGroup() as tasks:
        tasks.create_task(watch())
        reply = await caller.request(APP, Message({}, b""), soon(), body())
    total = int(reply.body.decode().strip("()").split(", ")[1])
    assert total == 10_000_000
    assert held <= WINDOW_BYTES + 200_000


async def test_reply_to_a_broken_connection_is_logged_and_harms_no_other(
    pair: Pair, caller: Exchange, callee: Exchange, caplog: pytest.LogCaptureFixture
) -> None:
    async def answer(request: Request) -> None:
        pair.two.broken = request.body == b"break"
        await request.reply({}, b"")

    async with callee.serve(APP, "g", answer):
        with pytest.raises(DeadlineExceededError):
            await caller.request(APP, Message({}, b"break"), time.time() + 0.5)
        pair.two.broken = False
        await caller.request(APP, Message({}, b""), soon())
    assert "could not answer a request to app: for the test" in caplog.text


async def test_request_over_a_broken_connection_raises_at_once(pair: Pair, caller: Exchange) -> None:
    pair.one.broken = True
    with pytest.raises(BrokerUnavailableError):
        await caller.request(APP, Message({}, b""), soon())
    assert caller.links == {}


async def test_frames_of_strangers_are_ignored(pair: Pair, caller: Exchange, callee: Exchange) -> None:
    ran: list[bytes] = []

    async def answer(request: Request) -> None:
        ran.append(request.body)
        await request.reply({}, b"")

    async with callee.serve(APP, "g", answer):
        await pair.one.send(APP, Message({}, b"without reply"))
        await pair.one.send(APP, Message({}, b"without deadline"), f"{pair.one.inbox}.zz")
        for kind in (None, "data", "credit", "end", "head", "ping", "abort", "busy", "new kind"):
            headers = {} if kind is None else {FRAME_HEADER: kind}
            await pair.one.send(f"{pair.two.inbox}.unknown", Message(headers, b""), f"{pair.one.inbox}.unknown")
        await caller.request(APP, Message({}, b"fine"), soon())
    assert ran == [b"fine"]
    assert pair.two.sent.count("abort") == 5


async def test_credit_that_comes_to_a_complete_stream_breaks_nothing(
    pair: Pair, caller: Exchange, callee: Exchange, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who has sent all is gone, and says so while the credit is still on its way out; the end has come by then."""
    asked, send = asyncio.Event(), pair.one.send

    async def served(request: Request) -> None:
        await request.begin({})
        await request.write(bytes(WINDOW_BYTES))
        await asked.wait()
        await request.end()

    def is_told() -> None:
        assert [str(link.error) for link in caller.links.values()] == ["the other side is gone"]

    async def slowly(to: str | Address, message: Message, reply_to: str = "") -> None:
        credit = message.headers.get(FRAME_HEADER) == "credit"
        if credit:
            asked.set()
            await eventually(lambda: _empty(callee))
        await send(to, message, reply_to)
        if credit:
            await eventually(is_told)

    monkeypatch.setattr(pair.one, "send", slowly)
    async with asyncio.timeout(10), callee.serve(APP, "g", served):
        reply = await caller.request(APP, Message({}, b""), soon())
        assert sum([len(part) async for part in reply.parts()]) == WINDOW_BYTES
    assert asked.is_set()


async def test_sender_that_ignores_the_window_is_cut_off(pair: Pair, caller: Exchange, callee: Exchange) -> None:
    async def flood(request: Request) -> None:
        await request.begin({})
        [link] = callee.links.values()
        link._credit = 1_000_000_000
        for _ in range(1000):
            await request.write(bytes(100_000))

    async with callee.serve(APP, "g", flood):
        reply = await caller.request(APP, Message({}, b""), soon())
        await eventually(lambda: _assert_finished(caller))
        parts = [part async for part in _until_broken(reply, "more than it was granted")]
        assert sum(map(len, parts)) <= WINDOW_BYTES
        await reply.aclose()


def _assert_finished(exchange: Exchange) -> None:
    assert all(link.finished for link in exchange.links.values())


async def _until_broken(reply: Reply, why: str) -> AsyncIterator[bytes]:
    with pytest.raises(StreamBrokenError, match=why):
        async for part in reply.parts():
            yield part


async def test_receiver_that_takes_nothing_is_left(pair: Pair, caller: Exchange) -> None:
    ended: list[str] = []

    async def write(request: Request) -> None:
        await request.begin({})
        try:
            await request.write(bytes(WINDOW_BYTES + 1))
        except StreamBrokenError as error:
            ended.append(str(error))
            raise

    async with Exchange(pair.two, ping_interval=0.05, stall_limit=0.2) as callee, callee.serve(APP, "g", write):
        reply = await caller.request(APP, Message({}, b""), soon())
        await eventually(lambda: _assert_equal(ended, ["the receiver took nothing for 0.2 s"]))
        await reply.aclose()


async def test_handler_that_stalls_ends_with_its_deadline(pair: Pair, caller: Exchange, callee: Exchange) -> None:
    ended: list[str] = []

    async def stall(request: Request) -> None:
        try:
            await asyncio.Event().wait()
        finally:
            ended.append("now")

    async with callee.serve(APP, "g", stall):
        with pytest.raises(DeadlineExceededError):
            await caller.request(APP, Message({}, b""), time.time() + 0.2)
        await eventually(lambda: _assert_equal(ended, ["now"]))


async def test_answer_that_stalls_ends_with_its_caller(pair: Pair, caller: Exchange, callee: Exchange) -> None:
    ended: list[str] = []

    async def stall(request: Request) -> None:
        await request.begin({})
        await request.write(b"some")
        try:
            await asyncio.Event().wait()
        finally:
            ended.append("now")

    async with callee.serve(APP, "g", stall):
        reply = await caller.request(APP, Message({}, b""), time.time() + 0.2)
        await asyncio.sleep(
            SILENCE_LIMIT * 1.4
        )  # The deadline is over, and its limit of silence: both are there, so it goes on.
        assert ended == []
        pair.one.lose_next("abort")
        await reply.aclose()
        await eventually(lambda: _assert_equal(ended, ["now"]))


async def test_deadline_holds_while_a_connection_takes_nothing(pair: Pair, caller: Exchange) -> None:
    pair.one.stalled = True
    began = time.monotonic()
    with pytest.raises(DeadlineExceededError):
        await caller.request(APP, Message({}, b""), time.time() + 0.2)
    assert time.monotonic() - began < 5
    assert caller.links == {}


def _assert_equal(found: object, wanted: object) -> None:
    assert found == wanted


@pytest.mark.parametrize("turns", range(8))
async def test_a_request_that_meets_a_cancelled_callee_is_sent_back(
    caller: Exchange, callee: Exchange, turns: int
) -> None:
    """As when an application is gone: whatever has arrived is answered or sent back, and nobody waits long."""
    serving = asyncio.Event()

    async def handle(request: Request) -> None:
        await request.reply({}, b"done")

    async def serve() -> None:
        async with callee.serve(APP, "app", handle):
            serving.set()
            await asyncio.Event().wait()

    ended: list[object] = []

    async def call() -> None:
        try:
            ended.append((await caller.request(APP, Message({}, b""), time.time() + 60)).body)
        except (NoResponderError, StreamBrokenError) as error:
            ended.append(type(error))

    async with asyncio.TaskGroup() as tasks:
        callee_task = tasks.create_task(serve())
        await serving.wait()
        for _ in range(20):
            tasks.create_task(call())
        for _ in range(turns):
            await asyncio.sleep(0)
        callee_task.cancel()
        await eventually(lambda: _is(len(ended) == 20), within=40.0)
    assert len(ended) == 20


def _is(true: bool) -> None:
    assert true


async def test_a_caller_that_leaves_while_it_sends_leaves_no_error(pair: Pair, callee: Exchange) -> None:
    """The callee has granted credit already, so it is told; nobody is left to take the error that this is."""
    forgotten: list[object] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: forgotten.append(context["message"]))

    class Slow(Lossy):
        async def send(self, to: str | Address, message: Message, reply_to: str = "") -> None:
            await super().send(to, message, reply_to)
            if message.headers.get(FRAME_HEADER) == "open":
                await asyncio.Event().wait()

    async def reads(request: Request) -> None:
        async for _ in request.parts():
            pass

    async with Slow(pair.hub) as slow, Exchange(slow) as caller, callee.serve(APP, "g", reads):
        asking = asyncio.ensure_future(caller.request(APP, Message({}, b""), soon(), pieces(1)))

        def granted() -> None:
            assert [link for link in caller.links.values() if link.peer]

        await eventually(granted)
        asking.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asking
    del asking
    gc.collect()
    assert forgotten == []
