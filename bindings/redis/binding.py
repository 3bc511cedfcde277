"""``bindings.redis``: keys of Redis whose values are what the caller gives, as it is.

Source: Dapr 1.18, the Redis binding.
"""

from __future__ import annotations

from typing import cast

from bindings.redis._adapter import RedisAdapter
from bindings.redis._client import Command, Script
from bindings.redis._wire import LostError, RefusedError
from mesh.blocks.binding_contract import BindingError, Invoke, Invoked
from mesh.values import parse_whole

__all__ = ["RedisBinding"]

MAX_TTL = 2**31 - 1  # Seconds.
OPERATIONS = ("create", "get", "delete", "increment")

# KEYS: the key. ARGV: seconds.
_INCREMENT = Script(
    """
local value = redis.call('INCR', KEYS[1])
redis.call('EXPIRE', KEYS[1], ARGV[1])
return value
"""
)


class RedisBinding(RedisAdapter):
    """Keys and values of Redis."""

    title = "Writes, reads, deletes and increments keys of Redis."
    failure = BindingError
    operations = OPERATIONS

    async def invoke(self, asked: Invoke) -> Invoked | None:
        """Do what is asked."""
        key = _key(asked)
        match asked.operation:
            case "create":
                expiry = _ttl(asked)
                words = ("SET", key, asked.data, *(("EX", expiry) if expiry else ()))
                await self.run(Command(words, key, again=True))  # Once or twice is the same.
                return None
            case "get":
                deletes = asked.metadata.get("delete", "").strip().lower() == "true"
                found = await self.run(Command(("GETDEL" if deletes else "GET", key), key, again=not deletes))
                return Invoked(cast("bytes | None", found))
            case "delete":
                await self.run(Command(("DEL", key), key, again=True))
                return None
            case _:
                expiry = _ttl(asked)
                await self.run(_INCREMENT.of((key,), expiry) if expiry else Command(("INCR", key), key))
                return None

    def failed(self, error: LostError | RefusedError) -> BindingError:
        """Say why; what was certainly not done may be asked for again."""
        known = isinstance(error, LostError) and not error.sent
        return BindingError(str(super().failed(error)), retryable=known)


def _key(asked: Invoke) -> bytes:
    try:
        key = asked.metadata.get("key", "").encode()
    except UnicodeEncodeError:
        raise BindingError("the metadata key is no Unicode text") from None
    if not key:
        raise BindingError("redis binding: missing key in request metadata")
    return key


def _ttl(asked: Invoke) -> int:
    """Read the metadata ``ttlInSeconds``; 0 = it does not expire."""
    text = asked.metadata.get("ttlInSeconds", "").strip()
    try:
        return parse_whole(text, least=1, most=MAX_TTL) if text else 0
    except ValueError as error:
        raise BindingError(f"the metadata ttlInSeconds {error}") from None
