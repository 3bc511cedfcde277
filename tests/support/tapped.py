"""Nodes that are watched, and an application in the process of a test that says what it is told to."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any, TypeVar, cast

from mesh.application import BindingAnswer, Headers, Kind
from mesh.node.runtime import Runtime
from mesh.resources.subscription import Subscription
from mesh.tap.sight import Dropped, Rates, Refused, Sight
from mesh.tap.tapping import Tapped
from mesh.tap.wanted import Wanted
from tests.support.eventually import eventually

__all__ = ["App", "Seen", "serving", "tapping"]

T = TypeVar("T", Sight, Dropped, Rates, Refused)


class Answer:
    """An application's."""

    trailers: Headers = ()

    def __init__(self, status: int, body: bytes) -> None:
        self.status, self.body = status, body
        self.headers: Headers = [("content-type", "application/json"), ("set-cookie", "secret")]

    async def read_up_to(self, limit_bytes: int) -> bytes | None:
        return self.body


class App:
    """Answers calls with what it got; events as ``says`` has it, by route."""

    takes_grpc = False
    is_grpc = True  # So nobody asks it for its actors.
    kinds: frozenset[Kind] = frozenset(("event", "events", "change", "job"))

    def __init__(self, **says: tuple[int, bytes]) -> None:
        self.says = says

    @asynccontextmanager
    async def call(self, method: str, target: str, headers: Headers, body: bytes) -> AsyncIterator[Answer]:
        yield Answer(*self.says.get(target.partition("?")[0].strip("/"), (200, body)))

    async def post(self, path: str, headers: Headers, body: bytes, kind: Kind) -> tuple[int, bytes]:
        return self.says.get(path.strip("/"), (200, b""))

    async def trigger(self, name: str, path: str, headers: Headers, body: bytes) -> tuple[int, BindingAnswer]:
        return 200, BindingAnswer(b"taken")

    async def wants(self, name: str, path: str) -> bool:
        return True

    async def until_reachable(self) -> None:
        return

    async def until_unreachable(self) -> None:
        await asyncio.Event().wait()


@asynccontextmanager
async def serving(runtime: Runtime, app: App, *subscriptions: Subscription) -> AsyncIterator[Runtime]:
    """Start a node with an application, and wait until it is served."""

    async def programmatic() -> Sequence[Subscription]:
        return subscriptions

    def check() -> None:
        assert runtime.serving

    async with runtime, runtime.inbound(cast("Any", app), programmatic):
        await eventually(check)
        yield runtime


class Seen:
    """What a tap was told."""

    def __init__(self) -> None:
        self.told: list[Tapped] = []

    def of(self, kind: type[T]) -> list[T]:
        return [each for each in self.told if isinstance(each, kind)]

    async def until(self, fits: Callable[[Sight], object], within: float = 30.0) -> Sight:
        """Wait for a sight."""

        def check() -> Sight:
            found = [each for each in self.of(Sight) if fits(each)]
            assert found, f"not among {self.told[-10:]}"
            return found[0]

        return await eventually(check, within)


@asynccontextmanager
async def tapping(runtime: Runtime, *watched: Runtime, **wanted: Any) -> AsyncIterator[Seen]:
    """Tap, and read all the time; begins when these nodes are watched."""
    seen = Seen()
    before = {each: _watches(each) for each in watched}

    def check() -> None:
        assert all(_watches(each) > count for each, count in before.items())

    async def read(sights: AsyncIterator[Tapped]) -> None:
        async for each in sights:
            seen.told.append(each)

    async with AsyncExitStack() as stack:
        sights = await stack.enter_async_context(runtime.tap(Wanted(**wanted)))
        tasks = await stack.enter_async_context(asyncio.TaskGroup())
        reading = tasks.create_task(read(sights))
        try:
            await eventually(check)
            yield seen
        finally:
            reading.cancel()


def _watches(runtime: Runtime) -> int:
    return cast("Any", runtime).parts.taps.count
