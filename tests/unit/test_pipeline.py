"""What every operation passes: deadlines, policies, observation; and errors that cross the backbone."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

import mesh.errors
from brokers.memory import MemoryBroker
from mesh.address import Address
from mesh.blocks.topic_scopes import TopicScopes
from mesh.blocks.topics import BULK_PUBLISH, PUBLISH, BulkEntry, BulkPublish, Publish, PubSubComponent
from mesh.blocks.wire import MeshWire
from mesh.broker import Message
from mesh.conditions import Conditions
from mesh.deadlines import SWEEP_INTERVAL, Deadlines
from mesh.error_wire import from_wire, to_wire
from mesh.errors import (
    BrokerError,
    BrokerUnavailableError,
    CircuitOpenError,
    ConflictError,
    DeadlineExceededError,
    MeshError,
    MessageTooLargeError,
    PublishFailedError,
    RemoteError,
    StateError,
)
from mesh.operation import Caller, Context, Method, Operation
from mesh.pipeline import MAX_GUARDS, Pipeline
from mesh.policies import CircuitBreaker, Policy, Retry, Timeout
from mesh.telemetry import OPERATIONS, Observer

METHOD = Method("block", "method", type(None), seconds=30.0)
CALLER = Caller("ns", "app")


class Service:
    """A block that does as it is told, and notes until when it had time."""

    def __init__(self, *answers: object) -> None:
        self.answers = list(answers)
        self.left: list[float] = []

    async def run(self, operation: Operation) -> object:
        self.left.append(operation.deadline - time.time())
        answer = self.answers.pop(0) if self.answers else None
        if isinstance(answer, Exception):
            raise answer
        if isinstance(answer, Awaitable):
            return await answer
        return answer


def operation(method: Method = METHOD, deadline: float | None = None) -> Operation:
    return Operation(method, "target", None, Context(CALLER, deadline))


def of(service: Service, policy: Policy | None = None, observer: Observer | None = None) -> Pipeline:
    return Pipeline({"block": service}, policy_of=None if policy is None else lambda *_: policy, observer=observer)


@pytest.mark.parametrize(
    ("policy", "given_seconds", "left"),
    [
        (None, None, 30.0),
        (None, 5.0, 5.0),
        (None, 90.0, 90.0),
        (Policy(timeout=Timeout(10.0)), None, 10.0),
        (Policy(timeout=Timeout(120.0)), None, 120.0),
        (Policy(timeout=Timeout(10.0)), 5.0, 5.0),
        (Policy(timeout=Timeout(10.0)), 90.0, 10.0),
    ],
)
async def test_how_long_an_attempt_may_take(policy: Policy | None, given_seconds: float | None, left: float) -> None:
    """As the client says; else as the policy says, longer or shorter; else the method's own."""
    service = Service()
    await of(service, policy).run(operation(deadline=None if given_seconds is None else time.time() + given_seconds))
    assert service.left == [pytest.approx(left, abs=1.0)]


async def test_an_attempt_ends_at_its_deadline() -> None:
    """Whatever it waits for; its task is as it was."""
    service = Service(asyncio.Event().wait())
    with pytest.raises(DeadlineExceededError, match=r"no answer within 0\.0[45]\d* s"):
        await of(service).run(operation(deadline=time.time() + 0.05))
    with pytest.raises(DeadlineExceededError):
        await of(service).run(operation(deadline=time.time() - 1))
    task = asyncio.current_task()
    assert task is not None
    assert task.cancelling() == 0


async def test_a_clients_deadline_bounds_all_attempts() -> None:
    """Nothing is tried that could only begin after it."""
    service = Service(*[StateError("no")] * 1000)
    policy = Policy(retry=Retry(interval=0.02))
    with pytest.raises((StateError, DeadlineExceededError)):  # The last one may have begun just in time.
        await of(service, policy).run(operation(deadline=time.time() + 0.2))
    assert 1 <= len(service.left) <= 11


async def test_a_policy_without_an_end_goes_on_until_the_client_leaves() -> None:
    """Leaving cancels the operation."""
    service = Service(*[StateError("no")] * 1_000_000)
    running = asyncio.ensure_future(of(service, Policy(retry=Retry(interval=0.0))).run(operation()))
    while len(service.left) < 50:
        await asyncio.sleep(0)
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running


