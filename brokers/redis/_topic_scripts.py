"""The Lua scripts of a space: its limits, its topics and the groups that read them."""

from __future__ import annotations

from brokers.redis._scripts import EVEN_OUT_OF_MEMORY, script

__all__ = ["ALIVE", "BACKLOG", "DECLARE", "DROP", "JOIN", "PUBLISH", "REMOVE", "SPACE", "TRIM"]

# A space: its limits (KEYS[1]), the topics in it, and the groups by "<group> <pattern>".
SPACE = """
local base = KEYS[1]
local topics, groups = base .. ':topics', base .. ':groups'  -- A group's value: 1 ordered + 2 ephemeral + 4 expires.
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
local function create(gid, name, first)
  local made = redis.pcall('XGROUP', 'CREATE', stream(name), gid, first or '0', 'MKSTREAM')
  if type(made) == 'table' and made.ok then forget(gid, name) end
end
local function drop(gid)
  local pattern = string.match(gid, '%S+$')
  for _, name in ipairs(redis.call('SMEMBERS', topics)) do
    if matches(pattern, name) then redis.pcall('XGROUP', 'DESTROY', stream(name), gid) end
  end
  redis.call('HDEL', groups, gid)
  for _, kind in ipairs({':p:', ':w:', ':b:', ':e:'}) do redis.call('DEL', base .. kind .. gid) end
end
-- A member's sign of life; how long the group lives on after the last one was said by the first.
local function live_on(gid, ms)
  local key = base .. ':e:' .. gid
  local said = redis.call('GET', key)
  if said and said ~= '' then ms = said end
  redis.call('SET', key, ms, 'PX', ms)
end
-- A topic's first message or subscriber: every group that wants it begins with it, even one that is away.
local function register(name)
  redis.call('SADD', topics, name)
  for _, gid in ipairs(redis.call('HKEYS', groups)) do
    local pattern = string.match(gid, '%S+$')
    if matches(pattern, name) then
      create(gid, name)
      if pattern ~= name then redis.call('PUBLISH', channel(gid), '+') end
    end
  end
end
"""

# KEYS: space, stream[, id]. ARGV: topic, window in ms, fields. Gives 1 stored, 0 had it, -1 undeclared, -2 full.
# Entry ids are made from the time in microseconds, so that they also order entries of different topics.
PUBLISH = script(
    SPACE,
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
if type(stored) == 'table' then stored = redis.pcall('XADD', KEYS[2], '*', unpack(ARGV, 3)) end
if type(stored) == 'table' then
  if KEYS[3] then redis.call('DEL', KEYS[3]) end
  return stored
end
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

# KEYS: space. ARGV: group id, pattern, kind, ms that one outlives its members' last sign of life, if it is ephemeral or
# expires. Who does not want it to expire takes that from it. Gives the topics, -1 undeclared, -2 it is of another kind.
JOIN = script(
    SPACE,
    """
local gid, pattern, kind, lives_on = ARGV[1], ARGV[2], tonumber(ARGV[3]), ARGV[4]
if redis.call('EXISTS', base) == 0 then return -1 end
local known, first = tonumber(redis.call('HGET', groups, gid) or kind), '0'
if known % 4 ~= kind % 4 then return -2 end
redis.call('HSET', groups, gid, math.min(known, kind))
if kind % 4 >= 2 then first = '$' end
if lives_on ~= '' then live_on(gid, lives_on) end
if not string.find(pattern, '[*>]') then
  if redis.call('EXISTS', stream(pattern)) == 0 then register(pattern) end
  create(gid, pattern, first)
  return {pattern}
end
local found = {}
for _, name in ipairs(redis.call('SMEMBERS', topics)) do
  if matches(pattern, name) then
    create(gid, name, first)
    found[#found + 1] = name
  end
end
table.sort(found)
return found
""",
    flags=EVEN_OUT_OF_MEMORY,
)

# KEYS: space. ARGV: group id, ms that it lives on. For a member that has no room to look for more.
ALIVE = script(SPACE, "live_on(ARGV[1], ARGV[2])", flags=EVEN_OUT_OF_MEMORY)

# KEYS: space. ARGV: a group id, or '' for all whose members are gone for too long. They end, with what they hold.
DROP = script(
    SPACE,
    """
if ARGV[1] ~= '' then return drop(ARGV[1]) end
local all = redis.call('HGETALL', groups)
for i = 1, #all, 2 do
  if tonumber(all[i + 1]) >= 2 and redis.call('EXISTS', base .. ':e:' .. all[i]) == 0 then drop(all[i]) end
end
""",
    flags=EVEN_OUT_OF_MEMORY,
)

# KEYS: space. ARGV: group with its pattern, pattern. Gives how many entries it has not read, how many it has read and
# not settled, and when the first of them was stored, in Unix milliseconds; -1 = there is none.
BACKLOG = script(
    SPACE,
    """
local gid, pattern, waiting, taken, oldest, most = ARGV[1], ARGV[2], 0, 0, -1, 1000
local function look(id)
  local ms = tonumber(string.match(id, '^(%d+)'))
  if oldest < 0 or ms < oldest then oldest = ms end
end
for _, name in ipairs(redis.call('SMEMBERS', topics)) do
  local infos = matches(pattern, name) and redis.pcall('XINFO', 'GROUPS', stream(name)) or {}
  for _, info in ipairs(infos) do
    if info[2] == gid then
      local next_one = redis.call('XRANGE', stream(name), '(' .. info[8], '+', 'COUNT', 1)[1]
      if info[12] then  -- Redis does not know it where others were deleted among them.
        waiting = waiting + info[12]
      elseif next_one then
        local ahead = #redis.call('XRANGE', stream(name), '(' .. info[8], '+', 'COUNT', most)
        if ahead == most then  -- Those behind are few, if groups keep up: they are deleted.
          local behind = #redis.call('XRANGE', stream(name), '-', info[8], 'COUNT', most)
          if behind < most then ahead = redis.call('XLEN', stream(name)) - behind end
        end
        waiting = waiting + ahead
      end
      taken = taken + info[6]
      if info[6] > 0 then look(redis.call('XPENDING', stream(name), gid)[2]) elseif next_one then look(next_one[1]) end
    end
  end
end
return {waiting, taken, oldest}
""",
    flags=EVEN_OUT_OF_MEMORY,
)

# KEYS: space, stream. ARGV: ids of entries, which are deleted, for every group.
REMOVE = script(
    """
local size = 0
for _, id in ipairs(ARGV) do
  local entry = redis.call('XRANGE', KEYS[2], id, id)[1]
  for _, text in ipairs(entry and entry[2] or {}) do size = size + #text end
  redis.call('XDEL', KEYS[2], id)
end
if (redis.call('HGET', KEYS[1], 'max_bytes') or '') ~= '' then redis.call('HINCRBY', KEYS[1], 'bytes', -size) end
return 1
""",
    flags=EVEN_OUT_OF_MEMORY,
)

# KEYS: space. ARGV: topics. Deletes what every group has handled, or what is too old. Gives 1 when more is left.
TRIM = script(
    SPACE,
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
    local oldest = string.format('%.0f-0', math.max(0, now() - limit[1] * 1000))
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
    flags=EVEN_OUT_OF_MEMORY,
)
