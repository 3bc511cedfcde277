"""Owners are asked wherever they are, and nothing fails while what they own changes hands."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from contextlib import AsyncExitStack
from dataclasses import replace

import pytest

from mesh import address
from mesh.broker import Message
from mesh.errors import (
    BadArgumentError,
    BrokerUnavailableError,
    DeadlineExceededError,
    EventError,
    MeshError,
    NoResponderError,
    RecordsMissingError,
    StateError,
    StreamBrokenError,
)
from mesh.node.runtime import Runtime
from mesh.ownership import asking, watching
from mesh.ownership.asking import Asked, Owners
from mesh.ownership.errors import NobodyHostsError, NotOwnerError
from mesh.ownership.table import PARTITIONS, partition_of
from tests.support import nodes
from tests.support.eventually import eventually
from tests.support.nodes import MemoryMesh

KIND = "things.of a kind"


def node(mesh: MemoryMesh, app_id: str) -> Runtime:
    return nodes.node("memory:", "asking", app_id=app_id, registry=mesh)


class Host:
    """What a node does with what it owns: it answers with its name and the question."""

    def __init__(self, runtime: Runtime) -> None:
        self.owners: Owners = runtime.parts.owners
        self.name = runtime.settings.app_id
        self.has: set[int] = set()
        self.answered: Counter[str] = Counter()
        self.fails: MeshError = MeshError("no")

    def take(self, partition: int, epoch: int) -> None:
        self.has.add(partition)

    async def leave(self, partition: int) -> None:
        self.has.discard(partition)

    def drop(self, partition: int) -> None:
        self.has.discard(partition)

    def host(self, *, ready: bool = True) -> None:
        self.owners.host(KIND, self, self.answer, ready=ready)

    async def answer(self, asked: Asked) -> Message:
        if asked.partition not in self.has:
            raise NotOwnerError("not now")
        if asked.headers["do"] == "fail":
            raise BadArgumentError(f"{asked.caller.app_id} asks for {asked.key}")
        if asked.headers["do"] == "fail inside":
            self.answered[asked.key] += 1
            raise self.fails
        if asked.headers["do"] == "wait":
            await asyncio.Event().wait()
        self.answered[asked.key] += 1
        return Message({"by": self.name}, asked.body[::-1])


async def ask(runtime: Runtime, key: str, do: str = "", body: bytes = b"", seconds: float = 20.0) -> Message:
    return await runtime.parts.owners.ask(KIND, key, {"do": do}, body, time.time() + seconds)


@pytest.mark.parametrize("body", [b"", b"small", bytes(range(256)) * 8192], ids=["empty", "small", "2 MB"])
async def test_the_owner_is_asked_from_anywhere(body: bytes) -> None:
    mesh = MemoryMesh()
    async with node(mesh, "one") as one, node(mesh, "two") as two, node(mesh, "caller") as caller:
        hosts = [Host(one), Host(two)]
        for host in hosts:
            host.host()
        keys = [f"key {number} ä." for number in range(20)]
        for asker in (one, two, caller):
            for key in keys:
                answer = await ask(asker, key, body=body)
                assert answer.body == body[::-1]
        # While they share partitions out, both may have answered for a key, one after the other.
        assert hosts[0].answered + hosts[1].answered == Counter(dict.fromkeys(keys, 3))


async def test_what_the_owner_raises_is_the_askers() -> None:
    mesh = MemoryMesh()
    async with node(mesh, "one") as one, node(mesh, "caller") as caller:
        Host(one).host()
        for asker, said in ((caller, "caller asks for k"), (one, "one asks for k")):
            with pytest.raises(BadArgumentError, match=said):
                await ask(asker, "k", "fail")


@pytest.mark.parametrize("kind", [NoResponderError, BrokerUnavailableError])
async def test_what_failed_inside_is_not_asked_again(kind: type[MeshError]) -> None:
    """What the owner itself could not reach says nothing of the way to the owner: it may have done something."""
    mesh = MemoryMesh()
    async with node(mesh, "one") as one, node(mesh, "caller") as caller:
        host = Host(one)
        host.host()
        host.fails = kind("inside")
        for number, asker in enumerate((caller, one), 1):
            with pytest.raises(kind, match="inside"):
                await ask(asker, "k", "fail inside")
            assert host.answered["k"] == number


async def test_nobody_hosts_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(asking, "NOBODY_WAIT", 0.2)
    async with node(MemoryMesh(), "caller") as caller:
        with pytest.raises(NobodyHostsError, match="no node hosts things"):
            await ask(caller, "k")


async def test_a_host_that_comes_soon_is_waited_for() -> None:
    mesh = MemoryMesh()
    async with node(mesh, "one") as one, node(mesh, "caller") as caller, asyncio.TaskGroup() as tasks:
        asking = tasks.create_task(ask(caller, "k"))
        await asyncio.sleep(0)
        Host(one).host()
        assert (await asking).headers["by"] == "one"


async def test_the_deadline_holds() -> None:
    mesh = MemoryMesh()
    async with node(mesh, "one") as one, node(mesh, "caller") as caller:
        Host(one).host()
        await ask(caller, "k")
        with pytest.raises(DeadlineExceededError):
            await ask(caller, "k", "wait", seconds=0.3)


async def test_an_owner_that_is_gone_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """Before its silence is noticed; what became of the question is not known, so it is not asked again."""
    monkeypatch.setattr(asking, "KNOWN_SECONDS", 0.01)
    for name in ("LOOK_SECONDS", "LONG_SECONDS", "GRACE_SECONDS"):
        monkeypatch.setattr(watching, name, 0.01)
    mesh = MemoryMesh()
    async with node(mesh, "one") as one, node(mesh, "caller") as caller, asyncio.TaskGroup() as tasks:
        host = Host(one)
        host.host()
        await ask(caller, "k")

        async def lost() -> None:
            with pytest.raises(StreamBrokenError, match="it may have been done"):
                await ask(caller, "k", "wait")

        asked = tasks.create_task(lost())
        await eventually(lambda: _equal(len(caller.parts.owners._watch._questions), 1))
        await host.owners.leave(KIND)
        owners = caller.parts.owners
        at = address.owner("asking", "one", host.owners.node)
        assert not await owners._is_gone(at)  # A process cannot die here alone, so another address stands for its own.
        nobody = address.owner("asking", "one", "nobody")
        assert await owners._is_gone(nobody)
        (question,) = owners._watch._questions
        assert question.to == at
        question.to = nobody
        async with asyncio.timeout(10.0):
            await asked


def _equal(found: object, wanted: object) -> None:
    assert found == wanted


async def test_nothing_fails_while_owners_come_and_go() -> None:
    mesh = MemoryMesh()
    async with node(mesh, "one") as one, node(mesh, "caller") as caller, asyncio.TaskGroup() as tasks:
        first = Host(one)
        first.host()
        asked: list[str] = []
        done = asyncio.Event()

        async def keep_asking(worker: int) -> None:
            while not done.is_set():
                asked.append(key := f"{worker}-{len(asked)}")
                assert (await ask(caller, key)).headers["by"] in ("one", "two", "three")

        for worker in range(4):
            tasks.create_task(keep_asking(worker))
        hosts = [first]
        for name in ("two", "three"):
            async with AsyncExitStack() as stack:
                another = await stack.enter_async_context(node(mesh, name))
                hosts.append(Host(another))
                hosts[-1].host()
                while sum(hosts[-1].answered.values()) < 20:
                    await ask(caller, f"try {len(asked)}")
                    asked.append(f"try {len(asked)}")
                await first.owners.leave(KIND)
                assert not first.has
                first.host()
        done.set()
    answered = sum((host.answered for host in hosts), Counter())
    assert set(answered.values()) == {1}, "each ran once"
    assert answered.keys() >= {key for key in asked if not key.startswith("try")}


class SlowToLeave(Host):
    """Finishes what it leaves when it is told to."""

    def __init__(self, runtime: Runtime) -> None:
        super().__init__(runtime)
        self.ends = asyncio.Event()
        self.refused = 0

    async def leave(self, partition: int) -> None:
        self.has.discard(partition)
        await self.ends.wait()

    async def answer(self, asked: Asked) -> Message:
        self.refused += asked.partition not in self.has
        return await super().answer(asked)


async def test_a_question_waits_where_the_partition_leaves(monkeypatch: pytest.MonkeyPatch) -> None:
    """So the asker finds the next owner as soon as there is one, and does not look for it again and again."""
    monkeypatch.setattr(asking, "MOVING_SECONDS", 60.0)
    mesh = MemoryMesh()
    async with node(mesh, "one") as one, node(mesh, "two") as two, node(mesh, "caller") as caller:
        first = SlowToLeave(one)
        first.host()
        await ask(caller, "k")
        partition = partition_of("k", PARTITIONS)
        first.host(ready=False)
        Host(two).host()
        await eventually(lambda: _equal(partition in first.has, False))
        async with asyncio.TaskGroup() as tasks:
            asked = tasks.create_task(ask(caller, "k"))
            await eventually(lambda: _equal(first.refused, 1))
            first.ends.set()
        assert asked.result().headers["by"] == "two"
        assert first.refused == 1


async def test_who_is_ready_no_more_waits_until_others_have_what_it_had() -> None:
    mesh = MemoryMesh()
    async with node(mesh, "one") as one, node(mesh, "two") as two:
        first, second = Host(one), Host(two)
        first.host()
        await eventually(lambda: _equal(len(first.has), PARTITIONS))
        await first.owners.moved(KIND)  # There is nobody else.
        second.host()
        await eventually(lambda: _equal(bool(second.has), True))
        first.host(ready=False)
        await first.owners.moved(KIND)
        assert not first.has


async def test_who_owns_is_known_though_nobody_refuses() -> None:
    """An owner that died may leave its questions in a queue: later ones go to whoever has taken over."""
    mesh = MemoryMesh()
    async with node(mesh, "one") as one, node(mesh, "two") as two, node(mesh, "caller") as caller:
        Host(one).host()
        await ask(caller, "k")
        before = await caller.parts.owners.table(KIND)
        Host(two).host()

        async def is_known() -> None:
            assert (await caller.parts.owners.table(KIND)).members.keys() > before.members.keys()

        await eventually(is_known)


async def test_two_applications_that_host_one_kind_are_told(caplog: pytest.LogCaptureFixture) -> None:
    mesh = MemoryMesh()
    async with node(mesh, "one") as one, node(mesh, "two") as two:
        Host(one).host()
        await ask(one, "k")
        assert "as well" not in caplog.text
        Host(two).host()
        async with asyncio.timeout(10.0):
            while "hosted by app id one as well" not in caplog.text:
                await asyncio.sleep(0.01)


class Failing:
    """A node's records while the store fails, as often as it is told to."""

    def __init__(self, owners: Owners, error: MeshError) -> None:
        self.error, self.asked, self.left = error, 0, 1_000_000
        self._get = owners._records.get
        owners._records.get = self.get  # type: ignore[method-assign, assignment]

    async def get(self, *given: object, **named: object) -> object:
        self.asked += 1
        if self.left > 0:
            self.left -= 1
            raise self.error
        return await self._get(*given, **named)  # type: ignore[arg-type]


