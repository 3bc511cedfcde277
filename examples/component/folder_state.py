"""``state.folder``: a state store in files, one for each key; an example of a type of one's own."""

import asyncio
import fcntl
import hashlib
import os
import secrets
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from mesh.adapter import ComponentAdapter
from mesh.errors import ConflictError, FeatureNotSupportedError, StateError
from mesh.resources.settings import BOOLEAN, setting
from mesh.store import Concurrency, Item, StateStore, Stored

ETAG_BYTES = 8
_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class FolderSettings:
    """Settings of ``state.folder``."""

    folder: str = setting("folder", "Where the files are; made if it is missing.", required=True, example="state")
    sync: bool = setting("sync", "Whether a write is on the disk before it is answered.", BOOLEAN, default=True)


class FolderStateStore(ComponentAdapter, StateStore):
    """Keys and values in a folder of this machine, a file for each key."""

    settings = FolderSettings
    capabilities = ("ETAG",)
    tested = "real files"
    bound = True

    def __init__(self, settings: FolderSettings) -> None:
        super().__init__(settings)
        self._folder, self._sync = Path(settings.folder), settings.sync

    async def _enter(self) -> None:
        await self._run(lambda: self._folder.mkdir(parents=True, exist_ok=True))

    async def _run(self, work: Callable[[], _T]) -> _T:
        try:
            return await asyncio.to_thread(work)
        except OSError as error:
            raise StateError(f"cannot use the folder {self._folder}: {error.strerror}") from error

    def _file(self, key: str) -> Path:
        return self._folder / hashlib.sha256(key.encode()).hexdigest()

    async def get(self, key: str, *, strong: bool, metadata: Mapping[str, str] | None = None) -> Stored | None:
        return await self._run(lambda: self._read(key))

    def _read(self, key: str) -> Stored | None:
        try:
            content = self._file(key).read_bytes()
        except FileNotFoundError:
            return None
        return Stored(content[ETAG_BYTES:], content[:ETAG_BYTES].hex())

    async def write(self, items: Sequence[Item]) -> None:
        (item,) = items  # Without TRANSACTIONAL among the capabilities it is always one.
        if item.ttl is not None:
            raise FeatureNotSupportedError("the state store", "expiry")
        await self._run(lambda: self._write(item))

    def _write(self, item: Item) -> None:
        with (self._folder / "lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)  # Among all gateways of the machine, until it is closed.
            stored = self._read(item.key)
            if item.etag is not None and (stored is None or stored.etag != item.etag):
                raise ConflictError(f"key {item.key!r} has another etag")
            if item.etag is None and item.concurrency is Concurrency.FIRST_WRITE and stored is not None:
                raise ConflictError(f"key {item.key!r} is there already")
            file, new = self._file(item.key), self._folder / "new"
            if item.value is None:
                file.unlink(missing_ok=True)
                return
            with new.open("wb") as writing:
                writing.write(secrets.token_bytes(ETAG_BYTES) + item.value)
                if self._sync:
                    writing.flush()
                    os.fsync(writing.fileno())
            new.replace(file)
