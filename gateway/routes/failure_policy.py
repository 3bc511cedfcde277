"""The failure policy of a job or of a reminder, as it stands in JSON and in a message: read alike, with one default.

Source: Dapr 1.18, ``JobFailurePolicy``. Other than there, a constant policy without an interval has the default's
(there: none, so that it is tried again at once, and without end where it has no ``maxRetries`` either).
"""

from __future__ import annotations

from typing import Any

from gateway.errors import malformed
from gateway.routes.request import fields, members
from mesh.blocks.job_record import DEFAULT_POLICY, MAX_RETRIES, Policed
from mesh.values import parse_duration, parse_whole

__all__ = ["NANOSECONDS", "policy_of", "read_policy", "read_whole"]

NANOSECONDS = 10**9


def read_policy(value: object) -> Policed:
    """Read what stands in JSON; raises ``APIError`` that names the member."""
    if value is None:
        return DEFAULT_POLICY
    policy = members(value, "failurePolicy")
    drop, constant = policy.get("drop"), policy.get("constant")
    if drop is not None and constant is not None:
        raise malformed("failurePolicy is either drop or constant")
    if drop is not None:
        fields(drop, "failurePolicy.drop")
        return Policed(drop=True)
    if constant is None:
        return DEFAULT_POLICY
    given = members(constant, "failurePolicy.constant")
    interval, retries = given.get("interval"), given.get("maxretries")
    try:
        if interval is not None and not (isinstance(interval, str) and interval.endswith("s")):
            raise ValueError("it is written as 3s or 0.5s")
        seconds = DEFAULT_POLICY.interval if interval is None else parse_duration(interval)
    except ValueError as error:
        raise malformed(f"failurePolicy.constant.interval: {error}") from None
    return Policed(seconds, read_whole(retries, "failurePolicy.constant.maxRetries", MAX_RETRIES))


def policy_of(asked: Any) -> Policed:
    """Read the member ``failure_policy`` of a message."""
    policy = asked.failure_policy
    match policy.WhichOneof("policy"):
        case "drop":
            return Policed(drop=True)
        case "constant":
            constant = policy.constant
            seconds = constant.interval.seconds + constant.interval.nanos / NANOSECONDS
            retries = constant.max_retries if constant.HasField("max_retries") else None
            return Policed(seconds if constant.HasField("interval") else DEFAULT_POLICY.interval, retries)
        case _:
            return DEFAULT_POLICY


def read_whole(value: object, name: str, most: int) -> int | None:
    """Read a whole number, or its text, as JSON of messages may have it; raises ``APIError`` that names the member."""
    if value is None:
        return None
    text = f"{value:.0f}" if isinstance(value, float) and value.is_integer() else str(value)
    try:
        return parse_whole(text, least=0, most=most)
    except ValueError as error:
        raise malformed(f"{name} is {error}") from None