async def test_an_owner_that_is_known_is_asked_while_the_store_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    """And who asks next does not wait for the store again."""
    mesh = MemoryMesh()
    async with node(mesh, "one") as one, node(mesh, "caller") as caller:
        Host(one).host()
        await ask(caller, "k")
        owners = caller.parts.owners
        failing = Failing(owners, StateError("the store is away"))
        owners._known[KIND] = replace(owners._known[KIND], tried_at=0.0)
        monkeypatch.setattr(asking, "KNOWN_SECONDS", 60.0)
        for _ in range(10):
            assert (await ask(caller, "k")).headers["by"] == "one"
        assert failing.asked == 1


async def test_who_owns_now_is_not_what_was_known_before_the_store_failed() -> None:
    mesh = MemoryMesh()
    async with node(mesh, "one") as one, node(mesh, "caller") as caller:
        Host(one).host()
        await ask(caller, "k")
        Failing(caller.parts.owners, StateError("the store is away"))
        with pytest.raises(StateError, match="the store is away"):
            await caller.parts.owners.table(KIND, fresh=True)


@pytest.mark.parametrize("kind", [StateError, BrokerUnavailableError])
async def test_a_store_that_fails_is_asked_again_where_the_owner_refuses(kind: type[MeshError]) -> None:
    """It is back before the deadline; one that is not is named."""
    mesh = MemoryMesh()
    async with node(mesh, "one") as one, node(mesh, "two") as two, node(mesh, "caller") as caller:
        first, second = Host(one), Host(two)
        first.host()
        await ask(caller, "k")
        second.host()
        await first.owners.leave(KIND)
        failing = Failing(caller.parts.owners, kind("the store is away"))
        failing.left = 3
        assert (await ask(caller, "k")).headers["by"] == "two"
        assert failing.asked >= 4
        failing.left = 1_000_000
        await second.owners.leave(KIND)
        with pytest.raises(kind, match="the store is away"):
            await ask(caller, "k", seconds=0.3)


