"""Rules of who may call, at a running callee: by identities that are claimed, and by those that are proven.

Everything that rules can say of a proven one stands in ``tests/unit/test_access.py``.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from mesh.trust.folder import Folder
from mesh.trust.identity import TrustSettings
from tests.grpc.test_proxy import Service, channel_to, failed, serving
from tests.http.harness import App, Backbone, Node, Reply, error, gateway, yaml
from tests.support.eventually import eventually

INVOKE = "/v1.0/invoke/callee/method"
POLICY = {
    "appId": "caller",
    "namespace": "default",
    "trustDomain": "public",
    "defaultAction": "allow",
    "operations": [{"name": "/a", "httpVerb": ["*"], "action": "allow"}],
}
TEXT = "access control policy has denied access to id: caller (not proven) operation: {} verb: {}"


def written(directory: Path, section: object) -> Path:
    """Write a Configuration as an editor does it, by a rename."""
    path, draft = directory / "access.yaml", directory / "access.new"
    draft.write_text(yaml("Configuration", "access", {"accessControl": section}))
    return draft.replace(path)


@asynccontextmanager
async def pair(backbone: Backbone, home: Path, section: object, app: App | int) -> AsyncIterator[tuple[Node, Node]]:
    """Run an application's gateway with rules, and one that calls it."""
    settings: dict[str, Any] = {"app_protocol": "grpc", "grpc_port": 0} if isinstance(app, int) else {}
    files = (written(home, section),)
    async with (
        gateway(backbone, home, app=app, app_id="callee", configuration_files=files, **settings) as callee,
        gateway(backbone, home, app_id="caller", grpc_port=0) as caller,
    ):
        yield callee, caller


def is_denied(reply: Reply, operation: str, verb: str) -> None:
    expected = error("ERR_DIRECT_INVOKE", f"failed to invoke, id: callee, err: {TEXT.format(operation, verb)}")
    assert (reply.status, reply.json) == (403, expected)


async def test_a_caller_without_a_proven_identity_is_denied_by_default(
    nats: Backbone, tmp_path: Path, app: App, caplog: pytest.LogCaptureFixture
) -> None:
    """In each way of calling; the application sees nothing of it, and may call itself."""
    caplog.set_level(logging.WARNING)
    async with pair(nats, tmp_path, {"policies": [POLICY]}, app) as (callee, caller):
        assert "no --trust-mode lets callers prove who they are" in caplog.text
        is_denied(await caller.get(f"{INVOKE}/a"), "/a", "GET")
        is_denied(
            await caller.request("PUT", "/x/../b%2Fc?q=1", {"dapr-app-id": "callee"}, b"x" * 500_000), "/b/c", "PUT"
        )
        reply = await caller.get(f"{INVOKE}/a", **{"dapr-caller-app-id": "callee", "mesh-timeout": "5s"})
        is_denied(reply, "/a", "GET")
        invalid = await caller.get(f"{INVOKE}/a%23b")
        assert invalid.status == 500
        assert invalid.json["message"].startswith("failed to invoke, id: callee, err: invalid method: ")
        stored = await caller.request("POST", f"{INVOKE}/a", {"mesh-delivery": "durable"}, b"x")

        async def has_failed() -> None:
            told = await caller.get(f"/v1.0/mesh/invocations/{stored.json['id']}")
            assert (told.json["state"], told.json.get("reason")) == ("failed", TEXT.format("/a", "POST"))

        await eventually(has_failed)
        assert app.got == []
        assert (await callee.get(f"{INVOKE}/a%23b")).status == 200
        assert [got.target for got in app.got] == ["/a%23b"]


async def test_the_application_is_sent_what_was_decided_on(nats: Backbone, tmp_path: Path, app: App) -> None:
    """Where everybody may call, too, as long as there are policies."""
    async with pair(nats, tmp_path, {"defaultAction": "allow", "policies": [POLICY]}, app) as (_, caller):
        for target in ("/a%20b/?x=%2F", "/a/%2e%2e/b?q", "//a%2Fb"):
            assert (await caller.get(INVOKE + target)).status == 200
        stored = await caller.request("POST", f"{INVOKE}//c", {"mesh-delivery": "durable"}, b"x")
        assert stored.status == 202

        def check() -> None:
            assert [got.target for got in app.got] == ["/a%20b/?x=%2F", "/b?q", "/a/b", "/c"]

        await eventually(check)


