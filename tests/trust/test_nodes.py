"""Whole nodes: hosted components, and gateways over HTTP, that prove who they are."""

from __future__ import annotations

import asyncio
import logging
import time
from dataclasses import replace
from pathlib import Path

import msgspec
import pytest
from msgspec import structs

from mesh import address
from mesh.blocks.job_record import Delete, encoded
from mesh.blocks.state import GET, SAVE, Get, Save
from mesh.broker import Frame, Message
from mesh.errors import HostsGoneError, MeshError, UnprovenError
from mesh.host import Answer, Question
from mesh.packing import pack
from mesh.store import Item
from mesh.trust import standing
from mesh.trust.identity import TrustSettings
from tests.http.actor_app import ActorApp, call
from tests.http.harness import App, Backbone, gateway
from tests.support.eventually import eventually
from tests.support.nodes import MemoryMesh, ask, component, node

STORE = component("store", "state.in-memory", placement="backbone", scopes=["host", "shop"])


async def test_scopes_of_a_hosted_component_hold_for_who_is_proven(trust: TrustSettings) -> None:
    mesh = MemoryMesh()
    async with (
        node("memory:", "ns", STORE, app_id="host", registry=mesh, trust=trust),
        node("memory:", "ns", app_id="shop", registry=mesh, trust=trust) as shop,
        node("memory:", "ns", app_id="evil", registry=mesh, trust=trust) as evil,
        node("memory:", "ns", app_id="shop", registry=mesh) as unproven,
    ):
        await ask(shop, SAVE, "store", Save([Item("k", b"1")]))
        assert (await ask(shop, GET, "store", Get("k"))).value == b"1"
        with pytest.raises(UnprovenError, match="in the name of app id shop"):
            await ask(evil, GET, "store", Get("k"), app_id="shop")
        with pytest.raises(UnprovenError, match="does not prove"):
            await ask(unproven, GET, "store", Get("k"))


NAMED = {
    "not proven": ("evil", False),
    "proven, by one that is none of --trust-hosts": ("evil", True),
    "proven, in the name of a host": ("host", True),
}


@pytest.mark.parametrize("named", NAMED)
async def test_who_says_to_be_a_host_and_is_none(trust: TrustSettings, named: str) -> None:
    """With other settings it would be an error for who asks."""
    mesh, (host, proves), trust = MemoryMesh(), NAMED[named], replace(trust, hosts=frozenset({"host"}))
    async with (
        node("memory:", "ns", STORE, app_id="host", registry=mesh, trust=trust),
        node("memory:", "ns", app_id="shop", registry=mesh, trust=trust) as shop,
        node("memory:", "ns", app_id="evil", registry=mesh, trust=trust) as evil,
        asyncio.TaskGroup() as tasks,
    ):
        guard = evil.exchange.guard
        assert guard is not None

        def lie(frame: Frame) -> None:
            assert frame.message is not None
            question = msgspec.msgpack.decode(frame.message.body, type=Question)
            asker = address.asker("ns", question.node)
            answer = Message({}, msgspec.msgpack.encode(Answer(question.number, "f" * 16, [], host)))
            answer = guard.tell(asker.text, answer) if proves else answer
            lies.append(tasks.create_task(evil.broker.broadcast(asker, answer)))

        lies: list[asyncio.Task[None]] = []
        async with evil.broker.listen(address.hosts("ns"), lie):
            assert await ask(shop, GET, "store", Get("k")) is None
            assert lies