async def test_records_that_are_missing_are_told_at_once() -> None:
    mesh = MemoryMesh()
    async with node(mesh, "caller") as caller:
        failing = Failing(caller.parts.owners, RecordsMissingError("no place"))
        with pytest.raises(RecordsMissingError):
            await ask(caller, "k")
        assert failing.asked == 1


async def test_nothing_is_kept_of_a_kind_that_was_left() -> None:
    async with node(MemoryMesh(), "one") as one:
        host = Host(one)
        host.host()
        await ask(one, "k")
        await host.owners.leave(KIND)
        assert KIND not in host.owners._answers
        host.host()
        assert (await ask(one, "k")).headers["by"] == "one"


@pytest.mark.parametrize("problem", ["{", "[]", "3", "[" * 100_000, ""])
async def test_an_owner_that_answers_no_error(problem: str) -> None:
    """Whatever a hostile owner says, the asker is told what is wrong."""
    mesh = MemoryMesh()
    async with node(mesh, "one") as one, node(mesh, "caller") as caller:
        host = Host(one)
        host.host()

        async def hostile(asked: Asked) -> Message:
            return Message({asking.ERROR_HEADER: problem}, b"")

        one.parts.owners._answers[KIND] = hostile
        with pytest.raises(EventError, match="malformed error from another node"):
            await ask(caller, "k")