async def test_rules_are_taken_while_it_runs(nats: Backbone, tmp_path: Path, app: App) -> None:
    async with pair(nats, tmp_path, {"defaultAction": "allow"}, app) as (_, caller):
        assert (await caller.get(f"{INVOKE}//a")).status == 200
        assert app.got[-1].target == "//a"

        async def answers(status: int) -> None:
            assert (await caller.get(f"{INVOKE}/a")).status == status

        for section, status in (({"defaultAction": "deny"}, 403), ({}, 200), ({"policies": [POLICY]}, 403)):
            written(tmp_path, section)
            await eventually(lambda status=status: answers(status))  # type: ignore[misc]
        written(tmp_path, {"defaultAction": "denied"})  # A wrong one changes nothing.
        is_denied(await caller.get(f"{INVOKE}/a"), "/a", "GET")


async def test_calls_of_grpc(nats: Backbone, tmp_path: Path) -> None:
    """Of services of the application, and by ``InvokeService``."""
    service = Service()
    async with (
        serving(service),
        pair(nats, tmp_path, {"policies": [POLICY]}, service.port) as (_, caller),
        channel_to(caller) as channel,
    ):
        call = channel.unary_unary("/test.Echo/Unary")(b"x", metadata=[("dapr-app-id", "callee")])
        refused = await failed(call)
        assert refused.code == "PERMISSION_DENIED"
        assert TEXT.format("/test.Echo/Unary", "NONE") in refused.text
        stream = channel.stream_stream("/test.Echo/Talk")(metadata=[("dapr-app-id", "callee")])
        assert (await failed(stream)).code == "PERMISSION_DENIED"
        is_denied(await caller.get(f"{INVOKE}/Method"), "/Method", "NONE")
        assert service.got == []


async def test_a_proven_caller_gets_its_policy(
    nats: Backbone, tmp_path: Path, app: App, caplog: pytest.LogCaptureFixture
) -> None:
    """By app id, path and verb; one without a proof gets the action for all, and nothing is warned of."""
    caplog.set_level(logging.WARNING)
    Folder(tmp_path / "trust").init("public")
    trust = TrustSettings("permissive", folder=tmp_path / "trust")
    rules = {
        **{"appId": "caller", "namespace": nats.namespace, "trustDomain": "public", "defaultAction": "deny"},
        "operations": [{"name": "/orders/*", "httpVerb": ["GET"], "action": "allow"}],
    }
    files = (written(tmp_path, {"policies": [rules]}),)
    async with (
        gateway(nats, tmp_path, app=app, app_id="callee", configuration_files=files, trust=trust),
        gateway(nats, tmp_path, app_id="caller", trust=trust) as caller,
        gateway(nats, tmp_path, app_id="other", trust=trust) as other,
        gateway(nats, tmp_path, app_id="caller") as claims,
    ):
        assert "spec.accessControl names callers" not in caplog.text
        assert (await caller.get(f"{INVOKE}/orders/1")).status == 200
        large = b"x" * 500_000
        assert (await caller.request("GET", f"{INVOKE}/orders/2", None, large)).status == 200
        spiffe = f"spiffe://public/ns/{nats.namespace}/"
        for node, verb, path, who in (
            (caller, "POST", "/orders/1", f"{spiffe}caller"),
            (caller, "GET", "/orders/1/../../admin", f"{spiffe}caller"),
            (other, "GET", "/orders/1", f"{spiffe}other"),
            (claims, "GET", "/orders/1", "caller (not proven)"),
        ):
            reply = await node.request(verb, INVOKE + path)
            assert reply.status == 403, reply
            assert f"has denied access to id: {who} operation: " in reply.json["message"]
        assert [got.target for got in app.got] == ["/orders/1", "/orders/2"]
