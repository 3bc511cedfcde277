"""Calls while connections break: each is answered, and none runs twice."""

from __future__ import annotations

import asyncio
import gc
import itertools
import logging
import re
import time
from collections import Counter
from contextlib import AsyncExitStack, suppress

import pytest

from mesh.address import Address
from mesh.broker import Broker, Message
from mesh.calls.exchange import Exchange, Request
from mesh.errors import BrokerUnavailableError, DeadlineExceededError, MeshError, NoResponderError
from tests.support.backends import ServerBackend
from tests.support.contract import Place
from tests.support.eventually import eventually
from tests.support.guards import Guards, no_guards
from tests.support.proxy import Proxy

pytestmark = [pytest.mark.requires("frames", "shared"), pytest.mark.timeout(120)]

ASK_AFTER = 0.2
CUTS = 25
FEWER = 8  # Where a break is one thing, and not two that may happen one after the other.
PAUSE = 0.02
WORK = 0.002
PATIENCE = 60.0  # A server may be away for long on a busy machine.


class Calls:
    """Calls one after the other, from several at once, until it is enough."""

    def __init__(self, caller: Exchange, to: Address) -> None:
        self._caller = caller
        self._to = to
        self._numbers = itertools.count()
        self.ran: Counter[bytes] = Counter()
        self.answered: list[bytes] = []
        self.failed: list[Exception] = []
        self.going = True

    async def answer(self, request: Request) -> None:
        self.ran[request.body] += 1
        await asyncio.sleep(WORK)
        await request.reply({}, request.body)

    async def run(self) -> None:
        while self.going:
            body, deadline = b"%d" % next(self._numbers), time.time() + PATIENCE
            while True:
                try:
                    reply = await self._caller.request(self._to, Message({}, body), deadline)
                    assert reply.body == body
                    self.answered.append(body)
                    break
                except (BrokerUnavailableError, NoResponderError):  # It did not run.
                    await asyncio.sleep(PAUSE)
                except MeshError as error:
                    self.failed.append(error)
                    break

    def check(self) -> None:
        assert self.failed == []
        assert self.ran == Counter(self.answered)


async def members(stack: AsyncExitStack, place: Place, brokers: list[Broker], calls: Calls) -> None:
    for broker in brokers:
        exchange = await stack.enter_async_context(Exchange(broker, ask_after=ASK_AFTER))
        await stack.enter_async_context(exchange.serve(place.app(), "g", calls.answer))
    await asyncio.sleep(5 * ASK_AFTER)  # Until they vouch for each other.


@pytest.mark.parametrize("whole", [True, False], ids=["everything", "receiving"])
@pytest.mark.parametrize("whose", ["caller", "callee"])
async def test_calls_outlive_a_connection_that_is_cut_again_and_again(
    place: Place, proxy: Proxy, whose: str, whole: bool
) -> None:
    backend = place.backend
    assert isinstance(backend, ServerBackend)
    if backend.receiving is None and not whole:
        pytest.skip("it has one connection for everything")
    async with AsyncExitStack() as stack:
        through = await place.connect(backend.broker_through(proxy.port))
        caller = through if whose == "caller" else await place.connect()
        callees = [through, await place.connect()] if whose == "callee" else [await place.connect() for _ in range(2)]
        calls = Calls(await stack.enter_async_context(Exchange(caller, ask_after=ASK_AFTER)), place.app())
        await members(stack, place, callees, calls)
        async with asyncio.TaskGroup() as tasks:
            for _ in range(8):
                tasks.create_task(calls.run())
            for _ in range(FEWER if whole else CUTS):
                before, accepted = len(calls.answered), proxy.accepted
                await eventually(lambda: _above(proxy.cut(b"" if whole else backend.receiving or b""), 0))
                await eventually(lambda before=before: _longer(calls.answered, before + 50), within=40)
                await eventually(lambda accepted=accepted: _above(proxy.accepted, accepted), within=40)
                await eventually(lambda: _answers(through), within=40)
            calls.going = False
        calls.check()


@pytest.mark.parametrize("kill", [False, True], ids=["restart", "kill-9"])
@pytest.mark.requires("durable")
async def test_calls_outlive_a_restart_of_the_server(rough_place: Place, kill: bool) -> None:
    async with AsyncExitStack() as stack:
        caller = await stack.enter_async_context(Exchange(await rough_place.connect(), ask_after=ASK_AFTER))
        calls = Calls(caller, rough_place.app())
        await members(stack, rough_place, [await rough_place.connect() for _ in range(2)], calls)
        async with asyncio.TaskGroup() as tasks:
            for _ in range(8):
                tasks.create_task(calls.run())
            for _ in range(2):
                before = len(calls.answered)
                await eventually(lambda before=before: _longer(calls.answered, before + 100))
                await rough_place.backend.restart(kill=kill)
                before = len(calls.answered)
                await eventually(lambda before=before: _longer(calls.answered, before + 100), within=40)
            calls.going = False
        calls.check()


