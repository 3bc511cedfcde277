"""Who may ask a node for what, on a mesh of several machines: by its Configuration, with proof and without."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import orjson
import pytest

from mesh import address
from mesh.errors import DeadlineExceededError, MeshError, NoResponderError, UnprovenError
from mesh.trust.folder import Folder
from mesh.trust.identity import TrustSettings
from tests.http.harness import App, Backbone, Node, gateway, subscription, yaml

Told = tuple[int, dict[str, str], bytes]
VIEWS = (
    "metadata",
    "healthz",
    "mesh/node",
    "mesh/components",
    "mesh/topics",
    "mesh/topics/pubsub/t",
    "mesh/actors",
    "mesh/jobs",
    "mesh/workflows",
)
MANAGED = (
    ("GET", "mesh/resources"),
    ("GET", "mesh/logs"),
    ("GET", "mesh/components/statestore/keys"),
    ("GET", "mesh/components/statestore/keys/k"),
    ("GET", "state/statestore/k"),
    ("GET", "mesh/topics/pubsub/t/events"),
    ("GET", "mesh/topics/pubsub/t/dead-letters"),
    ("POST", "mesh/topics/pubsub/t/dead-letters/purge"),
    ("POST", "mesh/jobs/one/run"),
    ("DELETE", "jobs/one"),
    ("POST", "publish/pubsub/t"),
    ("GET", "invoke/shop/method/x"),
    ("PUT", "metadata/label"),
)


async def ask(asker: Node, asked: Node, verb: str, path: str, body: bytes = b"", seconds: float = 20.0) -> Told:
    """Ask; gives status, header fields by their names in lower case, body."""
    node = asked.gateway
    status, headers, told = await asker.gateway.ask_node(
        node.node_id, verb, f"/v1.0/{path}", body=body, deadline=time.time() + seconds, app_id=node.app_id
    )
    return status, {name.lower(): value for name, value in headers}, told


@asynccontextmanager
async def pair(
    backbone: Backbone, home: Path, access: object = None, trusts: Sequence[TrustSettings | None] = (None, None)
) -> AsyncIterator[tuple[Node, Node, App]]:
    """The node ``shop``, whose Configuration has this access control, and ``desk``, which asks it."""
    files = ()
    if access is not None:
        (home / "config.yaml").write_text(yaml("Configuration", "config", {"accessControl": access}))
        files = (home / "config.yaml",)
    async with (
        App([subscription("pubsub", "t")]) as app,
        gateway(backbone, home, app=app, app_id="shop", configuration_files=files, trust=trusts[0]) as shop,
        gateway(backbone, home, app_id="desk", trust=trusts[1]) as desk,
    ):
        yield shop, desk, app


async def test_without_a_word_views_are_told_without_values(nats: Backbone, tmp_path: Path) -> None:
    async with pair(nats, tmp_path) as (shop, desk, app):
        job = {"schedule": "@yearly", "data": {"secret": 1}}
        assert (await shop.post("/v1.0/jobs/one", job)).status == 204
        assert (await shop.request("PUT", "/v1.0/metadata/label", None, b"mine")).status == 204
        for path in VIEWS:
            status, _, body = await ask(desk, shop, "GET", path)
            assert status in (200, 204), (path, body)
            assert b"secret" not in body
            assert b"label" not in body
        _, _, body = await ask(desk, shop, "GET", "mesh/jobs/one")
        assert orjson.loads(body)["name"] == "one"
        assert "data" not in orjson.loads(body)
        assert "data" in (await shop.get("/v1.0/mesh/jobs/one")).json
        for verb, path in MANAGED:
            status, _, body = await ask(desk, shop, verb, path)
            told = orjson.loads(body)
            assert (status, told["errorCode"]) == (403, "ERR_PERMISSION_DENIED"), path
            assert "spec.accessControl.tap" in told["message"]
            assert "desk" in told["message"]
        assert (await shop.get("/v1.0/mesh/jobs/one")).status == 200
        status, _, body = await ask(desk, shop, "POST", "shutdown")
        assert (status, orjson.loads(body)["errorCode"]) == (404, "ERR_NODE_ROUTE")
        assert not [got for got in app.got if got.path == "/x"]


async def test_a_node_that_denies_all_tells_nothing(nats: Backbone, tmp_path: Path) -> None:
    async with pair(nats, tmp_path, {"defaultAction": "deny"}) as (shop, desk, _):
        for verb, path in (*(("GET", each) for each in VIEWS), *MANAGED):
            status, _, body = await ask(desk, shop, verb, path)
            assert (status, "spec.accessControl.tap" in orjson.loads(body)["message"]) == (403, True), path


async def test_who_is_listed_may_manage(nats: Backbone, tmp_path: Path) -> None:
    async with pair(nats, tmp_path, {"tap": {"manage": ["desk"]}}) as (shop, desk, app):
        app.answer("/x", 200, b"answered")
        for verb, path in MANAGED:
            status, _, body = await ask(desk, shop, verb, path, b"{}" if verb == "POST" else b"")
            assert status != 403, (path, body)
        assert (await ask(desk, shop, "GET", "invoke/shop/method/x"))[2] == b"answered"
        async with gateway(nats, tmp_path, app_id="other") as other:
            assert (await ask(other, shop, "GET", "mesh/logs"))[0] == 403
            assert (await ask(other, shop, "GET", "mesh/node"))[0] == 200


async def test_with_proofs_only_who_is_proven_may_manage(nats: Backbone, trust: TrustSettings, tmp_path: Path) -> None:
    """A node without an identity names itself as one that may, and is told views alone; in strict mode nothing."""
    access = {"tap": {"manage": ["desk"]}}
    async with pair(nats, tmp_path, access, (trust, trust)) as (shop, desk, _):
        assert (await ask(desk, shop, "GET", "mesh/logs"))[0] == 200
        async with gateway(nats, tmp_path, app_id="other", trust=trust) as other:
            assert (await ask(other, shop, "GET", "mesh/logs"))[0] == 403
    async with pair(nats, tmp_path, access, (trust, None)) as (shop, desk, _):
        with pytest.raises(UnprovenError):
            await ask(desk, shop, "GET", "mesh/node")
    permissive = replace(trust, mode="permissive")
    async with pair(nats, tmp_path, access, (permissive, None)) as (shop, desk, _):
        assert (await ask(desk, shop, "GET", "mesh/node"))[0] == 200
        status, _, body = await ask(desk, shop, "GET", "mesh/logs")
        assert (status, "not proven" in orjson.loads(body)["message"]) == (403, True)


async def test_an_answer_by_another_application_counts_for_nothing(
    nats: Backbone, trust: TrustSettings, tmp_path: Path
) -> None:
    """Who asks says whose node it is, so that no other application answers there, though it is proven as itself."""
    async with pair(nats, tmp_path, None, (trust, trust)) as (shop, desk, _):
        node = shop.gateway.node_id
        where = address.node(nats.namespace, "till", node)
        runtime = shop.gateway._runtime

        async def lie(request: object) -> None:
            await request.reply({}, b"lies")  # type: ignore[attr-defined]

        async with runtime.exchange.serve(where, node, lie, recoverable=False):
            with pytest.raises(DeadlineExceededError):
                await desk.gateway.ask_node(node, "GET", "/v1.0/mesh/node", deadline=time.time() + 2, app_id="till")


async def test_other_roots_are_not_believed(nats: Backbone, trust: TrustSettings, tmp_path: Path) -> None:
    Folder(tmp_path / "others").init("public")
    others = TrustSettings("strict", folder=tmp_path / "others")
    async with pair(nats, tmp_path, {"tap": {"manage": ["desk"]}}, (trust, others)) as (shop, desk, _):
        with pytest.raises(MeshError) as caught:
            await ask(desk, shop, "GET", "mesh/node", seconds=3.0)
        assert isinstance(caught.value, UnprovenError | DeadlineExceededError | NoResponderError)
