"""Stream entries: where they are kept, and what is in them.

Each header is a field; what is ours begins with a colon, which no header's name can hold: ``:key`` (first, when there
is one), ``:id``, and ``:data`` (last).
"""

from __future__ import annotations

from functools import lru_cache
from hashlib import blake2s

from brokers.redis._wire import Argument
from mesh.address import Address, Kind, decode_token, encode_token
from mesh.broker import Message

__all__ = ["address_of", "channel_of", "group_id", "id_key", "message_fields", "parse_message", "stream_of"]

KEY, ID, DATA = b":key", b":id", b":data"
LONGEST_ID = 64


@lru_cache(maxsize=4096)
def stream_of(space: str, topic: str) -> str:
    """Name a topic's stream."""
    return f"{space}:s:{topic}"


def group_id(address: Address, group: str) -> str:
    """Name a group on each stream that it reads; also the last part of its other keys."""
    return f"{encode_token(group)} {address.name}"


def channel_of(space: str, group: str) -> str:
    """Name the channel that wakes a group's members."""
    return f"{space}:c:{group}"


def id_key(address: Address, identity: str) -> str:
    """Name the key that remembers a message for as long as a repetition of it is recognised."""
    if len(identity) > LONGEST_ID:
        identity = blake2s(identity.encode(), digest_size=20).hexdigest()
    return f"{address.space}:i:{address.name} {identity}"


@lru_cache(maxsize=4096)
def address_of(space: str, topic: str) -> Address:
    """Give the address of an entry."""
    return Address(Kind.TOPIC, space, topic, ".".join(map(decode_token, topic.split("."))))


def message_fields(message: Message) -> list[Argument]:
    """Write a message as the fields of an entry."""
    fields: list[Argument] = []
    if message.key is not None:
        fields += (KEY, message.key)
    if message.id is not None:
        fields += (ID, message.id)
    for header in message.headers.items():
        fields += header
    fields += (DATA, message.body)
    return fields


def parse_message(fields: list[bytes]) -> Message:
    """Read a message; what somebody else has put there is read as well as it can be."""
    headers: dict[str, str] = {}
    key: str | None = None
    identity: str | None = None
    body = b""
    names = iter(fields)
    for name in names:
        value = next(names)
        if name[:1] != b":":
            headers[name.decode(errors="replace")] = value.decode(errors="replace")
        elif name == DATA:
            body = value
        elif name == KEY:
            key = value.decode(errors="replace")
        elif name == ID:
            identity = value.decode(errors="replace")
    return Message(headers, body, key, identity)
