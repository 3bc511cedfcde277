"""The whole path once over the embedded backbone: state, events and calls between two applications."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.http.harness import App, Backbone, gateway
from tests.support.eventually import eventually
from tests.support.nats import find_nats_server

MIB = 1024 * 1024


async def test_embedded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two gateways find the same server; what is stored outlives them."""
    if find_nats_server() is None:
        pytest.skip("nats-server is not installed")
    monkeypatch.setenv("MESH_HOME", str(tmp_path))
    backbone = Backbone("embedded:")
    async with App([{"pubsubname": "pubsub", "topic": "t", "route": "/t"}]) as app:
        async with (
            gateway(backbone, tmp_path, app=app, app_id="one") as one,
            gateway(backbone, tmp_path, app_id="two") as two,
        ):
            assert (await two.post("/v1.0/invoke/one/method/x", b"body")).status == 200
            assert app.at("/x")[0].body == b"body"
            await two.publish("t", {"n": 1})
            assert (await app.until("/t"))[0].json["data"] == {"n": 1}
            assert (await one.post("/v1.0/state/statestore", [{"key": "k", "value": 1}])).status == 204
        async with gateway(backbone, tmp_path, app_id="one") as again:
            assert (await again.get("/v1.0/state/statestore/k")).body == b"1"


@pytest.mark.costly
async def test_large_events(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """Whatever a gateway's limit admits is carried, and as much of it at once as there may be."""
    if find_nats_server() is None:
        pytest.skip("nats-server is not installed")
    monkeypatch.setenv("MESH_HOME", str(tmp_path))
    backbone, sizes = Backbone("embedded:"), [MIB, *[4 * MIB] * 20]  # Above what nats-server keeps for a slow reader.
    async with gateway(backbone, tmp_path, app_id="one") as one:
        for size in sizes:
            await one.publish("t", b"x" * size, "text/plain")
        async with (
            App([{"pubsubname": "pubsub", "topic": "t", "route": "/t"}]) as app,
            gateway(backbone, tmp_path, app=app, app_id="two"),
        ):

            def check() -> None:
                count = len(app.got)  # Not what there is: a failing check would write it all out.
                assert count >= len(sizes)

            await eventually(check)
            assert sorted(len(got.json["data"]) for got in app.got) == sizes
    assert "lost the connection" not in caplog.text
