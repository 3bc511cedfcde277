"""Published events through gateways: an application is told who has proven to publish, and gets no others."""

from __future__ import annotations

from pathlib import Path

import pytest

from mesh.trust.identity import TrustSettings
from tests.http.harness import App, Backbone, component, gateway

TOPICS: dict[str, dict[str, object]] = {
    "orders": {"deadLetterTopic": "rejected"},
    "rejected": {},
    "sensors": {"metadata": {"acceptUnproven": "true"}},
    "many.>": {"route": "/many", "bulkSubscribe": {"enabled": True, "maxMessagesCount": 1}},
}
SUBSCRIBED = [{"pubsubname": "pubsub", "topic": name, "route": f"/{name}", **more} for name, more in TOPICS.items()]
OUTBOX = component("pubsub", "pubsub.mesh") + component(
    "store", "state.mesh", outboxPublishPubsub="pubsub", outboxPublishTopic="orders"
)


@pytest.mark.costly
async def test_gateways_prove_who_publishes(trust: TrustSettings, nats: Backbone, tmp_path: Path) -> None:
    by = f"spiffe://public/ns/{nats.namespace}/shop"
    async with (
        App(SUBSCRIBED) as app,
        gateway(nats, tmp_path, app=app, app_id="stock", trust=trust),
        gateway(nats, tmp_path, app_id="shop", trust=trust, resources=OUTBOX) as shop,
        gateway(nats, tmp_path, app_id="shop") as unproven,
    ):
        await unproven.publish("orders", "not proven")
        await shop.publish("orders", {"n": 1})
        await shop.publish("many.one", {"n": 2})
        operation = {"operation": "upsert", "request": {"key": "k", "value": 3}}
        assert (await shop.post("/v1.0/state/store/transaction", {"operations": [operation]})).status == 204
        got = await app.until("/orders", 2)
        assert {each.headers["mesh-proven-by"] for each in got} == {by}
        assert sorted(str(each.json["data"]) for each in got) == ["3", "{'n': 1}"]
        [entry] = (await app.until("/many"))[0].json["entries"]
        assert (entry["event"]["data"], entry["metadata"]["mesh-proven-by"]) == ({"n": 2}, by)

        letter = (await app.until("/rejected"))[0]
        assert (letter.json["data"], letter.headers["mesh-proven-by"]) == ("not proven", "none")
        assert "not%20proven" in letter.headers["mesh-dead-letter-reason"]

        await unproven.publish("sensors", "a", query="?metadata.rawPayload=false")
        assert (await app.until("/sensors"))[0].headers["mesh-proven-by"] == "none"
        await shop.publish("sensors", "b")
        assert (await app.until("/sensors", 2))[1].headers["mesh-proven-by"] == by
        assert len(app.at("/orders")) == 2
