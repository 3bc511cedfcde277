"""Timeout, retry and circuit breaker as frozen values and pure decisions, and the one loop that applies them.

`Guard` applies a policy as retry, then circuit breaker, then the call; the timeout bounds each attempt, by
whoever makes it (`mesh/deadlines.py`). An open breaker ends the retries. Which target gets which policy is
decided in ``mesh/resources/resiliency.py``.

Source: Dapr 1.18, resiliency policies.
"""

from __future__ import annotations

import asyncio
import random
import time
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TYPE_CHECKING, Literal, NamedTuple, TypeVar

from mesh.breaker import Breaker
from mesh.conditions import TURNS, Condition, endpoint_name
from mesh.errors import CircuitOpenError, DeadlineExceededError, MeshError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping, Sequence
    from typing import TypeAlias

    from mesh.breaker import Permit
    from mesh.expressions import Trip

__all__ = [
    "BUILT_IN_RETRIES",
    "EXPONENTIAL_MAX_ELAPSED",
    "EXPONENTIAL_START",
    "CircuitBreaker",
    "Guard",
    "Policy",
    "Retry",
    "StatusCodes",
    "Timeout",
    "Verdict",
    "by_error",
    "parse_status_codes",
]

_T = TypeVar("_T")

EXPONENTIAL_START = 0.5
EXPONENTIAL_MAX_ELAPSED = 15 * 60.0
_MULTIPLIER = 1.5
_JITTER_RATIO = 0.5
_LAST_GROWTH = 1000  # 1.5 ** 1000 is far above any interval and still a float.
_HTTP_STATUSES = range(100, 600)
_GRPC_STATUSES = range(17)


@dataclass(frozen=True, slots=True)
class Timeout:
    """How long one attempt may take, in seconds."""

    seconds: float


@dataclass(frozen=True, slots=True)
class StatusCodes:
    """Inclusive ranges of status codes."""

    ranges: tuple[tuple[int, int], ...]

    def __contains__(self, status: int) -> bool:
        return any(low <= status <= high for low, high in self.ranges)


def parse_status_codes(text: str, kind: Literal["http", "grpc"]) -> StatusCodes:
    """Read a list of codes and ranges such as ``429,500-599``.

    Raises:
        ValueError: A part is no code or range of this kind (HTTP 100-599, gRPC 0-16).
    """
    known = _HTTP_STATUSES if kind == "http" else _GRPC_STATUSES
    ranges: list[tuple[int, int]] = []
    for part in text.split(","):
        low, dash, high = (piece.strip() for piece in part.partition("-"))
        codes = [int(piece) for piece in (low, high or low) if piece.isascii() and piece.isdigit() and len(piece) < 4]
        if len(codes) < 2 or bool(dash) != bool(high) or codes[0] not in known or codes[1] not in known:
            raise ValueError(f"'{part.strip()}' is no status code or range within {known[0]}-{known[-1]}")
        if codes[0] > codes[1]:
            raise ValueError(f"the range '{part.strip()}' ends before it begins")
        ranges.append((codes[0], codes[1]))
    return StatusCodes(tuple(ranges))


