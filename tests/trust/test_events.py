"""Published events through gateways: an application is told who has proven to publish, and gets no others."""

from __future__ import annotations

from pathlib import Path

import pytest

from mesh.trust import files
from mesh.trust.certificates import as_pem, key_as_pem
from mesh.trust.folder import Folder
from mesh.trust.guard import Guard
from mesh.trust.identity import Identity, TrustSettings
from tests.grpc.harness import client
from tests.grpc.streaming import subscribed
from tests.http.harness import App, Backbone, component, gateway
from tests.support.eventually import eventually

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

SCOPED = component("pubsub", "pubsub.mesh", publishingScopes="shop=orders,sensors;liar=sensors;stock=rejected")

CALL, DURABLE = "/v1.0/invoke/stock/method/order", {"mesh-delivery": "durable", "mesh-reply-topic": "sensors"}


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


@pytest.mark.costly
async def test_streams_and_scopes(
    trust: TrustSettings, nats: Backbone, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A client of a stream finds who has published among the extensions, whatever the event itself says there."""
    said = {"id": "1", "source": "s", "type": "t", "specversion": "1.0", "mesh-proven-by": "bank", "data": "said"}
    async with (
        App(SUBSCRIBED) as app,
        gateway(nats, tmp_path, app=app, app_id="stock", trust=trust, resources=SCOPED) as stock,
        gateway(nats, tmp_path, app_id="shop", trust=trust) as shop,
        gateway(nats, tmp_path, app_id="liar", trust=trust) as liar,
        client(stock) as called,
        subscribed(called, "orders", {"group": "a", "acceptUnproven": "true"}, dead_letter_topic="other") as stream,
        client(shop) as auditing,
        subscribed(auditing, "rejected", {"deadLetters": "true"}) as letters,
    ):
        told = [each.message for each in caplog.records if "who reads dead letters there" in each.message]
        assert [text.partition(":")[0] for text in told] == ["app id stock may not publish to other"]
        await liar.publish("orders", said, "application/cloudevents+json")
        letter = (await app.until("/rejected"))[0]
        assert (letter.json["data"], letter.headers["mesh-proven-by"]) == ("said", "none")
        assert "scopes" in letter.headers["mesh-dead-letter-reason"]
        # The component of the gateway that has the other stream has no scopes.
        for each, by in ((stream, "none"), (letters, f"spiffe://public/ns/{nats.namespace}/liar")):
            event = await each.event()
            assert (event.data, event.extensions["mesh-proven-by"]) == (b'"said"', by)
            await each.answer(event)
        await shop.publish("orders", said | {"id": "2"}, "application/cloudevents+json")
        event = await stream.event()
        assert event.extensions["mesh-proven-by"] == f"spiffe://public/ns/{nats.namespace}/shop"
        await stream.answer(event)
        assert [each.json["id"] for each in await app.until("/orders")] == ["2"]


@pytest.mark.costly
async def test_an_event_by_a_root_that_its_reader_does_not_know_yet(
    nats: Backbone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is delivered once the reader has looked, although there is no dead letter topic that would keep it."""
    refused: list[str] = []
    monkeypatch.setattr(Guard, "refuse", lambda guard, what, at, kind, reason: refused.append(what))
    monkeypatch.setattr(files, "LOOK_SECONDS", 0.05)
    folder = Folder(tmp_path / "trust")
    folder.init("public")
    stock = folder.issue(Identity("public", nats.namespace, "stock"))
    paths = tmp_path / "stock.pem", tmp_path / "stock.key", tmp_path / "roots.pem"
    parts = as_pem(stock.chain), key_as_pem(stock.key), as_pem(stock.roots)
    for path, data in zip(paths, parts, strict=True):
        path.write_bytes(data)
    by_files = TrustSettings("strict", "public", None, *paths)
    folder.rotate()
    async with (
        App([{"pubsubname": "pubsub", "topic": "orders", "route": "/orders"}]) as app,
        gateway(nats, tmp_path, app=app, app_id="stock", trust=by_files),
        gateway(nats, tmp_path, app_id="shop", trust=TrustSettings("strict", folder=folder.path)) as shop,
    ):
        await shop.publish("orders", {"n": 1})

        def looked_at() -> None:
            assert "event" in refused

        await eventually(looked_at)
        assert not app.at("/orders")
        paths[2].write_bytes(as_pem(folder.roots()))
        [got] = await app.until("/orders")
        assert got.headers["mesh-proven-by"] == f"spiffe://public/ns/{nats.namespace}/shop"


@pytest.mark.costly
async def test_gateways_prove_durable_calls(trust: TrustSettings, nats: Backbone, tmp_path: Path) -> None:
    spiffe = f"spiffe://public/ns/{nats.namespace}/"
    async with (
        App(SUBSCRIBED) as app,
        gateway(nats, tmp_path, app=app, app_id="stock", trust=trust),
        gateway(nats, tmp_path, app_id="shop", trust=trust) as shop,
        gateway(nats, tmp_path, app_id="shop") as unproven,
    ):
        app.answer("/order", body={"ok": True})
        lost = (await unproven.request("POST", CALL, DURABLE, {"n": 1})).json["id"]
        made = (await shop.request("POST", CALL, DURABLE, {"n": 2})).json["id"]
        outcome = (await app.until("/sensors"))[0]
        assert (outcome.json["id"], outcome.headers["mesh-proven-by"]) == (made, f"{spiffe}stock")
        [got] = app.at("/order")
        assert (got.json, got.headers["dapr-caller-app-id"]) == ({"n": 2}, "shop")
        told = await shop.get(f"/v1.0/mesh/invocations/{made}")
        assert (told.status, told.json["state"], told.json["data"]) == (200, "succeeded", {"ok": True})
        told = await shop.get(f"/v1.0/mesh/invocations/{lost}")
        assert (told.status, told.json["errorCode"]) == (401, "ERR_IDENTITY_NOT_PROVEN")
        assert (await unproven.get(f"/v1.0/mesh/invocations/{made}")).json["state"] == "succeeded"
