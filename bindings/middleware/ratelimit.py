"""Lets so many requests a second through.

Source: Dapr 1.18, the rate limit middleware.
"""

from __future__ import annotations

import math
import time
from collections import OrderedDict
from dataclasses import dataclass
from typing import ClassVar

from bindings.middleware.routerchecker import plain
from mesh.adapter import ComponentAdapter
from mesh.middleware import Answer, Onward, Request
from mesh.resources.settings import Kind, choice, setting

__all__ = ["MAX_CLIENTS", "Buckets", "RateLimitMiddleware"]

MAX_CLIENTS = 10_000


def rate(text: str) -> float:
    """Read a number greater than zero; raises ValueError."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value < math.inf:
        raise ValueError(f"is a number greater than 0, not '{text}'")
    return value


@dataclass(frozen=True, slots=True)
class RateLimitSettings:
    """What is read of a component."""

    most: float = setting(
        "maxRequestsPerSecond",
        "How many requests of one client go on in a second; as many may come at once.",
        Kind("number greater than 0", rate),
        default=100.0,
    )
    per: str = setting(
        "mesh.per",
        "What is counted together: of `client`, what comes from one IP address, towards the application from one "
        "calling app id, for one path; of `caller` all that comes from one app id; of `all` everything.",
        choice("client", "caller", "all"),
        default="client",
    )


class Buckets:
    """How many more requests each client has; those that were not seen for longest are forgotten."""

    def __init__(self, per_second: float) -> None:
        """Give everybody as many at once as in a second, and one at least."""
        self._per_second = per_second
        self._most = max(1.0, math.floor(per_second))
        self._left: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def take(self, client: str, now: float) -> float:
        """Take one of a client's; gives 0, or the seconds until there is one again.

        Args:
            client: Who asks.
            now: Seconds of a clock that is not set back.
        """
        left, at = self._left.pop(client, (self._most, now))
        left = min(self._most, left + (now - at) * self._per_second)
        wait = 0.0 if left >= 1 else (1 - left) / self._per_second
        self._left[client] = (left if wait else left - 1, now)
        if len(self._left) > MAX_CLIENTS:
            self._left.popitem(last=False)
        return wait


class RateLimitMiddleware(ComponentAdapter):
    """Answers 429 to a client that asks more often than it may; each gateway counts for itself."""

    tested = "nothing outside of the gateway"
    settings: ClassVar[type[RateLimitSettings]] = RateLimitSettings

    def __init__(self, settings: RateLimitSettings) -> None:
        """Prepare."""
        super().__init__(settings)
        self._buckets = Buckets(settings.most)

    async def handle(self, request: Request, onward: Onward) -> Answer:
        """Pass on what is not too much."""
        per = self._settings.per
        one = f"{request.peer or request.caller} {request.path}"
        counted = one if per == "client" else request.caller if per == "caller" else ""
        wait = self._buckets.take(counted, time.monotonic())
        if wait:
            limit = ("X-Rate-Limit-Limit", f"{self._settings.most:.2f}")
            fields = limit, ("X-Rate-Limit-Duration", "1"), ("Retry-After", str(math.ceil(wait)))
            return plain(429, "You have reached maximum request limit.", *fields)
        return await onward(request)