@dataclass(frozen=True, slots=True)
class Retry:
    """When a failed call is made again.

    Attributes:
        kind: ``constant`` waits ``interval``; ``exponential`` begins with it, times 1.5, +-50 %.
        interval: Seconds.
        max_interval: Seconds; the longest exponential wait before jitter.
        max_retries: None = no limit, 0 = never again.
        max_elapsed: Seconds after the first attempt in which a retry may begin; None = no limit.
        http_statuses: Only these HTTP statuses are retried; None = all.
        grpc_statuses: Only these gRPC statuses are retried; None = all.
        name: The policy's name in its resource.
    """

    kind: Literal["constant", "exponential"] = "constant"
    interval: float = 5.0
    max_interval: float = 60.0
    max_retries: int | None = None
    max_elapsed: float | None = None
    http_statuses: StatusCodes | None = None
    grpc_statuses: StatusCodes | None = None
    name: str = ""

    @classmethod
    def exponential(cls, max_interval: float = 60.0, max_retries: int | None = None, *, name: str = "") -> Retry:
        """Make an exponential retry with Dapr's first interval and its limit of 15 minutes."""
        return cls("exponential", EXPONENTIAL_START, max_interval, max_retries, EXPONENTIAL_MAX_ELAPSED, name=name)

    def delay(self, attempt: int, elapsed: float, random: Callable[[], float]) -> float | None:
        """Decide how long to wait after a failed attempt.

        Args:
            attempt: Attempts made so far, from 1.
            elapsed: Seconds since the first attempt began.
            random: Gives numbers from 0 up to 1.

        Returns:
            Seconds; None = give up.
        """
        if self.max_retries is not None and attempt > self.max_retries:
            return None
        delay = self.interval
        if self.kind == "exponential":
            delay = min(delay * _MULTIPLIER ** min(attempt - 1, _LAST_GROWTH), self.max_interval)
            delay *= 1 - _JITTER_RATIO + 2 * _JITTER_RATIO * random()
        if self.max_elapsed is not None and elapsed + delay > self.max_elapsed:
            return None
        return delay

    def should_retry_status(self, status: int) -> bool:
        """Tell whether a failure with this status, of HTTP or of gRPC, is worth another attempt."""
        statuses = self.http_statuses if status >= _HTTP_STATUSES.start else self.grpc_statuses
        return statuses is None or status in statuses


@dataclass(frozen=True, slots=True)
class CircuitBreaker:
    """When calls are refused without being made.

    Attributes:
        name: The policy's name in its resource.
        max_requests: Calls admitted while half-open; as many successes close it.
        interval: Seconds after which a closed breaker forgets its counts; 0 = never.
        timeout: Seconds that it stays open.
        trip: When it opens; None = after more than 5 failures in a row.
    """

    name: str = ""
    max_requests: int = 1
    interval: float = 0.0
    timeout: float = 60.0
    trip: Trip | None = None


@dataclass(frozen=True, slots=True)
class Policy:
    """What applies to calls to one target; None = nothing of the kind.

    Attributes:
        timeout: Of each attempt.
        retry: When a failed one is made again.
        breaker: When none is made.
        endpoints: How many of the target's endpoints have a circuit breaker of their own; 0 = one is for all of it.
        both: Whether one is for all of it besides; then a call has to pass both.
        resource: The Resiliency it is from.
    """

    timeout: Timeout | None = None
    retry: Retry | None = None
    breaker: CircuitBreaker | None = None
    endpoints: int = 0
    both: bool = False
    resource: str = field(default="", compare=False)


class Verdict(NamedTuple):
    """What a policy makes of an attempt.

    Attributes:
        worked: Whether the target works, for the circuit breaker; a refusal is an answer of one that does.
        again: Whether another attempt may help.
        status: The status of HTTP or gRPC, which a retry may be limited to; None when there is none.
    """

    worked: bool
    again: bool = False
    status: int | None = None


if TYPE_CHECKING:
    _Judge: TypeAlias = Callable[[_T | None, MeshError | None], Verdict]


def by_error(result: object, error: MeshError | None) -> Verdict:
    """Judge an attempt by what it raised: what is ``retryable`` is the target's failure, anything else its answer."""
    again = error is not None and error.retryable
    return Verdict(not again, again)


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
        verdict = judge(result, failure)
        for breaker, permit in admitted:
            breaker.record(verdict.worked, permit)
        return result, failure, verdict

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


BUILT_IN_RETRIES: Mapping[str, Retry] = MappingProxyType(
    {
        retry.name: retry
        for retry in (
            Retry(interval=1.0, max_retries=3, name="DaprBuiltInServiceRetries"),
            Retry(interval=1.0, max_retries=3, name="DaprBuiltInActorRetries"),
            Retry.exponential(name="DaprBuiltInActorReminderRetries"),
            Retry(interval=1.0, max_retries=5, name="DaprBuiltInActorNotFoundRetries"),
            Retry.exponential(max_retries=3, name="DaprBuiltInInitializationRetries"),
        )
    }
)
