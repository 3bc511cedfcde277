"""Timeout, retry and circuit breaker as frozen values and pure decisions; `mesh/guard.py` applies them.

Which target gets which policy is decided in ``mesh/resources/resiliency.py``.

Source: Dapr 1.18, resiliency policies; the breaker follows github.com/sony/gobreaker.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TYPE_CHECKING, Literal, NamedTuple, NewType

from mesh.errors import ExpressionError, MeshError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from mesh.conditions import BreakerStatus, Condition
    from mesh.expressions import Trip

__all__ = [
    "BUILT_IN_RETRIES",
    "EXPONENTIAL_MAX_ELAPSED",
    "EXPONENTIAL_START",
    "Breaker",
    "CircuitBreaker",
    "Permit",
    "Policy",
    "Retry",
    "StatusCodes",
    "Timeout",
    "Verdict",
    "by_error",
    "parse_status_codes",
]

Permit = NewType("Permit", int)

EXPONENTIAL_START = 0.5
EXPONENTIAL_MAX_ELAPSED = 15 * 60.0
_MULTIPLIER = 1.5
_JITTER_RATIO = 0.5
_LAST_GROWTH = 1000  # 1.5 ** 1000 is far above any interval and still a float.
_HTTP_STATUSES = range(100, 600)
_GRPC_STATUSES = range(17)
_COUNTS = ("requests", "totalSuccesses", "totalFailures", "consecutiveSuccesses", "consecutiveFailures")


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


class Breaker:
    """The state of one circuit breaker; not shared between event loops.

    Each admitted call gets a `Permit`, to be given back with exactly one of `record` and `release`.
    A result that comes back after the state changed is ignored.

    Attributes:
        asked: Tells which of all were asked for last.
        endpoint: The part of the target that it is for; empty = all of it.
        refused: What it has refused since it opened.
    """

    __slots__ = (
        *("_clock", "_condition", "_config", "_counts", "_era", "_status", "_until", "asked", "endpoint", "refused"),
    )

    def __init__(
        self,
        config: CircuitBreaker,
        clock: Callable[[], float],
        condition: Condition | None = None,
        endpoint: str = "",
    ) -> None:
        """Begin closed.

        Args:
            config: The limits.
            clock: Monotonic seconds.
            condition: Is told of changes; None = nobody is.
            endpoint: The part of the target that it is for; empty = all of it.
        """
        self.endpoint = endpoint
        self.asked = self.refused = 0
        self._config = config
        self._clock = clock
        self._condition = condition
        self._era = 0
        self._status: BreakerStatus = "closed"
        self._counts: dict[str, int] = {}
        self._become("closed", clock())

    @property
    def name(self) -> str:
        """The policy's name in its resource."""
        return self._config.name

    @property
    def status(self) -> BreakerStatus:
        """The state now; time alone may have changed it."""
        now = self._clock()
        if self._until is not None and now >= self._until:
            self._become("closed" if self._status == "closed" else "half-open", now)
        return self._status

    def allow(self) -> Permit | None:
        """Admit a call, or refuse it with None."""
        status = self.status
        if status == "open" or (status == "half-open" and self._counts["requests"] >= self._config.max_requests):
            self.refused += 1
            return None
        self._counts["requests"] += 1
        return Permit(self._era)

    def record(self, success: bool, permit: Permit | None = None) -> None:
        """Count how an admitted call ended.

        Args:
            success: Whether the target worked.
            permit: What `allow` gave; None = a call admitted in the present state.
        """
        status = self.status
        if status == "open" or (permit is not None and permit != self._era):
            return
        counts = self._counts
        this, other = ("Successes", "Failures") if success else ("Failures", "Successes")
        counts[f"total{this}"] += 1
        counts[f"consecutive{this}"] += 1
        counts[f"consecutive{other}"] = 0
        if status == "half-open":
            if not success:
                self._become("open", self._clock())
            elif counts["consecutiveSuccesses"] >= self._config.max_requests:
                self._become("closed", self._clock())
        elif not success and self._trips():
            self._become("open", self._clock())

    def release(self, permit: Permit) -> None:
        """Take back a call that was cancelled: it says nothing about the target."""
        if self.status != "open" and permit == self._era and self._counts["requests"] > 0:
            self._counts["requests"] -= 1

    def _become(self, status: BreakerStatus, now: float) -> None:
        if status == "open":
            self.refused = 0
        if status != self._status and self._condition is not None:
            self._condition.breaker_became(self, status, self._counts, self._config.timeout)
        self._status = status
        self._era += 1  # From 1, so that every permit is true.
        lasts = {"closed": self._config.interval or None, "open": self._config.timeout, "half-open": None}[status]
        self._until = None if lasts is None else now + lasts
        self._counts = dict.fromkeys(_COUNTS, 0)

    def _trips(self) -> bool:
        try:
            if self._config.trip is not None:
                return self._config.trip.tripped(self._counts)
        except ExpressionError as error:  # As `totalFailures / totalSuccesses` does when nothing worked.
            if self._condition is not None:
                self._condition.cannot_tell(self.name, str(error))
        return self._counts["consecutiveFailures"] > 5


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


def by_error(result: object, error: MeshError | None) -> Verdict:
    """Judge an attempt by what it raised: what is ``retryable`` is the target's failure, anything else its answer."""
    again = error is not None and error.retryable
    return Verdict(not again, again)


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