async def test_retries_and_breakers() -> None:
    """What may succeed later is tried again; an answer is none of the target's failures."""
    assert await of(Service(StateError("no"), 1), Policy(retry=Retry(interval=0.0))).run(operation()) == 1
    service = Service(ConflictError("other etag"), 1)
    with pytest.raises(ConflictError):
        await of(service, Policy(retry=Retry(interval=0.0))).run(operation())
    pipeline = of(Service(*[StateError("no")] * 6), Policy(breaker=CircuitBreaker(timeout=60.0)))
    for _ in range(6):
        with pytest.raises(StateError):
            await pipeline.run(operation())
    with pytest.raises(CircuitOpenError):
        await pipeline.run(operation())


async def test_what_is_observed() -> None:
    """Each operation once, with what came of it."""
    seen: list[tuple[str, tuple[str, ...]]] = []

    def observer(
        name: str, labels: tuple[str, ...], times: int = 1, seconds: float = 0.0, details: tuple[str, ...] = ()
    ) -> None:
        assert seconds >= 0
        seen.append((name, labels))

    service = Service(1, ConflictError("other etag"), ValueError("bug"), asyncio.Event().wait())
    pipeline = of(service, observer=observer)
    await pipeline.run(operation())
    with pytest.raises(ConflictError):
        await pipeline.run(operation())
    with pytest.raises(ValueError, match="bug"):
        await pipeline.run(operation())
    running = asyncio.ensure_future(pipeline.run(operation()))
    while len(service.left) < 4:
        await asyncio.sleep(0)
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    outcomes = ["ok", "STATE_CONFLICT", "FAILED", "CANCELLED"]
    assert seen == [(OPERATIONS, ("block", "method", "target", outcome)) for outcome in outcomes]


# Long limits are watched together


async def test_long_limits_are_swept(monkeypatch: pytest.MonkeyPatch) -> None:
    """One that has passed strikes at the next sweep, and no other; nothing runs when nothing is in flight."""
    monkeypatch.setattr("mesh.deadlines.EXACT_BELOW", 0.0)
    deadlines = Deadlines()
    late, early = asyncio.Event(), asyncio.Event()
    waiting = asyncio.ensure_future(deadlines.within(1000.0, late.wait))
    with pytest.raises(DeadlineExceededError, match=r"no answer within 0\.01 s"):
        await deadlines.within(0.01, early.wait)
    assert not waiting.done()
    late.set()
    assert await waiting
    await asyncio.sleep(SWEEP_INTERVAL * 1.5)
    assert (deadlines._watched, deadlines._sweeping) == (set(), False)


async def test_who_cancels_is_told_so(monkeypatch: pytest.MonkeyPatch) -> None:
    """A deadline that strikes at the same time does not swallow it."""
    monkeypatch.setattr("mesh.deadlines.EXACT_BELOW", 0.0)
    deadlines = Deadlines()

    async def stubborn() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            running.cancel()  # The deadline has struck; now somebody else cancels as well.
            await asyncio.sleep(0)

    running = asyncio.ensure_future(deadlines.within(0.01, stubborn))
    with pytest.raises(asyncio.CancelledError):
        await running


# Errors cross the backbone

EVERY = [kind for kind in vars(mesh.errors).values() if isinstance(kind, type) and issubclass(kind, MeshError)]
MADE = {
    "AnswerTooLargeError": (2**20, "ask for less"),
    "MessageTooLargeError": (3, 2),
    "FeatureNotSupportedError": ("store", "ttl"),
    "ComponentError": ("store", "no"),
    "NotConfiguredError": ("store", "no"),
    "ComponentNotFoundError": ("store", "no"),
    "HostsDifferError": ("store", "no"),
    "PublishFailedError": ({},),
    "TooManyOperationsError": (3, 2),
}


@pytest.mark.parametrize("kind", EVERY, ids=lambda kind: kind.__name__)
def test_errors_arrive_as_the_same_class(kind: type[MeshError]) -> None:
    """With their text, and their attributes that are plain."""
    error = kind(*MADE.get(kind.__name__, ("why",)))
    arrived = from_wire(to_wire(error))
    assert type(arrived) is kind
    assert (str(arrived), arrived.code, arrived.retryable) == (str(error), error.code, error.retryable)
    plain = {name: value for name, value in vars(error).items() if isinstance(value, str | int | bool)}
    assert plain.items() <= vars(arrived).items()
    assert from_wire(to_wire(arrived)).args == arrived.args


