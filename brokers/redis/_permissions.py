"""The rights of a node as those of an ACL user.

A selector allows commands on keys and channels of its own, and a command needs one selector that allows all of it, so
that a channel may be published to and not subscribed to. What a script calls is asked for like any other command.
Source: Redis documentation, ACL.
"""

from __future__ import annotations

from brokers.redis._entries import channel_of, stream_of
from mesh.address import encode_token
from mesh.rights import ALL, CALLS, Rights, taker_of

__all__ = ["permissions"]

# What needs no key; a script's own keys are asked for as if it wrote them, and then again with each of its commands.
_ALWAYS = (
    *("+client|id", "+client|setname", "+client|unblock", "+info", "+ping", "+scan", "+script|load", "+select"),
    *("+time", "+unsubscribe", "+evalsha", "~mesh.*", "~mesh-*"),
)
_READ_STREAM = ("xinfo|consumers", "xinfo|groups", "xpending", "xrange", "xread", "xreadgroup", "exists")
_WRITE_STREAM = ("xack", "xadd", "xclaim", "xdel", "xtrim", "xgroup|create", "xgroup|delconsumer", "xgroup|destroy")
_SORTED = ("zadd", "zcard", "zrange", "zrangebylex", "zrangebyscore", "zrem")
_HASH = ("hdel", "hexists", "hget", "hgetall", "hincrby", "hkeys", "hmget", "hset")
_PLAIN = ("del", "exists", "get", "sadd", "set", "smembers")
_EVERY = (*_READ_STREAM, *_WRITE_STREAM, *_SORTED, *_HASH, *_PLAIN)


def permissions(rights: Rights) -> str:
    """Write the commands that make the user of an application's gateway."""
    mark = encode_token(rights.app_id)
    lines = [
        "# Lines for redis-cli, of Redis 7 or later; with another password.",
        f"# The gateway: MESH_BACKBONE=redis://{mark}:PASSWORD@HOST:6379?inbox={mark}",
        f"ACL SETUSER {mark} reset on >PASSWORD {' '.join(_ALWAYS)}",
    ]
    selectors = (*_frames(rights, mark), *_topics(rights), *_calls(rights), *_stores(rights))
    return "\n".join((*lines, *(f'ACL SETUSER {mark} "({each})"' for each in selectors))) + "\n"


def _may(commands: tuple[str, ...], *places: str) -> str:
    return " ".join((*(f"+{each}" for each in dict.fromkeys(commands)), *dict.fromkeys(places)))


def _patterns(addresses: list[str]) -> list[str]:
    """Write addresses as patterns; here a star is any text, so that one that ends in it covers what is below it."""
    stars = [each for each in addresses if each.endswith(ALL)]
    return [
        each.replace(">", ALL)
        for each in addresses
        if not any(each != star and each.startswith(star) for star in stars)
    ]


def _channels(addresses: list[str]) -> list[str]:
    """Give the channels of what is broadcast, in the first database and in any other."""
    found = _patterns(addresses)
    return [f"&{each}" for each in found] + [f"&{each}@*" for each in found if not each.endswith(ALL)]


def _served(addresses: list[str]) -> list[str]:
    """Give the keys that say who serves."""
    return [f"~{each}:serve*" for each in _patterns(addresses)]


def _frames(rights: Rights, mark: str) -> list[str]:
    own = f"mesh-{mark}:*"
    return [
        _may(("publish",), "&mesh-*", *_channels(rights.told)),
        _may(("subscribe",), f"&{own}", *_channels(rights.heard)),
        _may(("smembers", "srandmember", "srem"), *_served(rights.told)),
        _may(("exists", "sadd", "srem"), *_served(rights.heard)),
        _may(("set", "del"), "%W~mesh-*"),  # Large bodies, for their receivers.
        _may(("get", "del"), f"~{own}"),
    ]


def _topics(rights: Rights) -> list[str]:
    spaces = [rights.space("topic", name) for name in rights.pubsub]
    ids = [_may(("set", "del"), "%W~mesh.id:*")]
    if not spaces:
        return ids
    keys = [each for space in spaces for each in (f"~{space}", f"~{space}:*")]
    return [*ids, _may((*_EVERY, "publish", "subscribe"), *keys, *(f"&{channel_of(each, ALL)}" for each in spaces))]


def _calls(rights: Rights) -> list[str]:
    """Write to the streams of those who may be called, and read one's own; anybody may delete what is done with."""
    space, own = rights.space("topic", CALLS), encode_token(rights.queue)
    group = f"{own}?{encode_token(rights.app_id)}"  # The blank between them would separate what stands in a selector.
    names = {each: each if each == ALL else encode_token(each) for each in rights.calls}
    streams = [f"~{stream_of(space, each)}" for each in names.values()]
    taken = [f"{topic}?{topic if each == ALL else encode_token(taker_of(each))}" for each, topic in names.items()]
    kept = [f"~{space}:{kind}:{each}" for each in taken for kind in "pwb"]
    noted = [f"~{space}{each}" for each in ("", ":topics", ":groups", ":trim", ":e:*")]
    called = [
        _may(("exists", "xadd", "xgroup|create"), *streams),
        _may(("exists", "hdel", "hgetall", "zrange", "zrem"), *kept),
    ]
    return [
        _may((*_HASH, *_PLAIN), *noted),
        _may(("exists", "xinfo|groups", "xpending", "xtrim"), f"~{stream_of(space, ALL)}"),
        *(called if names else []),
        _may(
            (*_EVERY, "publish", "subscribe"),
            f"~{stream_of(space, own)}",
            *(f"~{space}:{kind}:{group}" for kind in "pwb"),
            f"&{channel_of(space, group)}",
        ),
    ]


def _stores(rights: Rights) -> list[str]:
    counters = [f"~mesh.kv:{encode_token(name)}" for name in rights.stores]
    indexes = [f"~mesh.kv.index:{encode_token(name)}" for name in rights.stores]
    return [
        _may(
            ("del", "exists", "hget", "hmget", "hset", "incr", "pexpireat"),
            *(each for counter in counters for each in (counter, f"{counter}:*")),
        ),
        _may(("zadd", "zrangebylex", "zrem"), *indexes),
        _may(("exists", "set"), "~mesh.kv.done:*"),
    ]
