"""What every operation passes, and what everything for the application passes.

An operation, outermost first:

=========  =====================================================  =================================
stage      what it does                                           there is one
=========  =====================================================  =================================
tap        collects what was asked and what came of it            when somebody watches the node
log        writes a line of what was asked and came of it         when the log has lines at ``debug``
observe    tells what was asked, what came of it, how long        when there is an observer
policy     retry and circuit breaker of the target                when a Resiliency names anything
deadline   the client's, the policy's, or the method's own limit  always
place      here, or over the backbone to a host                   always
=========  =====================================================  =================================

It is put together at start, and again when a Resiliency has changed: what is not configured costs nothing. A deadline
bounds one attempt; the client's own bounds all of them. Without one, a policy that retries without an end goes on until
the client hangs up, which cancels the operation.

Towards the application the mirror image: an event, alone or to be one of a batch, a durable call, a change of a
configuration, and a call from here or elsewhere pass, outermost first:

===========  =====================================================  ===================================
stage        what it does                                           there is one
===========  =====================================================  ===================================
tap          collects what came and what came of it                 when somebody watches the node
log          writes a line of what came and what came of it         when the log has lines at ``debug``
observe      tells what came, what came of it, how long             for an observer of the node's own
policy       circuit breaker of the inbound policy                  when one is named; for no call
wait         until the application listens                          for what a broker keeps
deadline     the sender's; else the policy's timeout, or an hour    always
application  the block's way to it: read, find the route, call      always
===========  =====================================================  ===================================

The retries of an inbound policy lie around it, in `mesh/delivery.py`: in between, the broker holds the event. Those of
a change are in `mesh/blocks/configuration.py`. A call has no inbound policy, as in the reference: its caller's applies.
An application that does not listen is not waited for with it either: it goes to another instance. What bounds a call
ends when the answer begins.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol

from mesh.conditions import Conditions
from mesh.deadlines import NO_ANSWER, Deadlines
from mesh.delivery import Attempt, Outcome
from mesh.errors import AppUnreachableError, IdentityAwayError, MeshError
from mesh.guard import Guard
from mesh.passing import NOBODY, Passing, Taps, arrives
from mesh.policies import Policy, Verdict
from mesh.recent import Recent
from mesh.telemetry import ARRIVALS, CANCELLED, FAILED, OK, OPERATIONS

if TYPE_CHECKING:
    from mesh.operation import Arrival, Operation
    from mesh.telemetry import Observer

__all__ = ["Handler", "InboundHandler", "InboundPipeline", "Pipeline", "Service"]

logger = logging.getLogger(__name__)

MAX_GUARDS = 10_000
MAX_ATTEMPT_SECONDS = 3600.0

Handler = Callable[["Operation"], Awaitable[object]]
InboundHandler = Callable[["Arrival"], Awaitable[Any]]
PolicyOf = Callable[[str, str], Policy]
Details = Callable[[Any, Any], tuple[str, ...]]


class Service(Protocol):
    """A building block at work on this node."""

    @property
    def run(self) -> Handler:
        """Do what is asked, here or elsewhere, by ``operation.deadline``."""


class Pipeline:
    """The one way to a building block.

    Attributes:
        run: Passes an operation through all stages; gives its result or raises a ``MeshError``.
    """

    def __init__(
        self,
        services: Mapping[str, Service],
        *,
        policy_of: PolicyOf | None = None,
        observer: Observer | None = None,
        conditions: Conditions | None = None,
        taps: Taps = NOBODY,
        hosts: bool = False,
    ) -> None:
        """Put it together.

        Args:
            services: The building blocks, by name.
            policy_of: Gives the policy around a block's target; None when no policy is configured.
            observer: Is told of every operation; None = nobody.
            conditions: The node's; None = its own.
            taps: Who watches the node.
            hosts: Whether it is for what other nodes ask.
        """
        self._services, self._observer = services, observer
        self._tapped = partial(_tapped, taps, "hosted" if hosts else "asked")
        self._taps = taps
        self._conditions = conditions or Conditions()
        self._guards: Recent[tuple[str, str], Guard | None] = Recent(MAX_GUARDS, _in_use)
        self._deadlines = Deadlines()
        self.run: Handler
        self.apply(policy_of)

    def apply(self, policy_of: PolicyOf | None) -> None:
        """Apply other policies from here on; where a target's are the same, its circuit breaker is as it was."""
        former, self._guards = self._guards, Recent(MAX_GUARDS, _in_use)
        for (block, target), guard in former.everything():
            if guard is not None:
                policy = Policy() if policy_of is None else policy_of(block, target)
                made = Guard(policy, self._conditions.of(block, target), guard)
                if policy != Policy():
                    self._guards.keep((block, target), made)
        run: Handler = partial(_within_deadline, self._deadlines, partial(_placed, self._services))
        if policy_of is not None:
            run = partial(_by_policy, policy_of, self._conditions, self._guards, run)
        if self._observer is not None:
            run = partial(_observed, self._observer, OPERATIONS, _labels, _details, run)
        self.run = partial(_watched, self._taps, self._tapped, OPERATIONS, _labels, run)


