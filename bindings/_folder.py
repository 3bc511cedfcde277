"""What is in a folder, and what is done with a file of it. All of it blocks, and is for a thread."""

from __future__ import annotations

import errno
import os
import shutil
import stat
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import BinaryIO

__all__ = ["Found", "Folder", "TooManyError", "opened"]


def opened(path: Path, flags: int = 0, *, buffering: int = -1) -> BinaryIO:
    """Open a file to read it; raises ``OSError``, also where it is a pipe or a device, which would block for good."""
    handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | flags)
    try:
        mode = os.fstat(handle).st_mode
        if not stat.S_ISREG(mode):
            number = errno.EISDIR if stat.S_ISDIR(mode) else errno.EINVAL
            raise OSError(number, os.strerror(number) if stat.S_ISDIR(mode) else "is no regular file")
        return os.fdopen(handle, "rb", buffering)
    except BaseException:
        os.close(handle)
        raise


class TooManyError(Exception):
    """There are more files than may be looked at."""


@dataclass(frozen=True, slots=True)
class Found:
    """A file as it is now.

    Attributes:
        size: In bytes.
        modified: Nanoseconds since 1970.
    """

    size: int
    modified: int

    @property
    def identity(self) -> str:
        """Differs where the file does."""
        return f"{self.modified}:{self.size}"


@dataclass(frozen=True, slots=True)
class Folder:
    """A folder that is watched.

    Attributes:
        root: The folder.
        patterns: A file's name, or its path in the folder, must match one; empty = all.
        recursive: Whether folders in it are, too.
        moved: Where files are moved; what is there is not looked at.
        most: Files that are looked at.
    """

    root: Path
    patterns: Sequence[str] = ()
    recursive: bool = True
    moved: Path | None = None
    most: int = 10_000

    def scan(self) -> dict[str, Found]:
        """Give the files by their paths in the folder.

        Links are not followed, and what is hidden is not looked at: it is where others write what is not whole yet.

        Raises:
            OSError: The folder cannot be read.
            TooManyError: There are too many.
        """
        found: dict[str, Found] = {}
        for entry in self._entries(self.root):
            path = os.path.relpath(entry.path, self.root)
            try:
                path.encode()
                seen = entry.stat(follow_symlinks=False)
            except (UnicodeEncodeError, FileNotFoundError):  # Its name is no text, or it has just gone.
                continue
            if self.patterns and not any(
                fnmatchcase(each, one) for one in self.patterns for each in (entry.name, path)
            ):
                continue
            if len(found) >= self.most:
                raise TooManyError
            found[path] = Found(seen.st_size, seen.st_mtime_ns)
        return found

    def _entries(self, folder: Path | str, *, top: bool = True) -> Iterator[os.DirEntry[str]]:
        try:
            with os.scandir(folder) as entries:
                for entry in entries:
                    if entry.name.startswith(".") or (self.moved and Path(entry.path) == self.moved):
                        continue
                    if entry.is_dir(follow_symlinks=False):
                        if self.recursive:
                            yield from self._entries(entry.path, top=False)
                    elif entry.is_file(follow_symlinks=False):
                        yield entry
        except FileNotFoundError:
            if top:
                raise

    def look(self, path: str) -> Found | None:
        """Look at one file again."""
        try:
            seen = os.stat(self.root / path, follow_symlinks=False)
        except (FileNotFoundError, NotADirectoryError):
            return None
        return Found(seen.st_size, seen.st_mtime_ns)

    def read(self, path: str, size: int) -> bytes:
        """Read so much of a file; raises ``OSError``."""
        with opened(self.root / path, os.O_NOFOLLOW) as file:
            return file.read(size)

    def dispose(self, path: str, found: Found) -> None:
        """Move the file away, or delete it, if it is still the one that was found; raises ``OSError``."""
        if self.look(path) != found:
            return
        if self.moved is None:
            (self.root / path).unlink(missing_ok=True)
            return
        target = self.moved / path
        target.parent.mkdir(parents=True, exist_ok=True)
        number = 0
        while target.exists():  # One of the same name was moved before.
            number += 1
            target = (self.moved / path).with_name(f"{Path(path).stem}-{number}{Path(path).suffix}")
        shutil.move(self.root / path, target)
