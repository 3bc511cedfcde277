"""Files in a folder of this machine. No path leads out of it, through symbolic links neither.

Source: Dapr 1.18, the local storage binding.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import fcntl
import io
import itertools
import os
import re
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, ClassVar
from uuid import uuid4

import orjson

from bindings._folder import opened
from bindings._parts import FILE_BYTES, Beside, to_the_end, written
from mesh.adapter import ComponentAdapter
from mesh.blocks.binding_contract import BindingError, Invoke, Invoked, Streamed
from mesh.resources.settings import setting

__all__ = ["LocalStorageBinding"]

MAX_READ_BYTES = 256 * 1024 * 1024
MAX_LISTED = 100_000
SWEEP_SECONDS = 2.0  # A gateway that is started again at once takes longer.
_PART = re.compile(r"\.[0-9a-f]{16}\.part")


@dataclass(frozen=True, slots=True)
class LocalStorageSettings:
    """What is read of a component."""

    root: str = setting("rootPath", "The folder; made if it is not there.", required=True, example="/var/lib/files")


class LocalStorageBinding(ComponentAdapter):
    """Files in a folder."""

    title = "Writes, reads, lists, renames and deletes files in a folder of this machine."
    tested = "the file system"
    settings: ClassVar[type[LocalStorageSettings]] = LocalStorageSettings
    bound = True
    operations = ("create", "get", "list", "delete", "rename", "move")
    streamed = ("create", "get")

    def __init__(self, settings: LocalStorageSettings) -> None:
        """Prepare."""
        super().__init__(settings)
        self._root = Path(settings.root)
        self._known: dict[str, Callable[[Invoke], Invoked | None]] = {
            "create": self._create,
            "get": self._get,
            "list": self._list,
            "delete": self._delete,
            "rename": self._rename,
            "move": self._rename,
        }

    async def _enter(self) -> None:
        try:
            self._root = await asyncio.to_thread(self._make)
        except OSError as error:
            raise self._problem(f"cannot use the folder {self._root}: {error.strerror or error}", "rootPath") from error

    def _make(self) -> Path:
        self._root.mkdir(parents=True, exist_ok=True)
        root = self._root.resolve(strict=True)
        _sweep(root)
        return root

    async def invoke(self, asked: Invoke) -> Invoked | None:
        """Do what is asked, in a thread."""
        with _told(asked):
            return await asyncio.to_thread(self._known[asked.operation], asked)

    async def stream(self, asked: Invoke, parts: AsyncIterator[bytes]) -> Streamed:
        """Write a file as it comes, or read one as it is wanted."""
        if asked.operation == "create":
            name, path = self._named(asked)
            with _told(asked):
                await written(path, parts)
            return Streamed(_read(io.BytesIO(said := orjson.dumps({"fileName": name})), asked), len(said))
        path = self._path(asked.metadata.get("fileName", ""))
        with _told(asked):
            file, size = await to_the_end(_opened, path)
        return Streamed(_read(file, asked), size)

    def _path(self, name: str, what: str = "fileName") -> Path:
        """Find a file's place; raises ``BindingError`` where that is outside of the folder."""
        if not name:
            raise BindingError(f"the metadata {what} are missing: the path of the file")
        if "\0" in name:
            raise BindingError(f"{what} holds a zero byte")
        try:
            path = (self._root / name.lstrip("/")).resolve()
        except RuntimeError:  # Links that go round.
            path = self._root.parent
        if path == self._root or not path.is_relative_to(self._root):
            raise BindingError(f"{what} {name!r} is not within the folder")
        return path

    def _named(self, asked: Invoke) -> tuple[str, Path]:
        name = asked.metadata.get("fileName") or str(uuid4())
        return name, self._path(name)

    def _create(self, asked: Invoke) -> Invoked:
        name, path = self._named(asked)
        beside = Beside(path)
        try:
            beside.write(_decoded(asked.data))
            beside.keep()
        finally:
            beside.close()
        return Invoked(orjson.dumps({"fileName": name}))

    def _get(self, asked: Invoke) -> Invoked:
        path = self._path(asked.metadata.get("fileName", ""))
        with opened(path) as file:
            data = file.read(MAX_READ_BYTES + 1)
        if len(data) > MAX_READ_BYTES:
            text = f"{asked.metadata['fileName']} is larger than {MAX_READ_BYTES} bytes"
            raise BindingError(f"{text}, of which Accept: application/octet-stream gives any number")
        return Invoked(data)

    def _delete(self, asked: Invoke) -> None:
        self._path(asked.metadata.get("fileName", "")).unlink()

    def _rename(self, asked: Invoke) -> Invoked:
        source = self._path(asked.metadata.get("fileName", ""))
        name = asked.metadata.get("destinationFile", "")
        target = self._path(name, "destinationFile")
        target.parent.mkdir(parents=True, exist_ok=True)
        source.replace(target)
        return Invoked(orjson.dumps({"fileName": name}))

    def _list(self, asked: Invoke) -> Invoked:
        name = asked.metadata.get("fileName", "").strip("/")
        path = self._path(name) if name not in ("", ".") else self._root
        if path.is_file():
            return Invoked(orjson.dumps([str(path)]))
        if not path.is_dir():
            raise FileNotFoundError
        found: list[str] = []
        for each in _files(path):
            if len(found) >= MAX_LISTED:
                raise BindingError(f"there are more than {MAX_LISTED} files")
            found.append(each)
        return Invoked(orjson.dumps(sorted(found)))


def _sweep(root: Path) -> None:
    """Remove what processes that were killed have left behind."""
    for path in itertools.islice(_walk(root), MAX_LISTED):
        if _PART.fullmatch(path.name) is None:
            continue
        with suppress(OSError), opened(path) as file:
            if time.time() - os.fstat(file.fileno()).st_mtime > SWEEP_SECONDS:  # One that is new is locked soon.
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                path.unlink()


def _opened(path: Path) -> tuple[BinaryIO, int]:
    file = opened(path, buffering=0)
    try:
        return file, os.fstat(file.fileno()).st_size
    except BaseException:
        file.close()
        raise


async def _read(file: BinaryIO, asked: Invoke) -> AsyncGenerator[bytes, None]:
    with file, _told(asked):
        while part := await to_the_end(file.read, FILE_BYTES):
            yield part


@contextmanager
def _told(asked: Invoke) -> Iterator[None]:
    """Tell of what the system says."""
    try:
        yield
    except OSError as error:
        name = asked.metadata.get("fileName", "")
        if isinstance(error, FileNotFoundError):
            raise BindingError(f"file not found: {name}") from None
        raise BindingError(f"{asked.operation} {name}: {error.strerror or error}") from error


def _walk(folder: Path) -> Iterator[Path]:
    for at, _, names in os.walk(folder):
        yield from (Path(at) / name for name in names)


def _files(folder: Path) -> Iterator[str]:
    """Iterate over the files in a folder and those in it; links are not followed."""
    for path in _walk(folder):
        with suppress(UnicodeEncodeError):  # A name that is no text is nothing that a call could name.
            str(path).encode()
            if _PART.fullmatch(path.name) is None:
                yield str(path)


def _decoded(data: bytes) -> bytes:
    """Give what is written: a JSON string without its quotes, and what it encodes by base64, if it does."""
    if data == b"null":  # There is none; as base64 it would be three bytes.
        return b""
    text: object = data
    with suppress(orjson.JSONDecodeError):
        text = orjson.loads(data)
    raw = text.encode() if isinstance(text, str) else data
    try:
        return base64.b64decode(raw, validate=True)
    except (binascii.Error, ValueError):
        return raw
