"""The Lua scripts of topics and frames. Each is atomic; what they keep under which key stands in the package's docstring.

A script that only hands out or settles may go on when the server is out of memory; one that stores may not.
Effects that no restart needs (who serves what, bodies on their way) stay out of the append-only file.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from brokers.redis._wire import Argument, pack

__all__ = [
    "ACK_IN_ORDER",
    "DECLARE",
    "EXTEND",
    "FETCH_BODY",
    "JOIN",
    "LOOK",
    "NACK",
    "PUBLISH",
    "RELEASE",
    "SEND",
    "SERVE",
    "TRIM",
    "UNSERVE",
    "Script",
]


@dataclass(frozen=True)
class Script:
    """A script and its name on the server."""

    text: str

    @cached_property
    def sha(self) -> str:
        """What EVALSHA calls it by."""
        return hashlib.sha1(self.text.encode()).hexdigest()  # noqa: S324 - the server's choice

    def pack(self, keys: Sequence[Argument], arguments: Sequence[Argument]) -> bytes:
        """Write a call of it."""
        return pack("EVALSHA", self.sha, len(keys), *keys, *arguments)


def script(*parts: str, flags: str = "") -> Script:
    """Put a script together."""
    return Script(f"#!lua {flags}".rstrip() + "\n" + "".join(parts))


# A space: its limits (KEYS[1]), the topics in it, and the groups by "<group> <pattern>".
_SPACE = """
local base = KEYS[1]
local topics, groups = base .. ':topics', base .. ':groups'
local function stream(name) return base .. ':s:' .. name end
local function channel(gid) return base .. ':c:' .. gid end
local function now()
  local time = redis.call('TIME')
  return time[1] * 1000 + math.floor(time[2] / 1000)
