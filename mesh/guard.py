"""The one loop that applies policies: retry, then circuit breaker, then the call.

The timeout bounds each attempt, by whoever makes it (`mesh/deadlines.py`). An open breaker ends the retries. Which
target gets which policy is decided in ``mesh/resources/resiliency.py``.
"""

from __future__ import annotations

import asyncio
import random
import time
from typing import TYPE_CHECKING, TypeVar

from mesh.conditions import TURNS, Condition, endpoint_name
from mesh.errors import CircuitOpenError, DeadlineExceededError, MeshError
from mesh.policies import Breaker, CircuitBreaker, Permit, Policy, Verdict, by_error

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence
    from typing import TypeAlias

__all__ = ["Guard"]

_T = TypeVar("_T")

if TYPE_CHECKING:
    _Judge: TypeAlias = Callable[[_T | None, MeshError | None], Verdict]


class Guard:
    """The retry and the circuit breaker of one target at work, or the breakers of its endpoints.

    Of these, those that were asked for last are kept, as many as the policy says: callers choose their names.

    Attributes:
        timeout: Seconds of an attempt; None leaves it to what is called.
        decides: Whether it says what follows a failed attempt: then an attempt has to fail for it to be counted.
    """

    def __init__(self, policy: Policy, condition: Condition, former: Guard | None = None) -> None:
        """Start with a closed breaker.

        Args:
            policy: What applies.
            condition: Of the target; is told what happens.
            former: What applied until now; its breakers go on if they are to be the same.
        """
        self.policy = policy
        self.timeout = None if policy.timeout is None else policy.timeout.seconds
        self.decides = policy.retry is not None or policy.breaker is not None
        self._retry = policy.retry
        self._condition = condition
        self._breakers: dict[str, Breaker] = {}
        if former is not None and _breaking(former.policy) == _breaking(policy):
            self._breakers = former._breakers
        if not policy.endpoints:
            self._breakers_of("")
        condition.breakers = self._breakers
        condition.resource = policy.resource

    @property
    def in_use(self) -> bool:
        """Whether it has something to remember: see `Condition.in_use`."""
        return self._condition.in_use

    async def run(
        self,
        call: Callable[[], Awaitable[_T]],
        judge: _Judge[_T] = by_error,
        *,
        endpoint: str = "",
        deadline: float | None = None,
        release: Callable[[_T], Awaitable[None]] | None = None,
    ) -> _T:
        """Make a call as often as the policy says; what the last attempt gave or raised is the answer.

        Args:
            call: Makes one attempt.
            judge: Says what an attempt came to.
            endpoint: The part of the target that is called.
            deadline: Unix time in seconds; an attempt that could only begin later is not made.
            release: Lets go of a result that is not the answer.

        Raises:
            CircuitOpenError: The breaker refuses; this ends the retries.
        """
        started = time.monotonic()
        attempt = 0
        breakers = self._breakers_of(endpoint)
        if self._condition.observer is not None:
            self._tell_policies(self._condition, breakers)
        self._condition.enter()
        try:
            while True:
                attempt += 1
                result, error, verdict = await self._tried(call, judge, breakers, attempt)
                delay = self._delay(verdict, attempt, started, deadline)
                self._note(verdict, error, attempt, delay)
                if delay is None:
                    if error is not None:
                        raise error
                    return result  # type: ignore[return-value]  # there is a result when there is no error
                if result is not None and release is not None:
                    await release(result)
                await asyncio.sleep(delay)
        finally:
            error = None  # What it was raised through are this frame and the call: they would keep each other.
            self._condition.leave()

    def _breakers_of(self, endpoint: str) -> Sequence[Breaker]:
        """Give those that a call has to pass."""
        policy = self.policy
        if policy.breaker is None:
            return ()
        if not policy.endpoints:
            return (self._breaker_of("", policy.breaker),)
        own = self._breaker_of(endpoint_name(endpoint), policy.breaker)
        return (self._breaker_of("", policy.breaker), own) if policy.both else (own,)

    def _breaker_of(self, name: str, config: CircuitBreaker) -> Breaker:
        kept = self._breakers
        # Put at the end: the first is the one that was asked for longest ago.
        if (breaker := kept.pop(name, None)) is None:
            breaker = Breaker(config, time.monotonic, self._condition, name)
            self._condition.breaker_begins(name)
        breaker.asked, kept[name] = next(TURNS), breaker
        while len(kept) > max(self.policy.endpoints + self.policy.both, 1):
            del kept[next(iter(kept))]
        return breaker

    async def _tried(
        self, call: Callable[[], Awaitable[_T]], judge: _Judge[_T], breakers: Sequence[Breaker], attempt: int
    ) -> tuple[_T | None, MeshError | None, Verdict]:
        try:
            return await self._attempt(call, judge, breakers)
        except CircuitOpenError as error:
            if attempt > 1:
                self._condition.gives_up(attempt - 1, str(error))
            raise

    def _tell_policies(self, condition: Condition, breakers: Sequence[Breaker]) -> None:
        if self.timeout is not None:
            condition.applies("timeout")
        if self._retry is not None:
            condition.applies("retry")
        for breaker in breakers:
            condition.applies("circuitbreaker", breaker.status)

    def _note(self, verdict: Verdict, error: MeshError | None, attempt: int, delay: float | None) -> None:
        if not verdict.again:
            if verdict.worked:
                self._condition.works(repeated=attempt > 1)
            return
        reason = f"the answer was {verdict.status}" if error is None else str(error)
        if delay is not None:
            self._condition.repeats(attempt, delay, reason)
        elif attempt > 1:
            self._condition.gives_up(attempt, reason)

    async def attempt(
        self, call: Callable[[], Awaitable[_T]], judge: _Judge[_T] = by_error
    ) -> tuple[_T | None, MeshError | None, Verdict]:
        """Make a call once, if the breaker admits it; give its result or its error.

        Raises:
            CircuitOpenError: The breaker refuses; nothing was called.
        """
        return await self._attempt(call, judge, self._breakers_of(""))

    async def _attempt(
        self, call: Callable[[], Awaitable[_T]], judge: _Judge[_T], breakers: Sequence[Breaker]
    ) -> tuple[_T | None, MeshError | None, Verdict]:
        admitted = _admitted(breakers)
        result: _T | None = None
        failure: MeshError | None = None
        try:
            result = await call()
        except MeshError as error:
            failure = error
            if self.timeout is not None and isinstance(error, DeadlineExceededError):
                self._condition.activates("timeout")
        except BaseException:
            _release(admitted)
            raise
        try:
            verdict = judge(result, failure)
            for breaker, permit in admitted:
                breaker.record(verdict.worked, permit)
            return result, failure, verdict
        finally:
            failure = None  # As above.

    def _delay(self, verdict: Verdict, attempt: int, started: float, deadline: float | None) -> float | None:
        retry = self._retry
        if retry is None or not verdict.again:
            return None
        if verdict.status is not None and not retry.should_retry_status(verdict.status):
            return None
        delay = retry.delay(attempt, time.monotonic() - started, random.random)
        return None if delay is None or (deadline is not None and time.time() + delay >= deadline) else delay


def _breaking(policy: Policy) -> tuple[CircuitBreaker | None, bool, bool]:
    return policy.breaker, policy.endpoints > 0, policy.both


def _admitted(breakers: Sequence[Breaker]) -> list[tuple[Breaker, Permit]]:
    """Pass all of them, or none."""
    admitted: list[tuple[Breaker, Permit]] = []
    for breaker in breakers:
        if (permit := breaker.allow()) is None:
            _release(admitted)
            raise CircuitOpenError("circuit breaker is open")
        admitted.append((breaker, permit))
    return admitted


def _release(admitted: Sequence[tuple[Breaker, Permit]]) -> None:
    for breaker, permit in admitted:
        breaker.release(permit)
