"""An injector by itself, as an operator has one: ``python -m … JSON``; it says its port once a cluster can ask it."""

from __future__ import annotations

import asyncio
import json
import signal
import sys
from pathlib import Path

from bindings.kubernetes.api import Cluster
from bindings.kubernetes.injector import Injection, Injector, serving
from mesh.trust.folder import Folder


async def run(told: dict[str, object]) -> None:
    ended = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, ended.set)
    injector, injection = Injector(**told["injector"]), Injection(**told["injection"])  # type: ignore[arg-type]
    root = Folder(Path(str(told["root"]))).root
    async with Cluster(str(told["kubeconfig"])) as cluster, serving(cluster, injector, injection, root) as port:
        print(port, flush=True)
        await ended.wait()


if __name__ == "__main__":
    asyncio.run(run(json.loads(sys.argv[1])))
