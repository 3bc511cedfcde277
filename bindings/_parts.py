"""Bytes that come in parts: cut into pieces, held in memory, decoded, in files. All of it in bounded memory."""

from __future__ import annotations

import asyncio
import base64
import binascii
import fcntl
import os
import secrets
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import aclosing
from pathlib import Path
from typing import TypeVar

from bindings._folder import opened
from mesh.blocks.binding_contract import BindingError, Streamed

__all__ = [
    "FILE_BYTES",
    "MAX_HELD_BYTES",
    "PIECE_BYTES",
    "Beside",
    "Budget",
    "Files",
    "begun",
    "decoded",
    "encoded",
    "once",
    "pieces",
    "to_the_end",
    "written",
]

PIECE_BYTES = 8 * 1024 * 1024
FILE_BYTES = 1024 * 1024
SYNC_BYTES = 64 * 1024 * 1024
MAX_HELD_BYTES = 256 * 1024 * 1024
_T = TypeVar("_T")


class Budget:
    """How much of what is read may be held in memory."""

    def __init__(self, most: int = MAX_HELD_BYTES) -> None:
        """Begin with all of it."""
        self._left = most

    async def held(self, found: Streamed) -> bytes:
        """Read all; raises ``BindingError`` where that is too much."""
        if found.parts is None:
            return b""
        body = bytearray()
        async with aclosing(found.parts) as parts:
            if (found.length or 0) > self._left:
                raise self._too_much()
            async for part in parts:
                self._left -= len(part)
                if self._left < 0:
                    raise self._too_much()
                body += part
        return bytes(body)

    def _too_much(self) -> BindingError:
        return BindingError(f"it is more than {MAX_HELD_BYTES} bytes, which only a stream or a file takes")


async def once(data: bytes) -> AsyncGenerator[bytes, None]:
    """Give bytes that are there already."""
    for start in range(0, len(data), PIECE_BYTES):
        yield data[start : start + PIECE_BYTES]


async def begun(parts: AsyncGenerator[bytes, None]) -> AsyncGenerator[bytes, None]:
    """Start it, since one that has not begun closes nothing when it is closed; its first part is for this alone."""
    await anext(parts)
    return parts


async def pieces(parts: AsyncIterator[bytes], size: int = PIECE_BYTES) -> AsyncGenerator[tuple[bytes, bool], None]:
    """Cut into pieces of one size, and a rest; each comes with whether it is the last one. There is one at least."""
    buffer = bytearray()
    async for part in parts:
        buffer += part
        start = 0
        while len(buffer) - start > size:
            yield bytes(memoryview(buffer)[start : start + size]), False
            start += size
        if start:
            del buffer[:start]
    yield bytes(buffer), True


async def decoded(parts: AsyncIterator[bytes]) -> AsyncGenerator[bytes, None]:
    """Decode base64."""
    rest, ended = b"", False
    async for part in parts:
        text = rest + part.translate(None, b"\r\n")
        whole = len(text) - len(text) % 4
        rest = text[whole:]
        if whole:
            if ended:
                raise _no_base64()
            ended = text[whole - 1 : whole] == b"="
            try:
                yield base64.b64decode(text[:whole], validate=True)
            except binascii.Error:
                raise _no_base64() from None
    if rest:
        raise _no_base64()


def _no_base64() -> BindingError:
    return BindingError("the data are no base64, as decodeBase64 says")


