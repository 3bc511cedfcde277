"""A process that taps a mesh, and writes what it is told: ``python -m tests.support.tapper URL NAMESPACE``."""

from __future__ import annotations

import asyncio
import sys

from mesh.node.runtime import NodeSettings, Runtime
from mesh.registry import Registry
from mesh.tap.sight import Dropped
from mesh.tap.wanted import Wanted


async def _run(url: str, namespace: str) -> None:
    settings = NodeSettings("tapper", namespace, url, single_host=True)
    async with Runtime(settings, Registry()) as runtime, runtime.tap(Wanted(values=True)) as sights:
        print("taps", flush=True)
        async for each in sights:
            print(f"{type(each).__name__} {each.count if isinstance(each, Dropped) else 1}", flush=True)


if __name__ == "__main__":
    asyncio.run(_run(*sys.argv[1:]))
