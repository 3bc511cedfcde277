"""``lock.redis``: locks as keys of Redis, as the Dapr runtime keeps them.

A lock is the key of its name, whose value is its owner, and which expires with the lease. Beside it stands the last
fencing token, longer than the lease.

Source: Dapr 1.18, the Redis lock.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

from bindings.redis._adapter import RedisAdapter
from bindings.redis._client import Script, slot_of
from mesh.blocks.lock import Released
from mesh.errors import BadArgumentError, LockError

__all__ = ["RedisLockStore"]

FENCE = "fence||"
# As long as no clock is set back by more, a token is greater than every earlier one, also after the key of the last
# one is gone, or was lost in a failover.
FENCE_KEPT_MS = 7 * 24 * 3600 * 1000

# KEYS: the lock; the last token. ARGV: owner, milliseconds of the lease, and how much longer the token is kept.
# Gives the token, or nothing when the lock is held.
_ACQUIRE = Script(
    """
if not redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2], 'NX') then return false end
local now = redis.call('TIME')
local token = now[1] * 1000000 + now[2]
local last = tonumber(redis.call('GET', KEYS[2]) or 0) or 0
if last >= token then token = last + 1 end
redis.call('SET', KEYS[2], string.format('%.0f', token), 'PX', ARGV[2] + ARGV[3])
return token
"""
)

# KEYS: the lock. ARGV: owner. Gives what became of the wish.
_RELEASE = Script(
    """
local owner = redis.call('GET', KEYS[1])
if not owner then return 1 end
if owner ~= ARGV[1] then return 2 end
redis.call('DEL', KEYS[1])
return 0
"""
)


def fence_of(name: str) -> str:
    """Name the key of the last token: in a cluster, where the first part in braces decides, it is with the lock."""
    begin = name.find("{")
    if begin >= 0 and name.find("}", begin) > begin + 1:
        return FENCE + name
    return f"{FENCE}{{{name}}}"


class RedisLockStore(RedisAdapter):
    """Locks in Redis."""

    failure = LockError
    capabilities: Sequence[str] = ()

    async def acquire(self, name: str, owner: str, seconds: float) -> int | None:
        """Take a lock that nobody holds; an owner that holds it does not get it again.

        Raises:
            LockError: The store failed; when the connection broke, whether it is held now is unknown.
            BadArgumentError: The name cannot be one of a lock.
        """
        keys = (_encoded(name), _encoded(fence_of(name)))
        if self._client.cluster and slot_of(keys[0]) != slot_of(keys[1]):
            raise BadArgumentError(f"in a Redis cluster the name of a lock must not hold a '}}' as {name!r} does")
        lease = max(1, round(seconds * 1000))
        return cast("int | None", await self.run(_ACQUIRE.of(keys, _encoded(owner), lease, FENCE_KEPT_MS)))

    async def release(self, name: str, owner: str) -> Released:
        """Give a lock back, if this owner holds it.

        Raises:
            LockError: The store failed; when the connection broke, whether it is given back is unknown.
        """
        return Released(cast("int", await self.run(_RELEASE.of((_encoded(name),), _encoded(owner)))))


def _encoded(text: str) -> bytes:
    try:
        return text.encode()
    except UnicodeEncodeError:
        raise BadArgumentError(f"{text!r} is no Unicode text") from None
