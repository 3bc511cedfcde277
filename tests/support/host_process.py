"""``mesh host`` in a process of its own, to be killed."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import aiohttp

from tests.support.eventually import eventually
from tests.support.forked import Forked, launch
from tests.support.gateways import MESH, MeshHome
from tests.support.processes import free_port

__all__ = ["host_process"]


async def _answers(port: int) -> None:
    try:
        async with aiohttp.request("GET", f"http://127.0.0.1:{port}/v1.0/healthz") as response:
            assert response.status == 204
    except aiohttp.ClientError as error:
        raise AssertionError(str(error)) from error


@asynccontextmanager
async def host_process(
    directory: Path, url: str, namespace: str, resources: str, app_id: str = "host"
) -> AsyncIterator[asyncio.subprocess.Process | Forked]:
    """Run one that is ready; it is dead when left.

    Args:
        directory: Where its files are; made if it is missing.
        url: Of the backbone.
        namespace: On it.
        resources: YAML.
        app_id: Its own.
    """
    directory.mkdir(exist_ok=True)
    file = directory / "resources.yaml"
    file.write_text(resources)
    environ = MeshHome(directory / "home").environ({"MESH_BACKBONE": url, "NAMESPACE": namespace})
    port = free_port()
    words = ("host", "--resources-path", str(file), "--app-id", app_id, "--dapr-http-port", str(port))
    with open(os.devnull, "wb") as nowhere:
        process = await launch((*MESH, *words), environ, nowhere.fileno())
    try:
        await eventually(lambda: _answers(port), within=90.0)
        yield process
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
