"""How a delivery settles: the decision as a table, and the state machine around it."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mesh import address
from mesh.broker import Delivery, Message
from mesh.conditions import Condition
from mesh.delivery import (
    BROKEN_ATTEMPTS,
    DEAD_LETTER_RETRY,
    SLOW_DELAYS,
    SUCCESS,
    Attempt,
    Outcome,
    Settlement,
    Step,
    decide,
)
from mesh.errors import (
    AppUnreachableError,
    BrokerUnavailableError,
    EventError,
    IdentityAwayError,
    PermissionDeniedError,
    StateError,
)
from mesh.pipeline import InboundPipeline
from mesh.policies import CircuitBreaker, Policy, Retry, Timeout, parse_status_codes
from tests.support.eventually import eventually

DROP, FAIL = Attempt(Outcome.DROP, "no"), Attempt(Outcome.RETRY, "again", 500)
REFUSED = Attempt(Outcome.RETRY, "again", 400)
QUICK = Retry(interval=0.01, max_retries=2)
SLOW = Retry(interval=30.0, max_retries=2)
NO_POLICY = Policy()
BROKEN = Attempt(Outcome.RETRY, "broke off", broken=True)
ONLY_500 = Retry(interval=0.01, max_retries=9, http_statuses=parse_status_codes("500", "http"))


@pytest.mark.parametrize(
    ("attempt", "retry", "delivery", "made", "dead_letter", "step", "delay"),
    [
        (SUCCESS, None, 1, 1, False, Step.ACK, 0.0),
        (SUCCESS, QUICK, 9, 9, True, Step.ACK, 0.0),
        (DROP, None, 1, 1, False, Step.ACK, 0.0),
        (DROP, QUICK, 1, 1, True, Step.DEAD_LETTER, 0.0),
        (FAIL, None, 1, 1, True, Step.DEAD_LETTER, 0.0),
        (FAIL, None, 1, 1, False, Step.WAIT, 0.1),
        (FAIL, None, 1, 2, False, Step.WAIT, 0.5),
        (FAIL, None, 1, 3, False, Step.WAIT, 1.0),
        (FAIL, None, 1, 4, False, Step.NACK, 2.0),
        (FAIL, None, 2, 5, False, Step.NACK, 5.0),
        (FAIL, None, 500, 503, False, Step.NACK, 60.0),
        (BROKEN, None, 1, 1, False, Step.NACK, 0.1),
        (BROKEN, None, 1, 4, True, Step.NACK, 0.1),
        (BROKEN, None, BROKEN_ATTEMPTS, 5, True, Step.DEAD_LETTER, 0.0),
        (BROKEN, QUICK, 1, 1, True, Step.WAIT, 0.01),
        (FAIL, QUICK, 1, 1, True, Step.WAIT, 0.01),
        (FAIL, QUICK, 1, 2, True, Step.WAIT, 0.01),
        (FAIL, QUICK, 1, 3, True, Step.DEAD_LETTER, 0.0),
        (FAIL, QUICK, 1, 3, False, Step.NACK, SLOW_DELAYS[-1]),
        (FAIL, QUICK, 2, 4, True, Step.DEAD_LETTER, 0.0),
        (FAIL, SLOW, 1, 1, True, Step.NACK, 30.0),
        (FAIL, SLOW, 2, 2, True, Step.NACK, 30.0),
        (FAIL, SLOW, 3, 3, True, Step.DEAD_LETTER, 0.0),
        (FAIL, ONLY_500, 1, 1, True, Step.WAIT, 0.01),
        (REFUSED, ONLY_500, 1, 1, True, Step.DEAD_LETTER, 0.0),
        (REFUSED, ONLY_500, 1, 1, False, Step.NACK, SLOW_DELAYS[-1]),
        (Attempt(Outcome.RETRY, "asked"), ONLY_500, 1, 1, True, Step.WAIT, 0.01),
        (FAIL, Retry(max_retries=0), 1, 1, True, Step.DEAD_LETTER, 0.0),
        (FAIL, Retry(), 10**6, 10**6, True, Step.NACK, 5.0),
        (FAIL, Retry.exponential(), 10**6, 10**6, True, Step.DEAD_LETTER, 0.0),
    ],
)
def test_decide(
    attempt: Attempt, retry: Retry | None, delivery: int, made: int, dead_letter: bool, step: Step, delay: float
) -> None:
    """What follows an attempt."""
    assert decide(attempt, retry, delivery, made, dead_letter=dead_letter) == (step, delay)


@settings(derandomize=True, deadline=None)
@given(
    st.sampled_from([DROP, FAIL, REFUSED]),
    st.sampled_from([None, QUICK, SLOW, ONLY_500, Retry(), Retry.exponential()]),
    st.integers(1, 10_000),
    st.integers(0, 50),
)
def test_without_dead_letter_only_a_drop_is_acknowledged(
    attempt: Attempt, retry: Retry | None, delivery: int, quick: int
) -> None:
    """An event that was acknowledged to its publisher is not lost to failures."""
    step, delay = decide(attempt, retry, delivery, delivery + quick, dead_letter=False)
    assert (step is Step.ACK) == (attempt is DROP)
    assert step is not Step.DEAD_LETTER
    assert delay >= 0


class Settled:
    """A broker's side of one delivery: notes how it settled."""

    def __init__(self) -> None:
        self.how: list[object] = []
        self.extended = 0

    async def ack(self) -> None:
        self.how.append("ack")

    async def nack(self, delay: float) -> None:
        self.how.append(("nack", delay))

    async def reject(self) -> None:
        self.how.append("reject")

    async def extend(self) -> None:
        self.extended += 1
        if self.extended == 1:
            raise BrokerUnavailableError("away")

    def delivery(self, attempt: int = 1, identity: str | None = None, **headers: str) -> Delivery:
        given = {name.replace("_", "-"): value for name, value in headers.items()}
        return Delivery(Message(given, b"x", id=identity), address.topic("n", "c", "t"), attempt, self)


