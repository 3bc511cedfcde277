"""Looks at the resource files of a running gateway, and has its node take what has changed.

Files are looked at once a second, in a thread: names, sizes, times and inodes. That works on every file system and
mount, with editors that rename, and with the directories of links that a cluster swaps as a whole. A change is read
once two looks in a row are alike, so that nobody's half-written file counts; one that has errors is read again a moment
later before they are told.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

from gateway.settings import Reader
from mesh.errors import ConfigError, Problem
from mesh.node.reload import Told, log_unexpected
from mesh.node.runtime import NodeSettings
from mesh.tasks import task_group

__all__ = ["FEATURE", "Look", "look", "watching"]

logger = logging.getLogger(__name__)

FEATURE = "HotReload"
INTERVAL = 1.0
SETTLE = 0.25
MAX_SETTLING = 40
FIRST_RETRY, LONGEST_RETRY = 5.0, 60.0
MAX_TOLD = 5

Look = tuple[tuple[object, ...], ...]


def look(paths: Sequence[Path]) -> Look:
    """Give what is another one when something in the files may be."""
    seen: list[tuple[object, ...]] = []
    for path in paths:
        try:
            files = sorted(each for each in path.iterdir() if each.suffix.lower() in (".yaml", ".yml"))
        except NotADirectoryError:
            files = [path]
        except OSError as error:
            files = []
            seen.append((path, error.errno))
        seen += [(file, *_stat(file)) for file in files]
    return tuple(seen)


def _stat(path: Path) -> tuple[object, ...]:
    try:
        found = path.stat()
    except OSError as error:
        return (error.errno,)
    return found.st_ino, found.st_dev, found.st_size, found.st_mtime_ns, found.st_ctime_ns


@asynccontextmanager
async def watching(
    reader: Reader,
    first: Look,
    reload: Callable[[NodeSettings], Awaitable[Told]],
    told: Callable[[Sequence[Problem]], None] | None = None,
) -> AsyncIterator[None]:
    """Have what changes in the files take effect while entered.

    Args:
        reader: Has read them once.
        first: How they looked before that.
        reload: Puts what they hold to work.
        told: Is given what was wrong, if anything was, whenever they were read; None = nobody is.
    """
    if not reader.paths:
        yield
        return
    async with task_group() as tasks:
        task = tasks.create_task(_Watch(reader, first, reload, told).run(), name="reload-watch")
        try:
            yield
        finally:
            task.cancel()


class _Watch:
    def __init__(
        self,
        reader: Reader,
        first: Look,
        reload: Callable[[NodeSettings], Awaitable[Told]],
        told: Callable[[Sequence[Problem]], None] | None,
    ) -> None:
        self._reader = reader
        self._seen = first
        self._reload = reload
        self._told = told
        self._complained: tuple[str, ...] = ()
        self._unexpected: set[tuple[str, str]] = set()

    async def run(self) -> None:
        """Look, until it is cancelled."""
        loop = asyncio.get_running_loop()
        again_at, wait = float("inf"), FIRST_RETRY
        while True:
            await asyncio.sleep(INTERVAL)
            now = await self._looked()
            if now == self._seen and loop.time() < again_at:
                continue
            if now != self._seen:
                wait = FIRST_RETRY
                now = await self._settled(now)
            self._seen = now
            if await self._take():
                again_at, wait = loop.time() + wait, min(wait * 2, LONGEST_RETRY)
            else:
                again_at = float("inf")

    async def _looked(self) -> Look:
        return await asyncio.to_thread(look, self._reader.paths)

    async def _settled(self, now: Look) -> Look:
        """Wait until nobody writes any more, for ten seconds at most."""
        for _ in range(MAX_SETTLING):
            await asyncio.sleep(SETTLE)
            before, now = now, await self._looked()
            if now == before:
                break
        return now

    async def _take(self) -> bool:
        """Read the files and have them take effect; tells whether it may work later what does not now."""
        bad: Sequence[Problem] = ()
        try:
            settings, bad = await self._read()
            if bad:
                await asyncio.sleep(SETTLE * 2)
                settings, bad = await self._read()
            told = Told() if settings is None else await self._reload(settings)
        except Exception as error:  # noqa: BLE001 - whatever it is, the node goes on with what it has
            problem = Problem(f"cannot reload: {log_unexpected('reload', error, self._unexpected)}")
            told = Told(kept=(problem,), again=True)
        if told.done:
            logger.info("resources reloaded: %s", "; ".join(map(str, told.done)))
        self._complain(bad, told.kept)
        if self._told is not None:
            self._told(tuple(dict.fromkeys((*bad, *told.kept))))
        return told.again

    async def _read(self) -> tuple[NodeSettings | None, Sequence[Problem]]:
        try:
            settings = await asyncio.to_thread(self._reader.again)
        except ConfigError as error:
            return None, error.problems
        self._reader.log_warnings()
        return settings, self._reader.bad

    def _complain(self, bad: Sequence[Problem], kept: Sequence[Problem]) -> None:
        """Say in one line why something is as it was; the same is not said twice in a row."""
        # A Configuration that stands among the resources is read with them as well.
        reasons = tuple(dict.fromkeys(map(str, (*bad, *kept))))
        if reasons and reasons != self._complained:
            more = f"; and {len(reasons) - MAX_TOLD} more" if len(reasons) > MAX_TOLD else ""
            logger.error("resources are kept as they were: %s%s", "; ".join(reasons[:MAX_TOLD]), more)
        elif self._complained and not reasons:
            logger.info("all resources are as their files say")
        self._complained = reasons
