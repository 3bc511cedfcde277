"""Lets so many requests a second through.

Source: Dapr 1.18, the rate limit middleware.
"""

from __future__ import annotations

import math
import time
from collections import OrderedDict
from dataclasses import dataclass
from typing import ClassVar

from bindings.middleware._paths import read
from bindings.middleware.routerchecker import plain
from mesh.adapter import ComponentAdapter
from mesh.middleware import Answer, Onward, Request
from mesh.resources.settings import Kind, choice, setting

__all__ = ["MAX_CLIENTS", "Buckets", "RateLimitMiddleware", "RateLimitSettings"]

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
        "What is counted together: of `client`, what comes from one IP address, or one /64 of version 6, towards the "
        "application from one calling app id, for one path; of `caller` all that comes from one app id; of `all` "
        "everything.",
        choice("client", "caller", "all"),
        default="client",
    )


class Buckets:
    """How many more requests each client has; those that were not seen for longest are forgotten."""

    def __init__(self, per_second: float) -> None:
        """Give everybody as many at once as in a second, and one at least."""
        self._per_second = per_second
        self._most = max(1.0, math.floor(per_second))
        self._left: OrderedDict[int, tuple[float, float]] = OrderedDict()

    def take(self, who: str, now: float) -> float:
        """Take one of a client's; gives 0, or the seconds until there is one again.

        Args:
            who: Who asks; it may be long.
            now: Seconds of a clock that is not set back.
        """
        client = hash(who)  # With a key of this process's own: nobody finds two that are the same.
        left, at = self._left.pop(client, (self._most, now))
        left = min(self._most, left + (now - at) * self._per_second)
        wait = 0.0 if left >= 1 else (1 - left) / self._per_second
        self._left[client] = (left if wait else left - 1, now)
        if len(self._left) > MAX_CLIENTS:
            self._left.popitem(last=False)
        return wait


def network(peer: str) -> str:
    """Give what one client has: an address, of version 6 those 2^64 that nobody has fewer of."""
    if ":" not in peer:
        return peer
    from ipaddress import IPv6Address  # For those alone.

    try:
        address = IPv6Address(peer.partition("%")[0])
    except ValueError:
        return peer
    mapped = address.ipv4_mapped
    return str(mapped) if mapped is not None else f"{int(address) >> 64:x}::"


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
        if per == "client":
            counted = f"{network(request.peer) or request.caller} {read(request.place)}"
        else:
            counted = request.caller if per == "caller" else ""
        wait = self._buckets.take(counted, time.monotonic())
        if wait:
            limit = ("X-Rate-Limit-Limit", f"{self._settings.most:.2f}")
            fields = limit, ("X-Rate-Limit-Duration", "1"), ("Retry-After", str(math.ceil(wait)))
            return plain(429, "You have reached maximum request limit.", *fields)
        return await onward(request)