class Run:
    """A settlement whose application answers as told."""

    def __init__(
        self, *answers: Attempt | Exception, policy: Policy = NO_POLICY, dead: bool = False, ack_wait: float = 15.0
    ) -> None:
        self.answers = list(answers)
        self.calls = 0
        self.numbers: list[int] = []
        self.instead: Callable[[Delivery], Awaitable[Attempt]] | None = None
        self.counted: list[str] = []
        self.dead: list[tuple[str, int]] = []
        self.dead_error: Exception | None = None
        self.reachable = asyncio.Event()
        deliver = InboundPipeline().towards(
            lambda arrival: self.call(arrival.what), policy=policy, until_reachable=self.until_reachable
        )
        self.settlement = Settlement(
            deliver,
            retry=policy.retry,
            dead_letter=self.dead_letter if dead else None,
            count=self.counted.append,
            ack_wait=ack_wait,
            condition=Condition("event c/t"),
        )

    async def call(self, delivery: Delivery) -> Attempt:
        self.calls += 1
        self.numbers.append(delivery.attempt)
        if self.instead is not None:
            return await self.instead(delivery)
        answer = self.answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    async def dead_letter(self, delivery: Delivery, reason: str, attempts: int) -> None:
        if self.dead_error is not None:
            raise self.dead_error
        self.dead.append((reason, attempts))

    async def until_reachable(self) -> None:
        await self.reachable.wait()


@pytest.mark.parametrize(
    ("answers", "policy", "dead", "how", "counted"),
    [
        ([SUCCESS], Policy(), False, ["ack"], ["success"]),
        ([DROP], Policy(), False, ["ack"], ["drop", "dropped"]),
        ([DROP], Policy(), True, ["ack"], ["drop", "dead_letter"]),
        ([FAIL], Policy(), True, ["ack"], ["retry", "dead_letter"]),
        ([FAIL, SUCCESS], Policy(retry=QUICK), True, ["ack"], ["retry", "success"]),
        ([FAIL, FAIL, FAIL], Policy(retry=QUICK), True, ["ack"], ["retry", "retry", "retry", "dead_letter"]),
        ([FAIL], Policy(retry=SLOW), True, [("nack", 30.0)], ["retry"]),
        ([FAIL, FAIL, FAIL], Policy(retry=QUICK), False, [("nack", SLOW_DELAYS[-1])], ["retry"] * 3),
        ([FAIL, DROP], Policy(retry=QUICK), False, ["ack"], ["retry", "drop", "dropped"]),
    ],
)
async def test_settlement(
    answers: list[Attempt | Exception], policy: Policy, dead: bool, how: list[object], counted: list[str]
) -> None:
    """Once, as decided, and counted."""
    run, settled = Run(*answers, policy=policy, dead=dead), Settled()
    await run.settlement(settled.delivery())
    assert (settled.how, run.counted, run.answers) == (how, counted, [])


async def test_attempts_told_to_the_dead_letter() -> None:
    """Deliveries by the broker and quick retries together."""
    run = Run(FAIL, FAIL, FAIL, policy=Policy(retry=QUICK), dead=True)
    await run.settlement(Settled().delivery())
    assert run.dead == [("again", 3)]


