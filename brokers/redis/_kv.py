"""Key/value: a hash for each key, with its value, its revision and when it expires.

A store of dotted paths has an index of its keys besides, a sorted set, so that a scan reads no others.
"""

from __future__ import annotations

import itertools
import re
import secrets
from collections.abc import AsyncIterator, Sequence
from typing import cast

from brokers.redis._connection import Connection
from brokers.redis._scripts import EVEN_OUT_OF_MEMORY, Script, script
from brokers.redis._together import Batch, Together
from brokers.redis._wire import Argument, Reply, ReplyError
from mesh.address import encode_token
from mesh.broker import Entry, Write
from mesh.errors import ConflictError, MeshError, StateError, StateLimitError
from mesh.key_value import check_key, check_path, check_prefix

__all__ = ["RedisKeyValue"]

MAX_OPERATIONS = 1000
MAX_VALUE_BYTES = 64 * 1024 * 1024
REPEAT_WINDOW_MS = 120_000
SCAN_COUNT = 1000
PAGE_KEYS = 500  # Those of one script, which nothing else runs beside.
PAGE_BYTES = 1024 * 1024
_GLOB = re.compile(r"[\\*?\[\]^-]")

# KEYS: revision counter, mark of this call, then a key for each operation. ARGV: ms that the mark is kept, index of
# the keys (or ''), then for each operation the expected revision (or ''), 1 to put, 0 to delete or 2 to leave it, ms
# to live (or ''), value. A call that is repeated after a reconnect is done once.
_OPERATION = """
local index, counter = ARGV[2], KEYS[1]
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local function conflicts(i)
  local expected = ARGV[4 * i - 9]
  return expected ~= '' and (redis.call('HGET', KEYS[i], 'r') or '0') ~= expected
end
local function write(i)
  local put, ttl, value = ARGV[4 * i - 8], ARGV[4 * i - 7], ARGV[4 * i - 6]
  if put == '2' then return end
  if index ~= '' and put == '1' then redis.call('ZADD', index, 0, string.sub(KEYS[i], #counter + 2)) end
  if index ~= '' and put == '0' then redis.call('ZREM', index, string.sub(KEYS[i], #counter + 2)) end
  local revision = redis.call('INCR', counter)
  redis.call('DEL', KEYS[i])
  if put == '1' then
    redis.call('HSET', KEYS[i], 'r', revision, 'v', value)
    if ttl ~= '' then
      local expires = string.format('%.0f', now + ttl)
      redis.call('HSET', KEYS[i], 'e', expires)
      redis.call('PEXPIREAT', KEYS[i], expires)
    end
  end
end
"""
# All or none of them. Gives 0, or the number of the one that conflicts.
_APPLY = f"""
if redis.call('EXISTS', KEYS[2]) == 1 then return 0 end
{_OPERATION}
for i = 3, #KEYS do
  if conflicts(i) then return i - 2 end
end
for i = 3, #KEYS do write(i) end
redis.call('SET', KEYS[2], '', 'PX', ARGV[1])
return 0
"""
# Each for itself. Gives the numbers of those that conflict, and with a minus of those that failed. The mark keeps it.
_EACH = f"""
local done = redis.call('SET', KEYS[2], '', 'PX', ARGV[1], 'NX', 'GET')
if done then return done end
{_OPERATION}
local found = {{}}
for i = 3, #KEYS do
  local fine, lost = pcall(conflicts, i)
  if fine and not lost then fine = pcall(write, i) end
  if lost or not fine then found[#found + 1] = fine and i - 2 or 2 - i end
end
local told = table.concat(found, ' ')
if told ~= '' then redis.call('SET', KEYS[2], told, 'PX', ARGV[1]) end
return told
"""
# Each for itself, behind what is only checked for it. Gives as above the numbers of those that conflict or failed.
_GUARDED = f"""
local done = redis.call('SET', KEYS[2], '', 'PX', ARGV[1], 'NX', 'GET')
if done then return done end
{_OPERATION}
local found = {{}}
for i = 4, #KEYS, 2 do
  local fine, lost = pcall(function() return conflicts(i - 1) or conflicts(i) end)
  if fine and not lost then fine = pcall(write, i) end
  if lost or not fine then found[#found + 1] = fine and i - 2 or 2 - i end
end
local told = table.concat(found, ' ')
if told ~= '' then redis.call('SET', KEYS[2], told, 'PX', ARGV[1]) end
return told
"""
PUT = script(_APPLY)
DELETE = script(_APPLY, flags=EVEN_OUT_OF_MEMORY)
PUT_EACH = script(_EACH)
DELETE_EACH = script(_EACH, flags=EVEN_OUT_OF_MEMORY)
PUT_GUARDED = script(_GUARDED)
DELETE_GUARDED = script(_GUARDED, flags=EVEN_OUT_OF_MEMORY)

