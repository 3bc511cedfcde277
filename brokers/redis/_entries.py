"""Stream entries: where they are kept, and what is in them.

Each header is a field; what is ours begins with a colon, which no header's name can hold: ``:key`` (first, when there
is one), ``:id``, and ``:data`` (last).
"""

from __future__ import annotations

from base64 import urlsafe_b64encode
from functools import lru_cache
from hashlib import blake2s

from brokers.redis._wire import Argument
from mesh.address import Address, Kind, decode_token, encode_token
from mesh.broker import Message

__all__ = ["address_of", "channel_of", "group_id", "id_key", "message_fields", "parse_message", "stream_of"]

KEY, ID, DATA = b":key", b":id", b":data"


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


def id_key(address: Address, identity: str) -> bytes:
    """Name the key that remembers a message for as long as a repetition of it is recognised.

    It is short, as there is one for each recent message; 96 bits of hash do not meet by chance.
    """
    digest = blake2s(f"{address} {identity}".encode(), digest_size=12).digest()
    return b"mesh.id:" + urlsafe_b64encode(digest)


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
    if len(fields) < 2 or fields[-2] != DATA:
        fields = [*fields, DATA, b""]
    first, key, identity = 0, None, None
    if fields[first] == KEY:
        key = fields[first + 1].decode(errors="replace")
        first += 2
    if fields[first] == ID:
        identity = fields[first + 1].decode(errors="replace")
        first += 2
    names, values = fields[first:-2:2], fields[first + 1 : -2 : 2]
    try:
        headers = {_name(name): value.decode() for name, value in zip(names, values, strict=True)}
    except UnicodeDecodeError:
        headers = {
            name.decode(errors="replace"): value.decode(errors="replace")
            for name, value in zip(names, values, strict=True)
        }
    return Message(headers, fields[-1], key, identity)


@lru_cache(maxsize=1024)
def _name(name: bytes) -> str:
    return name.decode()
