"""The entries of Secrets that resources refer to, and no others.

All Secrets are watched by their metadata alone; the content is read of those that are referred to, and kept of it are
the entries that are. So nothing else of a cluster's secrets is in the operator's memory, and one stream is enough.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import logging
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from bindings.kubernetes.api import Cluster, ClusterError
from bindings.kubernetes.informer import Informer, Key

__all__ = ["Secrets"]

logger = logging.getLogger(__name__)

AGAIN_SECONDS = 5.0


class Secrets:
    """Follows Secrets that somebody wants."""

    def __init__(self, cluster: Cluster, changed: Callable[[str], None]) -> None:
        """Want nothing yet.

        Args:
            cluster: To ask.
            changed: Is told the namespace of which a value is another.
        """
        self._cluster = cluster
        self._told = changed
        self._wanted: defaultdict[Key, Counter[str]] = defaultdict(Counter)
        self._values: dict[Key, tuple[str, Mapping[str, bytes]]] = {}
        # By namespace, and one of each in turn: anybody may refer to any number of them.
        self._due: dict[str, dict[str, None]] = {}
        self._done: defaultdict[str, asyncio.Event] = defaultdict(asyncio.Event)
        self._failed: dict[Key, str] = {}
        self._reading: Key | None = None
        self._away = False
        self._work = asyncio.Event()
        self.informer = Informer(cluster, "/api/v1/secrets", _version, self._seen, metadata=True)

    def want(self, namespace: str, before: Iterable[tuple[str, str]], after: Iterable[tuple[str, str]]) -> None:
        """Note what a resource refers to by name and entry, and what it referred to."""
        for name, entry in after:
            counts = self._wanted[namespace, name]
            counts[entry] += 1
            if counts[entry] == 1:
                self._read_soon((namespace, name))
        for name, entry in before:
            counts = self._wanted[namespace, name]
            counts[entry] -= 1
            if not counts[entry]:
                del counts[entry]
            if not counts:
                del self._wanted[namespace, name]
                self._values.pop((namespace, name), None)
                self._failed.pop((namespace, name), None)

    def unread(self, namespace: str, names: Iterable[str]) -> str:
        """Say which of some Secrets was never read, and why; empty = each of them is known, or is not there."""
        due = self._due.get(namespace, {})
        for key in ((namespace, name) for name in names):
            if key not in self._values and (key[1] in due or key in self._failed or key == self._reading):
                return f"the Secret {key[1]} could not be read yet: {self._failed.get(key, 'it is its turn soon')}"
        return ""

    def value(self, namespace: str, name: str, entry: str) -> tuple[str, bytes] | None:
        """Give an entry with the version of its Secret; None if there is none."""
        version, entries = self._values.get((namespace, name), ("", {}))
        return (version, entries[entry]) if entry in entries else None

    async def settled(self, namespace: str) -> None:
        """Wait until what is wanted of a namespace was read, is not there, or cannot be read for now (`unread`)."""
        await self.informer.synced.wait()
        if namespace in self._due and not self._away:
            await self._done[namespace].wait()

    async def run(self) -> None:
        """Follow them until it is cancelled."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self.informer.run(), name="secrets-follow")
            tasks.create_task(self._read_all(), name="secrets-read")
            tasks.create_task(self._read_again(), name="secrets-read-again")

    def _seen(self, key: Key, version: str | None) -> None:
        if key not in self._wanted:
            return
        if version is not None:
            self._read_soon(key)
        elif self._values.pop(key, None) is not None:
            self._told(key[0])

    def _read_soon(self, key: Key) -> None:
        self._due.setdefault(key[0], {})[key[1]] = None
        self._work.set()

    async def _read_all(self) -> None:
        while True:
            await self._work.wait()
            self._work.clear()
            while self._due:
                namespace, names = next(iter(self._due.items()))
                name = next(iter(names))
                del names[name]
                self._reading = namespace, name
                await self._tried(self._reading)
                self._reading = None
                del self._due[namespace]
                if names:
                    self._due[namespace] = names  # Behind all others.
                elif namespace in self._done:
                    self._done.pop(namespace).set()

    async def _tried(self, key: Key) -> None:
        try:
            await self._read(key)
            self._away = False
        except ClusterError as error:
            if key in self._wanted:
                if key not in self._failed:  # Once for as long as it lasts.
                    text = "the Secret %s of the namespace %s cannot be read for now: %s"
                    logger.warning(text, key[1], key[0], error)
                self._failed[key] = str(error)
            if error.status in (0, 429):  # Not that one alone: the API server is away, or has too much to do.
                self._away = True
                for each in list(self._done):
                    self._done.pop(each).set()
                await asyncio.sleep(AGAIN_SECONDS)

    async def _read_again(self) -> None:
        while True:
            await asyncio.sleep(AGAIN_SECONDS)
            for key in self._failed:
                self._read_soon(key)

    async def _read(self, key: Key) -> None:
        wanted = self._wanted.get(key)
        if not wanted:
            return
        found = await self._cluster.get(f"/api/v1/namespaces/{key[0]}/secrets/{key[1]}")
        failed = self._failed.pop(key, None)
        former = self._values.pop(key, None)
        if found is not None and key in self._wanted:
            self._values[key] = _version(found), _entries(found, wanted)
        if self._values.get(key) != former or failed is not None:
            self._told(key[0])


def _version(item: Mapping[str, Any]) -> str:
    return str(item["metadata"].get("resourceVersion") or "")


def _entries(secret: Mapping[str, Any], wanted: Iterable[str]) -> Mapping[str, bytes]:
    entries = {}
    for name in wanted:
        try:
            entries[name] = base64.b64decode((secret.get("data") or {})[name], validate=True)
        except (KeyError, binascii.Error):
            continue  # Who refers to it says that it is not there.
    return entries
