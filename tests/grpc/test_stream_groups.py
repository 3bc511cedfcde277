"""How long a group lasts that somebody takes by a stream."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from brokers.nats import NatsBroker
from tests.grpc.harness import client
from tests.grpc.streaming import Subscriber, subscribed
from tests.http.harness import App, Backbone, gateway
from tests.support.eventually import eventually

WEEK = 7 * 24 * 3600


async def thresholds(backbone: Backbone) -> dict[str, int]:
    """Give the seconds after which each topic's group ends, 0 for never."""
    async with NatsBroker.from_url(backbone.url) as broker:
        listed: Any = await broker._connection.api(f"CONSUMER.LIST.mesh_{backbone.namespace}_topic_pubsub")
    found = [each["config"] for each in listed["consumers"]]
    return {each["filter_subject"].rpartition(".")[2]: each.get("inactive_threshold", 0) // 10**9 for each in found}


async def test_how_long_the_group_of_a_stream_lasts(nats: Backbone, tmp_path: Path) -> None:
    """As long as events are kept, or as it says; for ever, once the application subscribes, whatever streams say."""
    async with gateway(nats, tmp_path) as node, client(node) as called:
        async with subscribed(called, "t") as stream:
            await node.publish("t", 1)
            assert await stream.take() == 1
        for topic, said in {"u": {"groupExpires": "90s"}, "b": {"GROUPEXPIRES": "8760h"}}.items():
            async with subscribed(called, topic, said):
                pass
        async with subscribed(called, "all", {"delivery": "broadcast", "groupExpires": "2h"}):
            assert await thresholds(nats) == {"t": WEEK, "u": 90, "b": 365 * 24 * 3600, "all": 60}
        await node.publish("t", 2)
    topics = [
        {"pubsubname": "pubsub", "topic": "t", "route": "/t"},
        {"pubsubname": "pubsub", "topic": "u", "route": "/u", "metadata": {"groupExpires": "2m"}},
    ]
    async with App(topics) as app, gateway(nats, tmp_path, app=app) as node, client(node) as called:
        assert (await app.until("/t"))[0].json["data"] == 2

        async def both_last() -> None:
            found = await thresholds(nats)
            assert (found["t"], found["u"]) == (0, 0)

        await eventually(both_last)
        async with subscribed(called, "t"):
            await both_last()


async def test_no_more_groups_than_the_broker_has_room_for(nats: Backbone, tmp_path: Path) -> None:
    """Who wants one more is told what to do; what is there goes on."""
    stream_name = f"mesh_{nats.namespace}_topic_pubsub"
    async with gateway(nats, tmp_path) as node, client(node) as called:
        async with subscribed(called, "t") as stream, NatsBroker.from_url(nats.url) as broker:
            found: Any = await broker._connection.api(f"STREAM.INFO.{stream_name}")
            await broker._connection.api(f"STREAM.UPDATE.{stream_name}", {**found["config"], "max_consumers": 1})
            more = Subscriber(called)
            await more.send(initial_request={"pubsub_name": "pubsub", "topic": "more"})
            status, text = await more.ends()
            assert status == "UNAVAILABLE"
            assert "has as many as it may, which go on; delete those that nobody uses" in text
            assert f"nats stream edit {stream_name} --max-consumers" in text
            await node.publish("t", 1)
            assert await stream.take() == 1
        async with subscribed(called, "t") as stream:
            await node.publish("t", 2)
            assert await stream.take() == 2