# KEYS: index of the keys. ARGV: what stands before a key, first and last of the range, how many keys, bytes after
# which no more are read. Gives the last key that it looked at (or ''), then key, value, revision and expiry of each
# that is there. A key whose time is over is taken out of the index here.
SCAN = script(
    """
local names, found, bytes = redis.call('ZRANGEBYLEX', KEYS[1], ARGV[2], ARGV[3], 'LIMIT', 0, ARGV[4]), {''}, 0
for _, name in ipairs(names) do
  local entry = redis.call('HMGET', ARGV[1] .. name, 'v', 'r', 'e')
  if entry[1] and entry[2] then
    for _, each in ipairs({name, entry[1], entry[2], entry[3] or ''}) do found[#found + 1] = each end
    bytes = bytes + #entry[1]
  else
    redis.call('ZREM', KEYS[1], name)
  end
  found[1] = name
  if bytes > tonumber(ARGV[5]) then return found end
end
if #names < tonumber(ARGV[4]) then found[1] = '' end
return found
""",
    flags=EVEN_OUT_OF_MEMORY,
)


# KEYS: what is read. ARGV: bytes after which no more are read. Gives value, revision and expiry of each, at least one.
READ = script(
    """
local found, bytes = {}, 0
for i, key in ipairs(KEYS) do
  found[i] = redis.call('HMGET', key, 'v', 'r', 'e')
  bytes = bytes + #(found[i][1] or '')
  if bytes > tonumber(ARGV[1]) then break end
end
return found
""",
    flags=EVEN_OUT_OF_MEMORY,
)