async def encoded(found: Streamed) -> Streamed:
    """Encode as base64."""
    if found.parts is None:
        return found
    length = None if found.length is None else -(-found.length // 3) * 4
    return Streamed(await begun(_encoded(found.parts)), length, found.metadata)


async def _encoded(parts: AsyncGenerator[bytes, None]) -> AsyncGenerator[bytes, None]:
    async with aclosing(parts):
        yield b""
        rest = b""
        async for part in parts:
            data = rest + part
            whole = len(data) - len(data) % 3
            rest = data[whole:]
            if whole:
                yield base64.b64encode(data[:whole])
        if rest:
            yield base64.b64encode(rest)


class Beside:
    """A file that is written beside the one of its name, and takes its place once it is whole.

    Whoever reads that meanwhile has the former one, and after a crash there is one of them, whole. It is locked as
    long as it is written: what is left of a process that was killed is not.
    """

    def __init__(self, path: Path) -> None:
        """Begin, with the folders that it stands in; raises ``OSError``, as all of it."""
        path.parent.mkdir(parents=True, exist_ok=True)
        self._path, self._beside = path, path.parent / f".{secrets.token_hex(8)}.part"
        self._unsaved = 0
        self._file = self._beside.open("xb", buffering=0)
        fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)

    def write(self, data: bytes | bytearray) -> None:
        """Add to it."""
        view = memoryview(data)
        while view:
            view = view[self._file.write(view) :]
        self._unsaved += len(data)
        if self._unsaved >= SYNC_BYTES:  # Else the last step takes as long as all of it.
            os.fsync(self._file.fileno())
            self._unsaved = 0

    def keep(self) -> None:
        """Have it take the other one's place."""
        os.fsync(self._file.fileno())
        self._beside.replace(self._path)

    def close(self) -> None:
        """Remove it, unless it was kept."""
        self._file.close()
        self._beside.unlink(missing_ok=True)


async def written(path: Path, parts: AsyncIterator[bytes]) -> None:
    """Write a file as its bytes come, whole or not at all; raises ``OSError``."""
    beside = await to_the_end(Beside, path)
    try:
        held = bytearray()
        async for part in parts:
            held += part
            if len(held) >= FILE_BYTES:
                await to_the_end(beside.write, held)
                held = bytearray()
        await to_the_end(beside.write, held)
        await to_the_end(beside.keep)
    finally:
        await to_the_end(beside.close)


async def to_the_end(call: Callable[..., _T], *arguments: object) -> _T:
    """Run it in a thread, which is waited for also where this is cancelled: what follows may undo what it did."""
    running = asyncio.get_running_loop().run_in_executor(None, call, *arguments)
    cancelled = False
    while not running.done():
        try:
            await asyncio.wait([running])
        except asyncio.CancelledError:
            cancelled = True
    if cancelled:
        running.exception()  # It is of no more interest.
        raise asyncio.CancelledError
    return running.result()


class Files:
    """Files of the host that calls may name: those in one folder. Calls come from other machines, too."""

    def __init__(self, root: str | None) -> None:
        """Use a folder; None = no call may name a file."""
        self._root = None if root is None else Path(root)

    def _path(self, name: str) -> Path:
        if self._root is None:
            raise BindingError("no file may be named here: the component has no fileRoot")
        root = self._root.resolve()
        try:
            path = (root / name).resolve()
        except (RuntimeError, ValueError):  # Links that go round, and a zero byte.
            path = root
        if path == root or not path.is_relative_to(root):
            raise BindingError(f"the file {name!r} is not within the component's fileRoot")
        return path

    async def read(self, name: str) -> AsyncGenerator[bytes, None]:
        """Read a file; raises ``BindingError``."""
        try:
            path = await asyncio.to_thread(self._path, name)
            file = await asyncio.to_thread(opened, path)
            try:
                while part := await to_the_end(file.read, FILE_BYTES):
                    yield part
            finally:
                file.close()
        except OSError as error:
            raise BindingError(f"the file {name!r} cannot be read: {error.strerror}") from None

    async def write(self, name: str, parts: AsyncGenerator[bytes, None] | None) -> None:
        """Write a file, whole or not at all; raises ``BindingError``."""
        async with aclosing(parts or once(b"")) as given:
            try:
                await written(await asyncio.to_thread(self._path, name), given)
            except OSError as error:
                raise BindingError(f"the file {name!r} cannot be written: {error.strerror}") from None
