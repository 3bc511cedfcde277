"""Changes of a configuration, told to a client that holds a stream open.

Source: reference/dapr-surface.md 1.8, 8.4.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from uuid import UUID

import grpc.aio
import pytest
import pytest_asyncio

from tests.grpc.harness import Client, client
from tests.grpc.streaming import leaving
from tests.http.harness import DEFAULTS, App, Backbone, Node, component, gateway
from tests.support.eventually import PATIENCE, eventually
from tests.support.nats import NatsServer

SHARED = pytest.mark.asyncio(loop_scope="module")
STORES = component("conf", "configuration.mesh") + component("other", "configuration.mesh", scopes=["someone"])
METHOD = "SubscribeConfiguration"
OPEN_SECONDS = 60.0


async def put(node: Node, key: str, value: str | None) -> None:
    path = f"/v1.0/mesh/configuration/conf/{key}"
    reply = await node.request("DELETE" if value is None else "PUT", path, None, value)
    assert reply.status == 204


class Stream:
    """A subscription of a client."""

    def __init__(self, client: Client, *keys: str, store: str = "conf", method: str = METHOD) -> None:
        self.call = client.open(method, client.request(method, store_name=store, keys=keys), timeout=OPEN_SECONDS)
        self.id = ""

    async def begin(self) -> None:
        first = await self.read()
        assert not first.items
        self.id = str(UUID(first.id))

    async def read(self) -> Any:
        async with asyncio.timeout(PATIENCE):
            message = await self.call.read()
        assert message is not grpc.aio.EOF
        return message

    async def change(self) -> dict[str, str]:
        """Take the next message; give its values by key."""
        message = await self.read()
        assert message.id == self.id
        return {key: item.value for key, item in message.items.items()}

    async def ends(self) -> tuple[str, str]:
        try:
            async with asyncio.timeout(PATIENCE):
                assert await self.call.read() is grpc.aio.EOF
                code, text = await self.call.code(), await self.call.details()
        except grpc.aio.AioRpcError as error:
            code, text = error.code(), error.details()
        return code.name, text or ""


@asynccontextmanager
async def following(client: Client, *keys: str, method: str = METHOD) -> AsyncIterator[Stream]:
    stream = Stream(client, *keys, method=method)
    try:
        await stream.begin()
        yield stream
    finally:
        stream.call.cancel()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def shared(
    module_backbone: Backbone, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[tuple[Node, Client]]:
    """A gateway without an application."""
    home = tmp_path_factory.mktemp("home")
    async with gateway(module_backbone, home, resources=STORES) as node, client(node) as called:
        yield node, called


@pytest.mark.parametrize("method", [METHOD, METHOD + "Alpha1"])
@SHARED
async def test_changes(shared: tuple[Node, Client], method: str) -> None:
    """A new value, a new key, a deletion; not what was there at first, nor another key."""
    node, called = shared
    await put(node, "a", "1")
    await put(node, "b", None)
    async with following(called, "a", "b", method=method) as stream:
        await put(node, "x", method)
        await put(node, "a", "2")
        message = await stream.read()
        assert {key: item.value for key, item in message.items.items()} == {"a": "2"}
        assert message.items["a"].version.isdigit()
        await put(node, "b", "3")
        assert await stream.change() == {"b": "3"}
        await put(node, "b", None)
        assert await stream.change() == {"b": ""}


@SHARED
async def test_all_keys_for_several_clients(shared: tuple[Node, Client]) -> None:
    node, called = shared
    async with following(called) as one, following(called) as two:
        assert one.id != two.id
        await put(node, "new", "1")
        assert await one.change() == await two.change() == {"new": "1"}
        await put(node, "new", None)
        assert await one.change() == await two.change() == {"new": ""}


@SHARED
async def test_an_id_of_a_stream_ends_it(shared: tuple[Node, Client]) -> None:
    """By the same call as an id of the application; it is none of another one's afterwards."""
    node, called = shared
    async with following(called, "a") as stream, following(called, "a") as other:
        asked = {"store_name": "conf", "id": stream.id}
        assert await called.call("UnsubscribeConfiguration", **asked) == {"ok": True}
        assert await stream.ends() == ("OK", "")
        assert "ok" not in await called.call("UnsubscribeConfiguration", **asked)
    async with following(called, "a") as stream, following(called, "a") as other:
        reply = await node.get(f"/v1.0/configuration/conf/{stream.id}/unsubscribe")
        assert reply.json == {"ok": True}
        assert await stream.ends() == ("OK", "")
        await put(node, "a", "ended")
        assert await other.change() == {"a": "ended"}


