"""A circuit breaker at work: what it admits, and what it makes of how that ended.

Source: it follows github.com/sony/gobreaker.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NewType

from mesh.errors import ExpressionError

if TYPE_CHECKING:
    from collections.abc import Callable

    from mesh.conditions import BreakerStatus, Condition
    from mesh.policies import CircuitBreaker

__all__ = ["Breaker", "Permit"]

Permit = NewType("Permit", int)
_COUNTS = ("requests", "totalSuccesses", "totalFailures", "consecutiveSuccesses", "consecutiveFailures")


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
