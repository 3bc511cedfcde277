"""Lua scripts: what they are to the adapter, and those of frames.

Each runs atomically, in one round trip. One that only hands out or settles may go on when the server is out of
memory; one that stores may not. Effects that no restart needs stay out of the append-only file.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from brokers.redis._wire import Argument, Command

__all__ = ["FETCH_BODY", "SEND", "SEND_LARGE", "SERVE", "UNSERVE", "Script", "script"]

EVEN_OUT_OF_MEMORY = "flags=allow-oom"


@dataclass(frozen=True)
class Script:
    """A script and its name on the server."""

    text: str

    @cached_property
    def sha(self) -> str:
        """What EVALSHA calls it by."""
        return hashlib.sha1(self.text.encode()).hexdigest()  # noqa: S324 - the server's choice

    def command(self, keys: Sequence[Argument], arguments: Sequence[Argument]) -> Command:
        """Give the command that calls it."""
        return ("EVALSHA", self.sha, len(keys), *keys, *arguments)


def script(*parts: str, flags: str = "") -> Script:
    """Put a script together."""
    return Script(f"#!lua {flags}".rstrip() + "\n" + "".join(parts))


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
    flags=EVEN_OUT_OF_MEMORY,
)

# KEYS: address or channel. ARGV: 1 for an address, head, body, mark of a stored body (or ''), ms until it expires.
# Gives how many got it. Pub/sub disconnects a receiver that is 32 MB behind, so large bodies are left for it to fetch,
# under the name of its channel, so that rights by names keep others from them.
_SEND = """
redis.set_repl(redis.REPL_NONE)
local sent, large = 0, ARGV[4] ~= ''
local function publish(channel)
  if not large then return redis.call('PUBLISH', channel, 'B' .. ARGV[2] .. ARGV[3]) > 0 end
  local name = channel .. ':' .. ARGV[4]
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
SEND = script(_SEND, flags=EVEN_OUT_OF_MEMORY)
SEND_LARGE = script(_SEND)

# KEYS: name of a stored body. Gives it, once.
FETCH_BODY = script(
    """
redis.set_repl(redis.REPL_NONE)
local body = redis.call('GET', KEYS[1])
redis.call('DEL', KEYS[1])
return body
""",
    flags=EVEN_OUT_OF_MEMORY,
)
