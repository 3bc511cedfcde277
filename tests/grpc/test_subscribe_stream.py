"""Streams of events: what a client is handed, what its answers mean, and what becomes of events when it is gone.

Source: reference/dapr-surface.md 2.11, 8.4.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path

import orjson
import pytest
import pytest_asyncio

from tests.grpc.harness import Client, client
from tests.grpc.streaming import DROP, RETRY, Subscriber, leaving, subscribed
from tests.http.harness import DEFAULTS, App, Backbone, Node, component, gateway, yaml
from tests.support.eventually import eventually
from tests.support.nats import NatsServer

SHARED = pytest.mark.asyncio(loop_scope="module")
SCOPED = DEFAULTS + component("scoped", "pubsub.mesh", protectedTopics="secret", subscriptionScopes="app=open")


async def publish(node: Node, topic: str = "t", *events: object, query: str = "") -> None:
    for event in events:
        await node.publish(topic, event, "application/json", query)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def shared(
    module_backbone: Backbone, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[tuple[Node, Client]]:
    """A gateway without an application."""
    home = tmp_path_factory.mktemp("home")
    async with gateway(module_backbone, home, resources=SCOPED) as node, client(node) as called:
        yield node, called


@SHARED
async def test_an_event_as_it_is_handed_over(shared: tuple[Node, Client]) -> None:
    node, called = shared
    async with subscribed(called, "whole") as stream:
        await publish(node, "whole", {"a": 1}, query="?metadata.cloudevent.id=x1")
        event = await stream.event()
        assert (event.id, event.topic, event.pubsub_name, event.path) == ("x1", "whole", "pubsub", "/")
        assert (event.spec_version, event.data_content_type) == ("1.0", "application/json")
        assert orjson.loads(event.data) == {"a": 1}
        await stream.answer(event)


@SHARED
async def test_a_raw_event(shared: tuple[Node, Client]) -> None:
    """What has no envelope gets one, with an id to answer it by."""
    node, called = shared
    async with subscribed(called, "raw", {"rawPayload": "true"}) as stream:
        await node.publish("raw", b"\x00\xff", "application/octet-stream", "?metadata.rawPayload=true")
        event = await stream.event()
        assert event.data == b"\x00\xff"
        await stream.answer(event)


@pytest.mark.parametrize(
    ("fields", "status", "text"),
    [
        ({"pubsub_name": "none", "topic": "t"}, "INVALID_ARGUMENT", "pubsub none is not found"),
        ({"topic": "t"}, "INVALID_ARGUMENT", "pubsub name is empty"),
        ({"pubsub_name": "pubsub"}, "INVALID_ARGUMENT", "topic is empty in pubsub pubsub"),
        (
            {"pubsub_name": "scoped", "topic": "secret"},
            "PERMISSION_DENIED",
            "topic secret is not allowed for app id app",
        ),
        (
            {"pubsub_name": "pubsub", "topic": "t", "metadata": {"maxInFlight": "0"}},
            "INVALID_ARGUMENT",
            "failed deserializing metadata. Error: maxInFlight: ",
        ),
        (
            {"pubsub_name": "pubsub", "topic": "t", "metadata": {"maxInflightt": "1"}},
            "INVALID_ARGUMENT",
            "failed deserializing metadata. Error: unknown metadata 'maxInflightt'; did you mean 'maxInFlight'?",
        ),
        *[
            (
                {"pubsub_name": "pubsub", "topic": "t", "metadata": {"groupExpires": wrong}},
                "INVALID_ARGUMENT",
                "failed deserializing metadata. Error: groupExpires: ",
            )
            for wrong in ("", "x", "0", "-1h", "59s", "8761h")
        ],
        ({"pubsub_name": "pubsub", "topic": "t" * 2000}, "INVALID_ARGUMENT", "topic is longer than "),
    ],
)
@SHARED
async def test_what_cannot_be_subscribed(
    shared: tuple[Node, Client], fields: dict[str, object], status: str, text: str
) -> None:
    stream = Subscriber(shared[1])
    await stream.send(initial_request=fields)
    found, said = await stream.ends()
    assert (found, said[: len(text)]) == (status, text)


@SHARED
async def test_no_component_at_all(memory: Backbone, tmp_path: Path) -> None:
    resources = component("statestore", "state.mesh")
    async with gateway(memory, tmp_path, resources=resources) as node, client(node) as called:
        stream = Subscriber(called)
        await stream.send(initial_request={"pubsub_name": "pubsub", "topic": "t"})
        assert await stream.ends() == ("FAILED_PRECONDITION", "pubsub pubsub is not configured")


@SHARED
async def test_how_a_stream_begins_and_ends(shared: tuple[Node, Client]) -> None:
    called = shared[1]
    first = Subscriber(called)
    await first.answer("x")
    assert (await first.ends())[0] == "INVALID_ARGUMENT"
    none = Subscriber(called)
    await none.call.done_writing()
    assert (await none.ends())[0] == "INVALID_ARGUMENT"
    async with subscribed(called, "twice") as stream:
        await stream.send(initial_request={"pubsub_name": "pubsub", "topic": "other"})
        assert await stream.ends() == (
            "INVALID_ARGUMENT",
            "invalid request: a stream has one initial_request, at its beginning",
        )
    async with subscribed(called, "done") as stream:
        await stream.call.done_writing()
        assert await stream.ends() == ("OK", "")


@SHARED
async def test_an_answer_to_nothing_is_ignored(shared: tuple[Node, Client], caplog: pytest.LogCaptureFixture) -> None:
    """The time of an attempt may have been over; one line in the log says so."""
    node, called = shared
    async with subscribed(called, "unknown") as stream:
        await stream.answer("nobody", DROP)
        await stream.answer("nobody", DROP)
        await stream.send()
        await publish(node, "unknown", 1)
        assert await stream.take() == 1
    assert sum("which it does not have" in each.message for each in caplog.records) == 1


@SHARED
async def test_what_answers_mean(shared: tuple[Node, Client]) -> None:
    """RETRY, and what no version knows, is handed over again; DROP is not."""
    node, called = shared
    async with subscribed(called, "answers") as stream:
        await publish(node, "answers", "again")
        assert await stream.take(RETRY) == "again"
        assert await stream.take(77) == "again"
        assert await stream.take() == "again"
        await publish(node, "answers", "dropped", "last")
        assert sorted([await stream.take(DROP), await stream.take(DROP)]) == ["dropped", "last"]
        await publish(node, "answers", "end")
        assert await stream.take() == "end"


@SHARED
async def test_dead_letters(shared: tuple[Node, Client]) -> None:
    node, called = shared
    async with subscribed(called, "dead") as dead, subscribed(called, "live", dead_letter_topic="dead") as live:
        await publish(node, "live", 1)
        assert await live.take(DROP) == 1
        assert await dead.take() == 1
        await publish(node, "live", 2)
        assert await live.take(RETRY) == 2
        assert await dead.take() == 2


@SHARED
async def test_an_event_that_no_client_can_read(shared: tuple[Node, Client]) -> None:
    """What is nested more deeply than messages may be is a dead letter at once, and holds up nothing."""
    node, called = shared
    deep: object = 1
    for _ in range(33):
        deep = {"a": deep}
    event = {"specversion": "1.0", "id": "1", "source": "s", "type": "t", "data": 1, "ext": deep}
    async with (
        subscribed(called, "deep-dead", {"rawPayload": "true"}) as dead,
        subscribed(called, "deep", dead_letter_topic="deep-dead") as stream,
    ):
        await node.publish("deep", orjson.dumps(event), "application/cloudevents+json")
        assert orjson.loads((await dead.event()).data)["ext"] == deep
        await publish(node, "deep", "next")
        assert await stream.take() == "next"


@SHARED
async def test_no_more_than_it_may_hold(shared: tuple[Node, Client]) -> None:
    """A client that does not answer has so many, and the next with each answer."""
    node, called = shared
    async with subscribed(called, "few", {"maxInFlight": "3"}) as stream:
        await publish(node, "few", *range(6))
        held = [await stream.event() for _ in range(3)]
        async with subscribed(called, "few") as other:
            rest = [await other.take() for _ in range(3)]
            await stream.answer(held[0])
            await publish(node, "few", 6)
            assert sorted([*rest, *(orjson.loads(each.data) for each in held)]) == [*range(6)]
            for each in held[1:]:
                await stream.answer(each)
        assert await stream.take() == 6


@SHARED
async def test_a_client_that_does_not_read(shared: tuple[Node, Client]) -> None:
    """It holds what it may hold, and others get the rest."""
    node, called = shared
    big = "x" * 100_000
    async with client(node, **{"grpc.http2.bdp_probe": 0, "grpc.http2.lookahead_bytes": 1024}) as apart:
        slow = Subscriber(apart)
        await slow.begin("slow", metadata={"maxInFlight": "4"})
        async with subscribed(called, "slow") as stream:
            await publish(node, "slow", *(f"{number}{big}" for number in range(12)))
            for _ in range(8):
                await stream.take()
            slow.call.cancel()
            for _ in range(4):
                await stream.take()


@SHARED
async def test_what_was_not_answered_comes_again(shared: tuple[Node, Client]) -> None:
    """To whoever is there, however the client has left."""
    node, called = shared
    async with subscribed(called, "gone") as first:
        await publish(node, "gone", 1, 2)
        assert await first.take() in (1, 2)
        left = orjson.loads((await first.event()).data)
    async with subscribed(called, "gone") as second:
        event = await second.event()
        assert orjson.loads(event.data) == left
        await second.call.done_writing()
        assert (await second.ends())[0] == "OK"
    async with client(node) as apart:
        third = Subscriber(apart)
        await third.begin("gone")
        assert orjson.loads((await third.event()).data) == left
    async with subscribed(called, "gone") as last:
        assert await last.take() == left
        await publish(node, "gone", 3)
        assert await last.take() == 3


@SHARED
async def test_clients_that_leave_blame_no_event(shared: tuple[Node, Client]) -> None:
    """One that was with several of them is not a dead letter yet."""
    node, called = shared
    async with subscribed(called, "blamed-dead") as dead:
        await publish(node, "blamed", "x")
        for _ in range(3):
            async with subscribed(called, "blamed", dead_letter_topic="blamed-dead") as stream:
                await stream.event()
        async with subscribed(called, "blamed", dead_letter_topic="blamed-dead") as stream:
            assert await stream.take() == "x"
        await publish(node, "blamed-dead", "own")
        assert await dead.take() == "own"


async def test_an_event_with_which_every_client_leaves(memory: Backbone, tmp_path: Path) -> None:
    """After five of them it is a dead letter, as one that crashes its application."""
    async with gateway(memory, tmp_path) as node, client(node) as called, subscribed(called, "dead") as dead:
        await publish(node, "t", "poison")
        for _ in range(5):
            async with subscribed(called, dead_letter_topic="dead") as stream:
                assert orjson.loads((await stream.event()).data) == "poison"
        assert await dead.take() == "poison"
        async with subscribed(called, dead_letter_topic="dead") as stream:
            await publish(node, "t", "next")
            assert await stream.take() == "next"


@SHARED
async def test_events_of_one_id(shared: tuple[Node, Client]) -> None:
    """The second waits for the answer to the first: an answer never counts for another event."""
    node, called = shared
    same = "?metadata.cloudevent.id=same"
    async with subscribed(called, "same") as stream:
        await publish(node, "same", 1, 2, 3, query=same)
        await publish(node, "same", "other")
        first, other = await stream.event(), await stream.event()
        assert orjson.loads(other.data) == "other"
        await stream.answer(other)
        await stream.answer(first, RETRY)
        rest = set()
        while len(rest) < 3:
            rest.add(await stream.take())
        assert rest == {1, 2, 3}
        await publish(node, "same", "end")
        assert await stream.take() == "end"


@SHARED
async def test_several_streams_compete(shared: tuple[Node, Client]) -> None:
    node, called = shared
    seen: list[int] = []

    async def work(stream: Subscriber) -> None:
        while True:
            seen.append(await stream.take())

    def all_there() -> None:
        assert sorted(seen) == [*range(60)]

    async with (
        client(node) as apart,
        subscribed(called, "many") as one,
        subscribed(called, "many") as two,
        subscribed(apart, "many") as three,
        asyncio.TaskGroup() as tasks,
    ):
        working = [tasks.create_task(work(each)) for each in (one, two, three)]
        await publish(node, "many", *range(60))
        await eventually(all_there)
        for each in working:
            each.cancel()


@SHARED
async def test_each_instance_by_broadcast(shared: tuple[Node, Client]) -> None:
    node, called = shared
    every = {"delivery": "broadcast"}
    async with subscribed(called, "all", every) as one, subscribed(called, "all", every) as two:
        await publish(node, "all", 1)
        assert (await one.take(), await two.take()) == (1, 1)


@SHARED
async def test_metadata_tell_of_streams(shared: tuple[Node, Client]) -> None:
    node, called = shared
    told = {
        "pubsubname": "pubsub",
        "topic": "told",
        "metadata": {"maxInFlight": "5"},
        "rules": [{"path": "/"}],
        "deadLetterTopic": "d",
        "type": "STREAMING",
    }

    async def there() -> list[object]:
        found = (await node.get("/v1.0/metadata")).json.get("subscriptions", [])
        return [each for each in found if each["topic"] == "told"]

    async def gone() -> None:
        assert await there() == []

    async with subscribed(called, "told", {"maxInFlight": "5"}, dead_letter_topic="d"):
        assert await there() == [told]
        async with subscribed(called, "told", {"maxInFlight": "5"}, dead_letter_topic="d"):
            assert await there() == [told]
    await eventually(gone)


async def test_nothing_is_left_of_a_stream(memory: Backbone, tmp_path: Path) -> None:
    """As many tasks as before, however it has ended."""

    def names() -> Counter[str]:
        ours = ("stream-", "until-any", "delivery-extend", "memory-", "grpc-watch")
        return Counter(task.get_name() for task in asyncio.all_tasks() if task.get_name().startswith(ours))

    async with gateway(memory, tmp_path) as node, client(node) as called:
        before = names()

        def none_left() -> None:
            assert names() == before

        for number in range(5):
            async with subscribed(called, "t") as stream:
                assert (names() - before).total() >= 4
                await publish(node, "t", number)
                await stream.event()
        await eventually(none_left)


async def test_beside_an_application(backbone: Backbone, tmp_path: Path) -> None:
    """Before it is there, and together with its own subscription to the topic."""
    async with App([{"pubsubname": "pubsub", "topic": "t", "route": "/t"}]) as app:
        await app.stop()
        async with gateway(backbone, tmp_path, app=app, ready=False) as node, client(node) as called:
            stream = Subscriber(called)
            await stream.begin("t", metadata={"maxInFlight": "1"})
            await publish(node, "t", 1)
            held = await stream.event()
            await app.start()
            await node.until_ready()
            await publish(node, "t", 2)
            await app.until("/t")
            await stream.answer(held)
            kinds = {each["type"] for each in (await node.get("/v1.0/metadata")).json["subscriptions"]}
            assert kinds == {"PROGRAMMATIC", "STREAMING"}
            stream.call.cancel()


async def test_the_gateway_drains(nats: Backbone, tmp_path: Path) -> None:
    """What is in flight may be answered, nothing more is handed out, and the stream ends as unavailable."""
    async with (
        gateway(nats, tmp_path) as other,
        client(other) as elsewhere,
        leaving(nats, tmp_path, drain=30.0) as (node, stop, running),
        client(node) as called,
    ):
        stream = Subscriber(called)
        await stream.begin(metadata={"maxInFlight": "2"})
        await publish(other, "t", 1, 2)
        held = [await stream.event(), await stream.event()]
        await publish(other, "t", 3)
        stop.set()
        async with subscribed(elsewhere) as after:
            assert await after.take() == 3
            assert not running.done()
            for each in held:
                await stream.answer(each)
            assert await stream.ends() == (
                "UNAVAILABLE",
                "this gateway ends; another one, or the one that comes after it, goes on",
            )
            await running
            await publish(other, "t", 4)
            assert await after.take() == 4


async def test_a_client_that_does_not_answer_while_the_gateway_drains(nats: Backbone, tmp_path: Path) -> None:
    """It is waited for as long as draining may take; what it had comes to others."""
    async with (
        gateway(nats, tmp_path) as other,
        client(other) as elsewhere,
        leaving(nats, tmp_path, drain=0.2) as (node, stop, running),
        client(node) as called,
    ):
        stream = Subscriber(called)
        await stream.begin()
        await publish(other, "t", 1)
        await stream.event()
        stop.set()
        await running
        stream.call.cancel()
        async with subscribed(elsewhere) as after:
            assert await after.take() == 1


async def test_the_component_is_changed(nats: Backbone, tmp_path: Path) -> None:
    """The stream goes on with the new one; what is in flight is still answered. Removed, it ends the stream."""
    async with gateway(nats, tmp_path, resources=DEFAULTS) as node, client(node) as called:
        [file] = tmp_path.glob("resources-*/all.yaml")
        async with subscribed(called, metadata={"maxInFlight": "1"}) as stream:
            await publish(node, "t", 1, 2)
            held = await stream.event()
            assert orjson.loads(held.data) == 1
            file.write_text(component("pubsub", "pubsub.mesh", protectedTopics="x") + component("s", "state.mesh"))

            async def changed() -> None:
                names = [each["name"] for each in (await node.get("/v1.0/metadata")).json["components"]]
                assert "s" in names

            await eventually(changed)
            await stream.answer(held)
            assert await stream.take() == 2
            file.write_text(component("other", "pubsub.mesh"))
            assert await stream.ends() == ("INVALID_ARGUMENT", "pubsub pubsub is not found")


ONE_MORE = yaml(
    "Resiliency",
    "r",
    {
        "policies": {
            "timeouts": {"t": "200ms"},
            "retries": {"r": {"policy": "constant", "duration": "10ms", "maxRetries": 1}},
        },
        "targets": {"components": {"pubsub": {"inbound": {"timeout": "t", "retry": "r"}}}},
    },
)


async def test_a_policy(memory: Backbone, tmp_path: Path) -> None:
    """An attempt has the time and the repetitions of the inbound policy, also of one that comes while it is open."""
    async with gateway(memory, tmp_path, resources=DEFAULTS) as node, client(node) as called:
        [file] = tmp_path.glob("resources-*/all.yaml")
        async with subscribed(called, dead_letter_topic="dead") as stream, subscribed(called, "dead") as dead:
            await publish(node, "t", 1)
            assert await stream.take() == 1
            file.write_text(DEFAULTS + ONE_MORE)

            async def changed() -> None:
                assert (await node.get("/v1.0/metadata")).json.get("resiliencies") == [{"name": "r"}]

            await eventually(changed)
            await publish(node, "t", 2)
            first, again = await stream.event(), await stream.event()
            assert first.id == again.id
            assert await dead.take() == 2
            await stream.answer(again)
            await publish(node, "t", 3)
            assert await stream.take() == 3


async def test_the_broker_is_away(tmp_path: Path) -> None:
    """A stream lives on while it reconnects."""
    async with (
        NatsServer(tmp_path / "nats") as server,
        gateway(Backbone(server.url), tmp_path) as node,
        client(node) as called,
        subscribed(called) as stream,
    ):
        await publish(node, "t", 1)
        assert await stream.take() == 1
        await server.kill()
        await server.start()
        await publish(node, "t", 2)
        assert await stream.take() == 2
