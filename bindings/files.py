"""Files of a folder that appear, change or go: events, also of what happened while nobody looked.

The folder is compared with what the applications have taken. A file is known by its path, its last change and
its size. The word of the system that something has changed only makes it be looked at sooner: no file depends on it.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import platform
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import orjson
from watchfiles import awatch

from bindings._folder import Folder, Found, TooManyError
from mesh.adapter import ComponentAdapter
from mesh.blocks.binding_contract import BindingError, BindingEvent, Reading
from mesh.errors import MeshError, RecordsMissingError
from mesh.ownership.turns import in_turn
from mesh.resources.settings import BOOLEAN, COUNT, DURATION, SIZE, Kind, choice, setting
from mesh.store import Item, StateStore
from mesh.tasks import only_error, task_group

if TYPE_CHECKING:
    from mesh.ownership.asking import Owners

__all__ = ["FilesBinding"]

logger = logging.getLogger(__name__)

EVENTS = ("added", "changed", "deleted")
AT_ONCE = 10
SOONEST, LATEST = 0.1, 10.0
AGAIN_SECONDS, LONGEST_WAIT = 1.0, 60.0
PAGE, PARALLEL = 1000, 16


def _words(text: str) -> tuple[str, ...]:
    return tuple(each.strip() for each in text.split(",") if each.strip())


def _events(text: str) -> tuple[str, ...]:
    words = tuple(each.lower() for each in _words(text))
    if not words or set(words) - {*EVENTS}:
        raise ValueError(f"is some of {', '.join(EVENTS)}")
    return words


@dataclass(frozen=True, slots=True)
class FilesSettings:
    """What is read of a component."""

    path: str = setting("path", "The folder; made if it is not there.", required=True, example="/var/spool/orders")
    patterns: tuple[str, ...] = setting(
        "patterns",
        "Names, or paths in the folder, of the files that count, as `*.csv, *.json`; all, if not set.",
        Kind("list of patterns", _words),
        default=(),
        example="*.csv",
    )
    events: tuple[str, ...] = setting(
        "events",
        "What is told: `added`, `changed`, `deleted`; of all three if not set.",
        Kind("list of events", _events),
        default=(),
        example="added,changed",
    )
    recursive: bool = setting("recursive", "Whether folders in it count.", BOOLEAN, default=True)
    content: bool = setting(
        "content",
        "Whether an event has the bytes of the file; else it has a JSON object that names it.",
        BOOLEAN,
        default=False,
    )
    most: int = setting("maxContentSize", "The largest file whose bytes are sent.", SIZE, default=1024 * 1024)
    settle: float = setting("settle", "How long a file must be as it is before it counts.", DURATION, default=0.5)
    after: str = setting(
        "after", "What becomes of a file that was taken.", choice("keep", "delete", "move"), default="keep"
    )
    moved: str = setting("moveTo", "For `move`: the folder, if relative in `path`.", default="", example="done")
    files: int = setting("maxFiles", "Most files in the folder.", COUNT, default=10_000)
    shared: bool = setting(
        "shared", "Whether other machines have the same folder: then one of them reads it.", BOOLEAN, default=False
    )


class FilesBinding(ComponentAdapter):
    """A folder."""

    title = (
        "Tells applications of files that appear, change or go in a folder of this machine, or one that machines share."
    )
    tested = "the file system"
    settings: ClassVar[type[FilesSettings]] = FilesSettings
    bound = True

    def __init__(self, settings: FilesSettings) -> None:
        """Prepare."""
        super().__init__(settings)
        self._name = ""
        self._records: StateStore | None = None
        self._owners: Owners
        self._folder: Folder

    def remember_in(self, name: str, records: StateStore) -> None:
        """Keep there which files were taken."""
        self._name, self._records = name, records

    def share_by(self, owners: Owners, timers: StateStore) -> None:
        """Look at one host at a time."""
        self._owners = owners

    async def _enter(self) -> None:
        settings: FilesSettings = self._settings
        if (settings.after == "move") != bool(settings.moved):
            raise self._problem("`after: move` and moveTo go together", "after")
        try:
            root = await asyncio.to_thread(_made, settings.path)
        except OSError as error:
            raise self._problem(f"cannot use the folder {settings.path}: {error.strerror or error}", "path") from error
        moved = root / settings.moved if settings.moved else None
        if moved is not None and (moved == root or root.is_relative_to(moved)):
            raise self._problem("is another folder than that of the files", "moveTo")
        self._folder = Folder(root, settings.patterns, settings.recursive, moved, settings.files)
        if self._records is not None:
            try:
                await self._records.get("none", strong=True)
                await self._owners.table("turn")
            except RecordsMissingError as error:
                logger.warning("binding %s: every host and each start tells of all files: %s", self._name, error)
                self._records = None
            except MeshError as error:
                logger.warning("binding %s: %s", self._name, error)

    @asynccontextmanager
    async def reading(self, reading: Reading) -> AsyncIterator[None]:
        """Tell of files while it is entered; one host at a time does for an application."""
        settings: FilesSettings = self._settings
        place = f"{reading.app_id}||" + ("" if settings.shared else f"{platform.node()}||")
        reader = _Reader(settings, self._folder, reading, _Taken(self._records, place))
        async with task_group() as tasks:
            if self._records is None:
                running = tasks.create_task(reader.work(), name="files-read")
            else:
                turn = in_turn(self._owners, f"{reading.component}||{place}", reader.work, reader.ending)
                running = tasks.create_task(turn, name="files-read")
            try:
                yield
            finally:
                reader.ending.set()
                if not reader.working:  # It waits for its turn.
                    running.cancel()


def _made(path: str) -> Path:
    Path(path).mkdir(parents=True, exist_ok=True)
    return Path(path).resolve(strict=True)


class _Taken:
    """Which files an application has taken, as they were then."""

    def __init__(self, records: StateStore | None, place: str) -> None:
        self._records, self._prefix = records, f"{place}file||"
        self.files: dict[str, str] = {}

    async def load(self) -> None:
        """Read what is kept; raises ``MeshError``."""
        if self._records is None:
            return
        records, after = self._records, ""
        self.files = {}
        while page := await records.keys(self._prefix, after, PAGE):
            for begin in range(0, len(page), PARALLEL):
                async with task_group() as tasks:
                    some = page[begin : begin + PARALLEL]
                    reads = [tasks.create_task(records.get(key, strong=True), name="files-load") for key in some]
                for found in (each.result() for each in reads):
                    if found is not None:
                        path, identity = orjson.loads(found.value)
                        self.files[path] = identity
            after = page[-1]

    async def note(self, path: str, identity: str | None) -> None:
        """Keep that a file was taken as it was, or that it is gone."""
        if identity is None:
            self.files.pop(path, None)
        else:
            self.files[path] = identity
        if self._records is not None:
            key = self._prefix + hashlib.sha256(path.encode()).hexdigest()
            value = None if identity is None else orjson.dumps([path, identity])
            try:
                await self._records.write([Item(key, value)])
            except MeshError as error:
                logger.warning("that the file %s was taken could not be kept, it may come again: %s", path, error)


class _Reader:
    """Tells one application.

    Attributes:
        ending: Set when nothing further is to be told.
        working: Whether it has its turn.
    """

    def __init__(self, settings: FilesSettings, folder: Folder, reading: Reading, taken: _Taken) -> None:
        self.ending = asyncio.Event()
        self.working = False
        self._settings, self._folder, self._reading, self._taken = settings, folder, reading, taken
        self._look = asyncio.Event()
        self._since: dict[str, tuple[Found, float]] = {}
        self._busy: set[str] = set()
        self._waits: dict[str, tuple[float, float]] = {}

    async def work(self) -> None:
        """Compare, and tell, until it is to end."""
        if self.ending.is_set():
            return
        self.working = True
        try:
            await self._taken.load()
            async with task_group() as tasks:
                watching = tasks.create_task(self._watch(), name="files-watch")
                wait = SOONEST
                async with task_group() as telling:
                    while not self.ending.is_set():
                        try:
                            found = await asyncio.to_thread(self._folder.scan)
                        except OSError as error:
                            raise BindingError(f"{self._folder.root}: {error.strerror or error}") from error
                        except TooManyError:
                            raise BindingError(f"{self._folder.root} has more than {self._folder.most} files") from None
                        self._compare(found, telling)
                        soon = self._since or self._waits
                        wait = SOONEST if self._look.is_set() else min(wait * 2, 1.0 if soon else LATEST)
                        self._look.clear()
                        await self._pause(wait)
                watching.cancel()
        finally:
            self.working = False

    async def _pause(self, seconds: float) -> None:
        """Wait until there may be something to see."""
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                async with task_group() as tasks:
                    waits = [tasks.create_task(each.wait(), name="files-pause") for each in (self._look, self.ending)]
                    await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
                    for task in waits:
                        task.cancel()

    async def _watch(self) -> None:
        """Hear of changes; where the system does not tell of them, they are seen somewhat later."""
        root, recursive = self._folder.root, self._folder.recursive
        while True:
            try:
                with only_error():
                    async for _ in awatch(root, watch_filter=None, debounce=100, step=20, recursive=recursive):
                        self._look.set()
                return
            except OSError as error:  # Such as too many watches on this machine.
                logger.warning("changes of %s are seen up to %g s late: %s", root, LATEST, error)
                return
            except RuntimeError as error:  # Such as a name that is no text: what comes after it is watched again.
                logger.warning("changes of %s are seen up to %g s late for a while: %s", root, LATEST, error)
            self._look.set()
            await asyncio.sleep(LATEST)

    def _compare(self, found: Mapping[str, Found], telling: asyncio.TaskGroup) -> None:
        now = time.monotonic()
        self._since = {path: since for path, since in self._since.items() if found.get(path) == since[0]}
        self._waits = {path: wait for path, wait in self._waits.items() if path in found or path in self._taken.files}
        events: list[tuple[str, str, Found | None]] = []
        for path, file in found.items():
            known = self._taken.files.get(path)
            if known == file.identity:
                continue
            since = self._since.setdefault(path, (file, now))[1]
            if now - since >= self._settings.settle:
                events.append(("added" if known is None else "changed", path, file))
        events += [("deleted", path, None) for path in self._taken.files if path not in found]
        for event, path, seen in events:
            if len(self._busy) >= AT_ONCE:
                return
            if path not in self._busy and self._waits.get(path, (0.0, 0.0))[0] <= now:
                self._busy.add(path)
                telling.create_task(self._tell(event, path, seen), name="files-event")

    async def _tell(self, event: str, path: str, file: Found | None) -> None:
        try:
            if event in (self._settings.events or EVENTS):
                made = await self._event(event, path, file)
                if made is None:
                    return  # It is another one meanwhile.
                await self._reading.handle(made)
                if file is not None and self._settings.after != "keep" and await self._disposed(path, file):
                    file = None
            if file is not None or path in self._taken.files:
                await self._taken.note(path, None if file is None else file.identity)
            self._waits.pop(path, None)
        except (MeshError, OSError) as error:
            _, wait = self._waits.get(path, (0.0, AGAIN_SECONDS / 2))
            wait = min(wait * 2, LONGEST_WAIT)
            self._waits[path] = time.monotonic() + wait, wait
            logger.warning("binding %s: the file %s was not taken: %s", self._reading.component, path, error)
        finally:
            self._busy.discard(path)
            self._since.pop(path, None)
            self._look.set()

    async def _disposed(self, path: str, file: Found) -> bool:
        """Delete or move a file that was taken; where that fails, it is not told of again."""
        try:
            await asyncio.to_thread(self._folder.dispose, path, file)
        except OSError as error:
            logger.warning("the file %s was taken, and stays: %s", path, error.strerror or error)
            return False
        return True

    async def _event(self, event: str, path: str, file: Found | None) -> BindingEvent | None:
        said = {"event": event, "fileName": path}
        if file is not None:
            moment = datetime.fromtimestamp(file.modified / 1e9, UTC).isoformat().replace("+00:00", "Z")
            said |= {"size": str(file.size), "modified": moment}
        data = orjson.dumps(said | ({} if file is None else {"size": file.size}))
        if self._settings.content:
            data = b""
            if file is not None and file.size <= self._settings.most:
                data = await asyncio.to_thread(self._folder.read, path, file.size)
                if await asyncio.to_thread(self._folder.look, path) != file:
                    return None
            elif file is not None:
                said["contentLeftOut"] = "true"
        return BindingEvent(data, said)
