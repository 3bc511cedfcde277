"""Spaces: declaring them, joining their groups, and deleting what everybody has handled."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import cast

from brokers.redis._connection import Connection
from brokers.redis._topic_scripts import DECLARE, DROP, JOIN, TRIM
from brokers.redis._wire import Argument
from mesh.address import Address
from mesh.broker import SubscribeOptions, Topology
from mesh.errors import BrokerError, TopologyMismatchError

__all__ = ["UNDECLARED", "Spaces", "lives_on"]

logger = logging.getLogger("brokers.redis")

UNDECLARED, OTHER_KIND = -1, -2
EPHEMERAL_MS = 60_000
TRIM_INTERVAL = 5.0
TOPICS_A_CALL = 50


def lives_on(options: SubscribeOptions) -> Argument:
    """Give the ms that a group outlives its members, or nothing."""
    if options.ephemeral:
        return EPHEMERAL_MS
    return "" if options.expires is None else int(options.expires * 1000)


class Spaces:
    """The spaces that this node has declared."""

    def __init__(self, commands: Connection, max_age: float | None) -> None:
        """Prepare.

        Args:
            commands: The connection.
            max_age: What a component says about it; None for what each topology does.
        """
        self.commands = commands
        self._max_age = max_age
        self._declared: dict[str, Topology] = {}

    async def declare(self, topology: Topology) -> None:
        """Note a space's limits, or check that they are as wanted.

        Raises:
            TopologyMismatchError: It exists with others.
        """
        topology = replace(topology, max_age=self.max_age(topology))
        wanted = self.wanted(topology)
        pairs = [text for pair in wanted.items() for text in pair]
        found = cast("list[bytes]", await self.commands.run(DECLARE, [topology.space], *pairs))
        if sides := self.sides(wanted, found):
            raise TopologyMismatchError(
                f"space {topology.space} differs: {sides}; change its hash there, or the component's settings here"
            )
        self._declared[topology.space] = topology

    def max_age(self, topology: Topology) -> float | None:
        """Give the seconds that events of a space are kept; None for ever."""
        return topology.max_age if self._max_age is None else self._max_age

    def wanted(self, topology: Topology) -> dict[str, str]:
        """Give the fields that a space's hash has to have."""
        max_age = self.max_age(topology)
        return {
            "max_age": "" if max_age is None else f"{max_age:.15g}",
            "max_bytes": "" if topology.max_bytes is None else str(topology.max_bytes),
            "replicas": str(topology.replicas),
        }

    @staticmethod
    def sides(wanted: Mapping[str, str], found: Sequence[bytes]) -> str:
        """Name both sides of what is not as wanted; empty = all of it is."""
        return ", ".join(
            f"{name} is {there.decode() or None} and should be {here or None}"
            for (name, here), there in zip(wanted.items(), found, strict=True)
            if there.decode() != here
        )

    async def declare_again(self, space: str) -> bool:
        """Declare once more what the server has lost; tell whether it was declared here."""
        topology = self._declared.get(space)
        if topology is None:
            return False
        logger.warning("Redis has lost the space %s; declaring it again", space)
        await self.declare(topology)
        return True

    async def join(self, address: Address, group: str, options: SubscribeOptions) -> list[str]:
        """Make a group where it is missing; give the topics it reads.

        Raises:
            BrokerError: The space was never declared.
            TopologyMismatchError: The group is of another kind.
        """
        kind = int(options.ordered) + 2 * int(options.ephemeral) + 4 * int(options.expires is not None)
        arguments = (group, address.name, kind, lives_on(options))
        reply = await self.commands.run(JOIN, [address.space], *arguments)
        if reply == UNDECLARED and await self.declare_again(address.space):
            reply = await self.commands.run(JOIN, [address.space], *arguments)
        if reply == UNDECLARED:
            raise BrokerError(f"{address.space} was never declared")
        if reply == OTHER_KIND:
            raise TopologyMismatchError(
                f"group {options.group!r} of {address} exists with another order or life; wanted are "
                f"ordered={options.ordered}, ephemeral={options.ephemeral}; delete it there to change that"
            )
        return [name.decode() for name in cast("list[bytes]", reply)]

    async def keep_trimming(self) -> None:
        """Trim every space from time to time; one node does it for all."""
        while True:
            await asyncio.sleep(TRIM_INTERVAL)
            for space in sorted(self._declared):
                try:
                    lease = ("SET", f"{space}:trim", "", "NX", "PX", int(TRIM_INTERVAL * 900))
                    if await self.commands.call(*lease) is not None:
                        await self.trim(space)
                except BrokerError as error:
                    logger.warning("cannot trim %s: %s", space, error)

    async def trim(self, space: str) -> None:
        """Delete what every group of a topic has handled, and what is too old."""
        await self.commands.run(DROP, [space], "")
        topics = sorted(cast("list[bytes]", await self.commands.call("SMEMBERS", f"{space}:topics")))
        for first in range(0, len(topics), TOPICS_A_CALL):
            some = topics[first : first + TOPICS_A_CALL]
            left = True
            while left:
                left = await self.commands.run(TRIM, [space], *some) == 1
