"""The Lua scripts by which a group hands out its entries and settles them."""

from __future__ import annotations

from brokers.redis._scripts import EVEN_OUT_OF_MEMORY, script
from brokers.redis._topic_scripts import SPACE

__all__ = ["ACK_IN_ORDER", "EXTEND", "LOOK", "NACK", "RELEASE"]

# A group's entries, named "<topic> <id>". Those that nobody works on are owned by "-": either parked until they are
# due, or, in an ordered group, waiting behind the one of their key (a hash of it) that is busy.
_GROUP = (
    SPACE
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

# KEYS: space. ARGV: group id, consumer, room, ms of silence after which entries are taken back (or ''), ordered, ms
# that the group lives on without members (or ''), topics. Gives entries (topic, id, attempt, fields), ms until the
# next is due (or -1), where each topic was read up to (in an ordered group without entries; none when too many wait
# already), and 1 to look again at once.
LOOK = script(
    _GROUP,
    """
local room, silence, ordered = tonumber(ARGV[3]), ARGV[4], ARGV[5] == '1'
local most_waiting, stale_ms = 10000, 600000
local names, out, cursors, more = {}, {}, {}, 0
for i = 7, #ARGV do names[#names + 1] = ARGV[i] end

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
  if room > 0 and scanned >= 1000 then more = 1 end
end

if silence ~= '' then
  if ARGV[6] ~= '' then live_on(gid, ARGV[6]) end
  for _, name in ipairs(names) do reclaim(name) end
end
take()
if ordered and #names > 0 then read() end
local first, due = redis.call('ZRANGE', parked, 0, 0, 'WITHSCORES'), -1
if first[2] then due = math.max(0, first[2] - now()) end
return {out, due, cursors, more}
""",
    flags=EVEN_OUT_OF_MEMORY,
)

# KEYS: space. ARGV: group id, consumer, delay in ms, 1 to take the attempt back, 1 to wake the others, topic, id.
NACK = script(
    _GROUP,
    """
local name, id = ARGV[6], ARGV[7]
local found = row(name, id)
if not found or found[2] ~= me then return 0 end
park(name, id, found[4] - ARGV[4], now() + ARGV[3])
if ARGV[5] == '1' then redis.call('PUBLISH', channel(gid), ARGV[3]) end
return 1
""",
    flags=EVEN_OUT_OF_MEMORY,
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
    flags=EVEN_OUT_OF_MEMORY,
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
    flags=EVEN_OUT_OF_MEMORY,
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
if released > 0 then redis.call('PUBLISH', channel(gid), '0') end
return released
""",
    flags=EVEN_OUT_OF_MEMORY,
)
