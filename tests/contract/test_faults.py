"""Faults: restarts of the server, and what networks do to a connection."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack

import pytest

from mesh.broker import Broker, Delivery, KeyValueProvider, Message, SubscribeOptions, Write
from mesh.calls.exchange import Exchange, Reply, Request
from mesh.errors import BrokerError, BrokerUnavailableError, StreamBrokenError
from mesh.tasks import task_group
from tests.support.contract import Inbox, Place, no_tasks_besides, text
from tests.support.eventually import eventually
from tests.support.proxy import Proxy

pytestmark = pytest.mark.requires("shared")

PIECE = bytes(100_000)
SILENCE = 4.0  # Seconds: signs of life wait behind pieces, and for a busy machine.
CUT_AFTER = (1, 8, 60, 250, 520, 550, 600, 700, 900, 1100, 1400, 2000)  # Bytes: of greetings, logins, declarations.
KEEPS_FRAMES = ("kafka",)  # More than the contract promises, so it is no feature.


@pytest.mark.parametrize("kill", [False, True], ids=["restart", "kill-9"])
@pytest.mark.requires("durable")
async def test_publishes_in_flight_complete_and_nothing_confirmed_is_lost(rough_place: Place, kill: bool) -> None:
    broker, other = await rough_place.connect(), await rough_place.connect()
    inbox, stop = Inbox(), asyncio.Event()
    confirmed: list[set[int]] = [set(), set(), set(), set()]
    async with other.subscribe(rough_place.topic(), SubscribeOptions("g", ack_wait=2.0), inbox):
        async with asyncio.TaskGroup() as tasks:
            for number, mine in enumerate(confirmed):

                async def publish(number: int = number, mine: set[int] = mine) -> None:
                    count = 0
                    while not stop.is_set():
                        identity = number * 1_000_000 + count
                        await broker.publish(rough_place.topic(), text(identity, id=str(identity)))
                        mine.add(identity)
                        count += 1

                tasks.create_task(publish())
            await asyncio.sleep(0.2)
            await rough_place.backend.restart(kill=kill)
            before = len(confirmed[0])
            await eventually(lambda: _more(confirmed[0], before))
            stop.set()
        everything = set().union(*confirmed)

        def check() -> None:
            missing = everything - set(map(int, inbox.bodies))
            assert not missing, len(missing)

        await eventually(check)


def _more(found: set[int], than: int) -> None:
    assert len(found) > than


@pytest.mark.requires("durable", "retention")
@pytest.mark.parametrize("kill", [False, True], ids=["restart", "kill-9"])
async def test_confirmed_messages_outlive_the_server(rough_place: Place, inbox: Inbox, kill: bool) -> None:
    broker = await rough_place.connect()
    for number in range(50):
        await broker.publish(rough_place.topic(), text(number))
    await rough_place.backend.restart(kill=kill)
    reader = await rough_place.connect()
    async with reader.subscribe(rough_place.topic(), SubscribeOptions("g"), inbox):
        await inbox.holds(50)
    assert sorted(map(int, inbox.bodies)) == list(range(50))


@pytest.mark.requires("dedup")
@pytest.mark.requires("durable")
async def test_dedup_holds_over_a_restart(rough_place: Place) -> None:
    broker = await rough_place.connect()
    await broker.publish(rough_place.topic(), text("once", id="1"))
    await rough_place.backend.restart(kill=False)
    async with asyncio.timeout(30):
        await broker.publish(rough_place.topic(), text("once", id="1"))
        await broker.publish(rough_place.topic(), text("last", id="2"))
    inbox = Inbox()
    async with broker.subscribe(rough_place.topic(), SubscribeOptions("g", max_in_flight=1), inbox):
        await inbox.holds(2)
    assert inbox.bodies == [b"once", b"last"]


@pytest.mark.requires("durable")
async def test_subscriptions_resume_after_a_restart(rough_place: Place) -> None:
    """One without order, and one with it where there is any."""
    broker = await rough_place.connect()
    inboxes = [Inbox() for _ in range(2 if broker.features.ordering else 1)]
    async with AsyncExitStack() as stack:
        for number, inbox in enumerate(inboxes):
            options = SubscribeOptions(f"g{number}", ack_wait=1.0, ordered=bool(number), max_in_flight=5)
            await stack.enter_async_context(broker.subscribe(rough_place.topic(), options, inbox))
        await broker.publish(rough_place.topic(), text("before", key="a"))
        for inbox in inboxes:
            await inbox.holds(1)
        await rough_place.backend.restart(kill=True)
        async with asyncio.timeout(30):
            for number in range(20):
                await broker.publish(rough_place.topic(), text(number, key=str(number)))
        for inbox in inboxes:
            await eventually(lambda inbox=inbox: _holds(inbox, {b"before", *(b"%d" % n for n in range(20))}))


def _holds(inbox: Inbox, bodies: set[bytes]) -> None:
    assert bodies <= set(inbox.bodies), bodies - set(inbox.bodies)


@pytest.mark.requires("durable")
async def test_handler_at_work_over_a_restart_does_not_end_the_subscription(rough_place: Place) -> None:
    broker = await rough_place.connect()
    begun, go_on = asyncio.Event(), asyncio.Event()

    async def work(delivery: Delivery) -> None:
        begun.set()
        await go_on.wait()
        await delivery.extend()
        await delivery.ack()

    inbox = Inbox(work)
    async with broker.subscribe(rough_place.topic(), SubscribeOptions("g", ack_wait=1.0, max_in_flight=2), inbox):
        for number in range(4):
            await broker.publish(rough_place.topic(), text(number))
        await begun.wait()
        await rough_place.backend.restart(kill=True)
        go_on.set()
        await eventually(lambda: _holds(inbox, {b"0", b"1", b"2", b"3"}))


@pytest.mark.requires("durable")
async def test_no_more_than_max_in_flight_over_a_restart(rough_place: Place) -> None:
    broker = await rough_place.connect()
    running = most = 0

    async def work(delivery: Delivery) -> None:
        nonlocal running, most
        running += 1
        most = max(most, running)
        await asyncio.sleep(0.02)
        running -= 1
        await delivery.ack()

    inbox, options = Inbox(work), SubscribeOptions("g", ack_wait=1.0, max_in_flight=4)
    await rough_place.begin(broker, options)
    await broker.publish_many(rough_place.topic(), [text(number) for number in range(150)])
    async with broker.subscribe(rough_place.topic(), options, inbox):
        await inbox.holds(20)
        await rough_place.backend.restart(kill=True)
        await eventually(lambda: _holds(inbox, {b"%d" % n for n in range(150)}))
    assert most <= 4


@pytest.mark.requires("durable", "frames")
async def test_frames_work_again_after_a_restart(rough_place: Place) -> None:
    broker, other = await rough_place.connect(), await rough_place.connect()

    async def answer(request: Request) -> None:
        await request.reply({}, request.body)

    async with Exchange(broker) as caller, Exchange(other) as callee, callee.serve(rough_place.app(), "g", answer):
        await caller.request(rough_place.app(), Message({}, b"x"), time.time() + 30)
        await rough_place.backend.restart(kill=True)

        async def check() -> None:
            try:
                reply = await caller.request(rough_place.app(), Message({}, b"again"), time.time() + 5)
            except BrokerError as error:
                raise AssertionError(error) from error
            assert reply.body == b"again"

        await eventually(check)


@pytest.mark.requires("durable", "frames")
async def test_stream_over_a_restart_breaks_at_both_ends(rough_place: Place) -> None:
    broker, other = await rough_place.connect(), await rough_place.connect()
    ended: list[Exception] = []
    go_on = asyncio.Event()

    async def pieces() -> AsyncIterator[bytes]:
        while True:
            yield PIECE

    async def answer(request: Request) -> None:
        try:
            await request.begin({})
            async for part in request.parts():
                await request.write(part)
                go_on.set()
        except BrokerError as error:
            ended.append(error)
            raise

    async with (
        Exchange(broker, ping_interval=0.2, silence_limit=SILENCE) as caller,
        Exchange(other, ping_interval=0.2, silence_limit=SILENCE) as callee,
        callee.serve(rough_place.app(), "g", answer),
    ):
        reply = await caller.request(rough_place.app(), Message({}, b""), time.time() + 20, pieces())
        await go_on.wait()
        with pytest.raises(BrokerError):
            async with asyncio.TaskGroup() as tasks, asyncio.timeout(30):
                restart = tasks.create_task(rough_place.backend.restart(kill=True))
                try:
                    async for _ in reply.parts():
                        pass
                except BrokerError as error:
                    await restart
                    ended.append(error)
            raise ended[-1]
        await reply.aclose()
        await eventually(lambda: _two(ended))


def _two(ended: list[Exception]) -> None:
    assert len(ended) == 2, ended


@pytest.mark.requires("key_value")
@pytest.mark.requires("durable")
async def test_key_value_outlives_a_restart(rough_place: Place) -> None:
    broker = await rough_place.connect()
    assert isinstance(broker, KeyValueProvider)
    store = await broker.key_value("s")
    await store.apply([Write("a", b"1"), Write("b", b"2")])
    await rough_place.backend.restart(kill=True)
    async with asyncio.timeout(30):
        entry = await store.get("a")
        assert entry is not None
        await store.apply([Write("a", b"3", expected=entry.revision)])
        entry = await store.get("a", strong=True)
    assert entry is not None
    assert entry.value == b"3"


async def test_check_says_when_nobody_answers_and_when_again(place: Place, proxy: Proxy) -> None:
    broker = await place.connect(place.backend.broker_through(proxy.port))
    proxy.stall()
    with pytest.raises((TimeoutError, BrokerUnavailableError)):
        async with asyncio.timeout(0.2):
            await broker.check()
    proxy.resume()
    async with asyncio.timeout(30):
        await broker.check()


async def test_connection_cut_in_the_middle_of_a_publish(place: Place, proxy: Proxy) -> None:
    broker = await place.connect(place.backend.broker_through(proxy.port))
    reader = await place.connect()
    inbox = Inbox()
    async with reader.subscribe(place.topic(), SubscribeOptions("g"), inbox):
        for number in range(5):
            proxy.cut_after(number * 60_000 + 37)
            async with asyncio.timeout(30):
                await broker.publish(place.topic(), Message({}, b"%d " % number + bytes(250_000), id=str(number)))
        await inbox.holds(5)
    found = [body.partition(b" ")[0] for body in inbox.bodies]
    assert set(found) == {b"0", b"1", b"2", b"3", b"4"}
    if broker.features.dedup:
        assert len(found) == 5
    assert proxy.accepted >= 5


async def test_connections_are_cut_while_they_are_made(place: Place, proxy: Proxy) -> None:
    """After a few bytes or many: whoever asks meanwhile gets an answer, and nothing that was published is lost."""
    broker = await place.connect(place.backend.broker_through(proxy.port))
    inbox = Inbox()
    async with broker.subscribe(place.topic(), SubscribeOptions("g", ack_wait=1.0), inbox):
        for number, size in enumerate(CUT_AFTER):
            proxy.cut_after(size, upwards=False)
            proxy.cut()
            async with asyncio.timeout(30), asyncio.TaskGroup() as tasks:
                tasks.create_task(broker.publish(place.topic(), text(number, id=str(number))))
                tasks.create_task(_until_it_answers(broker))
        await eventually(lambda: _holds(inbox, {b"%d" % number for number in range(len(CUT_AFTER))}))


async def _until_it_answers(broker: Broker) -> None:
    while True:
        try:
            await broker.check()
        except BrokerUnavailableError:
            await asyncio.sleep(0.01)
        else:
            return


async def test_cut_after_cut_loses_nothing_confirmed(place: Place, proxy: Proxy) -> None:
    broker = await place.connect(place.backend.broker_through(proxy.port))
    inbox, stop = Inbox(), asyncio.Event()
    confirmed: list[int] = []

    async def publish(first: int) -> None:
        number = first
        while not stop.is_set():
            await broker.publish(place.topic(), text(number, id=str(number)))
            confirmed.append(number)
            number += 1

    async with broker.subscribe(place.topic(), SubscribeOptions("g", ack_wait=1.0, max_in_flight=20), inbox):
        async with asyncio.TaskGroup() as tasks:
            for first in range(0, 8_000_000, 1_000_000):
                tasks.create_task(publish(first))
            for _ in range(5):
                await asyncio.sleep(0.15)
                proxy.cut()
            before = len(confirmed)
            await eventually(lambda: _longer(confirmed, before))
            stop.set()
        await eventually(lambda: _holds(inbox, {b"%d" % n for n in confirmed}))


def _longer(found: list[int], than: int) -> None:
    assert len(found) > than


async def test_stalled_connection_is_left_for_a_new_one(place: Place, proxy: Proxy) -> None:
    if getattr(place.backend, "patient", False):
        pytest.skip("its client waits for half a minute and more, and cannot be told otherwise")
    before = asyncio.all_tasks()
    broker = await place.connect(place.backend.broker_through(proxy.port))
    inbox = Inbox()
    async with broker.subscribe(place.topic(), SubscribeOptions("g", ack_wait=1.0), inbox):
        proxy.stall()
        async with asyncio.timeout(30):
            async with asyncio.TaskGroup() as tasks:  # More than the sockets' buffers hold.
                for number in range(100):
                    message = Message({}, PIECE, id=str(number))
                    tasks.create_task(broker.publish(place.topic(), message))
        await inbox.holds(100)
    assert proxy.accepted >= 2
    await place.leave(broker)
    await no_tasks_besides(before | {task for task in asyncio.all_tasks() if "Proxy" in repr(task)})


async def test_cancelled_publish_on_a_stalled_connection(place: Place, proxy: Proxy) -> None:
    broker = await place.connect(place.backend.broker_through(proxy.port))
    inbox = Inbox()
    await place.begin(broker, SubscribeOptions("g"), "other")
    proxy.stall()
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.2), asyncio.TaskGroup() as tasks:
            for _ in range(300):
                tasks.create_task(broker.publish(place.topic(), Message({}, PIECE)))
    proxy.resume()
    async with asyncio.timeout(30):
        await broker.publish(place.topic("other"), text("after"))
        async with broker.subscribe(place.topic("other"), SubscribeOptions("g"), inbox):
            await inbox.holds(1)


async def test_leaving_on_a_dead_connection_ends(place: Place, proxy: Proxy) -> None:
    """Handlers in flight still finish; what cannot be settled is redelivered to others."""
    broker = await place.connect(place.backend.broker_through(proxy.port))
    reader = await place.connect()
    begun = asyncio.Event()

    async def work(delivery: Delivery) -> None:
        begun.set()
        await asyncio.sleep(0.3)
        await delivery.ack()

    inbox, second = Inbox(work), Inbox()
    options = SubscribeOptions("g", ack_wait=1.0)
    async with broker.subscribe(place.topic(), options, inbox):
        await reader.publish(place.topic(), text("x"))
        await begun.wait()
        await proxy.__aexit__(None, None, None)  # Nobody listens there any more.
    async with asyncio.timeout(30):
        await place.leave(broker)
    assert inbox.deliveries[0].settled == "ack"
    async with reader.subscribe(place.topic(), options, second):
        await reader.publish(place.topic(), text("y"))
        await second.holds(1)


async def test_slow_network_changes_nothing_but_time(place: Place, proxy: Proxy) -> None:
    proxy.delay(0.05)
    broker = await place.connect(place.backend.broker_through(proxy.port))
    inbox = Inbox()
    async with broker.subscribe(place.topic(), SubscribeOptions("g", ordered=broker.features.ordering), inbox):
        began = time.monotonic()
        many = [text(n) for n in range(100)]
        assert await broker.publish_many(place.topic("others"), many) == [None] * 100
        assert time.monotonic() - began < 100 * 0.075, "not pipelined"
        assert await broker.publish_many(place.topic(), [text(n, key="k") for n in range(20)]) == [None] * 20
        await inbox.holds(20)
    assert [int(body) for body in inbox.bodies] == list(range(20))


async def test_publish_waits_for_the_connection_as_long_as_its_caller(place: Place, proxy: Proxy) -> None:
    broker = await place.connect(place.backend.broker_through(proxy.port))
    await proxy.__aexit__(None, None, None)
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.5):
            await broker.publish(place.topic(), text("x"))
    if broker.features.frames:
        with pytest.raises(BrokerUnavailableError):
            await broker.send(place.app(), text("x"))
    with pytest.raises(BrokerUnavailableError):
        await broker.check()
    publishing = asyncio.ensure_future(broker.publish(place.topic(), text("x")))
    await asyncio.sleep(0)
    async with asyncio.timeout(30):
        await place.leave(broker)
        with pytest.raises(BrokerUnavailableError):
            await publishing


@pytest.mark.requires("frames")
async def test_stream_over_a_cut_has_no_gap(place: Place, proxy: Proxy) -> None:
    """It breaks for what the cut swallowed; where frames outlive a connection, it goes on instead."""
    broker = await place.connect(place.backend.broker_through(proxy.port))
    other = await place.connect()
    whole: list[int] = []

    def piece(number: int) -> bytes:
        return number.to_bytes(4, "big") * (len(PIECE) // 4)

    async def answer(request: Request) -> None:
        await request.begin({})
        for number in itertools.count():
            await request.write(piece(number))

    async def read(reply: Reply) -> StreamBrokenError:
        unchecked = bytearray()
        try:
            async for part in reply.parts():
                unchecked += part
                while len(unchecked) >= len(PIECE):
                    assert unchecked[: len(PIECE)] == piece(len(whole)), len(whole)
                    del unchecked[: len(PIECE)]
                    whole.append(len(whole))
        except StreamBrokenError as error:
            return error
        raise AssertionError("it ended as if it were whole")

    async with (
        Exchange(broker, ping_interval=0.2, silence_limit=SILENCE) as caller,
        Exchange(other, ping_interval=0.2, silence_limit=SILENCE) as callee,
        callee.serve(place.app(), "g", answer),
    ):
        reply = await caller.request(place.app(), Message({}, b""), time.time() + 20)
        async with asyncio.timeout(60), asyncio.TaskGroup() as tasks:
            reading = tasks.create_task(read(reply))
            await eventually(lambda: _longer(whole, 50))
            accepted = proxy.accepted
            proxy.cut_after(len(PIECE) * 3 // 2, upwards=False)
            await eventually(lambda: _above(proxy.accepted, accepted))
            enough = len(whole) + 100
            if broker.features.name in KEEPS_FRAMES:
                await eventually(lambda: _longer(whole, enough))
                reading.cancel()
            else:
                await reading
        await reply.aclose()


@pytest.mark.requires("frames")
async def test_upload_over_a_lost_connection_is_not_taken_for_one_that_was_not_sent(place: Place, proxy: Proxy) -> None:
    """Made again, the call would go out with half a body that looks whole."""
    broker = await place.connect(place.backend.broker_through(proxy.port))
    other = await place.connect()
    begun, go_on = asyncio.Event(), asyncio.Event()

    async def body() -> AsyncIterator[bytes]:
        yield PIECE
        await go_on.wait()
        while True:
            yield PIECE

    async def answer(request: Request) -> None:
        async for _ in request.parts():
            begun.set()

    async with (
        Exchange(broker, ping_interval=0.2, silence_limit=SILENCE) as caller,
        Exchange(other, ping_interval=0.2, silence_limit=SILENCE) as callee,
        callee.serve(place.app(), "g", answer),
    ):
        with pytest.raises(StreamBrokenError):
            async with task_group() as tasks, asyncio.timeout(30):
                calling = tasks.create_task(caller.request(place.app(), Message({}, b""), time.time() + 20, body()))
                await begun.wait()
                await proxy.__aexit__(None, None, None)  # Nobody listens there any more.
                go_on.set()
                await calling


def _above(found: int, than: int) -> None:
    assert found > than
