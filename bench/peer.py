"""A peer's side of the run: lines of JSON on stdin and stdout; it ends when stdin does."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Awaitable, Callable

__all__ = ["control"]


async def control(port: int, answer: Callable[[dict[str, object]], Awaitable[dict[str, object]]]) -> None:
    """Say that it is ready, then answer what is asked."""
    reader = asyncio.StreamReader()
    loop = asyncio.get_running_loop()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    print(json.dumps({"port": port}), flush=True)
    while line := await reader.readline():
        print(json.dumps(await answer(json.loads(line))), flush=True)