end
local function matches(pattern, name)
  if not string.find(pattern, '[*>]') then return pattern == name end
  local tokens, index = {}, 0
  for token in string.gmatch(name, '[^.]+') do tokens[#tokens + 1] = token end
  for token in string.gmatch(pattern, '[^.]+') do
    index = index + 1
    if token == '>' then return #tokens >= index end
    if not tokens[index] or (token ~= '*' and token ~= tokens[index]) then return false end
  end
  return index == #tokens
end
-- What is kept about a group's entries of a stream that is no more.
local function forget(gid, name)
  local parked, waiting, busy = base .. ':p:' .. gid, base .. ':w:' .. gid, base .. ':b:' .. gid
  if redis.call('EXISTS', parked, waiting, busy) == 0 then return end
  for _, member in ipairs(redis.call('ZRANGE', parked, 0, -1)) do
    if string.match(member, '^%S+') == name then redis.call('ZREM', parked, member) end
  end
  for _, member in ipairs(redis.call('ZRANGE', waiting, 0, -1)) do
    if string.match(member, '%S+$') == name then redis.call('ZREM', waiting, member) end
  end
  local all = redis.call('HGETALL', busy)
  for i = 1, #all, 2 do
    if string.sub(all[i], 1, 1) == 'e' and string.match(all[i], '^e(%S+)') == name then
      redis.call('HDEL', busy, all[i], 'k' .. all[i + 1])
    end
  end
end
local function create(gid, name)
  local made = redis.pcall('XGROUP', 'CREATE', stream(name), gid, '0', 'MKSTREAM')
  if type(made) == 'table' and made.ok then forget(gid, name) end
end
-- A topic's first message or subscriber: every group that wants it begins with it, even one that is away.
local function register(name)
  redis.call('SADD', topics, name)
  for _, gid in ipairs(redis.call('HKEYS', groups)) do
    if matches(string.match(gid, '%S+$'), name) then
      create(gid, name)
      redis.call('PUBLISH', channel(gid), '+')
    end
  end
end
"""

# KEYS: space, stream[, id]. ARGV: topic, window in ms, fields. Gives 1 stored, 0 had it, -1 undeclared, -2 full.
# Entry ids are made from the time in microseconds, so that they also order entries of different topics.
PUBLISH = script(
    _SPACE,
    """
local limit = redis.call('HMGET', base, 'max_bytes', 'bytes')
if not limit[1] then return -1 end
local size = 0
if limit[1] ~= '' then
  for i = 3, #ARGV do size = size + #ARGV[i] end
  if limit[2] + size > tonumber(limit[1]) then return -2 end
end
if KEYS[3] and not redis.call('SET', KEYS[3], '', 'NX', 'PX', ARGV[2]) then return 0 end
local time = redis.call('TIME')
local id = time[1] .. string.format('%03d-%d', time[2] / 1000, time[2] % 1000)
local stored = redis.pcall('XADD', KEYS[2], 'NOMKSTREAM', id, unpack(ARGV, 3))
if not stored then
  register(ARGV[1])
  stored = redis.pcall('XADD', KEYS[2], id, unpack(ARGV, 3))
end
if type(stored) == 'table' then redis.call('XADD', KEYS[2], '*', unpack(ARGV, 3)) end
if size > 0 then redis.call('HINCRBY', base, 'bytes', size) end
return 1
""",
)

# KEYS: space. ARGV: names and values in turn. Gives what is there, in that order.
DECLARE = script(
    """
if redis.call('EXISTS', KEYS[1]) == 0 then redis.call('HSET', KEYS[1], 'bytes', 0, unpack(ARGV)) end
local found = {}
for i = 1, #ARGV, 2 do found[#found + 1] = redis.call('HGET', KEYS[1], ARGV[i]) or '' end
return found
"""
)

# KEYS: space. ARGV: group id, pattern, ordered. Gives the topics, -1 undeclared, -2 it has the other order.
JOIN = script(
    _SPACE,
    """
local gid, pattern, ordered = ARGV[1], ARGV[2], ARGV[3]
if redis.call('EXISTS', base) == 0 then return -1 end
local known = redis.call('HGET', groups, gid)
if known and known ~= ordered then return -2 end
if not known then redis.call('HSET', groups, gid, ordered) end
if not string.find(pattern, '[*>]') then
  if redis.call('EXISTS', stream(pattern)) == 0 then register(pattern) else create(gid, pattern) end
  return {pattern}
end
local found = {}
for _, name in ipairs(redis.call('SMEMBERS', topics)) do
  if matches(pattern, name) then
    create(gid, name)
    found[#found + 1] = name
  end
end
table.sort(found)
return found
""",
    flags="flags=allow-oom",
)

# A group's entries, named "<topic> <id>". Those that nobody works on are owned by "-": either parked until they are
# due, or, in an ordered group, waiting behind the one of their key (a hash of it) that is busy.
_GROUP = (
    _SPACE
    + """
local gid, me = ARGV[1], ARGV[2]
local parked, waiting, busy = base .. ':p:' .. gid, base .. ':w:' .. gid, base .. ':b:' .. gid
local function row(name, id) return redis.call('XPENDING', stream(name), gid, id, id, 1)[1] end
local function park(name, id, count, due)
  redis.call('XCLAIM', stream(name), gid, '-', 0, id, 'RETRYCOUNT', count, 'JUSTID')
  redis.call('ZADD', parked, due, name .. ' ' .. id)
end
local function pad(id)
  local ms, sequence = string.match(id, '^(%d+)-(%d+)$')
  return string.rep('0', 15 - #ms) .. ms .. '-' .. string.rep('0', 20 - #sequence) .. sequence
end
-- One is done with: the next of its key, if it has one, is due now.
local function free(member)
  local key = redis.call('HGET', busy, 'e' .. member)
  if not key then return 0 end
  redis.call('HDEL', busy, 'e' .. member)
  local found = redis.call('ZRANGEBYLEX', waiting, '[' .. key .. ' ', '(' .. key .. '!', 'LIMIT', 0, 1)[1]
  if not found then
    redis.call('HDEL', busy, 'k' .. key)
    return 0
  end
  redis.call('ZREM', waiting, found)
  local ms, sequence, name = string.match(found, '^%S+ 0*(%d+)-0*(%d+) (%S+)$')
  local following = name .. ' ' .. ms .. '-' .. sequence
  redis.call('HSET', busy, 'e' .. following, key, 'k' .. key, following)
  redis.call('ZADD', parked, 0, following)
  return 1
end
"""
)

# KEYS: space. ARGV: group id, consumer, room, ms of silence after which entries are taken back (or ''), ordered,
# topics. Gives entries (topic, id, attempt, fields), ms until the next is due (or -1), and, in an ordered group
# without any, where each topic was read up to (none when too many wait already).
LOOK = script(
    _GROUP,
    """
local room, silence, ordered = tonumber(ARGV[3]), ARGV[4], ARGV[5] == '1'
local most_waiting, stale_ms = 10000, 600000
local names, out, cursors = {}, {}, {}
for i = 6, #ARGV do names[#names + 1] = ARGV[i] end

local function reclaim(name)
  for _, info in ipairs(redis.call('XINFO', 'CONSUMERS', stream(name), gid)) do
    local consumer, pending, idle = info[2], info[4], info[6]
    if consumer ~= '-' and pending > 0 then
      for _, found in ipairs(redis.call('XPENDING', stream(name), gid, 'IDLE', silence, '-', '+', 100, consumer)) do
        park(name, found[1], found[4], 0)
      end
    elseif consumer ~= '-' and consumer ~= me and idle > stale_ms then
      redis.call('XGROUP', 'DELCONSUMER', stream(name), gid, consumer)
    end
  end
end

local function take()
  local time = now()
  while room > 0 do
    local due = redis.call('ZRANGEBYSCORE', parked, '-inf', time, 'LIMIT', 0, room)
    if #due == 0 then return end
    for _, member in ipairs(due) do
      redis.call('ZREM', parked, member)
      local name, id = string.match(member, '^(%S+) (%S+)$')
      local entry = redis.call('XCLAIM', stream(name), gid, me, 0, id)[1]
      if entry then
        out[#out + 1] = {name, id, row(name, id)[4], entry[2]}
        room = room - 1
      else
        free(member)
      end
    end
  end
end

local function admit(name, id, fields)
  if fields[1] == ':key' then
    local key, member = redis.sha1hex(fields[2]), name .. ' ' .. id
    if redis.call('HEXISTS', busy, 'k' .. key) == 1 then
      redis.call('XCLAIM', stream(name), gid, '-', 0, id, 'RETRYCOUNT', 0, 'JUSTID')
      redis.call('ZADD', waiting, 0, key .. ' ' .. pad(id) .. ' ' .. name)
      return
    end
    redis.call('HSET', busy, 'e' .. member, key, 'k' .. key, member)
  end
  out[#out + 1] = {name, id, 1, fields}
  room = room - 1
end

local function read_up_to(name)
  for _, info in ipairs(redis.call('XINFO', 'GROUPS', stream(name))) do
    if info[2] == gid then return info[8] end
  end
  return '0-0'
end

-- How many entries of each topic are among the next ones of all of them.
local function next_of_all()
  if #names == 1 then return {[names[1]] = room} end
  local heads, counts = {}, {}
  for _, name in ipairs(names) do
    for _, entry in ipairs(redis.call('XRANGE', stream(name), '(' .. read_up_to(name), '+', 'COUNT', room)) do
      heads[#heads + 1] = {pad(entry[1]), name}
    end
  end
  table.sort(heads, function(a, b) return a[1] < b[1] or (a[1] == b[1] and a[2] < b[2]) end)
  for i = 1, math.min(room, #heads) do counts[heads[i][2]] = (counts[heads[i][2]] or 0) + 1 end
  return counts
end

local function read()
  local scanned = 0
  while room > 0 and scanned < 1000 and redis.call('ZCARD', waiting) < most_waiting do
    local entries = {}
    for name, count in pairs(next_of_all()) do
      local found = redis.call('XREADGROUP', 'GROUP', gid, me, 'COUNT', count, 'STREAMS', stream(name), '>')
      for _, entry in ipairs(found and found[1][2] or {}) do
        entries[#entries + 1] = {pad(entry[1]), name, entry[1], entry[2]}
      end
    end
    if #entries == 0 then
      for i, name in ipairs(names) do cursors[i] = read_up_to(name) end
      return
    end
    if #names > 1 then table.sort(entries, function(a, b) return a[1] < b[1] end) end
    for _, entry in ipairs(entries) do admit(entry[2], entry[3], entry[4]) end
    scanned = scanned + #entries
  end
end

if silence ~= '' then for _, name in ipairs(names) do reclaim(name) end end
take()
if ordered and #names > 0 then read() end
local first, due = redis.call('ZRANGE', parked, 0, 0, 'WITHSCORES'), -1
if first[2] then due = math.max(0, first[2] - now()) end
return {out, due, cursors}
""",
    flags="flags=allow-oom",
)

# KEYS: space. ARGV: group id, consumer, delay in ms, 1 to take the attempt back, 1 to wake the others, topic, id.
NACK = script(
    _GROUP,
    """
local name, id = ARGV[6], ARGV[7]
local found = row(name, id)
if not found or found[2] ~= me then return 0 end
park(name, id, found[4] - ARGV[4], now() + ARGV[3])
if ARGV[5] == '1' then redis.call('PUBLISH', channel(gid), '') end
return 1
""",
    flags="flags=allow-oom",
)

# KEYS: space. ARGV: group id, consumer, then topic and id of each. Gives how many others are due by that.
ACK_IN_ORDER = script(
    _GROUP,
    """
local freed = 0
for i = 3, #ARGV, 2 do
  local name, id = ARGV[i], ARGV[i + 1]
  local member, found = name .. ' ' .. id, row(name, id)
  if found and (found[2] == me or (found[2] == '-' and redis.call('ZREM', parked, member) == 1)) then
    redis.call('XACK', stream(name), gid, id)
    freed = freed + free(member)
  end
end
return freed
""",
    flags="flags=allow-oom",
)

# KEYS: space. ARGV: group id, consumer, then topic and id of each. One that somebody else has by now stays there.
EXTEND = script(
    _GROUP,
    """
for i = 3, #ARGV, 2 do
  local found = row(ARGV[i], ARGV[i + 1])
  if found and found[2] == me then
    redis.call('XCLAIM', stream(ARGV[i]), gid, me, 0, ARGV[i + 1], 'JUSTID')
  end
end
return 1
""",
    flags="flags=allow-oom",
)

# KEYS: space. ARGV: group id, consumer, 1 to delete the consumer, number of topics, topics, then what it keeps.
RELEASE = script(
    _GROUP,
    """
local kept, released = {}, 0
for i = 5 + ARGV[4], #ARGV do kept[ARGV[i]] = true end
for i = 5, 4 + ARGV[4] do
  local name, from = ARGV[i], '-'
  repeat
    local rows = redis.pcall('XPENDING', stream(name), gid, from, '+', 200, me)
    if rows.err then rows = {} end
    for _, found in ipairs(rows) do
      if not kept[name .. ' ' .. found[1]] then
        park(name, found[1], found[4] - 1, 0)
        released = released + 1
      end
      from = '(' .. found[1]
    end
  until #rows == 0
  if ARGV[3] == '1' then
    local left = redis.pcall('XPENDING', stream(name), gid, '-', '+', 1, me)
    if not left.err and #left == 0 then redis.pcall('XGROUP', 'DELCONSUMER', stream(name), gid, me) end
  end
end
if released > 0 then redis.call('PUBLISH', channel(gid), '') end
return released
""",
    flags="flags=allow-oom",
)

# KEYS: space. ARGV: topics. Deletes what every group has handled, or what is too old. Gives 1 when more is left.
TRIM = script(
    _SPACE,
    """
local limit = redis.call('HMGET', base, 'max_age', 'max_bytes')
local more = 0
local function parse(id)
  local ms, sequence = string.match(id, '^(%d+)-(%d+)$')
  return tonumber(ms), tonumber(sequence)
end
local function less(a, b)
  local a_ms, a_sequence = parse(a)
  local b_ms, b_sequence = parse(b)
  return a_ms < b_ms or (a_ms == b_ms and a_sequence < b_sequence)
end
-- The first entry that some group still needs.
local function floor_of(name)
  local floor
  for _, info in ipairs(redis.call('XINFO', 'GROUPS', stream(name))) do
    local first
    if info[6] > 0 then
      first = redis.call('XPENDING', stream(name), info[2])[2]
    else
      local ms, sequence = parse(info[8])
      first = string.format('%.0f-%.0f', ms, sequence + 1)
    end
    if not floor or less(first, floor) then floor = first end
  end
  floor = floor or '0-0'
  if limit[1] and limit[1] ~= '' then
    local oldest = string.format('%.0f-0', math.max(0, now() - limit[1]))
    if less(floor, oldest) then floor = oldest end
  end
  return floor
end
local function trim(name)
  local floor = floor_of(name)
  if not limit[2] or limit[2] == '' then
    redis.call('XTRIM', stream(name), 'MINID', '=', floor)
    return
  end
  local size, entries = 0, redis.call('XRANGE', stream(name), '-', '(' .. floor, 'COUNT', 200)
  if #entries == 0 then return end
  for _, entry in ipairs(entries) do
    for _, text in ipairs(entry[2]) do size = size + #text end
    redis.call('XDEL', stream(name), entry[1])
  end
  redis.call('HINCRBY', base, 'bytes', -size)
  if #entries == 200 then more = 1 end
end
for _, name in ipairs(ARGV) do
  if redis.call('EXISTS', stream(name)) == 1 then trim(name) end
end
return more
""",
    flags="flags=allow-oom",
)

# KEYS: address. ARGV: group, channel. Who serves an address lives as long as its subscription to that channel.
SERVE = script(
    """
redis.set_repl(redis.REPL_NONE)
redis.call('SADD', KEYS[1], ARGV[1])
redis.call('SADD', KEYS[1] .. ':' .. ARGV[1], ARGV[2])
return 1
"""
)
UNSERVE = script(
    """
redis.set_repl(redis.REPL_NONE)
redis.call('SREM', KEYS[1] .. ':' .. ARGV[1], ARGV[2])
if redis.call('EXISTS', KEYS[1] .. ':' .. ARGV[1]) == 0 then redis.call('SREM', KEYS[1], ARGV[1]) end
return 1
""",
    flags="flags=allow-oom",
)

# KEYS: address or channel. ARGV: 1 for an address, head, body, name of a stored body (or ''), ms until it expires.
# Gives how many got it. Pub/sub disconnects a receiver that is 32 MB behind, so large bodies are left for it to fetch.
SEND = script(
    """
redis.set_repl(redis.REPL_NONE)
local sent, large = 0, ARGV[4] ~= ''
local function publish(channel)
  if not large then return redis.call('PUBLISH', channel, 'B' .. ARGV[2] .. ARGV[3]) > 0 end
  local name = ARGV[4] .. ':' .. sent
  redis.call('SET', name, ARGV[3], 'PX', ARGV[5])
  if redis.call('PUBLISH', channel, 'R' .. name .. '\\n' .. ARGV[2]) > 0 then return true end
  redis.call('DEL', name)
  return false
end
if ARGV[1] == '0' then return publish(KEYS[1]) and 1 or 0 end
for _, group in ipairs(redis.call('SMEMBERS', KEYS[1])) do
  local members = KEYS[1] .. ':' .. group
  while true do
    local channel = redis.call('SRANDMEMBER', members)
    if not channel then
      redis.call('SREM', KEYS[1], group)
      break
    end
    if publish(channel) then
      sent = sent + 1
      break
    end
    redis.call('SREM', members, channel)
  end
end
return sent
"""
)

# KEYS: name of a stored body. Gives it, once.
FETCH_BODY = script(
    """
redis.set_repl(redis.REPL_NONE)
local body = redis.call('GET', KEYS[1])
redis.call('DEL', KEYS[1])
return body
""",
    flags="flags=allow-oom",
)
