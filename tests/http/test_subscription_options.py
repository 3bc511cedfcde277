"""What a subscription's metadata asks for beyond Dapr: groups, broadcast, deduplication."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.http.harness import App, Backbone, gateway


def subscribed(**metadata: str) -> list[dict[str, object]]:
    return [{"pubsubname": "pubsub", "topic": "t", "route": "/t", "metadata": metadata}]


async def test_broadcast_reaches_every_instance(nats: Backbone, tmp_path: Path) -> None:
    """Two instances of one application get each event; by default they would share them."""
    async with (
        App(subscribed(delivery="broadcast")) as one,
        App(subscribed(delivery="broadcast")) as two,
        gateway(nats, tmp_path, app=one) as node,
        gateway(nats, tmp_path, app=two),
    ):
        for number in range(10):
            await node.publish("t", str(number))
        for app in (one, two):
            got = await app.until("/t", 10)
            assert sorted(each.json["data"] for each in got) == [str(number) for number in range(10)]


async def test_groups_of_one_application(nats: Backbone, tmp_path: Path) -> None:
    """A group of its own gets every event too."""
    async with (
        App(subscribed(group="audit")) as one,
        App(subscribed()) as two,
        gateway(nats, tmp_path, app=one) as node,
        gateway(nats, tmp_path, app=two),
    ):
        await node.publish("t", "x")
        assert (await one.until("/t"))[0].json["id"] == (await two.until("/t"))[0].json["id"]


@pytest.mark.parametrize("mode", ["own event", "gateway's event"])
async def test_deduplication(backbone: Backbone, tmp_path: Path, mode: str) -> None:
    """An event that was handled is not handled again; one with another id or source is."""
    async with App(subscribed(deduplicate="1m")) as app, gateway(backbone, tmp_path, app=app) as node:
        for event_id in ("1", "1", "2", "1", "3"):
            if mode == "own event":
                event = {"specversion": "1.0", "id": event_id, "source": "/s", "type": "t", "data": event_id}
                await node.publish("t", event, "application/cloudevents+json")
            else:
                await node.publish("t", event_id, query=f"?metadata.cloudevent.id={event_id}")
            await app.until("/t", {"1": 1, "2": 2, "3": 3}[event_id])
        assert [got.json["id"] for got in app.at("/t")] == ["1", "2", "3"]


@pytest.mark.parametrize(
    "metadata", [{"delivery": "all"}, {"deduplicate": "soon"}, {"maxInFlight": "many"}, {"ordered": "perhaps"}]
)
async def test_values_that_make_no_sense(
    memory: Backbone, tmp_path: Path, metadata: dict[str, str], caplog: pytest.LogCaptureFixture
) -> None:
    """The subscription is left out, and the log says why."""
    async with App(subscribed(**metadata)) as app, gateway(memory, tmp_path, app=app):
        assert "cannot subscribe to pubsub/t: " in caplog.text
        assert next(iter(metadata.values())) in caplog.text
