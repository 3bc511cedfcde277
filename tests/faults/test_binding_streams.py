"""One side of a binding's stream is killed: the other is told, and a file is the former or the new one."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager
from pathlib import Path

import aiohttp
import orjson
import pytest

from tests.http.harness import Backbone, Node, component, gateway
from tests.support.eventually import eventually
from tests.support.host_process import host_process
from tests.support.mesh import GatewayProcess
from tests.support.nats import NatsServer, find_nats_server

pytestmark = [
    pytest.mark.skipif(find_nats_server() is None, reason="nats-server is not installed"),
    pytest.mark.slow,
]

PART = os.urandom(64 * 1024)
OCTETS = "application/octet-stream"
CREATE = "/v1.0/bindings/files?operation=create&metadata.fileName=kept"
BARE = component("pubsub", "pubsub.mesh")


def host(directory: Path, backbone: Backbone, root: Path) -> AbstractAsyncContextManager[asyncio.subprocess.Process]:
    """Run one with files."""
    files = component("files", "bindings.localstorage", rootPath=str(root))
    placed = files.replace('"name":"files"', '"name":"files","annotations":{"mesh.placement":"backbone"}')
    return host_process(directory, backbone.url, backbone.namespace, placed)


async def endless() -> AsyncIterator[bytes]:
    for _ in range(128):
        yield PART
    await asyncio.Event().wait()


def writing(root: Path) -> None:
    assert any(each.stat().st_size for each in root.glob(".*.part"))


async def read(node: Node, name: str) -> tuple[int, bytes]:
    asked = {"operation": "get", "metadata": {"fileName": name}}
    reply = await node.request("POST", "/v1.0/bindings/files", {"Accept": OCTETS}, asked)
    return reply.status, reply.body


async def until_former(node: Node) -> None:
    """Wait until the host is found."""

    async def check() -> None:
        assert await read(node, "kept") == (200, b"former")

    await eventually(check, within=60.0)


async def test_the_host_is_killed(tmp_path: Path) -> None:
    """While it writes, and while it is read from; then there is another one, which has the former file."""
    root = tmp_path / "root"
    root.mkdir()
    (root / "kept").write_bytes(b"former")
    (root / "large").write_bytes(PART * 1024)
    async with NatsServer(tmp_path / "nats") as server:
        backbone = Backbone(server.url)
        async with gateway(backbone, tmp_path, resources=BARE) as node:
            async with host(tmp_path / "one", backbone, root) as one:
                await until_former(node)
                async with asyncio.TaskGroup() as tasks:
                    sending = tasks.create_task(node.request("POST", CREATE, {"Content-Type": OCTETS}, endless()))
                    await eventually(lambda: writing(root))
                    one.kill()
                    reply = await sending
                assert (reply.status, reply.json["errorCode"]) == (500, "ERR_INVOKE_OUTPUT_BINDING"), reply
            async with host(tmp_path / "two", backbone, root) as two:
                await until_former(node)
                asked = orjson.dumps({"operation": "get", "metadata": {"fileName": "large"}})
                with pytest.raises(aiohttp.ClientPayloadError):
                    async with node.open("POST", "/v1.0/bindings/files", {"Accept": OCTETS}, asked) as response:
                        assert await response.content.readany()
                        two.kill()
                        async for _ in response.content.iter_any():
                            pass
    assert {each.name for each in root.iterdir() if not each.name.startswith(".")} == {"kept", "large"}


async def test_the_gateway_of_a_caller_is_killed(tmp_path: Path) -> None:
    """The host notices, and removes what it has written."""
    root = tmp_path / "root"
    root.mkdir()
    (root / "kept").write_bytes(b"former")
    async with NatsServer(tmp_path / "nats") as server:
        backbone = Backbone(server.url)
        environ = {"NAMESPACE": backbone.namespace}
        (tmp_path / "asking").mkdir()
        async with (
            host(tmp_path / "one", backbone, root),
            GatewayProcess("asking", tmp_path / "asking", backbone=server.url, environ=environ) as asking,
            aiohttp.ClientSession() as session,
            asyncio.TaskGroup() as tasks,
        ):

            async def send() -> None:
                with pytest.raises(aiohttp.ClientError):
                    async with session.post(asking.url + CREATE, data=endless(), headers={"Content-Type": OCTETS}):
                        pass

            async def there() -> None:
                asked = {"operation": "get", "metadata": {"fileName": "kept"}}
                async with session.post(f"{asking.url}/v1.0/bindings/files", json=asked) as response:
                    assert await response.read() == b"former"

            await eventually(there, within=60.0)
            tasks.create_task(send())
            await eventually(lambda: writing(root), within=90.0)
            await asking.kill()

            def check() -> None:
                assert [each.name for each in root.iterdir()] == ["kept"]

            await eventually(check, within=60.0)
    assert (root / "kept").read_bytes() == b"former"
