"""Events of an input binding on every backbone, to an application elsewhere: acknowledged once it took them."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from importlib.metadata import EntryPoint
from types import SimpleNamespace
from typing import Any, ClassVar, cast

import pytest

from mesh.adapter import ComponentAdapter
from mesh.application import BindingAnswer, Headers
from mesh.blocks.binding_contract import BindingEvent, Reading
from mesh.errors import AppUnreachableError, MeshError
from mesh.node.runtime import Runtime
from mesh.registry import Registry
from mesh.resources.component import Component
from mesh.tasks import task_group
from tests.support.backends import Backend
from tests.support.eventually import eventually
from tests.support.nodes import component, node, unique

pytestmark = pytest.mark.requires("shared", "frames")
LARGE = bytes(range(256)) * 4096  # More than goes into one frame.


@pytest.fixture
def url(shared_backend: Backend, backend_name: str) -> str:
    if backend_name == "embedded":
        pytest.skip("the same server as nats, found by other means")
    return shared_backend.url


@pytest.fixture(autouse=True)
def _blocking() -> None:
    """A node's start reads what is installed, once, before anything runs; the suite's detector would refuse it."""


@dataclass(frozen=True, slots=True)
class NoSettings:
    """It has none."""


class Queue(ComponentAdapter):
    """A source that keeps what was not taken, and counts how often that was."""

    settings: ClassVar[type[NoSettings]] = NoSettings
    waiting: ClassVar[deque[BindingEvent]] = deque()
    readers: ClassVar[list[str]] = []
    refused: ClassVar[list[BindingEvent]] = []
    left: ClassVar[list[str]] = []

    @asynccontextmanager
    async def reading(self, reading: Reading) -> AsyncIterator[None]:
        self.readers.append(reading.app_id)
        try:
            async with task_group() as tasks:
                task = tasks.create_task(self._read(reading))
                try:
                    yield
                finally:
                    task.cancel()
        finally:
            self.readers.remove(reading.app_id)
            self.left.append(reading.app_id)

    async def _read(self, reading: Reading) -> None:
        while True:
            await asyncio.sleep(0.01)
            if self.waiting:
                event = self.waiting.popleft()
                try:
                    await reading.handle(event)
                except BaseException as error:
                    self.waiting.append(event)
                    if not isinstance(error, MeshError):
                        raise
                    self.refused.append(event)


class Installed(Registry):
    """With a package that brings the type."""

    def find(self, name: str) -> EntryPoint | None:
        return EntryPoint(name, "", "") if name == "bindings.queue" else super().find(name)

    def load(self, name: str, layout: str = "") -> type:
        made: Any = SimpleNamespace(from_component=lambda _: Queue(None), settings=NoSettings)
        return cast("type", made) if name == "bindings.queue" else super().load(name, layout)


class App:
    """An application that can be away."""

    takes_grpc = False
    is_grpc = True  # So nobody asks it for its actors.

    def __init__(self, *, wants: bool = True, status: int = 200) -> None:
        self.wanted, self.status = wants, status
        self.got: list[tuple[str, dict[str, str], bytes]] = []
        self.asked: list[tuple[str, str]] = []
        self.there, self.away = asyncio.Event(), asyncio.Event()
        self.there.set()

    async def wants(self, name: str, path: str) -> bool:
        self.asked.append((name, path))
        return self.wanted

    async def trigger(self, name: str, path: str, headers: Headers, body: bytes) -> tuple[int, BindingAnswer]:
        if not self.there.is_set():
            raise AppUnreachableError("it is away")
        self.got.append((path, dict(headers), body))
        return self.status, BindingAnswer()

    async def until_reachable(self) -> None:
        await self.there.wait()

    async def until_unreachable(self) -> None:
        await self.away.wait()

    def go(self) -> None:
        self.there.clear()
        self.away.set()

    def come(self) -> None:
        self.away.clear()
        self.there.set()


@pytest.fixture
async def nodes(url: str) -> AsyncIterator[Any]:
    """Start nodes of one mesh, each with an application perhaps."""
    namespace = unique("events")
    for noted in (Queue.waiting, Queue.readers, Queue.refused, Queue.left):
        noted.clear()
    async with AsyncExitStack() as all_nodes:

        async def start(
            app_id: str, app: App | None = None, *components: Component, stack: AsyncExitStack = all_nodes
        ) -> Runtime:
            made = node(url, namespace, *components, app_id=app_id, registry=Installed(), host_only=app is None)
            await stack.enter_async_context(made)
            if app is not None:

                async def none() -> Sequence[Any]:
                    return ()

                await stack.enter_async_context(made.inbound(cast("Any", app), none))
            return made

        yield start


METADATA = {"key": "value", "Host": "x", "bad name": "x", "line": "a\nb", "Mesh-Binding": "x", "dapr-api-token": "x"}
METADATA |= {"large": "x" * 8000, **{f"more{number}": "x" * 7000 for number in range(10)}}


def source(**more: Any) -> Component:
    return cast("Component", component("source", "bindings.queue", **more))


async def until(app: App, count: int) -> None:
    def check() -> None:
        assert len(app.got) >= count

    await eventually(check)


async def test_from_a_host(nodes: Any) -> None:
    """The host is there first, or the application; bytes and metadata arrive as they are, large ones too."""
    first, second = App(), App()
    await nodes("first", first)
    await nodes("host", None, source(scopes=("first", "second"), route="/events"))
    Queue.waiting.append(BindingEvent(LARGE, METADATA))
    await until(first, 1)
    path, headers, body = first.got[0]
    assert (path, body == LARGE, headers["key"], headers["mesh-binding"]) == ("/events", True, "value", "source")
    assert headers["Content-Type"] == "application/json"
    assert (
        not {"Host", "bad name", "line", "dapr-api-token", "Mesh-Binding", "large", "more1", "more9"} & headers.keys()
    )
    assert len(headers["more0"]) == 7000
    await nodes("second", second)

    def both() -> None:
        assert sorted(Queue.readers) == ["first", "second"]

    await eventually(both)
    third = App()
    await nodes("third", third)
    assert (second.asked, third.asked) == ([("source", "/events")], [])


@pytest.mark.costly
async def test_what_is_not_taken_comes_again(nodes: Any, caplog: pytest.LogCaptureFixture) -> None:
    """After an answer that says no, and while the application is away; it is asked anew when it is back."""
    app = App(status=500)
    await nodes("app", app)
    await nodes("host", None, source())
    Queue.waiting.append(BindingEvent(b"one"))
    await until(app, 3)
    said = "has not taken an event: the application answered 500"
    assert sum(said in each.getMessage() for each in caplog.records) == 1  # Once for a while.
    app.go()
    app.status = 201

    def unread() -> None:
        assert Queue.readers == []
        assert len(Queue.waiting) == 1

    await eventually(unread)
    app.got.clear()
    app.come()
    await until(app, 1)
    assert (app.got[0][2], len(Queue.waiting)) == (b"one", 0)
    assert len(app.asked) == 2


async def test_a_gateway_that_starts_again_costs_no_delivery(nodes: Any) -> None:
    """While nobody is there to take an event, the source is not told that it was not taken: it may count that."""
    before, after = App(), App()
    await nodes("host", None, source())
    async with AsyncExitStack() as first:
        await nodes("app", before, stack=first)
        Queue.waiting.append(BindingEvent(b"one"))
        await until(before, 1)
    Queue.waiting.append(BindingEvent(b"two"))

    def at_hand() -> None:
        assert not Queue.waiting

    await eventually(at_hand)
    await nodes("app", after)
    await until(after, 1)
    assert (before.got[-1][2], after.got[0][2]) == (b"one", b"two")
    assert len(Queue.refused) <= len(Queue.left)  # Given back once, where the reading was given up meanwhile.


async def test_who_does_not_want_it(nodes: Any) -> None:
    """Or has the component itself, is not read for by the host."""
    unwilling, own, other = App(wants=False), App(), App()
    await nodes("unwilling", unwilling)
    await nodes("own", own, source(placement="local"))
    await nodes("host", None, source())
    await nodes("other", other)

    def read() -> None:
        assert sorted(Queue.readers) == ["other", "own"]

    await eventually(read)
    for number in range(20):
        Queue.waiting.append(BindingEvent(b"%d" % number))

    def taken() -> None:
        assert len(own.got) + len(other.got) == 20

    await eventually(taken)
    assert unwilling.got == []
