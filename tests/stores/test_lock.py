"""One suite for all lock stores, in the process that asks."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable

import pytest
import pytest_asyncio

from mesh.blocks.lock import ACQUIRE, RELEASE, Acquire, Release, Released
from mesh.errors import LockError, MeshError
from mesh.node.runtime import Runtime
from tests.support.eventually import eventually
from tests.support.nodes import ask, node, unique
from tests.support.stores import LOCK, Served, StoreKind

TABLE = LOCK
LONG = 600.0
pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def runtime(served: Served, kind: StoreKind) -> AsyncIterator[Runtime]:
    """A node that has the store."""
    async with node(served.backbone, unique("locks"), served.component("store", kind.type)) as runtime:
        yield runtime


class Locks:
    """A store as one application sees it."""

    def __init__(self, runtime: Runtime, app_id: str | None = None) -> None:
        self.runtime = runtime
        self.app_id = app_id or unique("app")  # With locks of its own.

    async def acquire(self, resource: str, owner: str = "me", seconds: float = LONG) -> int | None:
        token: int | None = await ask(
            self.runtime, ACQUIRE, "store", Acquire(resource, owner, seconds), app_id=self.app_id
        )
        return token

    async def release(self, resource: str, owner: str = "me") -> Released:
        released = await ask(self.runtime, RELEASE, "store", Release(resource, owner), app_id=self.app_id)
        return Released(released)


@pytest.fixture
def locks(runtime: Runtime) -> Locks:
    return Locks(runtime)


async def test_it_says_that_it_can_be_used(runtime: Runtime) -> None:
    assert [each.health for each in await runtime.health() if each.name == "store"] == ["ok"]


async def test_one_holds_it(locks: Locks) -> None:
    """Also its own owner does not get it again; other resources and other applications are free."""
    assert await locks.acquire("r") is not None
    assert await locks.acquire("r") is None
    assert await locks.acquire("r", "other") is None
    assert await locks.acquire("r2", "other") is not None
    assert await Locks(locks.runtime).acquire("r", "other") is not None


async def test_release(locks: Locks) -> None:
    """By its owner only."""
    assert await locks.release("r") is Released.NOT_HELD
    assert await locks.acquire("r") is not None
    assert await locks.release("r", "other") is Released.HELD_BY_OTHER
    assert await locks.acquire("r", "other") is None
    assert await locks.release("r") is Released.DONE
    assert await locks.release("r") is Released.NOT_HELD
    assert await locks.acquire("r", "other") is not None
    assert await locks.release("r") is Released.HELD_BY_OTHER


async def test_a_lease_ends(locks: Locks) -> None:
    """Not before its time; then it is another's, and its owner of before has nothing to give back."""
    began = time.monotonic()
    assert await locks.acquire("r", "first", 2.0) is not None

    async def taken() -> int:
        token = await locks.acquire("r", "second")
        assert token is not None
        return token

    await eventually(taken)
    assert time.monotonic() - began >= 1.9  # What a clock of the store is too coarse for.
    assert await locks.release("r", "first") is Released.HELD_BY_OTHER
    assert await locks.release("r", "second") is Released.DONE


