"""What ``state.redis`` runs on the server, and how a key is laid out there.

A key is a hash: ``data`` holds the value, ``version`` counts its writes and is the etag; the key expires as a whole.
With the server's JSON module, what is typed ``application/json`` is a document ``{"data": …, "version": …}`` instead.
Other programs that keep state in this layout may add the field ``first-write``, after which they refuse every save
without an etag; a write of ours takes it away.
"""

from __future__ import annotations

from bindings.redis._client import Script

__all__ = ["CHECK", "DELETE", "READ", "SET", "SET_DOCUMENT", "WRITE"]

CHECK, DELETE, SET, SET_DOCUMENT = "0", "1", "2", "3"

# KEYS: one key. Gives value, version, and milliseconds until it expires (negative for never).
READ = Script(
    """
local found = redis.pcall('HMGET', KEYS[1], 'data', 'version')
if found.err then
  if redis.call('TYPE', KEYS[1]).ok ~= 'ReJSON-RL' then return found end
  found = {redis.call('JSON.GET', KEYS[1], '.data'), redis.call('JSON.GET', KEYS[1], '.version')}
end
found[3] = redis.call('PTTL', KEYS[1])
return found
""",
    reads=True,
)

# KEYS: of the items. ARGV, four of each item: the version it must have ('' any, '0' it must not exist), what to do,
# milliseconds until it expires ('' never), value. Gives the number of the first item whose version differs, or 0.
# Everything is checked before anything is written. A server without memory refuses a script's first write alone; sets
# come before deletions, so that it refuses them.
WRITE = Script(
    """
local kinds, versions = {}, {}
for i, key in ipairs(KEYS) do
  local kind, version = redis.call('TYPE', key).ok, false
  if kind == 'hash' then
    version = redis.call('HGET', key, 'version')
  elseif kind == 'ReJSON-RL' then
    version = redis.pcall('JSON.GET', key, '.version')
  elseif kind ~= 'none' then
    version = ''
  end
  if version and not (type(version) == 'string' and #version < 19 and string.find(version, '^%-?%d+$')) then
    return redis.error_reply('WRONGTYPE ' .. key .. ' holds something else than state')
  end
  local expected = ARGV[4 * i - 3]
  if expected == '0' then
    if kind ~= 'none' then return i end
  elseif expected ~= '' and expected ~= version then
    return i
  end
  kinds[i] = kind
  versions[i] = version
end
local function hash(key, kind, value)
  if kind == 'ReJSON-RL' then
    local version = redis.call('JSON.NUMINCRBY', key, '.version', 1)
    redis.call('DEL', key)
    redis.call('HSET', key, 'data', value, 'version', version)
    return
  end
  redis.call('HSET', key, 'data', value)
  redis.call('HINCRBY', key, 'version', 1)
  if kind == 'hash' then redis.call('HDEL', key, 'first-write') end
end
local function document(key, kind, value)
  if kind == 'ReJSON-RL' then
    redis.call('JSON.NUMINCRBY', key, '.version', 1)
    redis.call('JSON.SET', key, '.data', value)
    return
  end
  local version = 1
  if kind == 'hash' then
    version = redis.call('HINCRBY', key, 'version', 1)
    redis.call('DEL', key)
  end
  redis.call('JSON.SET', key, '.', '{"data":' .. value .. ',"version":' .. string.format('%.0f', version) .. '}')
end
for i, key in ipairs(KEYS) do
  local act, ttl, value = ARGV[4 * i - 2], ARGV[4 * i - 1], ARGV[4 * i]
  if act == '2' or act == '3' then
    local set = act == '2' and hash or document
    set(key, kinds[i], value)
    if ttl ~= '' then
      redis.call('PEXPIRE', key, ttl)
    elseif kinds[i] ~= 'none' then
      redis.call('PERSIST', key)
    end
  end
end
for i, key in ipairs(KEYS) do
  if ARGV[4 * i - 2] == '1' then redis.call('DEL', key) end
end
return 0
"""
)
