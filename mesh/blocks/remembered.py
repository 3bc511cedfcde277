"""What an application has subscribed to, in a file, for the gateway that comes after this one.

Below ``MESH_HOME/subscriptions``, for each application:

=============  ===================================================================================
``NAME.json``  what is remembered of it; replaced as a whole, so that it is the old or the new one
``NAME.lock``  locked by its gateway for as long as that lives; the kernel lets go however it ends
=============  ===================================================================================

The name is made of what tells an application from all others, its address included: another instance has another file.
A file is not synced: what loses it, a power failure, ends the application as well.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import logging
import os
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import orjson

from mesh.errors import ComponentNotFoundError, NotConfiguredError
from mesh.home import lock_file, write_private

__all__ = ["FORGET_SECONDS", "MAX_BYTES", "MAX_FILES", "Absence", "Memory", "Remembered", "Subscribed"]

logger = logging.getLogger(__name__)

FORMAT = 1
MAX_BYTES = 1024 * 1024
MAX_FILES = 500
FORGET_SECONDS = 3600.0


@dataclass(frozen=True, slots=True)
class Subscribed:
    """One subscription.

    Attributes:
        id: As the application knows it.
        store: The component.
        keys: Which; none = all.
        metadata: For the store.
        known: Digests of the values that were told, by key.
    """

    id: str
    store: str
    keys: tuple[str, ...]
    metadata: dict[str, str]
    known: dict[str, str]


@dataclass(frozen=True, slots=True)
class Remembered:
    """What is in a file.

    Attributes:
        of: What tells the application from others, for people.
        subscriptions: The oldest first.
        replaced: Ids whose subscription is followed under another one.
        format: Of the file.
    """

    of: tuple[str, ...] = ()
    subscriptions: tuple[Subscribed, ...] = ()
    replaced: tuple[str, ...] = ()
    format: int = FORMAT


class Absence:
    """How long nobody has had a component: after a time it was removed, and is not only away."""

    def __init__(self, now: float) -> None:
        """Begin with it being there."""
        self._had = now

    def lasts(self, error: Exception, now: float) -> bool:
        """Note what came of asking it; tells whether it has been missing for long."""
        if not isinstance(error, ComponentNotFoundError | NotConfiguredError):
            self._had = now
        return now - self._had > FORGET_SECONDS


class Memory:
    """The file of one application. What fails is logged, once: nothing depends on it but what follows a restart."""

    def __init__(self, directory: Path, *of: str) -> None:
        """Open nothing yet.

        Args:
            directory: Of the files; made with the first one.
            of: What tells the application from others.
        """
        self._of = of
        name = hashlib.blake2s("\0".join(of).encode("utf-8", "surrogatepass"), digest_size=16).hexdigest()
        self._path = directory / f"{name}.json"
        self._lock: int | None = None
        self._usable = True
        self._told: set[str] = set()
        self._writing = threading.Lock()
        self._latest: bytes | None = None
        self._written: bytes | None = None

    def take(self, *, make: bool) -> Remembered | None:
        """Keep the file for as long as this process lives.

        Args:
            make: Whether it is wanted when there is none.

        Returns:
            What is in it, when it is taken now; None when there is nothing new.

        Raises:
            BlockingIOError: Another gateway has it.
        """
        if self._lock is not None or not self._usable:
            return None
        try:
            if not self._path.exists() and not make:
                return None
            self._path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            self._lock = lock_file(self._path.with_suffix(".lock"))
            found = self._content()
        except BlockingIOError:
            self._tell("another gateway of this application has its file")
            raise
        except OSError as error:
            self._usable = self._lock is not None
            self._tell(f"{self._path}: {error.strerror or error}")
            return None
        return self._read(found)

    def _content(self) -> bytes:
        if not self._path.exists():
            _make_room(self._path.parent)
            return b""
        with self._path.open("rb") as file:
            return file.read(MAX_BYTES + 1)

    def _read(self, found: bytes) -> Remembered:
        self._written = found or None
        if not found:
            return Remembered()
        import msgspec  # Adapters import blocks, and do without.

        try:
            if len(found) <= MAX_BYTES:
                read = msgspec.json.decode(found, type=Remembered)
                if read.format == FORMAT:
                    self._latest = found
                    return read
            reason = "it is of another version"
        except msgspec.DecodeError:
            reason = "it is damaged"
        logger.warning("subscriptions to configurations of before are not known: %s: %s", self._path, reason)
        return Remembered()

    async def keep(self, subscriptions: Sequence[Subscribed], replaced: Sequence[str]) -> None:
        """Write what is so now."""
        if self._lock is None:
            return
        self._latest = self._encoded(subscriptions, replaced)
        if self._latest != self._written:
            # Whoever is cancelled here leaves it to the next one, or to the end.
            await asyncio.to_thread(self._write)

    def _encoded(self, subscriptions: Sequence[Subscribed], replaced: Sequence[str]) -> bytes | None:
        """Give the file's content; None = none. Subscriptions that have no room in it are left out."""
        left = MAX_BYTES - len(orjson.dumps(Remembered(self._of, (), tuple(replaced))))
        fitting = []
        for each in subscriptions:
            size = len(orjson.dumps(each)) + 1
            if size <= left:
                left -= size
                fitting.append(each)
            else:
                self._tell(f"one of {each.store} has no room, they would take more than {MAX_BYTES // 1024} KiB")
        return orjson.dumps(Remembered(self._of, tuple(fitting), tuple(replaced))) if fitting else None

    def _write(self) -> None:
        """Write the latest content, unless somebody has."""
        with self._writing:
            latest = self._latest
            if latest == self._written:
                return
            try:
                if latest is None:
                    self._path.unlink(missing_ok=True)
                else:
                    write_private(self._path, latest)
                self._written = latest
            except OSError as error:
                self._tell(f"{self._path}: {error.strerror or error}")

    def close(self) -> None:
        """Write what is not yet written, and let another gateway have the file."""
        if self._lock is None:
            return
        self._write()
        with contextlib.suppress(OSError):
            if not self._path.exists():
                self._path.with_suffix(".lock").unlink(missing_ok=True)
        os.close(self._lock)
        self._lock = None

    def _tell(self, reason: str) -> None:
        if reason not in self._told:
            self._told.add(reason)
            logger.warning("subscriptions to configurations may not outlive this gateway: %s", reason)


def _make_room(directory: Path) -> None:
    """Remove the files that were written longest ago of applications whose gateway does not run, if there are many."""
    ages = dict(sorted(_ages(directory), key=lambda each: each[1]))
    for name in list(ages)[: max(0, len(ages) - MAX_FILES + 1)]:
        lock_path = directory / f"{name}.lock"
        with contextlib.suppress(OSError):
            lock = lock_file(lock_path)
            try:
                (directory / f"{name}.json").unlink(missing_ok=True)
                lock_path.unlink(missing_ok=True)
            finally:
                os.close(lock)


def _ages(directory: Path) -> Iterator[tuple[str, float]]:
    for path in directory.glob("*.json"):
        with contextlib.suppress(OSError):
            yield path.stem, path.stat().st_mtime
