"""What an adapter to a configuration store implements, what such a component can be asked, and the store in the mesh.

Changes are not pushed over the backbone: who follows keys asks again and again with what it knows of them (`Watch`),
and is answered when that is no longer right. So nothing is lost, whoever of them restarts.
"""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import Protocol, Self, cast

import orjson

from mesh.broker import KeyValue, Write
from mesh.errors import BadArgumentError, ConfigurationError, ConflictError, FeatureNotSupportedError, StateError
from mesh.operation import Method, Operation
from mesh.store import CHECKED_KEY

__all__ = [
    "GET",
    "MAX_KEYS",
    "SET",
    "WATCH",
    "WATCH_SECONDS",
    "ConfigurationItem",
    "ConfigurationStore",
    "ConfigurationStoreComponent",
    "Get",
    "KeyValueConfigurationStore",
    "Set",
    "Watch",
    "differences",
    "digest",
]

MAX_KEYS = 1000
WATCH_SECONDS = 10.0
WATCH_SHARE = 0.8  # Of an operation's time; the rest is for its way, and for reading.
POLL_SECONDS = 0.5
MAX_BYTES = 512 * 1024
MAX_LISTED = 200
CAN_SET = "SET"


@dataclass(frozen=True, slots=True)
class ConfigurationItem:
    """A value.

    Attributes:
        value: Its text.
        version: The store's; empty where it has none.
        metadata: What the store tells besides.
        shared_version: Whether the version is that of all values together: another one says nothing of this value.
    """

    value: str
    version: str = ""
    metadata: dict[str, str] = field(default_factory=dict)
    shared_version: bool = False


class ConfigurationStore(Protocol):
    """What an adapter implements."""

    @property
    def capabilities(self) -> Sequence[str]:
        """What metadata tells; with ``SET``, ours, it has a function ``set(key, value)`` as the mesh's own store."""

    async def get(self, keys: Sequence[str], metadata: Mapping[str, str]) -> Mapping[str, ConfigurationItem]:
        """Read the values of keys, those that are there; no keys = all.

        Raises:
            ConfigurationError: The store failed.
        """

    def watch(self, keys: Sequence[str], metadata: Mapping[str, str]) -> AbstractAsyncContextManager[asyncio.Event]:
        """Tell when something of these keys may have changed; no keys = all.

        It is entered often and by many at once: a store keeps one connection for all of them. The event is set, within
        a second, by each change after it was entered, and when a lost connection is back; whoever waits clears it.

        Raises:
            ConfigurationError: The store cannot tell.
        """


@dataclass(frozen=True, slots=True)
class Get:
    """Read the values of keys; none = all."""

    keys: tuple[str, ...] = ()
    metadata: dict[str, str] = field(default_factory=dict)

    @property
    def listed(self) -> str:
        """The keys, for people."""
        return f"[{' '.join(self.keys)[:MAX_LISTED]}]"


@dataclass(frozen=True, slots=True)
class Watch:
    """Wait until keys have other values than those known.

    Attributes:
        keys: Which; none = all.
        metadata: For the store.
        known: Digests of the known values, by key.
        seconds: How long to wait for a change.
    """

    keys: tuple[str, ...] = ()
    metadata: dict[str, str] = field(default_factory=dict)
    known: dict[str, str] = field(default_factory=dict)
    seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class Set:
    """Write a value; None deletes it."""

    key: str
    value: str | None


GET = Method("configuration", "get", Get, dict[str, ConfigurationItem])
WATCH = Method(
    "configuration", "watch", Watch, dict[str, ConfigurationItem | None], seconds=WATCH_SECONDS / WATCH_SHARE
)
SET = Method("configuration", "set", Set)


def digest(item: ConfigurationItem) -> str:
    """Give what tells a value from another one."""
    version = "" if item.shared_version else item.version
    told = orjson.dumps([item.value, version, item.metadata], option=orjson.OPT_SORT_KEYS)
    return hashlib.blake2s(told, digest_size=8).hexdigest()


def differences(
    found: Mapping[str, ConfigurationItem], known: Mapping[str, str]
) -> dict[str, ConfigurationItem | None]:
    """Give what is another than known, and None for what is known and no longer there."""
    changed: dict[str, ConfigurationItem | None] = {
        key: item for key, item in found.items() if known.get(key) != digest(item)
    }
    return changed | {key: None for key in known if key not in found}