@pytest.mark.parametrize(
    ("retry", "deliveries", "numbers"),
    [
        (QUICK, [(1, 3)], [1, 2, 3]),
        (SLOW, [(1, 1), (2, 1), (3, 1)], [1, 2, 3]),
        (None, [(1, 4), (2, 1), (3, 1)], [1, 2, 3, 4, 5, 6]),
        (Retry(interval=0.5, max_retries=2), [(1, 3)], [1, 2, 3]),
    ],
)
@pytest.mark.parametrize("identity", ["m", None], ids=["known", "unknown"])
async def test_attempts_count_up(
    retry: Retry | None, deliveries: list[tuple[int, int]], numbers: list[int], identity: str | None
) -> None:
    """Over quick retries within a delivery and over deliveries, also where nothing can be remembered of a message."""
    run = Run(*[FAIL] * len(numbers), policy=Policy(retry=retry))
    for number, calls in deliveries:
        before, settled = run.calls, Settled()
        await run.settlement(settled.delivery(number, identity))
        assert run.calls - before == calls
    assert run.numbers == numbers


async def test_what_was_no_attempt_is_not_counted() -> None:
    """An open breaker, the time before a scheduled event is due, and what broke off without a second try."""
    run = Run(*[FAIL] * 7, policy=Policy(breaker=CircuitBreaker(timeout=60.0, trip=None), retry=Retry(interval=0.0)))
    settled = Settled()
    await run.settlement(settled.delivery(1, "m"))
    await run.settlement(settled.delivery(2, "m"))
    assert settled.how == [("nack", 5.0)] * 2
    assert run.numbers == [1, 2, 3, 4, 5, 6]

    run = Run(FAIL, FAIL, policy=Policy(retry=SLOW))
    for number in (1, 2, 3):
        await run.settlement(Settled().delivery(number, "m", mesh_not_before="99999999999999"))
    for number in (4, 5):
        await run.settlement(Settled().delivery(number, "m", mesh_not_before="0"))
    assert run.numbers == [1, 2]

    run = Run(BROKEN, BROKEN, SUCCESS)
    for number in (1, 2, 3):
        await run.settlement(Settled().delivery(number, "m"))
    assert run.numbers == [1, 2, 3]


async def test_what_may_be_proven_soon_is_no_attempt() -> None:
    """Neither do retries end for it, nor goes it to the dead letter topic, nor is it laid to the application."""
    away = IdentityAwayError("its root is not known yet")
    run = Run(*[away] * 8, SUCCESS, policy=Policy(breaker=CircuitBreaker(timeout=60.0)), dead=True)
    settled = Settled()
    for number in range(1, 10):
        await run.settlement(settled.delivery(number, "m"))
    assert settled.how == [*[("nack", 5.0)] * 8, "ack"]
    assert (run.numbers, run.dead, run.counted) == ([1] * 9, [], ["success"])


class InParts(Delivery):
    """One whose body is elsewhere, and what comes of reading it."""

    def __init__(self, settled: Settled, *found: Exception | None) -> None:
        super().__init__(Message({}, b"", id="m"), address.topic("n", "c", "t"), 1, settled)
        self.found = list(found)

    async def complete(self) -> None:
        if (error := self.found.pop(0)) is not None:
            raise error


@pytest.mark.parametrize(("dead", "counted"), [(False, ["drop", "dropped"]), (True, ["drop", "dead_letter"])])
async def test_an_event_whose_body_is_gone_is_dropped_with_the_reason(dead: bool, counted: list[str]) -> None:
    """The application is not asked."""
    run, settled = Run(dead=dead), Settled()
    await run.settlement(InParts(settled, EventError("its body is gone")))
    assert (settled.how, run.calls, run.counted) == (["ack"], 0, counted)
    assert run.dead == [("its body is gone", 1)] * dead


async def test_an_event_that_cannot_be_read_now_is_no_attempt() -> None:
    """However often that is, it does not go to the dead letter topic."""
    run, settled = Run(SUCCESS, dead=True), Settled()
    for _ in range(8):
        await run.settlement(InParts(settled, BrokerUnavailableError("away")))
    await run.settlement(InParts(settled, None))
    assert settled.how == [*[("nack", 5.0)] * 8, "ack"]
    assert (run.numbers, run.dead, run.counted) == ([1], [], ["success"])


async def test_what_fails_in_reading_an_event_is_an_attempt(caplog: pytest.LogCaptureFixture) -> None:
    """It has a delay, and is in the log."""
    run, settled = Run(dead=True), Settled()
    await run.settlement(InParts(settled, ValueError("ours")))
    assert (settled.how, run.calls, run.counted) == ([("nack", 0.1)], 0, ["retry"])
    assert "ValueError: ours" in caplog.text


