"""What follows when an application does not take a job, or its actor a reminder: as somebody has asked for it."""

from __future__ import annotations

import msgspec

from mesh.errors import BadArgumentError

__all__ = ["DEFAULT_POLICY", "MAX_RETRIES", "Policed", "check_policy"]

MAX_INTERVAL = 2**63 / 1e9  # Seconds: Go has no longer duration.
MAX_RETRIES = 2**32 - 1


class Policed(msgspec.Struct, frozen=True, omit_defaults=True):
    """What follows when the application fails.

    Attributes:
        interval: Seconds between attempts.
        retries: How many; None = no end.
        drop: Whether there are none.
    """

    interval: float = 1.0
    retries: int | None = 3
    drop: bool = False


DEFAULT_POLICY = Policed()


def check_policy(policy: Policed) -> None:
    """Check the limits of a policy; raises ``BadArgumentError``."""
    if not 0 <= policy.interval <= MAX_INTERVAL:
        raise BadArgumentError("failurePolicy.constant.interval is from 0 s to 292 years")
    if policy.retries is not None and not 0 <= policy.retries <= MAX_RETRIES:
        raise BadArgumentError(f"failurePolicy.constant.maxRetries is from 0 to {MAX_RETRIES}")
