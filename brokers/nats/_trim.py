"""Purge what every group has handled, so that a stream holds only what somebody still needs.

Limits retention keeps events for subscribers that do not exist yet (interest retention would drop
them although their publisher was told they are safe); this keeps such a stream from growing with
what has been consumed. It is idempotent, so every node may do it. ADR 5.
"""

from __future__ import annotations

from typing import cast

from brokers.nats._client import Connection
from brokers.nats._errors import JSON, check_api
from mesh.address import overlaps

__all__ = ["floors", "trim"]


def floors(consumers: list[tuple[str, int]]) -> dict[str, int]:
    """Give, for each filter subject, the sequence up to which every consumer it concerns has acked.

    Args:
        consumers: Filter subject and acknowledged stream sequence of each.
    """
    lowest: dict[str, int] = {}
    for subject, floor in consumers:
        lowest[subject] = min(floor, lowest.get(subject, floor))
    # There may be thousands, and the event loop waits: a topic is compared with its other lanes and with patterns only.
    lanes: dict[str | None, list[str]] = {None: []}
    for subject in lowest:
        lanes.setdefault(_topic(subject), []).append(subject)
    found = {}
    for subject in lowest:
        topic = _topic(subject)
        others = lowest if topic is None else (*lanes[topic], *lanes[None])
        found[subject] = min(lowest[other] for other in others if overlaps(subject, other))
    return found


def _topic(subject: str) -> str | None:
    """Leave the lane out, the fifth token; None for a pattern, whatever its lane."""
    tokens = subject.split(".")
    rest = tokens[:4] + tokens[5:]
    return None if ">" in tokens or "*" in rest else ".".join(rest)


async def trim(connection: Connection, stream: str) -> None:
    """Purge the handled part of a stream.

    Raises:
        BrokerError: The server refused.
    """
    consumers: list[tuple[str, int]] = []
    while True:
        page = await connection.api(f"CONSUMER.LIST.{stream}", {"offset": len(consumers)})
        check_api(page, f"cannot list the consumers of {stream}")
        found = cast("list[JSON]", page.get("consumers") or [])
        for consumer in found:
            config = cast("JSON", consumer["config"])
            floor = cast("JSON", consumer["ack_floor"])
            consumers.append((cast("str", config.get("filter_subject", ">")), cast("int", floor["stream_seq"])))
        if not found or len(consumers) >= cast("int", page.get("total", 0)):
            break
    for subject, sequence in floors(consumers).items():
        if sequence > 0:
            answer = await connection.api(f"STREAM.PURGE.{stream}", {"filter": subject, "seq": sequence + 1})
            check_api(answer, f"cannot purge {stream}")
