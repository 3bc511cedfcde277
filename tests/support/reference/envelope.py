"""The envelope as the reference runtime was seen to write it, on every broker alike."""

from __future__ import annotations

import json
from datetime import UTC, datetime

__all__ = ["enveloped"]


def enveloped(identity: str, app_id: str, pubsub: str, topic: str, data: object, **more: str) -> bytes:
    """Write the event of JSON data: compact, its members in alphabetical order, not escaped."""
    members = {
        "data": data,
        "datacontenttype": "application/json",
        "id": identity,
        "pubsubname": pubsub,
        "source": app_id,
        "specversion": "1.0",
        "time": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        "topic": topic,
        "traceid": "",
        "traceparent": "",
        "tracestate": "",
        "type": "com.dapr.event.sent",
        **more,
    }
    return json.dumps(members, separators=(",", ":"), sort_keys=True, ensure_ascii=False).encode()
