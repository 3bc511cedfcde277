"""Redis as a backbone: streams for what is stored, pub/sub for frames, hashes for state, Lua to join several.

=============  ====================================================================================
ours           on Redis
=============  ====================================================================================
space          hash ``<space>`` with its limits; ``<space>:topics``, and ``<space>:groups`` by pattern
topic          stream ``<space>:s:<topic>``; a header is a field, ours are ``:key``, ``:id``, ``:data``
group          one consumer group per stream that matches, named ``<group> <pattern>``, from entry 0;
               a new topic gets the groups of all patterns that match it with its first message
ordered group  a message whose key is busy waits in ``:w:`` (by key and id) until the one before it is
               done with, over all members: order by key, not by lane; ``:b:`` knows the busy keys
attempt        the delivery count of the pending entry, taken back when it is released
ack, reject    ``XACK``, those of one turn of the event loop together
nack, release  owned by the consumer ``-`` and in the ZSET ``:p:`` until due; then the next to look
               claims it. A release is due at once and wakes the others
ack_wait       each member looks for entries that are idle for so long, and has them due
extend         ``XCLAIM … JUSTID`` by the owner, which ends the idle time
dedup          ``mesh.id:<hash>``, ``SET NX PX``, 2 minutes, in the publish's own script
confirmation   the script's reply; on a reconnect what waits for one is sent again under its id
frames         ``PUBLISH`` to the channel of the node's inbox, or of one of an address's servers, which the
               script draws from a set; a channel without a subscriber is a server that is gone. Bodies
               over 16 KiB are stored for the receiver to fetch. Nothing of it reaches the disk
key/value      a hash per key (value, revision, expiry); one script for a transaction
consumed       what every group has acked is trimmed every 5 s, by one node for all
=============  ====================================================================================

Needs Redis 7.0 or a server that speaks like it; no cluster. Where there are Sentinels, they are asked for the primary.
What a confirmation is worth depends on ``appendonly`` and ``appendfsync``: docs/brokers/redis.md.

Sources: redis.io (streams, XCLAIM, XPENDING, pub/sub, scripting with Lua, persistence); the reply of a command that
writes follows the write to the append-only file, except with ``everysec`` while an fsync is under way (aof.c).
"""

from brokers.redis._config import RedisReader, RedisServerSettings, Sentinels
from brokers.redis.broker import RedisBroker, RedisConfig

__all__ = ["RedisBroker", "RedisConfig", "RedisReader", "RedisServerSettings", "Sentinels"]
