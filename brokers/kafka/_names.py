"""Addresses as Kafka can write them.

A topic's name holds letters, digits, ``.``, ``-`` and ``_``, at most 249 of them, and Kafka takes
``.`` and ``_`` for the same letter when it looks for a clash. So ``_`` only begins an escape here:
``=XX`` of an address is ``_XX``, a lone ``=`` is ``_``, and ``_`` itself is ``_5F``.
"""

from __future__ import annotations

from functools import lru_cache
from hashlib import blake2s

from mesh.address import Address, encode_token

__all__ = ["group_name", "topic_name"]

MAX_NAME = 249
HASHED = ".__"  # No escape is written so.


@lru_cache(maxsize=4096)
def topic_name(text: str) -> str:
    """Write an address as a topic's name; what is too long ends in its hash."""
    name = text.replace("_", "=5F").replace("=", "_")
    if len(name) <= MAX_NAME:
        return name
    digest = blake2s(text.encode(), digest_size=16).hexdigest()
    return name[: MAX_NAME - len(HASHED) - len(digest)].rstrip(".") + HASHED + digest


@lru_cache(maxsize=4096)
def group_name(address: Address, group: str, *, ordered: bool) -> str:
    """Name the consumer group of a group and a topic."""
    return f"{address.text}@{encode_token(group)}{'@ordered' if ordered else ''}"
