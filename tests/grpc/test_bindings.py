"""Bindings over gRPC: bytes as they are, and the callbacks of an application.

Source: reference/dapr-surface.md 1.11, 2.7.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from gateway.grpc.messages import message
from tests.grpc.app import GRPCApp, fail
from tests.grpc.harness import client, refused
from tests.http.harness import Backbone, component, gateway, yaml
from tests.support.eventually import eventually


async def test_calls(memory: Backbone, tmp_path: Path) -> None:
    """Over both protocols the same component; failures have the same texts."""
    files = component("files", "bindings.localstorage", rootPath=str(tmp_path / "files"))
    async with gateway(memory, tmp_path, resources=files, grpc_port=0) as node, client(node) as called:
        made = await called.message(
            "InvokeBinding", name="files", operation="create", data=b"\x00\xff", metadata={"fileName": "raw"}
        )
        assert made.data == b'{"fileName":"raw"}'
        get = {"name": "files", "operation": "get", "metadata": {"fileName": "raw"}}
        assert (await called.message("InvokeBinding", **get)).data == b"\x00\xff"
        gone = await called.message("InvokeBinding", **{**get, "operation": "delete"})
        assert (gone.data, dict(gone.metadata)) == (b"", {})
        for asked in (get, {**get, "operation": "dance"}, {**get, "name": "nope"}):
            over_http = await node.request("POST", f"/v1.0/bindings/{asked['name']}", None, asked)
            code, text = await refused(called, "InvokeBinding", **asked)
            assert (code, text) == ("INTERNAL", over_http.json["message"])


@pytest.mark.parametrize("direction", ["", "input"])
async def test_events(memory: Backbone, tmp_path: Path, direction: str) -> None:
    """Asked by name, unless the component says that it is an input; told by name, whatever the route."""
    every = {"schedule": "@every 1s", "direction": direction}
    resources = component("tick", "bindings.cron", route="/elsewhere", **every)
    if not direction:
        resources += component("other", "bindings.cron", **every)
    async with GRPCApp() as app:
        app.always("ListInputBindings", message("ListInputBindingsResponse")(bindings=["tick"]))
        app.always("OnBindingEvent", message("BindingEventResponse")(data=b"taken"))
        async with gateway(memory, tmp_path, app=app.port, app_protocol="grpc", resources=resources):
            got = await app.until("OnBindingEvent", 2)
    assert {each.message.name for each in got} == {"tick"}
    assert set(got[0].message.metadata) == {"timeZone", "readTimeUTC", "traceparent"}
    assert bool(app.of("ListInputBindings")) is (not direction)


async def test_an_application_without_bindings(memory: Backbone, tmp_path: Path) -> None:
    """UNIMPLEMENTED says no; an event that fails is not repeated."""
    resources = component("no", "bindings.cron", schedule="@every 1s")
    resources += component("yes", "bindings.cron", schedule="@every 1s", direction="input")
    async with GRPCApp() as app:
        app.answers["OnBindingEvent"] = fail("INTERNAL", "not now")
        async with gateway(memory, tmp_path, app=app.port, app_protocol="grpc", resources=resources):
            got = await app.until("OnBindingEvent", 3)
    assert {each.message.name for each in got} == {"yes"}
    times = [each.message.metadata["readTimeUTC"] for each in got]
    assert len(set(times)) == len(times)


@pytest.mark.parametrize(("concurrency", "states"), [(0, False), (1, True)])
async def test_what_an_answer_asks_for(memory: Backbone, tmp_path: Path, concurrency: int, states: bool) -> None:
    """Bindings are called with its bytes in any case; state is saved where the component says so."""
    files = tmp_path / "files"
    resources = component("tick", "bindings.cron", schedule="@every 1s", **({"mesh.answer": "do"} if states else {}))
    resources += component("one", "bindings.localstorage", rootPath=str(files / "one"))
    resources += component("two", "bindings.localstorage", rootPath=str(files / "two"))
    resources += component("kept", "state.in-memory")
    answer = message("BindingEventResponse")(
        data=b"\x00\xff", to=["one", "two"], concurrency=concurrency, store_name="kept"
    )
    answer.states.add(key="k", value=b"\x01", options={"concurrency": 1, "consistency": 2})
    async with GRPCApp() as app:
        app.always("ListInputBindings", message("ListInputBindingsResponse")(bindings=["tick"]))
        app.always("OnBindingEvent", answer)
        async with (
            gateway(memory, tmp_path, app=app.port, app_protocol="grpc", resources=resources, grpc_port=0) as node,
            client(node) as called,
        ):

            def check() -> None:
                for name in ("one", "two"):
                    assert [each.read_bytes() for each in (files / name).glob("[!.]*")][:1] == [b"\x00\xff"]

            await eventually(check)
            kept = await called.message("GetState", store_name="kept", key="k")
            assert kept.data == (b"\x01" if states else b"")


async def test_what_it_asks_for_and_cannot_be_done(memory: Backbone, tmp_path: Path) -> None:
    """Then the event was not taken."""
    policy = {
        "policies": {"retries": {"often": {"policy": "constant", "duration": "10ms", "maxRetries": 1}}},
        "targets": {"components": {"tick": {"inbound": {"retry": "often"}}}},
    }
    resources = component("tick", "bindings.cron", schedule="@every 1s") + yaml("Resiliency", "r", policy)
    async with GRPCApp() as app:
        app.always("ListInputBindings", message("ListInputBindingsResponse")(bindings=["tick"]))
        app.always("OnBindingEvent", message("BindingEventResponse")(to=["nope"]))
        async with gateway(memory, tmp_path, app=app.port, app_protocol="grpc", resources=resources):
            got = await app.until("OnBindingEvent", 2)
    times = [each.message.metadata["readTimeUTC"] for each in got]
    assert times[0] == times[1]
