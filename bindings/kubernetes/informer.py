"""A copy of what a list of a cluster holds, kept up to date."""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any, Generic, TypeVar

import orjson

from bindings.kubernetes.api import PAGE, Cluster, ClusterError

__all__ = ["Informer", "Key"]

logger = logging.getLogger(__name__)

FIRST_WAIT_SECONDS = 0.25
MAX_WAIT_SECONDS = 20.0
Kept = TypeVar("Kept")
Key = tuple[str, str]


class Informer(Generic[Kept]):
    """Lists, then watches; whatever happens to the API server, it goes on, and lists anew where it has to.

    Attributes:
        kept: What it holds, by namespace and name.
        synced: Is set once the list was read in full, or there is none.
        failed: Why it does not follow at present; empty while it does.
    """

    def __init__(
        self,
        cluster: Cluster,
        path: str,
        keep: Callable[[dict[str, Any]], Kept | None],
        changed: Callable[[Key, Kept | None], None],
        query: Mapping[str, str] = {},
        *,
        metadata: bool = False,
        limit: int = PAGE,
    ) -> None:
        """Prepare.

        Args:
            cluster: To ask; its errors have to be ``ClusterError``.
            path: Of the list.
            keep: Makes what is kept of an object; None: nothing. It may not raise.
            changed: Is told of what is new or another (``==``), and of what is gone (None). It may not raise.
            query: ``labelSelector``, ``fieldSelector``.
            metadata: Whether only that of each object is asked for.
            limit: The most objects of a page of the list.
        """
        self._cluster = cluster
        self._path = path
        self._keep = keep
        self._changed = changed
        self._query = query
        self._metadata, self._limit = metadata, limit
        self.kept: dict[Key, Kept] = {}
        self.synced = asyncio.Event()
        self.failed = ""
        self._again = asyncio.Event()
        self._version = ""  # That the copy is of; empty: it has to be listed.

    async def run(self) -> None:
        """Follow the list until it is cancelled."""
        loop = asyncio.get_running_loop()
        wait = FIRST_WAIT_SECONDS
        while True:
            try:
                if not self._version:
                    await self._list()
                self._well()
                began = loop.time()
                await self._follow()
                if loop.time() - began < FIRST_WAIT_SECONDS:
                    raise ClusterError("the API server ends each watch at once")
                wait = FIRST_WAIT_SECONDS
            except ClusterError as error:
                if error.status != 410:  # That one means: too long ago, what happened since is not told any more.
                    self._ill(str(error))
                if not error.retryable:
                    self._version = ""
                if error.status == 404:  # Not after 403: who may not read a list does not know that it is empty.
                    self.synced.set()
                await self._pause(max(error.retry_after or 0.0, wait * random.uniform(0.5, 1.0)))  # noqa: S311
                wait = min(wait * 2, MAX_WAIT_SECONDS)

    def retry(self) -> None:
        """Try again at once, if it waits after a failure: somebody knows that the API server answers."""
        self._again.set()

    async def _pause(self, seconds: float) -> None:
        self._again.clear()
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._again.wait()

    def _well(self) -> None:
        if self.failed:
            logger.info("%s of the cluster is followed again", self._path)
        self.failed = ""

    def _ill(self, reason: str) -> None:
        if not self.failed:  # Once for as long as it lasts.
            logger.warning("%s of the cluster cannot be followed for now: %s", self._path, reason)
        self.failed = reason

    async def _list(self) -> None:
        seen: set[Key] = set()
        version = ""
        async for page in self._cluster.pages(self._path, self._query, limit=self._limit, metadata=self._metadata):
            version = page.version
            for item in page.items:
                seen.add(self._put(item))
        for key in [key for key in self.kept if key not in seen]:
            self._gone(key)
        self._version = version
        self.synced.set()

    async def _follow(self) -> None:
        """Watch until the server ends it."""
        try:
            watch = self._cluster.watch(self._path, self._version, self._query, metadata=self._metadata)
            async with watch as changes:
                async for change in changes:
                    if change.kind == "DELETED":
                        self._gone(_key(change.item))
                    elif change.kind != "BOOKMARK":
                        self._put(change.item)
                    self._version = change.version
        except (orjson.JSONDecodeError, KeyError) as error:
            raise ClusterError(f"what a watch tells cannot be read: {error}") from error

    def _put(self, item: dict[str, Any]) -> Key:
        key = _key(item)
        kept = self._keep(item)
        if kept is None:
            self._gone(key)
        else:
            former = self.kept.get(key)
            self.kept[key] = kept
            if former != kept:
                self._changed(key, kept)
        return key

    def _gone(self, key: Key) -> None:
        if self.kept.pop(key, None) is not None:
            self._changed(key, None)


def _key(item: dict[str, Any]) -> Key:
    about = item["metadata"]
    return str(about.get("namespace") or ""), str(about["name"])
