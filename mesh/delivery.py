"""How a delivery settles: the one state machine, on every broker.

fetch → expired? → rule (CEL) → call the application → settle:

=====================================  ======================================================
what happened                          what follows
=====================================  ======================================================
success                                ack
drop (``DROP``, 404, no rule, expired, dead letter if one is configured, else ack; counted
its body gone)
retry (``RETRY``, other status, time)  the next attempt by policy; with none left, dead letter
the application does not listen        wait for it, holding the delivery; no attempt is counted
its body cannot be read now            again, some seconds later; no attempt is counted
its time has not come (``delay``)      the broker holds it until then
anything of ours fails on the way      retry: it is an attempt that failed
=====================================  ======================================================

Attempts: without a retry policy, an event with a dead letter topic goes there after its first
failure (as Dapr does), and one without is retried for as long as it is stored, with growing delays.
A connection that breaks off is the exception: when an application crashes or restarts, everything in
flight breaks off, and at most one event of it is to blame. It takes several of these to dead-letter.
A policy's short delays are waited out here, longer ones are held by the broker. Once a policy is
exhausted, an event goes to the dead letter topic; without one it is retried slowly: it was
acknowledged to its publisher, so it is not dropped.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections import OrderedDict
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from enum import StrEnum

import msgspec

from mesh.broker import Delivery
from mesh.conditions import Condition
from mesh.errors import (
    BrokerError,
    CircuitOpenError,
    DeadlineExceededError,
    EventError,
    IdentityAwayError,
    MeshError,
)
from mesh.operation import Arrival
from mesh.passing import NOBODY, Passing, Taps, arrives
from mesh.policies import Retry
from mesh.tasks import task_group

__all__ = [
    "NOT_BEFORE_HEADER",
    "SUCCESS",
    "Attempt",
    "Counted",
    "Outcome",
    "Settlement",
    "Step",
    "decide",
    "seconds_until",
]

logger = logging.getLogger(__name__)

QUICK_DELAY = 1.0
SLOW_DELAYS = (0.1, 0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 30.0, 60.0)
DEAD_LETTER_RETRY = 5.0
BREAKER_RETRY = 5.0
NOT_BEFORE_HEADER = "mesh-not-before"  # Unix time in milliseconds.
LONGEST_HOLD = 3600.0
BROKEN_ATTEMPTS = 5
MAX_COUNTED = 1000
MAX_REMEMBERED = 10_000
DEAD_LETTER_SECONDS = 30.0
RETRIED, DROPPED = "retry", "drop"  # What is told of an event besides `Step`.


class Outcome(StrEnum):
    """What one attempt came to."""

    SUCCESS = "success"
    RETRY = "retry"
    DROP = "drop"


class Attempt(msgspec.Struct, frozen=True):
    """The result of one attempt.

    Attributes:
        outcome: What it came to.
        reason: Why, for logs and the dead letter; empty on success.
        status: The application's HTTP or gRPC status, if there was one.
        broken: Whether the connection broke off or something of ours failed: nothing is known about this event.
    """

    outcome: Outcome
    reason: str = ""
    status: int | None = None
    broken: bool = False


SUCCESS = Attempt(Outcome.SUCCESS)


class Step(StrEnum):
    """What to do after an attempt."""

    ACK = "ack"
    WAIT = "wait"
    NACK = "nack"
    DEAD_LETTER = "dead letter"


def decide(
    attempt: Attempt, retry: Retry | None, delivery_attempt: int, made: int, *, dead_letter: bool
) -> tuple[Step, float]:
    """Decide what follows an attempt.

    Args:
        attempt: What came of it.
        retry: The inbound policy's retry; None when there is none.
        delivery_attempt: Which delivery by the broker this is, from 1.
        made: How many attempts were made, this one included.
        dead_letter: Whether there is a dead letter topic.

    Returns:
        The step, and the delay in seconds for ``WAIT`` and ``NACK``.
    """
    if attempt.outcome is Outcome.SUCCESS:
        return Step.ACK, 0.0
    if attempt.outcome is Outcome.DROP:
        return (Step.DEAD_LETTER if dead_letter else Step.ACK), 0.0
    delay: float | None
    if retry is None:
        if dead_letter and not (attempt.broken and delivery_attempt < BROKEN_ATTEMPTS):
            return Step.DEAD_LETTER, 0.0
        # What broke off is not kept here, since only the broker counts on while applications come and go.
        delay = SLOW_DELAYS[min(delivery_attempt if attempt.broken else made, len(SLOW_DELAYS)) - 1]
        return (Step.WAIT if delay <= QUICK_DELAY and not attempt.broken else Step.NACK), delay
    wanted = attempt.status is None or retry.should_retry_status(attempt.status)
    delay = retry.delay(made, _elapsed(retry, made), random.random) if wanted else None
    if delay is None:
        return (Step.DEAD_LETTER, 0.0) if dead_letter else (Step.NACK, SLOW_DELAYS[-1])
    return (Step.WAIT if delay <= QUICK_DELAY else Step.NACK), delay


class Counted:
    """How many attempts were made at a message, where a broker counts deliveries.

    A delivery holds several attempts while delays are short, and none when the message was only held. What this
    node saw of a message is remembered; else its first delivery is taken to have held all the short delays.
    """

    def __init__(self, retry: Retry | None, *, dead_letter: bool) -> None:
        """Count for a subscription with this retry policy."""
        short = 0 if retry is None and dead_letter else _short_delays(retry)
        self._short = 0 if short == MAX_COUNTED else short  # Of endless ones, how many there were is anybody's guess.
        self._ahead: OrderedDict[str, int] = OrderedDict()

    def before(self, identity: str | None, delivery_attempt: int, *, scheduled: bool) -> int:
        """Give how many were made before this delivery."""
        ahead = self._ahead.get(identity or "")
        if ahead is None:
            held = int(scheduled and delivery_attempt > 1)
            ahead = (self._short if delivery_attempt - held > 1 else 0) - held
        return max(0, delivery_attempt - 1 + ahead)

    def note(self, identity: str | None, delivery_attempt: int, made: int) -> None:
        """Remember how many were made until it was handed back."""
        if identity:
            self._ahead[identity] = made - delivery_attempt
            if len(self._ahead) > MAX_REMEMBERED:
                self._ahead.popitem(last=False)

    def forget(self, identity: str | None) -> None:
        """Let go of a message that is done with."""
        self._ahead.pop(identity or "", None)


def seconds_until(scheduled: str) -> float:
    """Give the seconds until a ``mesh-not-before`` time; negative once it has passed, or if it is malformed."""
    try:
        return int(scheduled) / 1000 - time.time()
    except (OverflowError, ValueError):
        return -1.0


def _mean() -> float:
    return 0.5


def _short_delays(retry: Retry | None) -> int:
    """Count the leading delays that are waited out in the first delivery; each later one is a delivery of its own."""
    if retry is None:
        return sum(delay <= QUICK_DELAY for delay in SLOW_DELAYS)
    short = 0
    while short < MAX_COUNTED and (delay := retry.delay(short + 1, 0.0, _mean)) is not None and delay <= QUICK_DELAY:
        short += 1
    return short


def _elapsed(retry: Retry, made: int) -> float:
    """Estimate the time since the first attempt, which no broker tells."""
    if retry.max_elapsed is None:
        return 0.0
    return sum(retry.delay(n, 0.0, _mean) or 0.0 for n in range(1, min(made, MAX_COUNTED)))


class Settlement:
    """Runs the state machine for one subscription; an instance is a broker's handler."""

    def __init__(
        self,
        deliver: Callable[[Arrival], Awaitable[Attempt]],
        *,
        retry: Retry | None,
        dead_letter: Callable[[Delivery, str, int], Awaitable[None]] | None,
        count: Callable[[str], None],
        ack_wait: float,
        condition: Condition,
        counted: Counted | None = None,
        scheduled: bool = True,
        taps: Taps = NOBODY,
    ) -> None:
        """Prepare a handler.

        Args:
            deliver: One attempt, through the inbound pipeline.
            retry: The inbound policy's.
            dead_letter: Publishes a delivery with a reason and the number of attempts, or settles it; None drops.
            count: Counts an outcome by name.
            ack_wait: The broker's patience in seconds; a third of it is the rhythm of extensions.
            condition: Of the subscription, which it names in logs.
            counted: What is known of attempts from before this subscription; None = nothing.
            scheduled: Whether a message may say when its time comes; not where others write them too.
            taps: Who watches the node.
        """
        self._taps = taps
        self._deliver = deliver
        self._retry = retry
        self._dead_letter = dead_letter
        self._count = count
        self._ack_wait = ack_wait
        self._condition = condition
        self._label = condition.label
        self._counted = counted or Counted(retry, dead_letter=dead_letter is not None)
        self._scheduled = scheduled
        self._working: set[Delivery] = set()

    @asynccontextmanager
    async def extending(self) -> AsyncIterator[None]:
        """Keep extending what is being worked on."""
        async with task_group() as tasks:
            extending = tasks.create_task(self._extend(), name="delivery-extend")
            try:
                yield
            finally:
                extending.cancel()

    async def _extend(self) -> None:
        while True:
            before = set(self._working)
            await asyncio.sleep(self._ack_wait / 3)
            for delivery in before & self._working:
                try:
                    await delivery.extend()
                except BrokerError:
                    continue  # It comes again after the reconnect; a duplicate, not a loss.

    async def __call__(self, delivery: Delivery) -> None:
        """Handle one delivery to its end."""
        self._working.add(delivery)
        try:
            await self._settle(delivery)
        finally:
            self._working.discard(delivery)

    async def _settle(self, delivery: Delivery) -> None:
        identity, number = delivery.message.id, delivery.attempt
        scheduled = delivery.message.headers.get(NOT_BEFORE_HEADER) if self._scheduled else None
        if scheduled is not None and (hold := seconds_until(scheduled)) > 0:
            self._counted.note(identity, number, 0)
            await delivery.nack(min(hold, LONGEST_HOLD))
            return
        made = self._counted.before(identity, number, scheduled=scheduled is not None)
        try:
            while True:
                made += 1
                delivery.attempt = made
                passing = arrives(self._condition.names, held=True) if self._taps.on else None
                try:
                    attempt = await self._attempt(delivery, passing)
                except (CircuitOpenError, IdentityAwayError) as error:  # The application was not asked.
                    made -= 1
                    logger.debug("%s: %s", self._label, error)
                    await delivery.nack(BREAKER_RETRY)
                    self._tell(passing, delivery, RETRIED, str(error))
                    return
                except BrokerError as error:  # Nor was it here: the event cannot be read now.
                    made -= 1
                    self._condition.repeats(made + 1, BREAKER_RETRY, str(error))
                    await delivery.nack(BREAKER_RETRY)
                    self._tell(passing, delivery, RETRIED, str(error))
                    return
                self._count(attempt.outcome)
                if attempt.outcome is Outcome.SUCCESS:
                    self._condition.works(repeated=made > 1)
                    await delivery.ack()
                    self._tell(passing, delivery, Step.ACK, "")
                    return
                logger.debug("%s: attempt %d: %s", self._label, made, attempt.reason)
                has_dead_letter = self._dead_letter is not None
                step, delay = decide(attempt, self._retry, number, made, dead_letter=has_dead_letter)
                if step is not Step.WAIT:
                    came = await self._finish(delivery, attempt, step, delay)
                    self._tell(passing, delivery, came, attempt.reason)
                    return
                self._condition.repeats(made, delay, attempt.reason)
                self._tell(passing, delivery, RETRIED, attempt.reason)
                await asyncio.sleep(delay)
        finally:
            if delivery.settled == "ack":
                self._counted.forget(identity)
            else:
                self._counted.note(identity, number, made)

    def _tell(self, passing: Passing | None, delivery: Delivery, settlement: str, reason: str) -> None:
        """Tell those who watch of an attempt, and what follows it."""
        if passing is None:
            return
        if not passing.outcome:  # It came no further than here.
            passing.ends(Outcome.DROP if settlement in (DROPPED, Step.DEAD_LETTER) else Outcome.RETRY, reason)
        passing.details["attempt"], passing.details["settlement"] = delivery.attempt, str(settlement)
        self._taps.tell(passing)

    async def _attempt(self, delivery: Delivery, passing: Passing | None) -> Attempt:
        """Make one attempt; whatever fails in it, ours or the application's, is an attempt that failed.

        Raises:
            BrokerError: The event cannot be read now.
        """
        try:
            await delivery.complete()
        except EventError as error:
            return Attempt(Outcome.DROP, str(error))
        except BrokerError:
            raise
        except Exception as error:  # As below.
            logger.exception("%s: attempt %d failed", self._label, delivery.attempt)
            return Attempt(Outcome.RETRY, f"internal error: {type(error).__name__}", broken=True)
        try:
            return await self._deliver(Arrival(delivery.message.headers, None, delivery, passing))
        except (CircuitOpenError, IdentityAwayError):
            raise
        except DeadlineExceededError as error:
            return Attempt(Outcome.RETRY, str(error))
        except MeshError as error:
            return Attempt(Outcome.RETRY, str(error), broken=True)
        except Exception as error:  # Where deliveries settle: raised further, the broker would hand it out at once.
            logger.exception("%s: attempt %d failed", self._label, delivery.attempt)
            return Attempt(Outcome.RETRY, f"internal error: {type(error).__name__}", broken=True)

    async def _finish(self, delivery: Delivery, attempt: Attempt, step: Step, delay: float) -> str:
        """Do what follows, and say what that was in the end."""
        number = delivery.attempt
        if step is Step.NACK:
            self._condition.repeats(number, delay, attempt.reason)
            await delivery.nack(delay)
            return RETRIED
        if attempt.outcome is Outcome.RETRY:
            self._condition.gives_up(number, f"{attempt.reason}; {step}")
        else:
            logger.warning("%s: attempt %d: %s: %s", self._label, number, attempt.reason, step)
        if step is Step.DEAD_LETTER:
            assert self._dead_letter is not None
            put = self._dead_letter
            try:
                async with asyncio.timeout(DEAD_LETTER_SECONDS):
                    await put(delivery, attempt.reason, delivery.attempt)
            except Exception as error:  # noqa: BLE001 - raised further, the broker would hand it out again at once
                why = error if isinstance(error, MeshError) else repr(error)
                logger.warning("%s: cannot publish to the dead letter topic, will retry: %s", self._label, why)
                await delivery.nack(DEAD_LETTER_RETRY)
                return RETRIED
            self._count("dead_letter")
        elif attempt.outcome is Outcome.DROP:
            self._count("dropped")
        if delivery.settled is None:
            await delivery.ack()
        return Step.DEAD_LETTER if step is Step.DEAD_LETTER else DROPPED