class ConfigurationStoreComponent:
    """A configured store; its functions are the block's methods."""

    def __init__(self, store: ConfigurationStore) -> None:
        """Use an open store."""
        self.store = store
        self._waiting: set[asyncio.Event] = set()
        self._leaving = False

    @property
    def capabilities(self) -> Sequence[str]:
        """What metadata tells."""
        return self.store.capabilities

    async def check(self) -> None:
        """Raise a ``ConfigurationError`` when it cannot be used now: it reads a key that nobody has."""
        await self.store.get((CHECKED_KEY,), {})

    async def get(self, operation: Operation) -> Mapping[str, ConfigurationItem]:
        """Read values."""
        asked = cast("Get", operation.arguments)
        return await self.store.get(asked.keys, asked.metadata)

    async def watch(self, operation: Operation) -> Mapping[str, ConfigurationItem | None]:
        """Give what is another than known, once something is, or nothing after the time that was asked for.

        Raises:
            BadArgumentError: There are too many keys.
            ConfigurationError: The store failed, or cannot tell of changes.
        """
        asked, loop = cast("Watch", operation.arguments), asyncio.get_running_loop()
        left = min(asked.seconds, WATCH_SHARE * (operation.deadline - time.time()))
        until = loop.time() + left
        async with self.store.watch(asked.keys, asked.metadata) as changed:
            self._waiting.add(changed)
            try:
                while True:
                    changed.clear()
                    found = await self.store.get(asked.keys, asked.metadata)
                    if len(found) > MAX_KEYS:
                        raise BadArgumentError(f"more than {MAX_KEYS} keys cannot be watched; name those that matter")
                    told = differences(found, asked.known)
                    if told or self._leaving or loop.time() >= until:
                        return told
                    with suppress(TimeoutError):
                        async with asyncio.timeout_at(until):
                            await changed.wait()
            finally:
                self._waiting.discard(changed)

    async def set(self, operation: Operation) -> None:
        """Write or delete a value, where the store can."""
        if CAN_SET not in self.capabilities:
            raise FeatureNotSupportedError(f"configuration store {operation.target}", "writing")
        asked = cast("Set", operation.arguments)
        await cast("KeyValueConfigurationStore", self.store).set(asked.key, asked.value)

    def leave(self) -> None:
        """Answer who waits for a change: what they wait for will come from another host, or after a restart."""
        self._leaving = True
        for event in self._waiting:
            event.set()


ITEMS, CHANGED = "items", "changed"


class KeyValueConfigurationStore:
    """A configuration in the mesh's own key/value store: one entry for all, so that any number is read at once.

    With it a second, empty one is written. While somebody watches, that one's revision is read twice a second.
    """

    capabilities: Sequence[str] = (CAN_SET,)

    def __init__(self, key_value: KeyValue) -> None:
        """Use an open store."""
        self._key_value = key_value
        self._events: set[asyncio.Event] = set()
        self._watched = asyncio.Event()
        self._seen = 0
        self._tasks = asyncio.TaskGroup()
        self._polling: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        """Begin; nothing is read before somebody asks."""
        await self._tasks.__aenter__()
        self._polling = self._tasks.create_task(self._poll(), name="configuration-poll")
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        """Stop."""
        if self._polling is not None:
            self._polling.cancel()
        await self._tasks.__aexit__(None, None, None)

    async def get(self, keys: Sequence[str], metadata: Mapping[str, str]) -> Mapping[str, ConfigurationItem]:
        """Read values; the version is a number that rises with every change of the store."""
        items = (await self._read())[2]
        return {key: ConfigurationItem(*items[key]) for key in (keys or sorted(items)) if key in items}

    async def _read(self) -> tuple[int, int, dict[str, tuple[str, str]]]:
        """Give the entry's revision, the number of changes so far, and value and version by key."""
        try:
            entry = await self._key_value.get(ITEMS, strong=True)  # Never older than what a poll has seen.
        except StateError as error:
            raise ConfigurationError(str(error)) from error
        if entry is None:
            return 0, 0, {}
        changes, items = orjson.loads(entry.value)
        return entry.revision, changes, items

    async def set(self, key: str, value: str | None) -> None:
        """Write a value, or delete it.

        Raises:
            BadArgumentError: The configuration would be too large.
            ConfigurationError: The store failed.
        """
        while True:  # Whenever it conflicts, somebody else's change was made.
            revision, changes, items = await self._read()
            if value is None and key not in items:
                return
            items.pop(key, None)
            if value is not None:
                items[key] = value, str(changes + 1)
            body = orjson.dumps([changes + 1, items])
            if len(body) > MAX_BYTES:
                raise BadArgumentError(f"a configuration has at most {MAX_BYTES // 1024} KiB, with all of its keys")
            try:
                await self._key_value.apply([Write(ITEMS, body, revision), Write(CHANGED, b"")])
            except ConflictError:
                continue
            except StateError as error:
                raise ConfigurationError(str(error)) from error
            for event in self._events:  # Who watches at this node need not wait for the next look.
                event.set()
            return

    @asynccontextmanager
    async def watch(self, keys: Sequence[str], metadata: Mapping[str, str]) -> AsyncIterator[asyncio.Event]:
        """Tell of every change, whatever its key."""
        event = asyncio.Event()
        self._events.add(event)
        self._watched.set()
        try:
            if len(self._events) == 1:
                await self._look()  # What was seen may be from long ago.
            yield event
        except StateError as error:
            raise ConfigurationError(str(error)) from error
        finally:
            self._events.discard(event)
            if not self._events:
                self._watched.clear()

    async def _look(self) -> None:
        entry = await self._key_value.get(CHANGED)
        revision = 0 if entry is None else entry.revision
        if revision != self._seen:
            self._seen = revision
            for event in self._events:
                event.set()

    async def _poll(self) -> None:
        while True:
            await self._watched.wait()
            await asyncio.sleep(POLL_SECONDS)
            # Whoever watches reads as well, and is told why that fails.
            with suppress(Exception):
                async with asyncio.timeout(WATCH_SECONDS):
                    await self._look()