async def test_a_certificate_that_has_ended(
    trust: TrustSettings,
    nats: Backbone,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Nothing runs whose answer nobody would believe: it waits as for an application that is away."""
    caplog.set_level(logging.INFO)
    order = "/v1.0/invoke/stock/method/order"
    async with (
        App() as app,
        gateway(nats, tmp_path, app=app, app_id="stock", trust=trust) as stock,
        gateway(nats, tmp_path, app_id="shop", trust=trust) as shop,
        asyncio.TaskGroup() as tasks,
    ):

        async def health(status: int) -> None:
            assert (await stock.get("/v1.0/healthz/outbound")).status == status

        def waits() -> None:
            assert "invocation stock: no instance is there" in caplog.text

        assert (await shop.post(order, {"n": 1})).status == 200
        count = len(app.got)
        with monkeypatch.context() as patch:  # As if it ended now.
            patch.setattr(standing, "LEAVE_SECONDS", 10.0 * 365 * 86400)
            await eventually(lambda: health(500))
            assert "[identity]" in (await stock.get("/v1.0/healthz")).json["message"]
            conditions = (await stock.get("/v1.0/metadata")).json["conditions"]
            (told,) = [each["reason"] for each in conditions if each["target"] == "identity stock"]
            assert "the certificate ends at" in told
            call = tasks.create_task(shop.post(order, {"n": 1}))
            await eventually(waits)
            assert len(app.got) == count
        await eventually(lambda: health(204))
        assert (await call).status == 200
        assert len(app.got) == count + 1
    lines = [(each.levelname, each.getMessage()) for each in caplog.records if "identity stock: " in each.getMessage()]
    assert [(level, text.split()[2]) for level, text in lines] == [("ERROR", "fails:"), ("INFO", "works")], lines


async def test_a_host_whose_certificate_has_ended(trust: TrustSettings, monkeypatch: pytest.MonkeyPatch) -> None:
    """That there is none is told at once."""
    mesh = MemoryMesh()
    async with (
        node("memory:", "ns", STORE, app_id="host", registry=mesh, trust=trust),
        node("memory:", "ns", app_id="shop", registry=mesh, trust=trust) as shop,
    ):

        async def told(expected: type[MeshError] | None) -> None:
            try:
                found = await ask(shop, GET, "store", Get("k"))
            except MeshError as error:
                assert type(error) is expected, error
            else:
                assert (found.value, expected) == (b"1", None)

        await ask(shop, SAVE, "store", Save([Item("k", b"1")]))
        with monkeypatch.context() as patch:
            patch.setattr(standing, "LEAVE_SECONDS", 10.0 * 365 * 86400)

            await eventually(lambda: told(HostsGoneError))
        await eventually(lambda: told(None))


async def test_gateways_prove_who_calls(trust: TrustSettings, nats: Backbone, tmp_path: Path) -> None:
    async with (
        App() as app,
        gateway(nats, tmp_path, app=app, app_id="stock", trust=trust),
        gateway(nats, tmp_path, app_id="shop", trust=trust) as shop,
        gateway(nats, tmp_path, app_id="shop") as unproven,
    ):
        app.answer("/order", body={"ok": True})
        for _ in range(3):
            reply = await shop.post("/v1.0/invoke/stock/method/order", {"n": 1})
            assert (reply.status, reply.json) == (200, {"ok": True})
        large = b"x" * 1_000_000
        assert (await shop.request("PUT", "/v1.0/invoke/stock/method/order", None, large)).status == 200
        assert app.got[-1].body == large
        assert not [name for name in app.got[-1].headers if name.startswith("mesh-")]
        durable = await shop.request("POST", "/v1.0/invoke/stock/method/order", {"mesh-delivery": "durable"}, {"n": 1})

        async def succeeded() -> None:
            reply = await shop.get(f"/v1.0/mesh/invocations/{durable.json['id']}")
            assert (reply.status, reply.json["state"]) == (200, "succeeded")

        await eventually(succeeded)
        count = len(app.got)
        reply = await unproven.post("/v1.0/invoke/stock/method/order", {"n": 1})
        assert (reply.status, reply.json["errorCode"]) == (401, "ERR_IDENTITY_NOT_PROVEN")
        assert len(app.got) == count


async def test_owners_answer_who_is_proven(trust: TrustSettings, nats: Backbone, tmp_path: Path) -> None:
    """Calls of actors, what is asked of their reminders, and jobs: as calls of applications are."""
    async with (
        ActorApp() as app,
        gateway(nats, tmp_path / "one", app=app, app_id="one", trust=trust) as one,
        gateway(nats, tmp_path / "evil", app_id="evil", trust=trust) as evil,
        gateway(nats, tmp_path / "none", app_id="one") as unproven,
    ):
        assert (await one.post("/v1.0/jobs/mine", {"dueTime": "24h"})).status == 204
        assert (await one.request(*call("x"))).status == 200
        actions = pack("invoke", "x", "", []), pack("delete_reminder", "r"), pack("deactivate")
        asked = [("actors.thing", {"actor": each}, b"") for each in actions]
        asked.append(("jobs.one", {}, encoded(Delete())))
        for kind, headers, body in asked:
            for node, told in ((evil, "in the name of app id one"), (unproven, "does not prove")):
                owners = node.gateway._runtime.parts.owners  # type: ignore[attr-defined]  # as a node that lies would
                owners._caller = structs.replace(owners._caller, app_id="one")
                with pytest.raises(UnprovenError, match=told):
                    await owners.ask(kind, "mine", headers, body, time.time() + 30)
        assert app.paths() == ["PUT /actors/thing/1/method/x"]
        assert (await one.get("/v1.0/jobs/mine")).status == 200