@pytest.mark.parametrize(
    ("store", "keys", "status", "text"),
    [
        ("nope", ["a"], "INVALID_ARGUMENT", "configuration store nope not found"),
        ("other", ["a"], "INVALID_ARGUMENT", "configuration store other not found"),
        ("", ["a"], "INVALID_ARGUMENT", "configuration store  not found"),
        ("conf", [str(number) for number in range(1001)], "INVALID_ARGUMENT", "invalid request: more than 1000 keys"),
    ],
)
@SHARED
async def test_what_cannot_be_followed(
    shared: tuple[Node, Client], store: str, keys: list[str], status: str, text: str
) -> None:
    assert await Stream(shared[1], *keys, store=store).ends() == (status, text)


async def test_none_is_configured(memory: Backbone, tmp_path: Path) -> None:
    async with gateway(memory, tmp_path, resources=DEFAULTS) as node, client(node) as called:
        assert await Stream(called).ends() == ("FAILED_PRECONDITION", "configuration stores not configured")


async def test_a_client_that_leaves(memory: Backbone, tmp_path: Path) -> None:
    """Nothing is left of its subscription: its id is nobody's, and nobody follows."""
    async with gateway(memory, tmp_path, resources=STORES) as node, client(node) as called:
        async with following(called, "a") as stream:
            pass

        async def gone() -> None:
            assert (await node.get(f"/v1.0/configuration/conf/{stream.id}/unsubscribe")).status == 500
            names = {task.get_name() for task in asyncio.all_tasks()}
            assert not names & {"configuration-follow", "configuration-ending"}

        await eventually(gone)


async def test_beside_an_application(backbone: Backbone, tmp_path: Path, app: App) -> None:
    """Both are told; that the application is away ends no stream."""
    async with gateway(backbone, tmp_path, app=app, resources=STORES) as node, client(node) as called:
        assert (await node.get("/v1.0/configuration/conf/subscribe?key=a")).status == 200
        async with following(called, "a") as stream:
            await put(node, "a", "1")
            assert await stream.change() == {"a": "1"}
            await app.until("/configuration/conf/a")
            await app.stop()
            await put(node, "a", "2")
            assert await stream.change() == {"a": "2"}


async def test_the_store_is_away(tmp_path: Path) -> None:
    """What has changed meanwhile is told when it is back."""
    async with (
        NatsServer(tmp_path / "nats") as server,
        gateway(Backbone(server.url), tmp_path, resources=STORES) as node,
        client(node) as called,
        following(called, "a") as stream,
    ):
        await put(node, "a", "1")
        assert await stream.change() == {"a": "1"}
        await server.kill()
        await server.start()
        await put(node, "a", "2")
        assert await stream.change() == {"a": "2"}


async def test_the_gateway_drains(nats: Backbone, tmp_path: Path) -> None:
    async with (
        leaving(nats, tmp_path, resources=STORES) as (node, stop, running),
        client(node) as called,
    ):
        stream = Stream(called, "a")
        await stream.begin()
        stop.set()
        status, text = await stream.ends()
        assert (status, text.partition(";")[0]) == ("UNAVAILABLE", "this gateway ends")
        await running
