"""Placeholder of the contract, until the real one is merged."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass

from mesh.broker import Message
from mesh.errors import MeshError
from mesh.ownership.table import Table

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
    """Placeholder."""

    def host(self, kind: str, keeper: object, answer: Answer, *, ready: bool) -> None:
        raise NotImplementedError

    async def ask(self, kind: str, key: str, headers: Mapping[str, str], body: bytes, deadline: float) -> Message:
        raise NotImplementedError

    def epoch_of(self, kind: str, partition: int) -> int | None:
        raise NotImplementedError

    async def table(self, kind: str) -> Table:
        raise NotImplementedError
