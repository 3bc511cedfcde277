"""A socket file to listen at: never taken from somebody who listens there, and left to whoever has it now."""

from __future__ import annotations

import asyncio
import fcntl
import os
import socket
import stat
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path

from mesh.errors import ConfigError

__all__ = ["BACKLOG", "bound", "bound_at", "listen_at", "place_of", "port_of", "serve_at"]

BACKLOG = 2048
LOCK_TRIES, LOCK_PAUSE = 100, 0.01


async def listen_at(path: Path, make: Callable[[], asyncio.Protocol]) -> Callable[[], None]:
    """Accept connections at a socket file; give what ends that.

    A file that nobody listens at is replaced. The file is removed at the end, if it is still this one.

    Raises:
        ConfigError: Somebody listens there, or it cannot be made.
    """
    listener, remove = await bound_at(path)
    try:
        server = await asyncio.get_running_loop().create_unix_server(make, sock=listener, backlog=BACKLOG)
    except BaseException:
        remove()
        listener.close()
        raise

    def close() -> None:
        remove()  # First: once the socket is closed, its number may be that of another one.
        server.close()

    return close


async def bound_at(path: Path) -> tuple[socket.socket, Callable[[], None]]:
    """Listen at a socket file without accepting; give it, and what removes the file.

    Raises:
        ConfigError: Somebody listens there, or it cannot be made.
    """
    try:
        async with _alone_in(path.parent):
            _clear(path)
            listener = socket.socket(socket.AF_UNIX)
            try:
                listener.bind(str(path))
                listener.listen(BACKLOG)
                ours = _identity(path)
            except BaseException:
                listener.close()
                raise
    except OSError as error:
        why = error.strerror or error  # That of a path that is too long has no number.
        raise ConfigError(f"cannot listen at {path}: {why}; --unix-domain-socket names a folder") from error

    def remove() -> None:
        with suppress(OSError):
            if _identity(path) == ours:
                path.unlink()

    return listener, remove


def _identity(path: Path) -> tuple[int, int]:
    found = path.lstat()
    return found.st_dev, found.st_ino


@asynccontextmanager
async def _alone_in(folder: Path) -> AsyncIterator[None]:
    """Have others who begin in this folder wait: of two who find a dead file, one would remove the other's new one.

    Whoever cannot have the lock goes on without, for anybody may hold that of a folder that all may read.
    """
    try:
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    except PermissionError:  # One can make files in it all the same.
        yield
        return
    try:
        for _ in range(LOCK_TRIES):
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                await asyncio.sleep(LOCK_PAUSE)
                continue
            except OSError:  # This file system has none.
                pass
            break
        yield
    finally:
        os.close(descriptor)


def _clear(path: Path) -> None:
    """Remove a socket that nobody listens at.

    Raises:
        ConfigError: Somebody does, or it is none.
    """
    with socket.socket(socket.AF_UNIX) as client:
        client.setblocking(False)
        try:
            if not stat.S_ISSOCK(path.lstat().st_mode):
                raise ConfigError(f"cannot listen at {path}: there is something that is no socket; remove it")
            client.connect(str(path))
        except FileNotFoundError:
            return
        except ConnectionRefusedError:
            path.unlink(missing_ok=True)
            return
        except BlockingIOError:  # It has more clients waiting than it takes.
            pass
    raise ConfigError(
        f"cannot listen at {path}: somebody listens there, perhaps another gateway of this app id; end that one, or"
        " give another folder by --unix-domain-socket"
    )


def bound(family: int, where: tuple[object, ...]) -> socket.socket:
    """Open a socket that listens. The event loop's own way leaks one if somebody else listened a moment before."""
    made = socket.socket(family, socket.SOCK_STREAM)
    try:
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            made.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        made.bind(where)
        made.listen(BACKLOG)
    except BaseException:
        made.close()
        raise
    return made


def port_of(listening: socket.socket) -> int:
    """Give the port of a socket; 0 for that of a file."""
    return 0 if listening.family == socket.AF_UNIX else int(listening.getsockname()[1])


def place_of(listening: socket.socket) -> str:
    """Name where a socket listens, so that every process which listens there names it alike: its port, or its file."""
    return str(listening.getsockname()) if listening.family == socket.AF_UNIX else str(port_of(listening))


async def serve_at(listening: socket.socket, make: Callable[[], asyncio.Protocol]) -> Callable[[], None]:
    """Accept connections at a socket that listens already; give what ends that."""
    loop = asyncio.get_running_loop()
    serve = loop.create_unix_server if listening.family == socket.AF_UNIX else loop.create_server
    return (await serve(make, sock=listening, backlog=BACKLOG)).close
