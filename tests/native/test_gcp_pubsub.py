"""Topics of Google Cloud Pub/Sub as every other program has them, read and written by plain HTTP.

The server is Google's own stand-in.
"""

from __future__ import annotations

import asyncio
import json
import time
from base64 import b64decode, b64encode
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import pytest_asyncio

from brokers.native.gcp_pubsub import GCPPubSubTopics
from mesh import address
from mesh.address import Address
from mesh.broker import Delivery, Message, SubscribeOptions
from mesh.errors import (
    BrokerError,
    BrokerUnavailableError,
    ConfigError,
    FeatureNotSupportedError,
    MessageTooLargeError,
    PublishRejectedError,
    TopologyMismatchError,
)
from mesh.registry import Registry
from tests.http.harness import App, Backbone, component, gateway, yaml
from tests.support.contract import Inbox
from tests.support.eventually import eventually
from tests.support.nodes import component as resource
from tests.support.nodes import unique
from tests.support.proxy import Proxy
from tests.support.pubsub_server import PubSubServer

ENVELOPE = b'{"data":{"a":1},"id":"1","source":"obs","specversion":"1.0","topic":"orders","type":"com.dapr.event.sent"}'
BINARY = b"\x00\xff\xfe"


class Google:
    """Asks the server."""

    def __init__(self, session: aiohttp.ClientSession, url: str) -> None:
        self.url, self._session = url, session

    async def __call__(self, method: str, path: str, body: object = None) -> Any:
        async with self._session.request(method, f"{self.url}/v1/projects/shop/{path}", json=body) as response:
            assert response.status == 200, await response.text()
            return await response.json()

    async def topic(self, name: str) -> str:
        return str((await self("PUT", f"topics/{name}", {}))["name"])

    async def subscription(self, name: str, topic: str, **more: object) -> str:
        await self("PUT", f"subscriptions/{name}", {"topic": f"projects/shop/topics/{topic}", **more})
        return name

    async def publish(self, topic: str, data: bytes, **more: object) -> None:
        await self("POST", f"topics/{topic}:publish", {"messages": [{"data": b64encode(data).decode(), **more}]})

    async def pulled(self, subscription: str, count: int) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = []
        async with asyncio.timeout(20):
            while len(found) < count:
                answer = await self("POST", f"subscriptions/{subscription}:pull", {"maxMessages": 10})
                found += [each["message"] for each in answer.get("receivedMessages", ())]
        return found


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def server(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[PubSubServer]:
    try:
        made = PubSubServer(tmp_path_factory.mktemp("pubsub"))
    except FileNotFoundError as error:  # Nothing that a script may install.
        pytest.skip(str(error))
    async with made as server:
        yield server


@pytest.fixture
async def google(server: PubSubServer) -> AsyncIterator[Google]:
    async with aiohttp.ClientSession() as session:
        yield Google(session, server.url)


def topics(url: str, **settings: str) -> GCPPubSubTopics:
    kind = "pubsub.gcp.pubsub"
    made = resource("shop", kind, **{"projectId": "shop", "endpoint": url, **settings})
    return Registry().load(kind).from_component(made)  # type: ignore[attr-defined, no-any-return]


async def test_what_is_published_stands_there_byte_for_byte(google: Google, orders: Address) -> None:
    await google.topic(orders.label)
    name = await google.subscription(unique("sub"), orders.label)
    long = "x" * 3000
    async with topics(google.url) as broker:
        await broker.publish(orders, Message({}, ENVELOPE, "key", metadata={"orderingKey": "a", "foo": "bar"}))
        results = await broker.publish_many(orders, [Message({"ce-id": "7", "mesh-identity": long}, BINARY)])
        assert results == [None]
    got = {b64decode(each["data"]): each for each in await google.pulled(name, 2)}
    assert got.keys() == {ENVELOPE, BINARY}
    assert not got[ENVELOPE].get("attributes")
    assert not got[ENVELOPE].get("orderingKey")
    attributes = got[BINARY]["attributes"]
    assert attributes["ce-id"] == "7"
    assert "".join(attributes[f"mesh-identity{end}"] for end in ("", ".2", ".3")) == long


async def test_names_are_the_reference_ones(google: Google, group: str, orders: Address) -> None:
    async with topics(google.url, ackDeadline="30s") as broker:
        async with broker.subscribe(orders, SubscribeOptions(group), Inbox()):
            pass
        with pytest.raises(BrokerError, match="name of a topic"):
            await broker.publish(address.topic("test", "shop", "a:b"), Message({}, b"x"))
    made = await google("GET", f"subscriptions/{group}-{orders.label}")
    assert (made["topic"], made["ackDeadlineSeconds"]) == (f"projects/shop/topics/{orders.label}", 30)
    assert not made.get("enableMessageOrdering")


async def test_events_of_others(google: Google, group: str, orders: Address) -> None:
    inbox = Inbox()
    async with topics(google.url) as broker, broker.subscribe(orders, SubscribeOptions(group), inbox):
        await google.publish(orders.label, b' {"j": 1} ')
        await google.publish(orders.label, BINARY, attributes={"kind": "é", "kind.2": "x"})
        await broker.publish(orders, Message({"mesh-identity": "x" * 3000}, b"own"))
        await inbox.holds(3)
    got = {each.message.body: each.message.metadata for each in inbox.deliveries}
    assert got == {b' {"j": 1} ': {}, BINARY: {"kind": "é", "kind.2": "x"}, b"own": {"mesh-identity": "x" * 3000}}


async def test_members_of_both_kinds_share_a_group(google: Google, group: str, orders: Address) -> None:
    """A stand-in of the reference takes from the same subscription as it does: handles, acknowledges."""
    name = f"{group}-{orders.label}"
    theirs: list[bytes] = []
    inbox = Inbox()

    async def sidecar() -> None:
        while True:
            answer = await google("POST", f"subscriptions/{name}:pull", {"maxMessages": 3})
            for each in answer.get("receivedMessages", ()):
                theirs.append(b64decode(each["message"]["data"]))
                await google("POST", f"subscriptions/{name}:acknowledge", {"ackIds": [each["ackId"]]})

    await google.topic(orders.label)
    await google.subscription(name, orders.label)
    async with topics(google.url) as broker, asyncio.TaskGroup() as tasks:
        joined = tasks.create_task(sidecar())
        await broker.publish(orders, Message({}, b"first"))
        await eventually(lambda: _is(theirs == [b"first"]))
        async with broker.subscribe(orders, SubscribeOptions(group, max_in_flight=2), inbox):
            # So many at once that the other one, which takes three at a time, cannot have them all.
            await broker.publish_many(orders, [Message({}, b"%d" % number) for number in range(300)])
            await eventually(lambda: _is({*inbox.bodies, *theirs} == {b"first", *(b"%d" % n for n in range(300))}), 60)
            joined.cancel()
    assert inbox.bodies


def _is(right: bool) -> None:
    assert right


async def test_attempts_delays_and_the_end(google: Google, group: str, orders: Address) -> None:
    seen: list[tuple[bytes, int, float]] = []

    async def settle(delivery: Delivery) -> None:
        seen.append((delivery.message.body, delivery.attempt, time.monotonic()))
        delay = 0.0 if delivery.message.body == b"now" else 1.0
        await (delivery.nack(delay) if delivery.attempt == 1 else delivery.reject())

    async with topics(google.url) as broker, broker.subscribe(orders, SubscribeOptions(group), Inbox(settle)):
        await broker.publish(orders, Message({}, b"now"))
        await broker.publish(orders, Message({}, b"later"))

        def check() -> None:
            assert len(seen) >= 4

        await eventually(check)
        for body in (b"now", b"later"):
            assert [attempt for each, attempt, _ in seen if each == body] == [1, 2]
    first, second = (at for body, _, at in seen if body == b"later")
    assert second - first >= 0.99


async def test_work_that_lasts_longer_than_a_lease(google: Google, group: str, orders: Address) -> None:
    """What is extended, and what waits for its turn, goes to nobody else."""
    await google.topic(orders.label)
    await google.subscription(
        f"{group}-{orders.label}", orders.label, ackDeadlineSeconds=10, enableMessageOrdering=True
    )
    two = Inbox()

    async def settle(delivery: Delivery) -> None:
        end = time.monotonic() + 12  # A lease has ten seconds at least.
        while time.monotonic() < end and delivery.message.body == b"0":
            await asyncio.sleep(1.0)
            await delivery.extend()
        await delivery.ack()

    one = Inbox(settle)
    async with topics(google.url, enableMessageOrdering="true") as broker, topics(google.url) as other:
        options = SubscribeOptions(group, ordered=True)
        async with broker.subscribe(orders, options, one):
            await broker.publish_many(orders, [Message({}, b"%d" % number, "key") for number in range(3)])
            await one.holds(1)
            async with other.subscribe(orders, SubscribeOptions(group), two):

                def check() -> None:
                    assert {*one.bodies, *two.bodies} == {b"0", b"1", b"2"}

                await eventually(check, 60)
    assert sorted((*one.bodies, *two.bodies)) == [b"0", b"1", b"2"]
    assert one.bodies[0] == b"0"


async def test_order_of_a_key(google: Google, group: str, orders: Address) -> None:
    seen: list[tuple[str, int]] = []

    async def settle(delivery: Delivery) -> None:
        key, _, number = delivery.message.body.decode().partition(":")
        if (key, number, delivery.attempt) == ("a", "1", 1):
            await delivery.nack(1.0)
            return
        seen.append((key, int(number)))
        await delivery.ack()

    async with (
        topics(google.url, enableMessageOrdering="true", orderingKey="usual") as broker,
        broker.subscribe(orders, SubscribeOptions(group, ordered=True), Inbox(settle)),
    ):
        for key in "ab":
            messages = [Message({}, f"{key}:{number}".encode(), key) for number in range(5)]
            assert await broker.publish_many(orders, messages) == [None] * 5

        def check() -> None:
            assert {*seen} == {(key, number) for key in "ab" for number in range(5)}

        await eventually(check)
    for key in "ab":  # What came again after it was handled does not count.
        assert [*dict.fromkeys(number for each, number in seen if each == key)] == [*range(5)]


async def test_without_ordering_there_is_no_order(google: Google, group: str, orders: Address) -> None:
    async with topics(google.url) as broker:
        with pytest.raises(FeatureNotSupportedError, match=r"ordered subscriptions$"):
            async with broker.subscribe(orders, SubscribeOptions(group, ordered=True), Inbox()):
                pass


async def test_who_leaves_gives_back_what_it_has(google: Google, group: str, orders: Address) -> None:
    hung, inbox = Inbox(lambda _: asyncio.Event().wait()), Inbox()  # type: ignore[arg-type]
    options, published = SubscribeOptions(group, max_in_flight=2), asyncio.Event()
    async with topics(google.url) as broker, topics(google.url) as other, asyncio.TaskGroup() as tasks:

        async def leave() -> None:
            async with broker.subscribe(orders, options, hung):
                for number in range(5):
                    await other.publish(orders, Message({}, b"%d" % number))
                await hung.holds(2)
                published.set()

        leaving = tasks.create_task(leave())
        await published.wait()
        async with other.subscribe(orders, options, inbox):
            await inbox.holds(3)
            leaving.cancel()
            await inbox.holds(5, 10.0)  # Sooner than a lease ends.
    assert {*inbox.bodies} == {b"%d" % number for number in range(5)}


async def test_what_there_is_and_differs(google: Google, group: str, orders: Address) -> None:
    await google.topic(orders.label)
    name = await google.subscription(f"{group}-{orders.label}", orders.label, ackDeadlineSeconds=60)
    async with topics(google.url) as broker, broker.subscribe(orders, SubscribeOptions(group), Inbox()):
        pass
    assert (await google("GET", f"subscriptions/{name}"))["ackDeadlineSeconds"] == 60
    for settings, told in (
        ({"enableMessageOrdering": "true"}, "enableMessageOrdering is .*, and the settings say True"),
        ({"deadLetterTopic": unique("dead")}, "deadLetterPolicy is None, and the settings say"),
    ):
        async with topics(google.url, **settings) as broker:
            with pytest.raises(TopologyMismatchError, match=told):
                async with broker.subscribe(orders, SubscribeOptions(group), Inbox()):
                    pass


async def test_dead_letters_are_kept(google: Google, group: str, orders: Address) -> None:
    theirs, ours = unique("dead"), address.topic("test", "shop", unique("letters"))
    async with topics(google.url, deadLetterTopic=theirs, maxDeliveryAttempts="7") as broker:
        for _ in range(2):
            async with broker.subscribe(orders, SubscribeOptions(group, dead_letters=ours), Inbox()):
                pass
        await broker.publish(ours, Message({"mesh-dead-letter-reason": "no"}, b"x"))
    made = await google("GET", f"subscriptions/{group}-{orders.label}")
    policy = {"deadLetterTopic": f"projects/shop/topics/{theirs}", "maxDeliveryAttempts": 7}
    assert made["deadLetterPolicy"] == policy
    assert (await google("GET", f"topics/{theirs}/subscriptions"))["subscriptions"]
    (letter,) = await google.pulled(f"{ours.label}-kept", 1)
    assert letter["attributes"] == {"mesh-dead-letter-reason": "no"}


async def test_nothing_is_made_where_others_manage(google: Google, group: str, orders: Address) -> None:
    inbox, options = Inbox(), SubscribeOptions(group)
    async with topics(google.url, disableEntityManagement="true") as broker:
        with pytest.raises(BrokerError, match=orders.label):
            await broker.publish(orders, Message({}, b"x"))
        await google.topic(orders.label)
        with pytest.raises(BrokerError, match="among its subscriptions"):
            async with broker.subscribe(orders, options, inbox):
                pass
        await google.subscription(f"{group}-{orders.label}", orders.label)
        async with broker.subscribe(orders, options, inbox):
            await broker.publish(orders, Message({}, b"x"))
            await inbox.holds(1)


async def test_an_outage_is_ridden_out(server: PubSubServer, group: str, orders: Address) -> None:
    inbox = Inbox()
    async with AsyncExitStack() as stack:
        async with Proxy(server.port) as proxy:
            broker = await stack.enter_async_context(topics(f"127.0.0.1:{proxy.port}"))
            await stack.enter_async_context(broker.subscribe(orders, SubscribeOptions(group), inbox))
            await broker.publish(orders, Message({}, b"before"))
            await inbox.holds(1)
        async with asyncio.TaskGroup() as tasks:
            publishing = tasks.create_task(broker.publish(orders, Message({}, b"after")))
            with pytest.raises(BrokerUnavailableError):
                await broker.check()
            assert not publishing.done()
            await stack.enter_async_context(Proxy(server.port, proxy.port))
        await inbox.holds(2, 40)
    assert {*inbox.bodies} == {b"before", b"after"}


async def test_a_subscription_that_is_deleted_ends(google: Google, group: str, orders: Address) -> None:
    port = int(google.url.rpartition(":")[2])
    async with Proxy(port) as proxy, topics(f"127.0.0.1:{proxy.port}") as broker:
        with pytest.raises(BrokerError, match="is gone") as found:
            async with broker.subscribe(orders, SubscribeOptions(group), Inbox()):
                await google("DELETE", f"subscriptions/{group}-{orders.label}")
                proxy.cut()  # Not every server tells a request that waits.
                await asyncio.Event().wait()
        assert found.value.retryable


async def test_messages_that_are_not_carried(google: Google, orders: Address) -> None:
    async with topics(google.url) as broker:
        with pytest.raises(BrokerError, match="without a body"):
            await broker.publish(orders, Message({}, b""))
        with pytest.raises(MessageTooLargeError, match="10000000"):
            await broker.publish(orders, Message({}, b"x" * 10_000_001))
        results = await broker.publish_many(orders, [Message({}, b""), Message({}, b"x")])
    assert isinstance(results[0], BrokerError)
    assert results[1] is None


async def test_a_message_that_the_topic_does_not_take_is_refused_alone(
    google: Google, orders: Address, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A request is stored as a whole, or not at all."""
    await google.topic(orders.label)
    name, written = await google.subscription(unique("sub"), orders.label), GCPPubSubTopics._written

    def refused(
        broker: GCPPubSubTopics, message: Message
    ) -> dict[str, Any]:  # As one that is not of the topic's schema.
        return {"data": "!"} if message.body == b"wrong" else written(broker, message)

    monkeypatch.setattr(GCPPubSubTopics, "_written", refused)
    bodies = [b"%d" % number for number in range(9)]
    bodies[3] = bodies[8] = b"wrong"
    async with topics(google.url) as broker:
        results = await broker.publish_many(orders, [Message({}, each) for each in bodies])
    assert [index for index, each in enumerate(results) if isinstance(each, PublishRejectedError)] == [3, 8]
    assert [each for each in results if each is not None] == [results[3], results[8]]
    got = [b64decode(each["data"]) for each in await google.pulled(name, 7)]
    assert sorted(got) == [each for each in bodies if each != b"wrong"]


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"ackDeadline": "5s"}, "from 10 s to 600 s"),
        ({"layout": "mesh"}, "native"),
        ({"maxDeliveryAttempts": "3"}, "5"),
        ({"clientEmail": "a@b"}, "needs private_key"),
    ],
)
def test_settings_that_are_wrong(settings: dict[str, str], told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        topics("http://127.0.0.1:1", **settings)


async def test_nobody_there() -> None:
    with pytest.raises(BrokerUnavailableError, match=r"127\.0\.0\.1:1"):
        async with topics("http://127.0.0.1:1"):
            pass


async def test_through_a_gateway(google: Google, tmp_path: Path) -> None:
    """An application gets what others publish, and they what it publishes, as with the reference."""
    topic, raw, own = unique("orders"), unique("raw"), unique("app")
    kind = component("shop", "pubsub.gcp.pubsub", projectId="shop", endpoint=google.url)
    told = "".join(
        yaml("Subscription", name, {"topic": name, "route": f"/{name}", "pubsubname": "shop", **more})
        for name, more in ((topic, {}), (raw, {"metadata": {"rawPayload": "true"}}))
    )
    await google.topic(topic)
    name = await google.subscription(unique("sub"), topic)
    async with App() as app, gateway(Backbone("memory:"), tmp_path, app=app, app_id=own, resources=kind + told) as node:
        await google.publish(topic, ENVELOPE)
        await google.publish(raw, BINARY, attributes={"kind": "x"})
        reply = await node.post(f"/v1.0/publish/shop/{topic}", b'{"n":1}', "application/json")
        assert reply.status == 204

        def check() -> None:
            assert len(app.got) >= 3

        await eventually(check)
    assert ENVELOPE in [each.body for each in app.got if each.path == f"/{topic}"]
    (plain,) = [each for each in app.got if each.path == f"/{raw}"]
    assert b64decode(plain.json["data_base64"]) == BINARY
    assert plain.headers["kind"] == "x"
    published = [json.loads(b64decode(each["data"])) for each in await google.pulled(name, 2)]
    (event,) = [each for each in published if each["source"] == own]
    assert (event["data"], event["topic"]) == ({"n": 1}, topic)
