"""The keyboard of a terminal, passed on to an application.

The application has a process group of its own, so that it can be ended with all it has started. The kernel stops such
a group when it reads the terminal (SIGTTIN); so ``mesh run``, which is in the foreground, reads for it.
"""

from __future__ import annotations

import asyncio
import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["pass_on"]

_CHUNK_BYTES = 64 * 1024
_BACKGROUND_POLL = 0.5


async def pass_on(terminal: int, pipe: int, typed: Callable[[], None], over: Callable[[], bool]) -> bool:
    """Write what is typed to a pipe, until it ends or nobody reads it any more; then the pipe is to be closed.

    Args:
        terminal: Read only while we are in its foreground.
        pipe: Of the application; while it is full, nothing is read.
        typed: Called for what was typed, whose echo the terminal shows.
        over: Tells whether we are about to end: what is typed then is for whoever reads the terminal next, and
            the pipe stays as it is.
    """
    os.set_blocking(pipe, False)
    loop = asyncio.get_running_loop()
    try:
        while data := await _typed(terminal, over):
            typed()
            while data:
                try:
                    data = data[os.write(pipe, data) :]
                except BlockingIOError:
                    await _until(lambda ready: loop.add_writer(pipe, ready), lambda: loop.remove_writer(pipe))
    except OSError:
        # Nobody reads the pipe, or the terminal has gone: the application goes on without.
        return True
    return data is not None


async def _typed(terminal: int, over: Callable[[], bool]) -> bytes | None:
    """Give what was typed; empty after Ctrl-D, None when it is not ours.

    Raises:
        OSError: The terminal has gone.
    """
    loop = asyncio.get_running_loop()
    while True:
        await _until(lambda ready: loop.add_reader(terminal, ready), lambda: loop.remove_reader(terminal))
        if over():
            return None
        if _in_background(terminal):
            # Reading would stop us, and what is typed is somebody else's.
            await asyncio.sleep(_BACKGROUND_POLL)
            continue
        try:
            return os.read(terminal, _CHUNK_BYTES)
        except BlockingIOError:
            continue


def _in_background(terminal: int) -> bool:
    try:
        return os.tcgetpgrp(terminal) != os.getpgrp()
    except OSError:
        # Not the terminal that controls us: nobody is stopped for reading it.
        return False


async def _until(watch: Callable[[Callable[[], None]], None], unwatch: Callable[[], object]) -> None:
    """Wait until a descriptor is ready."""
    ready = asyncio.Event()
    watch(ready.set)
    try:
        await ready.wait()
    finally:
        unwatch()
