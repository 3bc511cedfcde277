"""Actors over gRPC: calls, state, timers and reminders, and an application that hosts actors over a stream.

Source: reference/dapr-surface.md 0.3.2, 1.12, 8.4.
"""

from __future__ import annotations

import asyncio
import base64
import re
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import orjson
import pytest
import pytest_asyncio

from tests.grpc.actor_host import Host, Turn, hosting, unpacked
from tests.grpc.harness import Client, Failed, client, refused
from tests.grpc.streaming import leaving
from tests.http.harness import Backbone, Node, component, gateway, yaml
from tests.support.eventually import PATIENCE, eventually
from tests.support.proxy import Proxy

SHARED = pytest.mark.asyncio(loop_scope="module")
RESOURCES = component("statestore", "state.mesh", actorStateStore="true")
THING = {"actor_type": "thing", "actor_id": "1"}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def shared(
    module_backbone: Backbone, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[tuple[Node, Client, Host]]:
    """A gateway without an application's port, and the application on a stream."""
    home = tmp_path_factory.mktemp("home")
    reentrant = {"entities": ["again"], "reentrancy": {"enabled": True, "max_stack_depth": 2}}
    async with (
        gateway(module_backbone, home, resources=RESOURCES) as node,
        client(node) as called,
        hosting(called, "thing", "again", entities_config=[reentrant]) as host,
    ):
        yield node, called, host


@pytest.fixture
def host(shared: tuple[Node, Client, Host]) -> Host:
    """The application."""
    return shared[2]


async def invoke(called: Client, id_: str, method: str = "m", data: bytes = b"", type_: str = "thing") -> bytes:
    reply = await called.message("InvokeActor", actor_type=type_, actor_id=id_, method=method, data=data)
    return bytes(reply.data)


@SHARED
async def test_a_call(shared: tuple[Node, Client, Host]) -> None:
    """It goes to the stream with its metadata, and comes back from there."""
    _, called, host = shared
    fields = {"actor_type": "thing", "actor_id": "call", "method": "doit", "data": b"\x00hello"}
    reply = await called.message("InvokeActor", **fields, metadata={"x-own": "1"})
    assert reply.data == b"\x00hello"
    (turn,) = host.of("invoke", "call")
    assert (turn.actor_type, turn.method, turn.data) == ("thing", "doit", b"\x00hello")
    sent = {name.lower(): value for name, value in turn.metadata.items()}
    assert (sent["x-own"], sent["dapr-api-call"], sent["dapr-caller-app-id"]) == ("1", "true", "app")


@SHARED
async def test_a_call_over_http_reaches_the_stream(shared: tuple[Node, Client, Host]) -> None:
    node, _, host = shared

    async def answer(turn: Turn) -> dict[str, Any]:
        return {"data": b"{}", "metadata": {"content-type": "application/json", "x-own": "2"}}

    host.do, former = answer, host.do
    try:
        reply = await node.request("POST", "/v1.0/actors/thing/http/method/doit", {}, b"x")
    finally:
        host.do = former
    assert (reply.status, reply.body, reply.headers["x-own"]) == (200, b"{}", "2")
    assert reply.headers["content-type"] == "application/json"


@SHARED
@pytest.mark.parametrize(
    ("metadata", "told"),
    [
        ({"Content-Length ": "500"}, "a header must not be named 'Content-Length '"),
        ({"x: y\r\nTransfer-Encoding": "chunked"}, "a header must not be named"),
        ({"x": "y\r\nContent-Length: 500"}, "the header x cannot hold the character U+000D"),
    ],
)
async def test_metadata_that_no_header_can_be(
    shared: tuple[Node, Client, Host], metadata: dict[str, str], told: str
) -> None:
    """A caller over HTTP is told so: where its answer ends is not for the application to say."""
    node, _, host = shared

    async def answer(turn: Turn) -> dict[str, Any]:
        return {"data": b"{}", "metadata": metadata}

    host.do, former = answer, host.do
    try:
        reply = await node.request("POST", "/v1.0/actors/thing/odd/method/doit", {}, b"x")
    finally:
        host.do = former
    assert (reply.status, reply.json["errorCode"]) == (500, "ERR_INTERNAL")
    assert told in reply.json["message"]


@SHARED
async def test_turns_are_one_at_a_time_and_actors_are_not(shared: tuple[Node, Client, Host]) -> None:
    """Two actors wait for each other's turn; the second call of the first waits for both."""
    _, called, host = shared
    met = asyncio.Barrier(2)

    async def meet(turn: Turn) -> dict[str, Any]:
        if turn.message.data == b"meet":
            await met.wait()
        return {"data": b"%d" % len(host.of("invoke", "one"))}

    host.do, former = meet, host.do
    try:
        async with asyncio.TaskGroup() as tasks:
            first = tasks.create_task(invoke(called, "one", data=b"meet"))
            await host.until("invoke", "one")
            second = tasks.create_task(invoke(called, "one"))
            tasks.create_task(invoke(called, "two", data=b"meet"))
    finally:
        host.do = former
    assert (first.result(), second.result()) == (b"1", b"2")


@SHARED
async def test_a_chain_of_calls_comes_back(shared: tuple[Node, Client, Host]) -> None:
    """It is told by metadata which chain it is; too deep a one is refused."""
    _, called, host = shared

    async def again(turn: Turn) -> dict[str, Any]:
        chain = {"Dapr-Reentrancy-Id": turn.message.metadata["Dapr-Reentrancy-Id"]}
        fields = {"actor_type": "again", "actor_id": "chain", "method": "m", "metadata": chain}
        try:
            await called.message("InvokeActor", **fields)
        except Failed as error:
            return {"data": f"{error.code} {error.text}".encode()}
        return {"data": b"%d" % len(host.of("invoke", "chain"))}

    host.do, former = again, host.do
    try:
        assert await invoke(called, "chain", type_="again") == b"2"
    finally:
        host.do = former


FAILURES: list[tuple[dict[str, Any], object]] = [
    (
        {"code": 13, "message": "broken"},
        ("INTERNAL", "error invoke actor method: error from actor service: (500) broken"),
    ),
    ({"code": 5, "message": "m"}, ("INTERNAL", "error invoke actor method: actor method not found")),
    ({"code": 0, "message": "?"}, ("INTERNAL", "error invoke actor method: error from actor service: (500) ?")),
    ({"code": 99, "message": "?"}, ("INTERNAL", "error invoke actor method: error from actor service: (500) ?")),
    ({"error": True, "data": b"its own"}, b"its own"),
]


@pytest.mark.parametrize(("said", "expected"), FAILURES)
@SHARED
async def test_what_the_application_may_say(
    shared: tuple[Node, Client, Host], said: dict[str, Any], expected: object
) -> None:
    """An actor's own error is an answer for its caller; the others fail the call."""
    _, called, host = shared

    async def say(turn: Turn) -> dict[str, Any]:
        return said

    host.do, former = say, host.do
    try:
        answer: object = await invoke(called, "says")
    except Failed as error:
        answer = error.code, error.text
    finally:
        host.do = former
    assert answer == expected


@SHARED
async def test_an_error_of_the_actors_own_over_http(shared: tuple[Node, Client, Host]) -> None:
    """The header that marks it is there, whatever else is."""
    node, _, host = shared

    async def say(turn: Turn) -> dict[str, Any]:
        return {"error": True, "data": b"no"}

    host.do, former = say, host.do
    try:
        reply = await node.request("POST", "/v1.0/actors/thing/own/method/m", {}, b"")
    finally:
        host.do = former
    assert (reply.status, reply.body, reply.headers["x-daprerrorresponseheader"]) == (200, b"no", "true")


@pytest.mark.parametrize(
    ("method", "fields", "code", "text"),
    [
        (
            "InvokeActor",
            {**THING, "actor_type": "dapr.internal.x", "method": "m"},
            "PERMISSION_DENIED",
            "actor type 'dapr",
        ),
        ("InvokeActor", {**THING, "actor_id": "a/b", "method": "m"}, "INVALID_ARGUMENT", "invalid request: actor id"),
        (
            "InvokeActor",
            {**THING, "method": "m", "metadata": {"x-a": "a\r\nb: c"}},
            "INVALID_ARGUMENT",
            "invalid request: the header x-a cannot hold",
        ),
        ("InvokeActor", {**THING, "method": ""}, "INVALID_ARGUMENT", "invalid request: actor method is empty"),
        ("GetActorState", {**THING, "key": ""}, "INVALID_ARGUMENT", "invalid request: the key"),
        ("RegisterActorTimer", {**THING, "name": "a#b"}, "INVALID_ARGUMENT", "invalid request: timer"),
        ("RegisterActorReminder", {**THING, "name": ""}, "INVALID_ARGUMENT", "invalid request: reminder is empty"),
        (
            "RegisterActorReminder",
            {**THING, "name": "r", "due_time": "soon"},
            "INTERNAL",
            "error creating actor reminder: ",
        ),
        (
            "RegisterActorReminder",
            {**THING, "name": "r", "failure_policy": {"constant": {"interval": {"seconds": -1}}}},
            "INVALID_ARGUMENT",
            "invalid request: failurePolicy.constant.interval",
        ),
        (
            "RegisterActorReminder",
            {**THING, "actor_type": "other", "name": "r"},
            "PERMISSION_DENIED",
            "operations on actor",
        ),
        ("GetActorReminder", {**THING, "name": "none"}, "NOT_FOUND", "actor reminder not found: none"),
        ("ListActorReminders", {"actor_type": "other"}, "PERMISSION_DENIED", "operations on actor"),
        (
            "ListActorReminders",
            {"actor_type": "thing", "actor_id": ""},
            "INVALID_ARGUMENT",
            "invalid request: actor_id is empty",
        ),
        ("UnregisterActorRemindersByType", {"actor_type": "other"}, "PERMISSION_DENIED", "operations on actor"),
        (
            "RegisterActorTimer",
            {**THING, "actor_id": "asleep", "name": "t", "due_time": "1s"},
            "INTERNAL",
            "error creating",
        ),
        ("ExecuteActorStateTransaction", {**THING, "actor_id": "asleep"}, "INTERNAL", "actor instance is missing"),
        (
            "ExecuteActorStateTransaction",
            {**THING, "operations": [{"operationType": "increment", "key": "k"}]},
            "UNIMPLEMENTED",
            "operation type increment not supported",
        ),
        (
            "ExecuteActorStateTransaction",
            {**THING, "operations": [{"operationType": "delete"}]},
            "INVALID_ARGUMENT",
            "state key cannot be empty",
        ),
    ],
)
@SHARED
async def test_what_is_refused(
    shared: tuple[Node, Client, Host], method: str, fields: dict[str, Any], code: str, text: str
) -> None:
    found, said = await refused(shared[1], method, **fields)
    assert (found, said[: len(text)]) == (code, text)


@SHARED
async def test_state(shared: tuple[Node, Client, Host]) -> None:
    """What one transaction wrote is read by any call, over HTTP as it is."""
    node, called, _ = shared
    await invoke(called, "state")
    of = {"actor_type": "thing", "actor_id": "state"}
    upserts = [
        {"operationType": "upsert", "key": "a", "value": {"value": b'{"a":1}'}},
        {"operationType": "upsert", "key": "b", "value": {"value": b'"b"'}, "metadata": {"ttlInSeconds": "300"}},
    ]
    await called.message("ExecuteActorStateTransaction", **of, operations=upserts)
    found = await called.message("GetActorState", **of, key="a")
    assert (found.data, dict(found.metadata)) == (b'{"a":1}', {})
    found = await called.message("GetActorState", **of, key="b")
    assert (found.data, list(found.metadata)) == (b'"b"', ["ttlExpireTime"])
    assert (await node.request("GET", "/v1.0/actors/thing/state/state/a")).body == b'{"a":1}'
    deletes = [{"operationType": "delete", "key": "a"}]
    await called.message("ExecuteActorStateTransaction", **of, operations=deletes)
    assert await called.call("GetActorState", **of, key="a") == {}


@SHARED
async def test_timers(shared: tuple[Node, Client, Host]) -> None:
    """One fires until it is told to stop; bytes come as a text of JSON, in base64."""
    _, called, host = shared
    await invoke(called, "timer")
    of = {"actor_type": "thing", "actor_id": "timer", "name": "t"}

    async def stop(turn: Turn) -> dict[str, Any]:
        return {"cancel": len(host.of("timer", "timer")) == 2}

    host.do, former = stop, host.do
    try:
        await called.message("RegisterActorTimer", **of, due_time="0s", period="10ms", callback="cb", data=b"\xff")
        await host.until("timer", "timer", 2)
    finally:
        host.do = former
    first = host.of("timer", "timer")[0]
    assert (first.name, first.callback, first.due_time, first.period) == ("t", "cb", "0s", "10ms")
    assert re.fullmatch(r"\d+-\d+", first.metadata["mesh-turn-id"])
    assert orjson.loads(unpacked(first.data)) == base64.b64encode(b"\xff").decode()
    await called.message("UnregisterActorTimer", **of)


@SHARED
async def test_reminders(shared: tuple[Node, Client, Host]) -> None:
    """They are told of, fire, wake their actor, and are gone when they are deleted."""
    _, called, host = shared
    of = {"actor_type": "thing", "actor_id": "reminded"}
    await called.message("RegisterActorReminder", **of, name="r", due_time="0s", period="1h", data=b"d")
    turn = await host.until("reminder", "reminded")
    text = base64.b64encode(b"d").decode()
    assert (turn.name, turn.due_time, turn.period) == ("r", "", "")
    assert re.fullmatch(r"\d+-\d+", turn.metadata["mesh-turn-id"])
    assert orjson.loads(unpacked(turn.data)) == text
    found = await called.message("GetActorReminder", **of, name="r")
    assert (found.actor_type, found.actor_id, found.due_time, found.period) == (
        "thing",
        "reminded",
        "0s",
        "@every 1h0m0s",
    )
    assert orjson.loads(unpacked(found.data)) == text
    assert not found.HasField("ttl")
    fixed = {**of, "name": "r", "due_time": "1h", "overwrite": False}
    assert await refused(called, "RegisterActorReminder", **fixed) == (
        "ALREADY_EXISTS",
        "actor reminder already exists: r",
    )
    policy = {"constant": {"interval": {"seconds": 2}, "max_retries": 1}}
    await called.message("RegisterActorReminder", **of, name="r2", due_time="1h", failure_policy=policy)
    await called.message("RegisterActorReminder", actor_type="thing", actor_id="more", name="r3", due_time="1h")
    listed = await called.message("ListActorReminders", **of)
    assert {each.name for each in listed.reminders} == {"r", "r2"}
    assert {each.reminder.actor_id for each in listed.reminders} == {"reminded"}
    listed = await called.message("ListActorReminders", actor_type="thing")
    assert {each.name for each in listed.reminders} == {"r", "r2", "r3"}
    await called.message("UnregisterActorReminder", **of, name="r")
    assert (await refused(called, "GetActorReminder", **of, name="r"))[0] == "NOT_FOUND"
    await called.message("UnregisterActorRemindersByType", **of)
    listed = await called.message("ListActorReminders", actor_type="thing")
    assert [each.name for each in listed.reminders] == ["r3"]
    await called.message("UnregisterActorRemindersByType", actor_type="thing")
    assert await called.call("ListActorReminders", actor_type="thing") == {}


@SHARED
async def test_how_a_stream_begins(shared: tuple[Node, Client, Host]) -> None:
    """By what it hosts; types that are hosted here already are refused, and the first stream goes on."""
    called = shared[1]
    second = Host(called)
    await second.send(initial_request={"entities": ["thing"]})
    answering = Host(called)
    await answering.send(invoke_response={"id": "1"})
    assert await answering.ends() == (
        "INVALID_ARGUMENT",
        "invalid request: the first message of the stream must be its initial_request",
    )
    twice = Host(called)
    await twice.begin(["other"])
    await twice.send(initial_request={"entities": ["more"]})
    assert await twice.ends() == (
        "INVALID_ARGUMENT",
        "invalid request: a stream has one initial_request, at its beginning",
    )
    nothing = Host(called)
    await nothing.begin([])
    await nothing.call.done_writing()
    assert await nothing.ends() == ("OK", "")
    assert await second.ends() == ("ALREADY_EXISTS", "actor type thing is hosted on this node already")
    assert await invoke(called, "still", data=b"there") == b"there"


@SHARED
async def test_a_host_that_comes_back_at_once(shared: tuple[Node, Client, Host]) -> None:
    """It waits until the end of its stream before has been noticed."""
    first, second = Host(shared[1]), Host(shared[1])
    await first.begin(["back"])
    await second.send(initial_request={"entities": ["back"]})
    first.call.cancel()
    async with asyncio.timeout(PATIENCE):
        message = await second.call.read()
    assert message.WhichOneof("response_type") == "initial_response"
    await second.call.done_writing()
    assert await second.ends() == ("OK", "")


async def test_another_host_takes_the_actors_of_a_stream_that_ends(nats: Backbone, tmp_path: Path) -> None:
    """What was in flight fails, and what comes after waits for the other; nothing is told to who is gone."""
    async with (
        gateway(nats, tmp_path, resources=RESOURCES) as one,
        gateway(nats, tmp_path, resources=RESOURCES) as two,
        client(one) as first,
        client(two) as second,
        hosting(second, "thing") as other,
    ):
        begun = asyncio.Event()

        async def never(turn: Turn) -> dict[str, Any]:
            begun.set()
            await asyncio.Event().wait()
            return {}

        ids = [f"{number}" for number in range(40)]
        async with hosting(first, "thing") as host:

            async def has_a_share() -> None:
                for id_ in ids:
                    await invoke(second, id_, data=b"x")
                assert host.got

            await eventually(has_a_share)
            host.do = never
            async with asyncio.TaskGroup() as tasks:
                flying = [tasks.create_task(_tried(second, id_)) for id_ in ids]
                await begun.wait()
                host.call.cancel()
            failed = [each.result() for each in flying if each.result() != b"x"]
        assert failed
        assert set(failed) == {"INTERNAL error invoke actor method: the stream of the actors' host has ended"}
        other.got.clear()
        for id_ in ids:
            assert await invoke(second, id_, data=b"x") == b"x"
            assert other.of("invoke", id_)


async def test_a_host_that_vanished(memory: Backbone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its end is noticed although nothing tells of it; a host that is merely silent answers the pings, and stays."""
    monkeypatch.setattr("gateway.http2.server.TICK_SECONDS", 0.25)
    async with gateway(memory, tmp_path, resources=RESOURCES) as node, Proxy(node.gateway.grpc_port) as proxy:
        there, away = client(node), grpc.aio.insecure_channel(f"127.0.0.1:{proxy.port}")
        async with there as called, away as channel, hosting(called, "thing") as silent:
            async with hosting(Client(channel), "vanishing"):
                proxy.stall()

                async def noticed() -> None:
                    told = (await node.get("/v1.0/metadata")).json["actors"]
                    assert [each["type"] for each in told] == ["thing"]

                await eventually(noticed)
            await invoke(called, "1")
            assert silent.got


async def _tried(called: Client, id_: str) -> bytes | str:
    try:
        return await invoke(called, id_, data=b"x")
    except Failed as error:
        return f"{error.code} {error.text}"


async def test_a_gateway_that_drains_has_its_stream_let_go_first(nats: Backbone, tmp_path: Path) -> None:
    """A turn that runs is finished, the host is told of what is deactivated, and then why the stream ends."""
    async with (
        gateway(nats, tmp_path, resources=RESOURCES) as other,
        client(other) as called,
        leaving(nats, tmp_path, resources=RESOURCES) as (node, stop, running),
        client(node) as ours,
        hosting(ours, "thing") as host,
    ):
        begun, go = asyncio.Event(), asyncio.Event()

        async def wait(turn: Turn) -> dict[str, Any]:
            begun.set()
            await go.wait()
            return {"data": b"done"} if turn.kind == "invoke_request" else {}

        host.do = wait
        async with asyncio.TaskGroup() as tasks:
            turn = tasks.create_task(invoke(called, "1"))
            await begun.wait()
            stop.set()
            assert not host.of("deactivate", "1")
            go.set()
        assert turn.result() == b"done"
        await running
        assert await host.call.code() is grpc.StatusCode.UNAVAILABLE
        assert len(host.of("deactivate", "1")) == 1


async def test_an_actor_that_idles_is_let_go_of(memory: Backbone, tmp_path: Path) -> None:
    async with (
        gateway(memory, tmp_path, resources=RESOURCES) as node,
        client(node) as called,
        hosting(called, "thing", actor_idle_timeout={"nanos": 50_000_000}) as host,
    ):
        assert await invoke(called, "1", data=b"x") == b"x"
        await host.until("deactivate", "1")
        assert await invoke(called, "1", data=b"y") == b"y"


RETRIED = RESOURCES + yaml(
    "Resiliency",
    "r",
    {
        "policies": {
            "timeouts": {"soon": "100ms"},
            "retries": {"twice": {"duration": "1ms", "maxRetries": 2, "matching": {"httpStatusCodes": "500"}}},
            "circuitBreakers": {"cut": {"trip": "consecutiveFailures >= 2", "timeout": "60s"}},
        },
        "targets": {
            "actors": {
                "again": {"retry": "twice"},
                "late": {"timeout": "soon"},
                "each": {"circuitBreaker": "cut", "circuitBreakerScope": "id"},
                "all": {"circuitBreaker": "cut", "circuitBreakerScope": "type"},
            }
        },
    },
)
BROKEN = ("INTERNAL", "error invoke actor method: error from actor service: (500) broken")
OPEN = ("INTERNAL", "error invoke actor method: circuit breaker is open")


async def test_policies(memory: Backbone, tmp_path: Path) -> None:
    """Retries by what the application answered, a timeout, and breakers of each actor or of a type."""
    async with (
        gateway(memory, tmp_path, resources=RETRIED) as node,
        client(node) as called,
        hosting(called, "again", "late", "each", "all") as host,
    ):

        async def fail(turn: Turn) -> dict[str, Any]:
            if turn.kind != "invoke_request" or turn.message.method == "works":
                return {}
            if turn.message.method == "hangs":
                await asyncio.Event().wait()
            return {"code": 3 if turn.message.method == "refuses" else 13, "message": "broken"}

        async def tried(type_: str, id_: str, method: str = "fails") -> tuple[str, str] | None:
            try:
                await invoke(called, id_, method, type_=type_)
            except Failed as error:
                return error.code, error.text
            return None

        host.do = fail
        assert await tried("again", "1") == BROKEN
        assert len(host.of("invoke", "1")) == 3
        assert await tried("again", "2", "refuses") is not None
        assert len(host.of("invoke", "2")) == 1
        found = await tried("late", "1", "hangs")
        assert found is not None
        assert found[0] == "DEADLINE_EXCEEDED"
        assert [await tried("each", "3") for _ in range(3)] == [BROKEN, BROKEN, OPEN]
        assert await tried("each", "4", "works") is None
        assert [await tried("all", "5"), await tried("all", "6"), await tried("all", "7")] == [BROKEN, BROKEN, OPEN]