class InboundPipeline:
    """The one way to this node's application.

    Attributes:
        conditions: Of what comes this way, and of what the node asks for.
        taps: Who watches the node.
    """

    def __init__(
        self, observer: Observer | None = None, conditions: Conditions | None = None, taps: Taps = NOBODY
    ) -> None:
        """Prepare.

        Args:
            observer: Is told of everything that comes; None = nobody.
            conditions: The node's; None = its own.
            taps: Who watches the node.
        """
        self.conditions = conditions or Conditions()
        self.taps = taps
        self._observer = observer
        self._deadlines = Deadlines()
        self._guards: Recent[tuple[str, ...], Guard | None] = Recent(MAX_GUARDS, _in_use)

    def towards(
        self,
        call: InboundHandler,
        *labels: str,
        policy: Policy = Policy(),  # noqa: B008 - a frozen value
        until_reachable: Callable[[], Awaitable[None]] | None = None,
        told: Details | None = None,
    ) -> InboundHandler:
        """Put the stages around a way to the application; once for each subscription.

        One that is put around the same way again, as after a change of the subscription, has the circuit breaker of the
        one before if that is to be the same.

        Args:
            call: The innermost stage; raises AppUnreachableError when nothing reached the application.
            *labels: What comes this way, and where from; for the observer.
            policy: The inbound policy, without its retries.
            until_reachable: Waits for the application; None = the error is the sender's.
            told: Gives what the observer is told besides, of the arrival and what came of it (None for a failure).

        Returns:
            What hands one arrival over, and gives what came of it or raises.
        """
        limit = MAX_ATTEMPT_SECONDS if policy.timeout is None else policy.timeout.seconds
        run: InboundHandler = partial(_bounded, self._deadlines, limit, call)
        if until_reachable is not None:
            run = partial(_waiting, until_reachable, run)
        guard = self._guard(policy, labels)
        if guard is not None:
            run = partial(_guarded, guard, run)
        if self._observer is not None:
            run = partial(_observed, self._observer, ARRIVALS, lambda _: labels, told or _nothing, run)
        return partial(_watched, self.taps, partial(_arriving, self.taps, labels), ARRIVALS, lambda _: labels, run)

    def _guard(self, policy: Policy, labels: tuple[str, ...]) -> Guard | None:
        try:
            former = self._guards[labels]
        except KeyError:
            former = None
        condition = self.conditions.of(*labels)
        made = None if policy.breaker is None else Guard(policy, condition, former)
        if made is None:
            condition.breakers = {}  # One that was taken out is told of no more.
        return self._guards.keep(labels, made)


def _labels(operation: Operation) -> tuple[str, ...]:
    return operation.method.block, operation.method.name, operation.target


def _details(operation: Operation, result: object) -> tuple[str, ...]:
    told = operation.method.told
    return () if told is None else told(operation.arguments, result)


def _nothing(_: object, __: object) -> tuple[str, ...]:
    return ()


async def _observed(
    observer: Observer,
    name: str,
    labels: Callable[[Any], tuple[str, ...]],
    details: Details,
    proceed: Callable[[Any], Awaitable[Any]],
    passing: Any,
) -> object:
    started = time.perf_counter()
    outcome = FAILED
    result = None
    try:
        result = await proceed(passing)
        outcome = result.outcome if isinstance(result, Attempt) else OK
    except MeshError as error:
        outcome = error.code
        raise
    except asyncio.CancelledError:
        outcome = CANCELLED
        raise
    finally:
        seconds = time.perf_counter() - started
        observer(name, (*labels(passing), outcome), 1, seconds, details(passing, result))
    return result


def _watched(
    taps: Taps,
    tapped: Callable[[Callable[[Any], Awaitable[Any]], Any], Awaitable[Any]],
    name: str,
    labels: Callable[[Any], tuple[str, ...]],
    proceed: Callable[[Any], Awaitable[Any]],
    passing: Any,
) -> Awaitable[Any]:
    """Collect for those who watch, and write a line at ``debug``: both may begin and end at any time."""
    if logger.isEnabledFor(logging.DEBUG):
        proceed = partial(_observed, _log, name, labels, _nothing, proceed)
    if taps.on:
        return tapped(proceed, passing)
    return proceed(passing)


