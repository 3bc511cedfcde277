"""What is on Redis for a topic, and the entries of its stream one after the other."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import cast

from brokers.redis._config import RedisConfig
from brokers.redis._connection import Connection
from brokers.redis._entries import group_id, parse_message, stream_of
from brokers.redis._kv import RedisKeyValue
from brokers.redis._spaces import Spaces
from brokers.redis._topic_scripts import REMOVE
from brokers.redis._wire import Argument, Reply, ReplyError
from mesh.address import Address
from mesh.broker import KeyValue, SubscribeOptions, Topology
from mesh.inspection import Letter, Pile, Standing

__all__ = ["Inspection"]

PAGE = 50
NO_PERMISSION = "NOPERM"


class Inspection:
    """The part of the adapter that looks on."""

    _commands: Connection
    _config: RedisConfig
    _spaces: Spaces

    async def shelf(self, name: str, *, dotted: bool = False) -> KeyValue | None:
        """Open a store, which takes no making; see ``Shelving``."""
        return RedisKeyValue(self._commands, name, dotted=dotted)

    async def inspect(self, address: Address, options: SubscribeOptions | None) -> Standing:
        """Look at a space's hash, and at a group in it; see ``Inspectable``."""
        place, refused = f"space {address.space}", list[str]()
        wanted = self._spaces.wanted(Topology(address.space))
        commands: list[tuple[str, str, tuple[Argument, ...]]] = [
            ("HMGET", address.space, tuple(wanted)),
            ("XADD", stream_of(address.space, address.name), ("0-0", "", "")),  # An id that no entry may have.
        ]
        replies: list[Reply] = []
        for name, key, arguments in commands:
            try:
                replies.append(await self._commands.call(name, key, *arguments))
            except ReplyError as error:
                replies.append(None)
                if error.reply_code == NO_PERMISSION:
                    refused.append(f"{name} on {key}: {error}")
        found = [each or b"" for each in cast("list[bytes | None]", replies[0] or [])]
        if not any(found):
            return Standing(place, exists=False, refused=tuple(refused))
        differs, there = self._spaces.sides(wanted, found), None
        if options is not None:
            group = group_id(address, options.group)
            known = await self._commands.call("HGET", f"{address.space}:groups", group)
            there = known is not None
            if known is not None and int(cast("bytes", known)) % 2 != int(options.ordered):
                other = f"group {options.group!r} exists with ordered={not options.ordered}, wanted {options.ordered}"
                differs = "; ".join(filter(None, (differs, other)))
        return Standing(place, exists=True, group=there, differs=differs, refused=tuple(refused))

    @asynccontextmanager
    async def letters(self, address: Address) -> AsyncIterator[Pile]:
        """Go through a topic's stream; what is removed is deleted from it, for every group."""
        yield _Stream(self._commands, address.space, stream_of(address.space, address.name))


class _Stream:
    """The entries of a stream."""

    def __init__(self, commands: Connection, space: str, key: str) -> None:
        self._commands, self._space, self._key = commands, space, key

    async def count(self) -> int:
        return cast("int", await self._commands.call("XLEN", self._key))

    async def __aiter__(self) -> AsyncIterator[Letter]:
        newest = cast("list[list[bytes]]", await self._commands.call("XREVRANGE", self._key, "+", "-", "COUNT", 1))
        if not newest:
            return
        after, command = b"-", ("XRANGE", self._key)
        while entries := await self._commands.call(*command, after, newest[0][0], "COUNT", PAGE):
            for entry, fields in cast("list[tuple[bytes, list[bytes]]]", entries):
                found = entry.decode()
                yield Letter(found, parse_message(fields), int(found.partition("-")[0]) / 1000)
                after = b"(" + entry

    async def remove(self, letters: Sequence[Letter]) -> None:
        await self._commands.run(REMOVE, [self._space, self._key], *(each.id for each in letters))
