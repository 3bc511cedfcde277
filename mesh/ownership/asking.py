"""Placeholder of the contract, until the real one is merged."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass

from mesh.broker import Message
from mesh.errors import MeshError
from mesh.ownership.owning import Keeper
from mesh.ownership.table import PARTITIONS, Table, partition_of

__all__ = ["Answer", "Asked", "NobodyHostsError", "NotOwnerError"]


class NotOwnerError(MeshError):
    """Ask again."""

    code = "ERR_NOT_OWNER"
    retryable = True


class NobodyHostsError(MeshError):
    """No node hosts the kind."""

    code = "NOBODY_HOSTS"


@dataclass(frozen=True, slots=True)
class Asked:
    """What reaches the owner."""

    kind: str
    key: str
    partition: int
    epoch: int
    headers: Mapping[str, str]
    body: bytes
    deadline: float


Answer = Callable[[Asked], Awaitable[Message]]


class Owners:
    """A stand-in until the real one is merged: this node owns everything."""

    def __init__(self) -> None:
        self._kinds: dict[str, tuple[Keeper, Answer]] = {}

    def host(self, kind: str, keeper: Keeper, answer: Answer, *, ready: bool) -> None:
        if kind not in self._kinds:
            self._kinds[kind] = keeper, answer
            for partition in range(PARTITIONS):
                keeper.take(partition, 1)

    async def ask(self, kind: str, key: str, headers: Mapping[str, str], body: bytes, deadline: float) -> Message:
        if kind not in self._kinds:
            raise NobodyHostsError(kind)
        asked = Asked(kind, key, partition_of(key, PARTITIONS), 1, headers, body, deadline)
        while True:
            try:
                return await self._kinds[kind][1](asked)
            except NotOwnerError:
                await asyncio.sleep(0.05)

    def epoch_of(self, kind: str, partition: int) -> int | None:
        return 1

    async def table(self, kind: str) -> Table:
        return Table.new()