def _tapped(taps: Taps, seen: str, proceed: Callable[[Any], Awaitable[Any]], operation: Operation) -> Awaitable[object]:
    return _asking(taps, seen, proceed, operation) if taps.takes(operation.method.block) else proceed(operation)


async def _asking(taps: Taps, seen: str, proceed: Callable[[Any], Awaitable[Any]], operation: Operation) -> object:
    method, context = operation.method, operation.context
    source, span = context.caller.app_id, context.traceparent or ""
    passing = Passing(seen, method.block, method.name, operation.target, source, traceparent=span)
    taps.asked(passing, operation)
    result = None
    try:
        result = await _timed(passing, proceed, operation)
    finally:
        taps.came(passing, operation, result)
        taps.tell(passing)
    return result


async def _arriving(
    taps: Taps, labels: tuple[str, ...], proceed: Callable[[Any], Awaitable[Any]], arrival: Arrival
) -> object:
    passing = arrival.passing
    if passing is None:
        passing = arrives(labels)
        arrival = arrival._replace(passing=passing)
    try:
        return await _timed(passing, proceed, arrival)
    finally:
        if not passing.held:
            taps.tell(passing)


async def _timed(passing: Passing, proceed: Callable[[Any], Awaitable[Any]], what: Any) -> object:
    outcome, reason = FAILED, ""
    try:
        result = await proceed(what)
        outcome = OK
        if isinstance(result, Attempt):
            outcome, reason = result.outcome.value, result.reason
            if result.status is not None:
                passing.details.setdefault("status", result.status)
        return result
    except MeshError as error:
        outcome, reason = error.code, str(error)
        raise
    except asyncio.CancelledError:
        outcome = CANCELLED
        raise
    finally:
        passing.ends(outcome, reason)


def _log(
    name: str, labels: tuple[str, ...], times: int = 1, seconds: float = 0.0, details: tuple[str, ...] = ()
) -> None:
    *about, outcome = labels
    logger.debug("%s %s: %s, %.1f ms", name.removesuffix("s"), " ".join(about), outcome, seconds * 1000)


async def _guarded(guard: Guard, proceed: InboundHandler, arrival: Arrival) -> object:
    result, error, _ = await guard.attempt(lambda: proceed(arrival), _worked)
    if error is not None:
        raise error
    return result


def _worked(attempt: object, error: MeshError | None) -> Verdict:
    asked = not isinstance(error, IdentityAwayError)  # Else nothing is said of the application.
    return Verdict(not asked or (isinstance(attempt, Attempt) and attempt.outcome is not Outcome.RETRY))


async def _waiting(until_reachable: Callable[[], Awaitable[None]], proceed: InboundHandler, arrival: Arrival) -> object:
    while True:
        try:
            return await proceed(arrival)
        except AppUnreachableError:
            await until_reachable()


async def _bounded(deadlines: Deadlines, limit: float, call: InboundHandler, arrival: Arrival) -> object:
    seconds = limit if arrival.deadline is None else arrival.deadline - time.time()
    return await deadlines.within(seconds, call, arrival)


async def _by_policy(
    policy_of: PolicyOf,
    conditions: Conditions,
    guards: Recent[tuple[str, str], Guard | None],
    proceed: Handler,
    operation: Operation,
) -> object:
    if not operation.method.guarded:
        return await proceed(operation)
    key = operation.method.block, operation.target
    try:
        guard = guards[key]
    except KeyError:
        policy = policy_of(*key)
        guard = guards.keep(key, None if policy == Policy() else Guard(policy, conditions.of(*key)))
    if guard is None:
        return await proceed(operation)
    operation.limit = guard.timeout
    operation.waits = not guard.decides
    return await guard.run(
        lambda: proceed(operation),
        operation.judged,
        endpoint=operation.method.endpoint(operation.arguments) if guard.policy.endpoints else "",
        deadline=operation.context.deadline,
        release=_released,
    )


def _in_use(guard: Guard | None) -> bool:
    return guard is not None and guard.in_use


async def _released(result: object) -> None:
    """Let go of an answer whose call is made again."""
    close = getattr(result, "aclose", None)
    if close is not None:
        await close()


async def _within_deadline(deadlines: Deadlines, proceed: Handler, operation: Operation) -> object:
    now = time.time()
    limit, given = operation.limit, operation.context.deadline
    if given is None:
        seconds = operation.method.seconds if limit is None else limit
    else:
        seconds = given - now if limit is None else min(limit, given - now)
    operation.deadline = now + seconds
    grace = operation.method.grace
    # A block with a grace says so itself, unless the loop was too busy: then it is said here in the same words.
    return await deadlines.within(seconds + grace, proceed, operation, text=NO_ANSWER if grace else "")


def _placed(services: Mapping[str, Service], operation: Operation) -> Awaitable[object]:
    return services[operation.method.block].run(operation)
