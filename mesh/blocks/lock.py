"""Locks: a resource is held by one owner at a time, for as long as its lease.

Source: Dapr 1.18, the distributed lock API (alpha).
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import IntEnum
from functools import lru_cache
from typing import Protocol, cast

import orjson

from mesh.blocks import shared_settings
from mesh.blocks.block import Block, Parts
from mesh.blocks.components import ComponentService
from mesh.blocks.records import on_backbone
from mesh.blocks.state import SEPARATOR, key_prefix
from mesh.broker import Entry, KeyValue, Write
from mesh.errors import ConflictError, LockError, MeshError, NoResponderError, StateError
from mesh.operation import Method, Operation
from mesh.policies import Verdict, by_error
from mesh.registry import LOCK_ON_BACKBONE
from mesh.resources.component import Component
from mesh.store import CHECKED_KEY

__all__ = ["ACQUIRE", "BLOCK", "RELEASE", "Acquire", "LockStore", "LockStoreComponent", "Release", "Released"]


class Released(IntEnum):
    """What became of a wish to give a lock back; the numbers are the API's."""

    DONE = 0
    NOT_HELD = 1
    HELD_BY_OTHER = 2


class LockStore(Protocol):
    """What an adapter implements; names come with their prefix."""

    @property
    def capabilities(self) -> Sequence[str]:
        """What metadata tells."""

    async def acquire(self, name: str, owner: str, seconds: float) -> int | None:
        """Take a lock that nobody holds; its owner is nobody special.

        Args:
            name: Of the resource, with its prefix.
            owner: Who wants it.
            seconds: How long the lease is.

        Returns:
            The fencing token: greater than that of every earlier holder of this lock; 0 where the store has none.
            None when it is held.

        Raises:
            LockError: The store failed; whether it is held now may be unknown.
        """

    async def release(self, name: str, owner: str) -> Released:
        """Give a lock back, if this owner holds it.

        Raises:
            LockError: The store failed.
        """


@dataclass(frozen=True, slots=True)
class Acquire:
    """Take a lock for so many seconds, if nobody holds it."""

    resource: str
    owner: str
    seconds: float


@dataclass(frozen=True, slots=True)
class Release:
    """Give a lock back."""

    resource: str
    owner: str


def _judge(operation: Operation, result: object, error: MeshError | None) -> Verdict:
    """A lock that may have been taken is not asked for again: it would be in its own way."""
    verdict = by_error(result, error)
    return verdict._replace(again=verdict.again and isinstance(error, NoResponderError))


ACQUIRE = Method("lock", "acquire", Acquire, int | None, judge=_judge)
RELEASE = Method("lock", "release", Release, Released)


class LockStoreComponent:
    """A configured lock store; its functions are the block's methods."""

    def __init__(self, store: LockStore, prefix_of: Callable[[str], str]) -> None:
        """Use an open store.

        Args:
            store: The adapter.
            prefix_of: Gives what is put before every resource of an app, separator included.
        """
        self.store = store
        self._prefix_of = prefix_of

    @property
    def capabilities(self) -> Sequence[str]:
        """What metadata tells."""
        return self.store.capabilities

    async def check(self) -> None:
        """Raise a ``LockError`` when it cannot be used now: it gives back a lock that nobody has."""
        await self.store.release(f"lock{SEPARATOR}{CHECKED_KEY}", "")

    async def acquire(self, operation: Operation) -> int | None:
        """Take a lock; give its fencing token, or None when it is held."""
        asked = cast("Acquire", operation.arguments)
        return await self.store.acquire(self._name(operation, asked.resource), asked.owner, asked.seconds)

    async def release(self, operation: Operation) -> Released:
        """Give a lock back."""
        asked = cast("Release", operation.arguments)
        return await self.store.release(self._name(operation, asked.resource), asked.owner)

    def _name(self, operation: Operation, resource: str) -> str:
        if SEPARATOR in resource:
            raise LockError(f"input key/keyPrefix '{resource}' can't contain '{SEPARATOR}'")
        return self._prefix_of(operation.context.caller.app_id) + resource


class KeyValueLockStore:
    """Locks in a key/value store: an entry that expires by the store's own clock. Its revision is the token."""

    capabilities: Sequence[str] = ()

    def __init__(self, key_value: KeyValue) -> None:
        """Use an open store."""
        self._key_value = key_value

    async def acquire(self, name: str, owner: str, seconds: float) -> int | None:
        """Take a lock that nobody holds."""
        mine = orjson.dumps([owner, secrets.token_hex(8)])  # Told apart from what the same owner takes later.
        try:
            await self._key_value.apply([Write(name, mine, 0, seconds, lease=True)])
        except ConflictError:
            return None
        except StateError as error:
            raise LockError(str(error)) from error
        entry = await self._read(name)
        return entry.revision if entry is not None and entry.value == mine else None  # Its time is over already.

    async def release(self, name: str, owner: str) -> Released:
        """Give a lock back, if this owner holds it; ends, since each new round is another holder's."""
        while True:
            entry = await self._read(name)
            if entry is None:
                return Released.NOT_HELD
            if orjson.loads(entry.value)[0] != owner:
                return Released.HELD_BY_OTHER
            try:
                await self._key_value.apply([Write(name, None, entry.revision)])
            except ConflictError:
                continue
            except StateError as error:
                raise LockError(str(error)) from error
            return Released.DONE

    async def _read(self, name: str) -> Entry | None:
        try:
            return await self._key_value.get(name, strong=True)
        except StateError as error:
            raise LockError(str(error)) from error


def lock_prefix(component: Component, app_id: str) -> str:
    """Read ``keyPrefix``, as a state store's; raises ``ConfigError``."""
    return f"lock{SEPARATOR}{key_prefix(component, app_id, None)}"


async def open_store(component: Component, parts: Parts) -> LockStoreComponent:
    """Open a lock store component; raises ``ConfigError``."""
    lock_prefix(component, parts.caller.app_id)  # So that what is wrong with it is told at start.
    store: LockStore
    if component.type == LOCK_ON_BACKBONE:
        store = KeyValueLockStore(await on_backbone(component, parts, "lock.redis"))
    else:
        adapter = parts.registry.load(component.type).from_component(component)  # type: ignore[attr-defined]
        store = await parts.stack.enter_async_context(adapter)
    return LockStoreComponent(store, lru_cache(1024)(lambda app_id: lock_prefix(component, app_id)))


BLOCK = Block(
    "lock",
    (ACQUIRE, RELEASE),
    ComponentService,
    kind="lock",
    open=open_store,
    settings=shared_settings.LOCK,
    check=lambda component: lock_prefix(component, ""),
    hosted=True,
    policy=lambda policies, target: policies.for_component(target, "lock", "outbound"),
    called="lockstore",
)