async def test_a_dead_letter_that_cannot_be_published_is_kept() -> None:
    """The event comes again."""
    run, settled = Run(DROP, dead=True), Settled()
    run.dead_error = BrokerUnavailableError("away")
    await run.settlement(settled.delivery())
    assert settled.how == [("nack", DEAD_LETTER_RETRY)]


async def test_an_application_that_does_not_listen_is_waited_for() -> None:
    """Holding the delivery; no attempt is counted."""
    run, settled = Run(AppUnreachableError("down"), SUCCESS), Settled()
    async with asyncio.TaskGroup() as tasks:
        settling = tasks.create_task(run.settlement(settled.delivery()))

        def waits() -> None:
            assert run.calls == 1

        await eventually(waits)
        assert not settling.done()
        run.reachable.set()
    assert (settled.how, run.counted) == (["ack"], ["success"])


async def test_timeout() -> None:
    """An attempt that takes too long is a failed one."""

    async def hangs(delivery: Delivery) -> Attempt:
        await asyncio.Event().wait()
        return SUCCESS

    run, settled = Run(policy=Policy(timeout=Timeout(0.01)), dead=True), Settled()
    run.instead = hangs
    await run.settlement(settled.delivery())
    assert run.dead == [("no answer within 0.01 s", 1)]


async def test_breaker() -> None:
    """An open one calls nobody, and gives the delivery back."""
    policy = Policy(breaker=CircuitBreaker(timeout=60.0, trip=None), retry=Retry(interval=0.0, max_retries=9))
    run, settled = Run(*[FAIL] * 6, policy=policy), Settled()
    await run.settlement(settled.delivery())
    assert (run.calls, settled.how) == (6, [("nack", 5.0)])


async def test_a_cancelled_call_gives_its_permit_back() -> None:
    """It says nothing about the application."""
    policy = Policy(breaker=CircuitBreaker(max_requests=1, timeout=0.0))
    run = Run(*[FAIL] * 6, SUCCESS, policy=policy)
    for _ in range(6):  # From then on it is half-open, and admits one.
        await run.settlement(Settled().delivery(9))

    async def cancelled(delivery: Delivery) -> Attempt:
        raise asyncio.CancelledError

    run.instead = cancelled
    for _ in range(3):
        with pytest.raises(asyncio.CancelledError):
            await run.settlement(Settled().delivery())
    run.instead, settled = None, Settled()
    await run.settlement(settled.delivery())
    assert settled.how == ["ack"]


@pytest.mark.parametrize("error", [ValueError("bug"), StateError("no store"), PermissionDeniedError("not allowed")])
@pytest.mark.parametrize("retry", [None, Retry(interval=9.0, max_retries=1)])
async def test_whatever_fails_in_an_attempt_is_an_attempt_that_failed(error: Exception, retry: Retry | None) -> None:
    """Ours or the application's: it waits like one, is judged like one, and ends in the dead letter topic like one."""
    attempts = BROKEN_ATTEMPTS if retry is None else 2
    run = Run(*[error] * attempts, policy=Policy(retry=retry), dead=True)
    for number in range(1, attempts):
        settled = Settled()
        await run.settlement(settled.delivery(number))
        assert settled.how == [("nack", SLOW_DELAYS[number - 1] if retry is None else 9.0)]
    last = Settled()
    await run.settlement(last.delivery(attempts))
    assert last.how == ["ack"]
    assert run.dead == [("internal error: ValueError" if isinstance(error, ValueError) else str(error), attempts)]


async def test_a_dead_letter_topic_that_refuses_is_tried_again_later() -> None:
    """Whatever it raises; the delivery does not come back at once."""
    for error in (PermissionDeniedError("not allowed"), ValueError("bug")):
        run, settled = Run(FAIL, dead=True), Settled()
        run.dead_error = error
        await run.settlement(settled.delivery())
        assert settled.how == [("nack", DEAD_LETTER_RETRY)]


async def test_a_slow_application_s_delivery_is_extended() -> None:
    """As long as it works, and over a broker's failure."""
    done, settled = asyncio.Event(), Settled()

    async def slow(delivery: Delivery) -> Attempt:
        await done.wait()
        return SUCCESS

    run = Run(ack_wait=0.03)
    run.instead = slow
    async with run.settlement.extending(), asyncio.TaskGroup() as tasks:
        tasks.create_task(run.settlement(settled.delivery()))

        def extended() -> None:
            assert settled.extended >= 2

        await eventually(extended)
        done.set()
    assert settled.how == ["ack"]
