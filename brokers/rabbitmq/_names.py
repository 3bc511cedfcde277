"""Names and routing keys on RabbitMQ: which queue, which exchange, which binding.

A routing key is ``<lane>.<topic>``; the lane is ``_``, or 0 to 15 from the key's hash. AMQP allows
255 bytes where a topic may have many more, so a long token is cut and gets a hash, and what is
still too long becomes ``<lane>.~.<first tokens>.<hash>``. Such a topic travels in the header
``=topic``. Patterns bind to both forms; a consumer of a pattern passes over what only seems to fit.

Queues are called ``<space>:<group>:<topic>``, and ``…:<lane>`` or ``…:retry-<ms>`` beside it. The
client library allows fewer characters in names of queues and exchanges than RabbitMQ does, so
``=``, ``~``, ``*`` and ``>`` are ``+``, ``@``, ``#`` and ``,`` there; an exchange has 127 of them.
"""

from __future__ import annotations

import zlib
from functools import lru_cache
from hashlib import blake2s

from mesh.address import Address, Kind, decode_token, encode_token

__all__ = [
    "FRAMES",
    "KEYED_LANES",
    "NO_LANE",
    "PLAIN",
    "address_of",
    "bindings",
    "claimed_name",
    "exchange_name",
    "lane_of",
    "queue_name",
    "retry_step",
    "routing_key",
    "served_name",
    "shorten",
]

FRAMES = "mesh.frames.topic"  # The exchange of all that is not stored; of a kind that has rights by routing keys.
NO_LANE = "_"
KEYED_LANES = tuple(map(str, range(16)))

MAX_NAME = 200
MAX_EXCHANGE = 110
MAX_TOKEN = 60
MAX_KEY = 240
LONG = "~"  # No token of an address holds it.
LONG_TOKENS = 3
PLAIN = str.maketrans("=~*>", "+@#,")  # Our grammar uses none of the latter.
MAX_RETRY_MS = 1 << 30  # Twelve days; a queue's time to live is a 32-bit number.


def shorten(text: str, limit: int = MAX_NAME) -> str:
    """Keep a name, or cut it and add a hash of the whole."""
    if len(text) <= limit:
        return text
    return f"{text[: limit - 23]}{LONG}{blake2s(text.encode(), digest_size=11).hexdigest()}"


@lru_cache(maxsize=4096)
def exchange_name(space: str) -> str:
    """Name the exchange that a space's events are published to."""
    return shorten(space, MAX_EXCHANGE).translate(PLAIN)


def claimed_name(queue: str) -> str:
    """Name the exchange that says that a group has what came before it."""
    return f"{shorten(queue, MAX_EXCHANGE).translate(PLAIN)}:claimed"


def served_name(address: Address, group: str) -> str:
    """Name the queue of the frames that a group serves."""
    return shorten(f"{address.text}:{encode_token(group)}").translate(PLAIN)


def queue_name(address: Address, group: str, lane: str = "") -> str:
    """Name the queue of a group, or of one lane of an ordered group."""
    base = shorten(f"{address.space}:{encode_token(group)}:{address.name}").translate(PLAIN)
    return f"{base}:{lane}" if lane else base


def lane_of(key: str | None) -> str:
    """Give the lane of a message's key."""
    return NO_LANE if key is None else KEYED_LANES[zlib.crc32(key.encode()) % len(KEYED_LANES)]


@lru_cache(maxsize=4096)
def routing_key(name: str, lane: str) -> tuple[str, bool]:
    """Give the routing key of a topic, and whether the topic can be read back from it."""
    tokens = [shorten(token, MAX_TOKEN) for token in name.split(".")]
    key = f"{lane}.{'.'.join(tokens)}"
    if len(key) <= MAX_KEY:
        return key, LONG not in key
    rest = blake2s(name.encode(), digest_size=16).hexdigest()
    return f"{lane}.{LONG}.{'.'.join(tokens[:LONG_TOKENS])}.{rest}", False


def bindings(name: str, lane: str) -> list[str]:
    """Give the binding keys of a topic or pattern.

    Args:
        name: Tokens, ``*`` for any one, ``>`` at the end for one or more.
        lane: One lane, or ``*`` for all.
    """
    tokens = [shorten(token, MAX_TOKEN) for token in name.split(".")]
    if "*" not in tokens and tokens[-1] != ">":
        return [routing_key(name, lane)[0]]
    keys = []
    open_end = tokens[-1] == ">"
    plain = f"{lane}.{'.'.join(tokens)}".removesuffix(">") + ("*.#" if open_end else "")
    if len(plain) <= MAX_KEY:
        keys.append(plain)
    if len(tokens) > LONG_TOKENS:
        keys.append(f"{lane}.{LONG}.{'.'.join(tokens[:LONG_TOKENS])}.*")
    elif open_end:
        first = "".join(f"{token}." for token in tokens[:-1])
        keys.append(f"{lane}.{LONG}.{first}#")
    return keys


@lru_cache(maxsize=4096)
def address_of(space: str, name: str) -> Address:
    """Make an address from its space and the tokens within."""
    try:
        label = ".".join(map(decode_token, name.split(".")))
    except (UnicodeError, ValueError):
        label = name  # Not one of ours.
    return Address(Kind.TOPIC, space, name, label)


def retry_step(delay: float) -> int:
    """Round a delay up to one of few: four between each and its double. In milliseconds."""
    wanted = min(max(1, -int(-delay * 1000 // 1)), MAX_RETRY_MS)
    step = 1 << max(0, wanted.bit_length() - 3)
    return -(-wanted // step) * step