@pytest.fixture
def jump(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """Set the wall clock of the gateway's process forth or back by hours; the store's own is left alone."""
    real = time.time

    def to(hours: float) -> None:
        monkeypatch.setattr(time, "time", lambda: real() + hours * 3600)

    return to


JUMPS = [(5, 0), (-5, 0), (0, 5), (0, -5), (-5, 5), (5, -5)]


@pytest.mark.parametrize(("at", "then"), JUMPS)
async def test_a_clock_that_jumps_ends_no_lease(
    locks: Locks, jump: Callable[[float], None], at: int, then: int
) -> None:
    """Whoever asks, and after however many jumps: its owner has it, and gives it back."""
    jump(at)
    assert await locks.acquire("r", "first") is not None
    for hours in (then, at, then):
        jump(hours)
        assert await locks.acquire("r", "first") is None
        assert await locks.acquire("r", "second") is None
        assert await locks.release("r", "second") is Released.HELD_BY_OTHER
    assert await locks.release("r", "first") is Released.DONE
    assert await locks.acquire("r", "second") is not None


@pytest.mark.parametrize(("at", "then"), JUMPS)
async def test_a_lease_ends_in_its_time_though_the_clock_jumps(
    locks: Locks, jump: Callable[[float], None], at: int, then: int
) -> None:
    """Neither before nor hours after."""
    jump(at)
    began = time.monotonic()
    assert await locks.acquire("r", "first", 2.0) is not None
    jump(then)

    async def taken() -> None:
        assert await locks.acquire("r", "second") is not None

    await eventually(taken)
    assert time.monotonic() - began >= 1.9  # What a clock of the store is too coarse for.


async def test_a_lease_that_nobody_took_after_it(locks: Locks) -> None:
    """Is not there any more."""
    assert await locks.acquire("r", seconds=1.0) is not None

    async def gone() -> None:
        assert await locks.release("r", "somebody") is Released.NOT_HELD

    await eventually(gone)
    assert await locks.release("r") is Released.NOT_HELD


async def test_fencing_tokens_rise(locks: Locks) -> None:
    """After a release, and after an end."""
    tokens = []
    for seconds in (LONG, 1.0, LONG):
        token: int | None = None

        async def taken(seconds: float = seconds) -> int:
            token = await locks.acquire("r", seconds=seconds)
            assert token is not None
            return token

        token = await eventually(taken)
        if token == 0:
            pytest.skip("has no fencing tokens")
        tokens.append(token)
        if seconds == LONG:
            assert await locks.release("r") is Released.DONE
    assert tokens == sorted(set(tokens))
    assert tokens[0] > 0


async def test_names(locks: Locks) -> None:
    """Any text but the separator, of resources and of owners."""
    for text in ("ünï/code key", "a.b=c", "x" * 300, " ", "\n", "*"):
        assert await locks.acquire(text, text) is not None
        assert await locks.acquire(text, text) is None
        assert await locks.release(text, text + " ") is Released.HELD_BY_OTHER
        assert await locks.release(text, text) is Released.DONE
    with pytest.raises(LockError, match=r"'a\|\|b' can't contain '\|\|'"):
        await locks.acquire("a||b")


async def test_many_ask_at_once(locks: Locks, served: Served, kind: StoreKind) -> None:
    """Exactly one gets it, wherever they are; and again each time that it is given back."""
    namespace = locks.runtime.settings.namespace
    async with node(served.backbone, namespace, served.component("store", kind.type)) as second:
        alone = served.backbone == "memory:" and kind.type == "lock.mesh"  # Nodes on memory are each for themselves.
        everybody = [locks] if alone else [locks, Locks(second, locks.app_id)]
        for _ in range(3):
            got: list[tuple[Locks, str]] = []

            async def ask_for(asker: Locks, owner: str, got: list[tuple[Locks, str]] = got) -> None:
                if await asker.acquire("r", owner) is not None:
                    got.append((asker, owner))

            async with asyncio.TaskGroup() as tasks:
                for number in range(50):
                    tasks.create_task(ask_for(everybody[number % len(everybody)], f"o{number}"))
            [(holder, owner)] = got
            assert await holder.release("r", owner) is Released.DONE


async def test_no_two_hold_it_at_once(locks: Locks) -> None:
    """Each adds to what it read: nothing is lost while a lock is around it."""
    count = 0

    async def add(owner: str) -> None:
        nonlocal count
        for _ in range(5):
            while await locks.acquire("r", owner) is None:
                await asyncio.sleep(0.001)
            before = count
            await asyncio.sleep(0)
            count = before + 1
            assert await locks.release("r", owner) is Released.DONE

    async with asyncio.TaskGroup() as tasks:
        for number in range(5):
            tasks.create_task(add(f"o{number}"))
    assert count == 25


async def test_a_server_that_is_killed(locks: Locks, served: Served, kind: StoreKind) -> None:
    """A lock that was taken is held when it is back, and its owner gives it back."""
    if not kind.restarts:
        pytest.skip("has no server, or one that keeps nothing")
    first = await locks.acquire("r")
    assert first is not None
    assert served.server is not None
    await served.server.restart(kill=True)

    async def asked() -> None:
        try:
            assert await locks.acquire("r", "other") is None
        except MeshError as error:
            raise AssertionError(str(error)) from error

    await eventually(asked)
    assert await locks.release("r") is Released.DONE
    second = await locks.acquire("r", "other")
    assert second is not None
    assert second > first or second == first == 0
