"""What the files of a gateway have for other applications: not there for its own, wherever else there is one."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from tests.http.harness import Backbone, Node, component, gateway

STORES = {
    "state.mesh": ("GET", "/v1.0/state/{}/k", None),
    "secretstores.local.env": ("GET", "/v1.0/secrets/{}/SHARED_SECRET", None),
    "configuration.mesh": ("GET", "/v1.0/configuration/{}?key=k", None),
    "lock.mesh": ("POST", "/v1.0-alpha1/lock/{}", {"resourceId": "r", "lockOwner": "me", "expiryInSeconds": 60}),
}


@pytest.mark.parametrize("more", ["", "mine"])
@pytest.mark.parametrize("kind", STORES)
async def test_what_the_own_files_withhold_is_not_taken_from_others(
    kind: str,
    more: str,
    nats: Backbone,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The answer is that of a store which nobody has, whether there is another one of its kind or not."""
    caplog.set_level(logging.INFO)
    monkeypatch.setenv("SHARED_SECRET", "x")
    method, path, body = STORES[kind]
    hosted = component("shared", kind)
    hosted = hosted.replace('"name":"shared"}', '"name":"shared","annotations":{"mesh.placement":"backbone"}}')
    resources = component("shared", kind, scopes=["other"]) + (component(more, kind) if more else "")

    async def answer(node: Node, name: str) -> tuple[int, str | None]:
        reply = await node.request(method, path.format(name), None, body)
        return reply.status, (reply.json or {}).get("errorCode") if reply.body else None

    async with (
        gateway(nats, tmp_path, app_id="host", resources=hosted),
        gateway(nats, tmp_path, app_id="bare") as bare,
        gateway(nats, tmp_path, resources=resources) as node,
    ):
        assert (await answer(bare, "shared"))[0] < 300
        told = await answer(node, "shared")
        assert told == await answer(node, "nobody")
        assert "_NOT_FOUND" in str(told[1]) or "_NOT_CONFIGURED" in str(told[1])
    [line] = [each.getMessage() for each in caplog.records if "by their scopes" in each.getMessage()]
    assert line == "components that are for other applications by their scopes: shared"


async def test_what_the_own_files_withhold_is_not_built_in(memory: Backbone, tmp_path: Path) -> None:
    """The components that are there without any do not take the names of what is for others."""
    withheld = component("statestore", "state.redis", scopes=["other"])
    async with gateway(memory, tmp_path, resources=withheld) as node:
        reply = await node.get("/v1.0/metadata")
        assert [each["name"] for each in reply.json["components"]] == ["pubsub"]
        assert (await node.get("/v1.0/state/statestore/k")).json["errorCode"] == "ERR_STATE_STORE_NOT_CONFIGURED"
    withheld += component("pubsub", "pubsub.redis", scopes=["other"])
    async with gateway(memory, tmp_path, resources=withheld) as node:
        assert "components" not in (await node.get("/v1.0/metadata")).json