def test_attributes_and_strangers() -> None:
    """A class that is not there is named; what is not plain stays behind."""
    arrived = from_wire(to_wire(MessageTooLargeError(3, 2)))
    assert isinstance(arrived, MessageTooLargeError)
    assert (arrived.size_bytes, arrived.limit_bytes) == (3, 2)
    partly = PublishFailedError({"1": StateError("no")})
    assert from_wire(to_wire(partly)).retryable
    stranger = from_wire({"code": "VENDOR_ODD", "message": "odd", "attributes": 3})
    assert (type(stranger), str(stranger)) == (RemoteError, "odd (VENDOR_ODD)")


@given(st.dictionaries(st.text(), st.one_of(st.text(), st.integers(), st.none(), st.lists(st.text()))))
def test_whatever_arrives_is_an_error(described: dict[str, object]) -> None:
    """Another node's words are no code."""
    assert isinstance(from_wire(described), MeshError)


@pytest.mark.parametrize("attributes", [None, {}, {"status": "x", "count": [], "most": "y", "key": 3, "code": 7}])
@pytest.mark.parametrize("kind", EVERY, ids=lambda kind: kind.__name__)
def test_what_an_error_is_made_with_is_of_its_type(kind: type[MeshError], attributes: object) -> None:
    """A table of answers names attributes of errors: they are there, whatever another node says."""
    arrived = from_wire({"code": kind.code, "message": "m", "attributes": attributes})
    made = kind(*MADE.get(kind.__name__, ("why",)))
    assert arrived.code == kind.code
    for name, value in vars(made).items():
        if type(value) in (str, int):
            assert type(getattr(arrived, name)) is type(value)


async def test_made_up_targets_take_no_policy_from_others() -> None:
    """Targets are the callers' words: an open breaker is kept, and a new target gets one that it keeps."""
    service = Service(*[StateError("no") for _ in range(6)])
    conditions = Conditions()
    policy = Policy(breaker=CircuitBreaker("cb"))
    pipeline = Pipeline({"block": service}, policy_of=lambda *_: policy, conditions=conditions)

    async def ask(target: str) -> object:
        return await pipeline.run(Operation(METHOD, target, None, Context(CALLER)))

    async def fail(target: str) -> None:
        for _ in range(6):
            with pytest.raises(StateError):
                await ask(target)

    await fail("early")
    for number in range(MAX_GUARDS + MAX_GUARDS // 2):
        await ask(f"made up {number}")
    service.answers += [StateError("no") for _ in range(6)]
    await fail("late")
    for target in ("early", "late"):
        with pytest.raises(CircuitOpenError):
            await ask(target)
    assert {each["target"] for each in conditions.described()} == {"block early", "block late"}


# What stays the same from attempt to attempt


async def test_another_attempt_of_a_publish_is_no_other_event() -> None:
    """A broker or a subscriber can only tell a repeated event by its ids."""
    seen: list[Message] = []

    class Refusing(MemoryBroker):
        async def publish(self, address: Address, message: Message) -> None:
            seen.append(message)
            raise BrokerUnavailableError("away")

        async def publish_many(self, address: Address, messages: Sequence[Message]) -> list[BrokerError | None]:
            seen.extend(messages)
            return [BrokerUnavailableError("away") for _ in messages]

    wire = MeshWire(Refusing.features, "pubsub")
    component = PubSubComponent("pubsub", Refusing(), wire, TopicScopes(), "g", "ns")

    class PubSub:
        async def run(self, operation: Operation) -> object:
            return await getattr(component, operation.method.name)(operation)

    policy = Policy(retry=Retry(interval=0.0, max_retries=2))
    pipeline = Pipeline({"pubsub": PubSub()}, policy_of=lambda *_: policy)
    entries = [BulkEntry(str(number), "text/plain", b"x", {}) for number in range(2)]
    for method, arguments, events in ((PUBLISH, Publish("t", b"1"), 1), (BULK_PUBLISH, BulkPublish("t", entries), 2)):
        seen.clear()
        with pytest.raises(MeshError):
            await pipeline.run(Operation(method, "pubsub", arguments, Context(CALLER)))
        assert len(seen) == 3 * events
        assert len({message.id for message in seen}) == len({message.headers["ce-id"] for message in seen}) == events
