"""The topic of frames: its name and settings, who leads it, and how a frame is written as a record."""

from __future__ import annotations

from brokers.kafka._cluster import Cluster
from brokers.kafka._producer import Headers
from mesh.broker import Message

__all__ = [
    "HOPS",
    "INBOX",
    "INBOXES",
    "KIND",
    "REPLY",
    "SERVED",
    "TOKEN",
    "TOPIC",
    "TOPIC_SETTINGS",
    "headers_of",
    "leader_of",
]

TOPIC = "mesh.frames"
INBOXES = 32
INBOX = r"(?:[1-9]|[12][0-9]|3[0-2])-[0-9a-f]{16}\.\S*"  # A partition from 1, a node, and a token.
TOPIC_SETTINGS = {
    "retention.ms": "120000",
    "segment.ms": "120000",
    "segment.bytes": str(64 * 1024 * 1024),
    "message.timestamp.type": "LogAppendTime",
}

# Our own headers hold a colon, which no header of a message can.
TOKEN, REPLY, SERVED, KIND, HOPS = ":t", ":r", ":a", ":k", ":h"


def leader_of(cluster: Cluster, partition: int) -> int:
    """Give the broker that leads a partition of the topic."""
    leader = cluster.leader(TOPIC, partition)
    if leader is None:
        raise cluster.unavailable(f"nobody leads {TOPIC}-{partition}")
    return leader


def headers_of(message: Message, reply_to: str, name: str, value: str) -> Headers:
    """Give a message's headers, with one of our own and where to reply."""
    headers = [(each, text.encode()) for each, text in message.headers.items()]
    headers.append((name, value.encode()))
    if reply_to:
        headers.append((REPLY, reply_to.encode()))
    return headers
