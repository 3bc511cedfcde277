"""Durable calls with identities: run for who has proven to call, and told by who was called."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from types import SimpleNamespace

import orjson
import pytest
from msgspec.structs import replace

from mesh import address
from mesh.access import Gate
from mesh.application import Headers
from mesh.blocks.durable import CALLS, REPLY_HEADER, _Callee
from mesh.blocks.durable_record import ID_HEADER, KEEP_SECONDS, RAN, Record, Records, State, calls_of, new_id
from mesh.blocks.invocation import HTTP_HEADER
from mesh.blocks.records import LazyRecords
from mesh.broker import Delivery, Message
from mesh.delivery import SUCCESS, Attempt, Outcome
from mesh.errors import StateError, UnprovenError
from mesh.key_value import MemoryKeyValue
from mesh.operation import Caller
from mesh.packing import pack
from mesh.resources.configuration import AccessControl, AccessPolicy
from mesh.store import Item, KeyValueStateStore, StateStore
from mesh.telemetry import nobody
from mesh.trust.kept import Kept
from tests.support.guards import strict_guards

STOCK, OTHER = (address.topic("ns", CALLS, app_id) for app_id in ("stock", "other"))
# Nobody but shop may call, and that is proven.
RULES = AccessControl(
    "deny",
    "public",
    (AccessPolicy(app_id="shop", namespace="ns", trust_domain="public", default_action="allow", operations=()),),
)


class Application:
    """Counts its calls."""

    is_grpc = False

    def __init__(self) -> None:
        self.calls: list[dict[str, str]] = []

    @asynccontextmanager
    async def call(self, method: str, target: str, headers: Headers, body: object) -> AsyncIterator[SimpleNamespace]:
        self.calls.append(dict(headers))

        async def read_up_to(limit_bytes: int) -> bytes:
            return b'"done"'

        yield SimpleNamespace(status=200, headers=(), read_up_to=read_up_to)


class Mesh:
    """A callee, and what others store."""

    def __init__(self, mode: str = "strict") -> None:
        self._guards = strict_guards("ns")
        self.store: StateStore = KeyValueStateStore(MemoryKeyValue())
        self.application = Application()
        self.told: list[str] = []
        self.callee = _Callee(
            self.records("stock", mode),
            self._publish,
            self._send_back,
            self.application,  # type: ignore[arg-type]  # As much of one as a call needs.
            Caller("ns", "stock"),
            Gate(Caller("ns", "stock"), RULES, nobody, proves=True),
        )

    def kept(self, app_id: str, mode: str = "strict") -> Kept:
        guard = self._guards(app_id)
        assert guard is not None
        guard.strict = mode == "strict"
        return guard.kept

    def records(self, app_id: str, mode: str = "strict") -> Records:
        async def opened(name: str) -> StateStore:
            return self.store

        return Records(LazyRecords("invocations", opened), Caller("ns", app_id), self.kept(app_id, mode))

    async def _publish(self, delivery: Delivery, topic: str, event_id: str, body: bytes) -> None:
        self.told.append(f"{delivery.message.headers['ce-source']} {orjson.loads(body)['state']}")

    async def _send_back(self, queue: str, message: Message) -> None:
        raise AssertionError(f"no call here came over a bridge: {queue}")

    def call(self, by: str = "shop", *, claims: str | None = None, to: address.Address = STOCK) -> Message:
        headers = {HTTP_HEADER: pack("POST", "/work", []), ID_HEADER: "c1", REPLY_HEADER: "outcomes"}
        return self.kept(by).prove(calls_of(to), Message({**headers, "ce-source": claims or by}, b"x"))

    async def attempt(self, message: Message) -> Attempt:
        """Try a call, and give it up as its settlement does."""
        delivery = Delivery(message, STOCK, 1, None)  # type: ignore[arg-type]
        attempt = await self.callee.attempt(delivery)
        if attempt.outcome is Outcome.DROP:
            await self.callee.give_up(delivery, attempt.reason, 1)
        return attempt

    async def keys(self) -> list[str]:
        return list(await self.store.keys("", "", 100))


async def test_it_runs_for_who_has_proven_to_call_and_the_callee_tells() -> None:
    mesh = Mesh()
    shop = mesh.records("shop")
    await shop.write(Record("c1", "stock", "/work", caller="shop"), KEEP_SECONDS, first=True)
    pending = await mesh.records("stock").get("c1")
    assert pending is not None
    assert pending.state is State.PENDING
    call = mesh.call()
    for _ in range(2):  # It comes again.
        assert await mesh.attempt(call) is SUCCESS
    [headers] = mesh.application.calls
    assert (headers["dapr-caller-app-id"], headers["dapr-caller-namespace"]) == ("shop", "ns")
    known = await shop.get("c1")
    assert known is not None
    assert (known.state, known.body, known.caller, known.told) == (State.SUCCEEDED, b'"done"', "shop", True)
    assert mesh.told == ["shop succeeded"]


async def test_what_rules_refuse_is_an_outcome() -> None:
    mesh = Mesh()
    assert (await mesh.attempt(mesh.call("evil"))).outcome is Outcome.DROP
    known = await mesh.records("evil").get("c1")
    assert known is not None
    assert (known.state, "spiffe://public/ns/ns/evil" in known.reason, mesh.application.calls) == (
        State.FAILED,
        True,
        [],
    )


@pytest.mark.parametrize("how", ["not signed", "altered", "in another's name", "for another", "moved"])
async def test_a_call_that_is_not_proven_leaves_nothing(how: str) -> None:
    mesh = Mesh()
    call = mesh.call()
    for_other = mesh.call(to=OTHER)
    message = {
        "not signed": Message({name: call.headers[name] for name in (HTTP_HEADER, ID_HEADER, "ce-source")}, b"x"),
        "altered": replace(call, body=b"y"),
        "in another's name": mesh.call("evil", claims="shop"),
        "for another": for_other,
        "moved": mesh.kept("evil").move(calls_of(STOCK), for_other),
    }[how]
    assert (await mesh.attempt(message)).outcome is Outcome.DROP
    assert (mesh.application.calls, mesh.told, await mesh.keys()) == ([], [], [])
    # The one that was made is as it was.
    assert await mesh.attempt(call) is SUCCESS


@pytest.mark.parametrize("first", [True, False])
async def test_another_s_call_under_the_same_id_is_told_its_own_outcome_and_undoes_nothing(first: bool) -> None:
    """Also while the call waits."""
    mesh = Mesh()
    shop = mesh.records("shop")
    await shop.write(Record("c1", "stock", "/work", caller="shop"), KEEP_SECONDS, first=True)
    if not first:
        assert await mesh.attempt(mesh.call()) is SUCCESS
    assert (await mesh.attempt(mesh.call("evil"))).outcome is Outcome.DROP
    assert await mesh.attempt(mesh.call()) is SUCCESS
    known = await shop.get("c1")
    assert known is not None
    assert (known.state, known.caller, len(mesh.application.calls)) == (State.SUCCEEDED, "shop", 1)
    assert sorted(mesh.told) == ["evil failed", "shop succeeded"]


@pytest.mark.parametrize(
    "theirs",
    [
        Record("c1", "stock", "/work", caller="evil"),
        Record("c1", "evil", "/work", State.SUCCEEDED, caller="shop"),
        Record("c1", "evil", "/work", State.FAILED, caller="evil"),
    ],
    ids=["waits", "says to be of this call", "of another call"],
)
async def test_what_another_application_keeps_under_the_same_id(theirs: Record) -> None:
    """The call runs, once, and its outcome is published; under the id is what was there."""
    mesh = Mesh()
    await mesh.records("evil").write(theirs, KEEP_SECONDS)
    call = mesh.call()
    for _ in range(2):
        assert await mesh.attempt(call) is SUCCESS
    assert await mesh.records("shop").get("c1") == replace(theirs, headers=[])
    assert (len(mesh.application.calls), mesh.told) == (1, ["shop succeeded"])


DONE = Record("c1", "stock", "/work", State.SUCCEEDED, status=200, body=b"forged", caller="shop")


@pytest.mark.parametrize("state", State)
async def test_an_id_is_that_of_a_call_to_its_callee(state: State) -> None:
    """Nobody else's own outcome counts under it, though it is proven to be that one's; nor is it said to wait there."""
    mesh, call_id = Mesh(), new_id("stock")
    theirs = replace(DONE, id=call_id, app_id="evil", state=state)
    await mesh.records("shop" if state is State.PENDING else "evil").write(theirs, 60)
    with pytest.raises(UnprovenError):
        await mesh.records("shop").get(call_id)
    await mesh.records("stock").write(replace(DONE, id=call_id), 60)
    assert await mesh.records("shop").get(call_id) == replace(DONE, id=call_id, headers=[])
    assert new_id("stock") != call_id


@pytest.mark.parametrize("how", ["by another", "by the caller", "not signed", "of another call", "altered", "pending"])
async def test_an_outcome_by_who_was_not_called(how: str) -> None:
    """Nobody is told it, and the call runs."""
    mesh = Mesh()
    if how in ("by another", "by the caller"):
        await mesh.records("evil" if how == "by another" else "shop").write(DONE, 60)
    elif how == "not signed":
        await mesh.store.write([Item("c1", DONE.encode())])
    elif how == "pending":
        await mesh.records("evil").write(replace(DONE, state=State.PENDING), 60)
    else:
        await mesh.records("stock").write(replace(DONE, id="c2") if how == "of another call" else DONE, 60)
        found = await mesh.store.get("c2" if how == "of another call" else "c1", strong=True)
        assert found is not None
        value = found.value if how == "of another call" else found.value.replace(b"forged", b"worse!")
        await mesh.store.write([Item("c1", value)])
    with pytest.raises(UnprovenError):
        await mesh.records("shop").get("c1")
    permissive = await mesh.records("shop", "permissive").get("c1")
    assert permissive is not None
    assert await mesh.attempt(mesh.call()) is SUCCESS
    known = await mesh.records("shop").get("c1")
    assert known is not None
    assert (known.body, len(mesh.application.calls)) == (b'"done"', 1)


async def test_a_call_that_was_kept_until_its_outcome_is_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    mesh, now = Mesh(), time.time()
    call = mesh.call()
    assert await mesh.attempt(call) is SUCCESS
    assert [key.startswith(RAN) for key in await mesh.keys()] == [False, True]
    await mesh.store.write([Item("c1", None)])
    monkeypatch.setattr(time, "time", lambda: now + KEEP_SECONDS + 60)
    assert await mesh.attempt(call) is SUCCESS
    assert len(mesh.application.calls) == 1


async def test_a_call_that_has_run_does_not_run_again_when_it_is_said_to_wait() -> None:
    mesh = Mesh()
    await mesh.records("shop").write(Record("c1", "stock", "/work", caller="shop"), KEEP_SECONDS)
    waits, call = await mesh.store.get("c1", strong=True), mesh.call()
    assert waits is not None
    assert await mesh.attempt(call) is SUCCESS
    await mesh.store.write([Item("c1", waits.value)])
    assert await mesh.attempt(call) is SUCCESS
    await mesh.callee.give_up(Delivery(call, STOCK, 2, None), "away", 2)  # type: ignore[arg-type]
    known = await mesh.records("shop").get("c1")
    assert known is not None
    assert (known.state, len(mesh.application.calls), mesh.told) == (State.PENDING, 1, ["shop succeeded"])


@pytest.mark.parametrize("value", [b"", b"7", b"{}", b'{"mesh-signer":7}', b"of another"])
async def test_only_the_callee_says_that_a_call_has_run(value: bytes) -> None:
    mesh = Mesh()
    call = mesh.call()
    assert await mesh.attempt(call) is SUCCESS
    _, ran = await mesh.keys()
    await mesh.records("evil").mark("c1", "shop")
    found = await mesh.store.get(ran, strong=True)
    assert found is not None
    await mesh.store.write([Item("c1", None)])
    await mesh.store.write([Item(ran, found.value if value == b"of another" else value)])
    assert await mesh.attempt(call) is SUCCESS
    assert len(mesh.application.calls) == 2


class OneByOne(KeyValueStateStore):
    """Refuses to write several keys at once, as a cluster does; and the one that it is told to, once."""

    refused = ""

    async def write(self, items: Sequence[Item]) -> None:
        [item] = items
        if self.refused and item.key.startswith(self.refused):
            self.refused = ""
            raise StateError("full")
        await super().write(items)


async def test_what_has_run_is_noted_key_by_key_and_the_rest_later() -> None:
    mesh = Mesh()
    mesh.store = store = OneByOne(MemoryKeyValue())
    store.refused = RAN
    call = mesh.call()
    with pytest.raises(StateError):
        await mesh.attempt(call)
    assert (await mesh.keys(), mesh.told) == (["c1"], [])
    assert await mesh.attempt(call) is SUCCESS
    assert [key.startswith(RAN) for key in await mesh.keys()] == [False, True]
    assert (len(mesh.application.calls), mesh.told) == (1, ["shop succeeded"])


SIGNED = orjson.dumps({**orjson.loads(DONE.encode().partition(b"\n")[0]), "proof": 7})


@pytest.mark.parametrize("mode", ["strict", "permissive"])
@pytest.mark.parametrize(
    "value",
    [
        b"",
        b"\xff",
        b'{"x"',
        b"7",
        b"[]",
        b'{"id":"c1"}',
        SIGNED,
        SIGNED.replace(b"7", b'{"mesh-signer":7}'),
        b"[" * 9999,
    ]
    + [SIGNED.replace(b'"headers":"[]"', each) for each in (b'"headers":"7"', b'"headers":"[7]"', b'"headers":null')]
    + [SIGNED.replace(*each) for each in ((b'"succeeded"', b'"else"'), (b'"stock"', b"7"), (b"200", b'"200"'))],
)
async def test_what_is_kept_and_is_no_record(value: bytes, mode: str) -> None:
    """It is as if nobody had said anything: the call runs, and has an outcome."""
    mesh = Mesh(mode)
    await mesh.store.write([Item("c1", value + b"\nforged")])
    with pytest.raises(UnprovenError):
        await mesh.records("shop", mode).get("c1")
    assert await mesh.attempt(mesh.call()) is SUCCESS
    known = await mesh.records("shop").get("c1")
    assert known is not None
    assert (known.body, len(mesh.application.calls)) == (b'"done"', 1)


@pytest.mark.parametrize("call", ["", "7", "[]", '["POST"]', "null", "[1,2,3]", '["a","/b",[["c"]]]', "[" * 9999])
async def test_what_is_stored_and_is_no_call(call: str) -> None:
    mesh = Mesh()
    message = mesh.call()
    attempt = await mesh.attempt(replace(message, headers={**message.headers, HTTP_HEADER: call}))
    assert (attempt.outcome, attempt.reason, await mesh.keys()) == (Outcome.DROP, "not a durable call", [])


async def test_a_field_that_only_newer_gateways_know() -> None:
    mesh = Mesh()
    newer = orjson.dumps({**orjson.loads(DONE.encode().partition(b"\n")[0]), "since": 7}) + b"\nforged"
    assert Record.decode(newer) == replace(DONE, headers=[])
    signed = mesh.kept("stock").prove("call c1", Message({}, newer))
    line, _, body = newer.partition(b"\n")
    await mesh.store.write(
        [Item("c1", line[:-1] + b',"proof":' + orjson.dumps(signed.headers) + b"}\n" + body)],
    )
    assert await mesh.records("shop").get("c1") == replace(DONE, headers=[])


async def test_permissive_takes_what_is_not_proven_as_claimed() -> None:
    mesh = Mesh("permissive")
    call = mesh.call()
    unsigned = Message({name: call.headers[name] for name in (HTTP_HEADER, ID_HEADER, "ce-source")}, b"x")
    attempt = await mesh.attempt(unsigned)
    assert (attempt.outcome, "shop (not proven)" in attempt.reason) == (Outcome.DROP, True)
    known = await mesh.records("shop", "permissive").get("c1")
    assert known is not None
    assert known.state is State.FAILED
    await mesh.store.write([Item("c1", None)])
    assert await mesh.attempt(call) is SUCCESS


@pytest.mark.parametrize("name", ["key-0123", f"{RAN}c1"])
async def test_a_call_whose_id_is_the_name_of_something_else(name: str) -> None:
    mesh = Mesh()
    message = mesh.call()
    signed = mesh.kept("shop").prove(calls_of(STOCK), replace(message, headers={**message.headers, ID_HEADER: name}))
    assert (await mesh.attempt(signed)).outcome is Outcome.DROP
    assert (mesh.application.calls, await mesh.keys()) == ([], [])