@pytest.mark.parametrize("guards", [False, True], ids=["claimed", "proven"], indirect=True)
async def test_all_members_leave_together_again_and_again(place: Place, guards: Guards) -> None:
    """A call that came too late for any of them is told so, or waits for the next."""
    async with AsyncExitStack() as stack:
        caller = await stack.enter_async_context(Exchange(await place.connect(), guard=guards("caller")))
        calls = Calls(caller, place.app())
        exchanges = [
            await stack.enter_async_context(Exchange(await place.connect(), guard=guards("app"))) for _ in range(3)
        ]
        async with asyncio.TaskGroup() as tasks:
            for _ in range(16):
                tasks.create_task(calls.run())
            for _ in range(FEWER if guards is no_guards else 2):
                before = len(calls.answered)
                leave = asyncio.Event()

                async def serve(exchange: Exchange, leave: asyncio.Event = leave) -> None:
                    async with exchange.serve(place.app(), "g", calls.answer):
                        await leave.wait()

                async with asyncio.TaskGroup() as serving:
                    for exchange in exchanges:
                        serving.create_task(serve(exchange))
                    await eventually(lambda before=before: _longer(calls.answered, before + 50), within=40)
                    leave.set()
            calls.going = False
            await stack.enter_async_context(exchanges[0].serve(place.app(), "g", calls.answer))
        calls.check()


async def test_deadline_holds_over_a_stalled_connection(place: Place, proxy: Proxy) -> None:
    """Whole requests and streams, small and large: all of them, at the same time."""
    broker = await place.connect(place.backend.broker_through(proxy.port))
    other = await place.connect()

    async def answer(request: Request) -> None:
        await request.reply({}, request.body)

    async def call(size: int) -> float:
        began = time.monotonic()
        with pytest.raises((DeadlineExceededError, BrokerUnavailableError)):
            await caller.request(place.app(), Message({}, bytes(size)), time.time() + 0.3)
        return time.monotonic() - began

    async with (
        Exchange(broker) as caller,
        Exchange(other) as callee,
        callee.serve(place.app(), "g", answer),
    ):
        await caller.request(place.app(), Message({}, b""), time.time() + 30)
        proxy.stall()
        async with asyncio.TaskGroup() as tasks:
            calls = [tasks.create_task(call(size)) for size in [10, 200_000] * 30]
        assert max(each.result() for each in calls) < 1.5
        proxy.cut()


async def test_nothing_is_left_unretrieved(place: Place, proxy: Proxy) -> None:
    """Connections stall, and are cut, while signs of life and calls are under way."""
    found: list[str] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: found.append(repr(context)))
    async with AsyncExitStack() as stack:
        through = [await place.connect(place.backend.broker_through(proxy.port)) for _ in range(2)]
        calls = Calls(await stack.enter_async_context(Exchange(through[0], ask_after=ASK_AFTER)), place.app())
        await members(stack, place, through[1:], calls)
        async with asyncio.TaskGroup() as tasks:
            for _ in range(4):
                tasks.create_task(calls.run())
            for _ in range(3):
                before = len(calls.answered)
                await eventually(lambda before=before: _longer(calls.answered, before + 20), within=40)
                proxy.stall()
                for broker in through:
                    with suppress(TimeoutError, BrokerUnavailableError):
                        async with asyncio.timeout(0.2):  # A sign of life is due meanwhile.
                            await broker.check()
                proxy.cut()
            before = len(calls.answered)
            await eventually(lambda before=before: _longer(calls.answered, before + 20), within=40)
            calls.going = False
    for broker in through:
        await place.leave(broker)
    gc.collect()
    await asyncio.sleep(0)
    assert found == []


async def test_an_outage_is_told_in_one_line_and_its_end_in_another(
    place: Place, proxy: Proxy, caplog: pytest.LogCaptureFixture
) -> None:
    broker = await place.connect(place.backend.broker_through(proxy.port))
    name = broker.features.name

    def told() -> list[str]:
        loggers = {record.name for record in caplog.records}
        assert all(logger.startswith(("brokers.", "asyncio", "mesh")) for logger in loggers), loggers
        return [record.getMessage() for record in caplog.records if record.levelno >= logging.INFO]

    caplog.set_level(logging.INFO)
    await proxy.__aexit__(None, None, None)  # Nobody listens there any more.

    async def is_lost() -> None:
        with pytest.raises((BrokerUnavailableError, TimeoutError)):
            async with asyncio.timeout(0.2):
                await broker.check()

    await eventually(is_lost)
    await asyncio.sleep(1.0)  # It tries again, in vain.
    await proxy.__aenter__()
    await eventually(lambda: _longer(told(), 1), within=40)
    await asyncio.sleep(0.5)
    lost, back = told()
    assert re.fullmatch(rf"lost the connection to {name} at .*127\.0\.0\.1:{proxy.port}.*: .+", lost, re.IGNORECASE)
    assert re.fullmatch(rf"{name} at .*127\.0\.0\.1:{proxy.port}.* is back after \d+\.\d s", back, re.IGNORECASE)
    assert caplog.records[0].exc_info is None


async def _answers(broker: Broker) -> None:
    try:
        await broker.check()
    except BrokerUnavailableError as error:
        raise AssertionError from error


def _longer(found: list[bytes] | list[str], than: int) -> None:
    assert len(found) > than, found[-5:]


def _above(found: int, than: int) -> None:
    assert found > than
