"""What the adapters share."""

from __future__ import annotations

import asyncio
import itertools
import logging
from collections.abc import Awaitable, Callable

import pytest

from brokers.shared.backoff import waits
from brokers.shared.errors import NotAdmittedError, cause_of, map_errors, unavailable
from brokers.shared.handling import run_handler
from brokers.shared.limits import AT_ONCE, check_size, measure, publish_each
from mesh.address import Address, topic
from mesh.broker import Delivery, Message
from mesh.errors import BrokerError, BrokerUnavailableError, MessageTooLargeError, PublishRejectedError

ADDRESS = topic("default", "pubsub", "t")


class Settler:
    """Notes how its delivery settles."""

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.delivery = Delivery(Message({}, b""), ADDRESS, 1, self)

    async def ack(self) -> None:
        self.calls.append("ack")

    async def nack(self, delay: float) -> None:
        self.calls.append("nack")

    async def reject(self) -> None:
        self.calls.append("reject")

    async def extend(self) -> None:
        self.calls.append("extend")

    async def release(self) -> None:
        self.calls.append("release")


async def leave(delivery: Delivery) -> None:
    """Settle nothing."""


async def ack(delivery: Delivery) -> None:
    await delivery.ack()


async def fail(delivery: Delivery) -> None:
    raise ValueError("broken")


async def ack_and_fail(delivery: Delivery) -> None:
    await delivery.ack()
    raise ValueError("broken")


@pytest.mark.parametrize(
    ("handler", "settled"), [(leave, ["nack"]), (ack, ["ack"]), (fail, ["nack"]), (ack_and_fail, ["ack"])]
)
async def test_what_a_handler_leaves_is_nacked(
    handler: Callable[[Delivery], Awaitable[None]], settled: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    settler = Settler()
    with caplog.at_level(logging.ERROR):
        await run_handler(handler, settler.delivery, settler.release)
    assert settler.calls == settled
    assert ("broken" in caplog.text) == (handler in (fail, ack_and_fail))


@pytest.mark.parametrize("settles", [False, True])
async def test_a_handler_that_is_cancelled_gives_its_delivery_back(settles: bool) -> None:
    settler = Settler()

    async def wait(delivery: Delivery) -> None:
        if settles:
            await delivery.ack()
        await asyncio.Event().wait()

    running = asyncio.ensure_future(run_handler(wait, settler.delivery, settler.release))
    await asyncio.sleep(0)
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert settler.calls == (["ack"] if settles else ["release"])


def test_size_counts_body_and_headers() -> None:
    assert measure(b"1234567890", {"a": "b", "cd": ""}) == 10 + 2 + 4 + 2 + 4
    check_size(b"12", {"a": "b"}, 8)
    with pytest.raises(MessageTooLargeError, match="message of 8 bytes is over the limit of 7 bytes"):
        check_size(b"12", {"a": "b"}, 7)


async def test_publishes_of_one_call_are_bounded_and_in_order() -> None:
    begun: list[int] = []
    most = under_way = 0

    async def publish(address: Address, message: Message) -> None:
        nonlocal most, under_way
        number = int(message.body)
        begun.append(number)
        under_way += 1
        most = max(most, under_way)
        await asyncio.sleep(0)
        under_way -= 1
        if number % 100 == 7:
            raise PublishRejectedError(str(number))

    messages = [Message({}, str(number).encode()) for number in range(3 * AT_ONCE)]
    results = await publish_each(publish, ADDRESS, messages)
    assert begun == list(range(len(messages)))
    assert most == AT_ONCE
    assert [index for index, error in enumerate(results) if error is not None] == list(range(7, len(messages), 100))


class Foreign(Exception):
    """Of a client."""


class Closer(Foreign):
    """One of its kinds."""


ERRORS = map_errors(
    {Foreign: lambda error: BrokerError(f"far: {error}"), Closer: lambda _: PublishRejectedError("near")}
)


def test_the_nearest_counterpart_is_raised_and_names_its_cause() -> None:
    with pytest.raises(BrokerError, match="far: lost") as raised, ERRORS:
        raise Foreign("lost")
    assert isinstance(raised.value.__cause__, Foreign)
    with pytest.raises(PublishRejectedError, match="near"), ERRORS:
        raise Closer


@pytest.mark.parametrize("error", [KeyError("ours to mend"), asyncio.CancelledError(), BrokerUnavailableError("ours")])
def test_what_is_no_client_s_passes(error: BaseException) -> None:
    with pytest.raises(type(error)) as raised, ERRORS:
        raise error
    assert raised.value is error


def test_unavailable_says_why() -> None:
    assert str(unavailable("Redis at redis://h")) == "Redis at redis://h is not reachable"
    assert str(unavailable("Redis at redis://h", OSError("refused"))).endswith("is not reachable: refused")
    assert str(unavailable("Redis at redis://h", TimeoutError())).endswith("is not reachable: it does not answer")
    assert cause_of(EOFError()) == "EOFError"
    assert not NotAdmittedError.retryable
    assert BrokerUnavailableError.retryable


def test_errors_may_be_chained_in_circles() -> None:
    """As a client does that fails once more with what it failed with, while it cleans up."""
    first, again = OSError("reset"), OSError("cannot connect")
    first.__context__, again.__cause__ = again, first
    assert str(unavailable("Redis at redis://h", again)).endswith("is not reachable: cannot connect")


def test_waits_grow_up_to_a_limit() -> None:
    found = list(itertools.islice(waits(longest=0.3), 20))
    assert 0.025 <= found[0] <= 0.05
    assert all(0.15 <= wait <= 0.3 for wait in found[5:])
