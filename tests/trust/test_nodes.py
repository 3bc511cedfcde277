"""Whole nodes: hosted components, and gateways over HTTP, that prove who they are."""

from __future__ import annotations

from pathlib import Path

import pytest

from mesh.blocks.state import GET, SAVE, Get, Save
from mesh.blocks.store import Item
from mesh.errors import UnprovenError
from mesh.trust.identity import TrustSettings
from tests.http.harness import App, Backbone, gateway
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
        count = len(app.got)
        reply = await unproven.post("/v1.0/invoke/stock/method/order", {"n": 1})
        assert (reply.status, reply.json["errorCode"]) == (401, "ERR_IDENTITY_NOT_PROVEN")
        assert len(app.got) == count
        assert not [name for name in app.got[-1].headers if name.startswith("mesh-")]
