"""Operations with bytes behind their arguments and results, at a host on every backbone."""

from __future__ import annotations

import asyncio
import hashlib
import os
from collections.abc import AsyncIterator
from contextlib import aclosing
from pathlib import Path
from typing import cast

import pytest

from mesh.blocks.binding_contract import Invoke, StreamHead
from mesh.blocks.bindings import STREAM
from mesh.errors import MeshError
from mesh.flow import Body, Flow
from mesh.node.runtime import Runtime
from mesh.operation import Context, Operation
from mesh.registry import Registry
from tests.support.backends import Backend, features_of
from tests.support.eventually import eventually
from tests.support.nodes import MemoryMesh, component, node, unique

pytestmark = pytest.mark.requires("frames")
PART = os.urandom(256 * 1024)
COUNT = 32


@pytest.fixture
def registry(backend_name: str) -> Registry:
    """Those on memory are in this process."""
    return Registry() if features_of(backend_name).shared else MemoryMesh()


@pytest.fixture
def url(shared_backend: Backend, backend_name: str) -> str:
    if backend_name == "embedded":
        pytest.skip("the same server as nats, found by other means")
    return shared_backend.url if features_of(backend_name).shared else "memory:"


@pytest.fixture(autouse=True)
def _blocking() -> None:
    """A node's start reads what is installed, once, before anything runs; the suite's detector would refuse it."""


async def stream(asker: Runtime, operation: str, body: AsyncIterator[bytes] | None, **metadata: str) -> Flow:
    asked = Operation(STREAM, "files", Invoke(operation, b"", metadata), Context(asker.caller))
    asked.body = None if body is None else Body(body)
    return cast("Flow", await asker.run(asked))


async def parts(then: Exception | None = None) -> AsyncIterator[bytes]:
    for _ in range(COUNT):
        yield PART
    if then is not None:
        raise then


async def test_there_and_back(url: str, registry: Registry, tmp_path: Path) -> None:
    """What is larger than any window comes whole and as it was; what breaks off leaves what was there."""
    files = component("files", "bindings.localstorage", placement="backbone", rootPath=str(tmp_path))
    namespace = unique("streams")
    async with (
        node(url, namespace, files, registry=registry),
        node(url, namespace, app_id="asker", registry=registry) as asker,
    ):
        async with aclosing(await stream(asker, "create", parts(), fileName="big")) as flow:
            assert flow.source is not None
            assert b"".join([part async for part in flow.source]) == b'{"fileName":"big"}'
        async with aclosing(await stream(asker, "get", None, fileName="big")) as flow:
            assert cast("StreamHead", flow.result).length == COUNT * len(PART)
            digest = hashlib.sha256()
            assert flow.source is not None
            async for part in flow.source:
                digest.update(part)
        assert digest.digest() == hashlib.sha256(PART * COUNT).digest()
        with pytest.raises(ValueError, match="it broke"):
            await stream(asker, "create", parts(ValueError("it broke")), fileName="big")
        flow = await stream(asker, "get", None, fileName="big")
        await flow.aclose()  # Nobody reads it.

        def check() -> None:
            assert [(each.name, each.stat().st_size) for each in tmp_path.iterdir()] == [("big", COUNT * len(PART))]

        await eventually(check)
        with pytest.raises(MeshError, match="file not found: nowhere"):
            await stream(asker, "get", None, fileName="nowhere")


async def test_a_caller_that_is_cancelled(url: str, registry: Registry, tmp_path: Path) -> None:
    """The host stops, and nothing is left."""
    files = component("files", "bindings.localstorage", placement="backbone", rootPath=str(tmp_path))
    namespace, sent = unique("streams"), asyncio.Event()

    async def endless() -> AsyncIterator[bytes]:
        async for part in parts():
            yield part
        sent.set()
        await asyncio.Event().wait()

    async with (
        node(url, namespace, files, registry=registry),
        node(url, namespace, app_id="asker", registry=registry) as asker,
        asyncio.TaskGroup() as tasks,
    ):
        asking = tasks.create_task(stream(asker, "create", endless(), fileName="big"))
        await sent.wait()
        assert list(tmp_path.iterdir())
        asking.cancel()

        def check() -> None:
            assert list(tmp_path.iterdir()) == []

        await eventually(check)