class RedisKeyValue:
    """One store."""

    max_operations = MAX_OPERATIONS

    def __init__(self, connection: Connection, name: str, *, dotted: bool = False) -> None:
        """Use a store; its keys make it."""
        self.dotted = dotted
        self._index = f"mesh.kv.index:{encode_token(name)}" if dotted else ""
        self._connection = connection
        self._counter = f"mesh.kv:{encode_token(name)}"
        self._prefix = f"{self._counter}:"
        self._mark = f"mesh.kv.done:{secrets.token_hex(8)}"
        self._numbers = itertools.count()
        self._together = Together(connection, self._begin)

    def _key(self, key: str) -> str:
        (check_path if self.dotted else check_key)(key)
        return self._prefix + key

    async def get(self, key: str, *, strong: bool = False) -> Entry | None:
        """Read a key; every read is from the primary."""
        name = self._key(key)
        try:
            found = await self._connection.call("HMGET", name, "v", "r", "e")
        except ReplyError as error:
            raise StateError(f"cannot read key {key!r}: {error}") from error
        return _entry(found)

    async def get_many(self, keys: Sequence[str]) -> Sequence[Entry | None]:
        """Read several keys, some hundreds in one script."""
        found: list[Entry | None] = []
        while len(found) < len(keys):
            page = [self._key(key) for key in keys[len(found) : len(found) + PAGE_KEYS]]
            try:
                read = cast("list[Reply]", await self._connection.run(READ, page, PAGE_BYTES))
            except ReplyError as error:
                raise StateError(f"cannot read the keys: {error}") from error
            found += map(_entry, read)
        return found

    async def apply(self, operations: Sequence[Write]) -> None:
        """Do all or nothing, in one script."""
        if len(operations) > MAX_OPERATIONS:
            raise StateLimitError(f"a transaction has at most {MAX_OPERATIONS} operations, this one {len(operations)}")
        if not operations:
            return
        told = [self._told(operation) for operation in operations]
        if len(operations) == 1 and await self._written(operations[0], *told[0]):
            return
        keys: list[Argument] = [*self._front(), *(key for key, _ in told)]
        arguments = itertools.chain((REPEAT_WINDOW_MS, self._index), *(each for _, each in told))
        script = DELETE if all(operation.value is None for operation in operations) else PUT
        try:
            conflicting = cast("int", await self._connection.run(script, keys, *arguments))
        except ReplyError as error:
            raise StateError(f"Redis refused to write: {error}") from error
        if conflicting:
            raise _conflict(operations[conflicting - 1])

    async def apply_each(self, operations: Sequence[Write]) -> Sequence[MeshError | None]:
        """Do each for itself, many in one script; gives what each came to. No two are of one key."""
        return await self._each([(operation,) for operation in operations])

    async def apply_guarded(self, operations: Sequence[tuple[Write, Write]]) -> Sequence[MeshError | None]:
        """Do each write if what is checked beside it holds, many in one script; gives what each came to."""
        return await self._each([(check, operation) for operation, check in operations])

    async def _each(self, operations: Sequence[tuple[Write, ...]]) -> Sequence[MeshError | None]:
        """Do the last of each, behind what is only checked for it."""
        results: list[MeshError | None] = [None] * len(operations)
        batches: dict[Script, Batch] = {}
        placed: list[tuple[int, Batch, int]] = []
        for place, each in enumerate(operations):
            try:
                told = [self._told(operation) for operation in each]
            except MeshError as error:
                results[place] = error
                continue
            script = _script(each[-1], guarded=len(each) > 1)
            batch = batches.get(script)
            if batch is None or batch.full:
                batch = batches[script] = self._begin(script)
            numbers = [batch.add(*one, len(each[-1].value or b"")) for one in told]
            placed.append((place, batch, numbers[-1]))
        for place, batch, number in placed:
            try:
                came_to = await batch.outcome(self._connection, number)
                if came_to < 0:
                    await self.apply(operations[place])  # Says why.
                elif came_to:
                    results[place] = _conflict(operations[place][0])
            except ReplyError as error:
                results[place] = StateError(f"Redis refused to write: {error}")
            except MeshError as error:
                results[place] = error
        return results

    async def _written(self, operation: Write, key: str, told: Sequence[Argument]) -> bool:
        """Write one, with others of the same time; False = it failed, and is to be written alone, which says why."""
        size = len(operation.value or b"")
        try:
            came_to = await self._together.write(_script(operation), key, told, size)
        except ReplyError as error:
            raise StateError(f"Redis refused to write: {error}") from error
        if came_to > 0:
            raise _conflict(operation)
        return came_to == 0

    def _begin(self, script: Script) -> Batch:
        return Batch(script, self._front(), (REPEAT_WINDOW_MS, self._index))

    def _front(self) -> tuple[str, str]:
        return self._counter, f"{self._mark}:{next(self._numbers)}"

    def _told(self, operation: Write) -> tuple[str, Sequence[Argument]]:
        """Give key and arguments of an operation; raises ``StateError``."""
        value, ttl = operation.value, operation.ttl
        if value is not None and len(value) > MAX_VALUE_BYTES:
            raise StateLimitError(f"the value of key {operation.key!r} is over the limit of {MAX_VALUE_BYTES} bytes")
        expected = "" if operation.expected is None else operation.expected
        ttl_ms: Argument = "" if ttl is None else max(1, round(ttl * 1000))
        put = 2 if operation.check else int(value is not None)
        return self._key(operation.key), (expected, put, ttl_ms, value or b"")

    async def keys(self, prefix: str = "") -> AsyncIterator[str]:
        """Iterate over live keys; scans the whole database, so this is for tools, not for the hot path."""
        pattern = _GLOB.sub(r"\\\g<0>", self._prefix + prefix) + "*"
        cursor, seen = b"0", set[bytes]()
        while True:
            scan = ("SCAN", cursor, "MATCH", pattern, "COUNT", SCAN_COUNT, "TYPE", "hash")
            try:
                reply = await self._connection.execute(scan)
            except ReplyError as error:
                raise StateError(f"cannot list the keys: {error}") from error
            cursor, names = cast("tuple[bytes, list[bytes]]", reply)
            for name in names:
                if name not in seen:
                    seen.add(name)
                    yield name.decode()[len(self._prefix) :]
            if cursor == b"0":
                return

    async def scan(self, prefix: str, after: str, limit: int) -> Sequence[tuple[str, Entry]]:
        """List live keys below a path in order, with their values: by the index, some hundreds in one script."""
        check_prefix(prefix, dotted=self.dotted)
        found: list[tuple[str, Entry]] = []
        first = f"({after}" if after >= prefix and after else f"[{prefix}"
        last = f"({prefix}\x7f" if prefix else "+"  # All of a path is before the last of ASCII.
        while len(found) < limit:
            keys = min(PAGE_KEYS, limit - len(found))
            try:
                reply = await self._connection.run(SCAN, [self._index], self._prefix, first, last, keys, PAGE_BYTES)
            except ReplyError as error:
                raise StateError(f"cannot scan the keys: {error}") from error
            upto, *flat = cast("list[bytes]", reply)
            for name, value, revision, expires in zip(*(flat[each::4] for each in range(4)), strict=True):
                found.append((name.decode(), Entry(value, int(revision), int(expires) / 1000 if expires else None)))
            if not upto:
                break
            first = f"({upto.decode()}"
        return found


def _script(operation: Write, *, guarded: bool = False) -> Script:
    if guarded:
        return DELETE_GUARDED if operation.value is None else PUT_GUARDED
    return DELETE_EACH if operation.value is None else PUT_EACH


def _conflict(operation: Write) -> ConflictError:
    return ConflictError(f"key {operation.key!r} is at another revision")


def _entry(found: Reply) -> Entry | None:
    value, revision, expires = cast("tuple[bytes | None, bytes | None, bytes | None]", found)
    if value is None or revision is None:
        return None
    return Entry(value, int(revision), None if expires is None else int(expires) / 1000)
