"""``mesh actors`` against a real gateway, whose application hosts actors over a stream."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from gateway.cli.dispatch import main
from tests.grpc.actor_host import Host, hosting
from tests.grpc.harness import Client, client
from tests.http.harness import Backbone, Node, component, gateway
from tests.http.test_metrics import labelled, scraped
from tests.support.eventually import eventually

RESOURCES = component("statestore", "state.mesh", actorStateStore="true")


@pytest_asyncio.fixture
async def cart(
    memory: Backbone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[tuple[Node, Client, Host]]:
    """An active actor with state and a reminder."""
    monkeypatch.setenv("MESH_HOME", str(tmp_path))
    settings: dict[str, Any] = {"app_id": "shop", "registered": True, "metrics": True, "metrics_port": 0}
    async with (
        gateway(memory, tmp_path, resources=RESOURCES, **settings) as node,
        client(node) as called,
        hosting(called, "cart", "other") as host,
    ):
        of = {"actor_type": "cart", "actor_id": "17-x"}
        await called.message("InvokeActor", **of, method="m")
        writes = [
            {"operationType": "upsert", "key": "total", "value": {"value": b"12"}},
            {"operationType": "upsert", "key": "raw", "value": {"value": b"\xff"}},
        ]
        await called.message("ExecuteActorStateTransaction", **of, operations=writes)
        await called.message("RegisterActorReminder", **of, name="pay", due_time="1h", period="10s")
        yield node, called, host


async def mesh(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str, str]:
    """Run a command; give its exit code and what it wrote."""

    def run() -> int:
        try:
            return main(words)
        except SystemExit as end:
            return int(end.code or 0)

    code = await asyncio.to_thread(run)
    return code, *capsys.readouterr()


async def test_list(cart: tuple[Node, Client, Host], capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = await mesh(capsys, "actors", "list")
    lines = [line.split() for line in out.splitlines()]
    assert (code, lines[0]) == (0, ["TYPE", "APP", "ID", "NODE", "STANDING", "PARTITIONS", "ACTIVE"])
    assert [(line[0], line[1], line[3], line[-1]) for line in lines[1:]] == [
        ("cart", "shop", "ready", "1"),
        ("other", "shop", "ready", "0"),
    ]
    code, out, _ = await mesh(capsys, "actors", "list", "-o", "json")
    first = json.loads(out)[0]
    assert (first["type"], first["hosts"][0]["appID"], first["partitions"]) == ("cart", "shop", 256)


async def test_show(cart: tuple[Node, Client, Host], capsys: pytest.CaptureFixture[str]) -> None:
    """Keys, and values only for who asks for them; the store's own records of an actor are not its state."""
    code, out, _ = await mesh(capsys, "actors", "show", "cart", "17-x", "-o", "json")
    told = json.loads(out)
    assert (code, told["type"], told["id"], told["appID"]) == (0, "cart", "17-x", "shop")
    assert told["epoch"] >= 1
    assert told["state"] == ["raw", "total"]
    assert told["reminders"] == {"pay": {"dueTime": "1h", "period": "@every 10s", "ttl": ""}}
    code, out, _ = await mesh(capsys, "actors", "show", "cart", "17-x", "--values", "-o", "json", "-a", "shop")
    assert json.loads(out)["state"] == {"raw": {"base64": "/w=="}, "total": 12}
    code, out, _ = await mesh(capsys, "actors", "show", "cart", "17-x")
    assert "total" in out


async def test_deactivate(cart: tuple[Node, Client, Host], capsys: pytest.CaptureFixture[str]) -> None:
    """Its application is told before the command ends."""
    code, _, err = await mesh(capsys, "actors", "deactivate", "cart", "17-x")
    assert (code, "cart/17-x is deactivated" in err) == (0, True)
    assert len(cart[2].of("deactivate", "17-x")) == 1
    _, _, err = await mesh(capsys, "actors", "deactivate", "cart", "17-x")
    assert "cart/17-x was not active" in err
    code, out, _ = await mesh(capsys, "actors", "deactivate", "cart", "17-x", "-o", "json")
    assert (code, json.loads(out)) == (0, {"active": False})


@pytest.mark.parametrize(
    ("words", "code", "text"),
    [
        (("show", "none", "1"), 1, "no application hosts the actor type none; see: mesh actors list"),
        (("show", "none", "1", "-a", "shop"), 1, "does not host the type none (ERR_ACTOR_TYPE_NOT_HOSTED)"),
        (("deactivate", "none", "1"), 1, "no application hosts the actor type none; see: mesh actors list"),
        (("show", "cart", "17-x", "-a", "ZZ"), 1, "ZZ does not run; see: mesh list"),
        (("list", "-a", "ZZ"), 1, "ZZ does not run; see: mesh list"),
        (("show", "cart", "a#b"), 1, "actor id must not contain"),
        (("show", "cart"), 2, "show needs type and id of an actor"),
        (("deactivate",), 2, "deactivate needs type and id of an actor"),
        (("list", "cart"), 2, "unexpected 'cart'"),
        (("list", "--values"), 2, "--values belongs to: mesh actors show"),
    ],
)
async def test_what_is_refused(
    cart: tuple[Node, Client, Host], capsys: pytest.CaptureFixture[str], words: tuple[str, ...], code: int, text: str
) -> None:
    found, _, err = await mesh(capsys, "actors", *words)
    assert (found, text in err) == (code, True), err


async def test_metadata(cart: tuple[Node, Client, Host]) -> None:
    """The same over HTTP and gRPC."""
    node, called, _ = cart
    told = json.loads((await node.request("GET", "/v1.0/metadata")).body)
    counts = [{"type": "cart", "count": 1}, {"type": "other", "count": 0}]
    assert told["actors"] == counts
    assert told["actorRuntime"] == {
        "runtimeStatus": "RUNNING",
        "activeActors": counts,
        "hostReady": True,
        "placement": "placement: connected",
    }
    reply = await called.message("GetMetadata")
    assert [(each.type, each.count) for each in reply.active_actors_count] == [("cart", 1), ("other", 0)]
    assert [(each.type, each.count) for each in reply.actor_runtime.active_actors] == [("cart", 1), ("other", 0)]
    assert (reply.actor_runtime.runtime_status, reply.actor_runtime.host_ready) == (2, True)


async def test_metrics(cart: tuple[Node, Client, Host]) -> None:
    """What is so now, and what has happened; of each type its own."""
    node, called, host = cart
    of = {"actor_type": "cart", "actor_id": "17-x"}
    await called.message("RegisterActorTimer", **of, name="soon", due_time="0s")
    await host.until("timer", "17-x")
    await called.message("RegisterActorTimer", **of, name="late", due_time="1h")
    found = await scraped(node, app_id="shop")
    cart_, other = labelled(actor_type="cart"), labelled(actor_type="other")
    assert found["dapr_runtime_actor_timers"] == {cart_: 1.0, other: 0.0}
    assert found["dapr_runtime_actor_pending_actor_calls"] == {cart_: 0.0, other: 0.0}
    assert found["dapr_runtime_actor_timers_fired_total"] == {labelled(actor_type="cart", success="true"): 1.0}
    assert found["mesh_actors"] == {labelled(type="cart"): 1.0, labelled(type="other"): 0.0}
    turns = found["mesh_actor_turns_total"]
    assert turns[labelled(type="cart", turn="method", outcome="ok")] == 1.0


async def test_a_type_of_two_applications(
    nats: Backbone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each has state of its own: that of the owner is shown, and of the other one where that is asked."""
    monkeypatch.setenv("MESH_HOME", str(tmp_path))
    settings: dict[str, Any] = {"resources": RESOURCES, "registered": True}
    async with (
        gateway(nats, tmp_path, app_id="one", **settings) as first,
        gateway(nats, tmp_path, app_id="two", **settings) as second,
        client(first) as one,
        client(second) as two,
        hosting(one, "cart"),
    ):
        for number in range(30):
            of = {"actor_type": "cart", "actor_id": str(number)}
            await one.message("InvokeActor", **of, method="m")
            writes = [{"operationType": "upsert", "key": "total", "value": {"value": b"12"}}]
            await one.message("ExecuteActorStateTransaction", **of, operations=writes)

        async def told(id_: str, *words: str) -> dict[str, Any]:
            code, out, err = await mesh(capsys, "actors", "show", "cart", id_, "-o", "json", *words)
            assert code == 0, err
            return dict(json.loads(out))

        async def moved() -> str:
            for number in range(30):
                if (await told(str(number)))["appID"] == "two":
                    return str(number)
            raise AssertionError("none has moved")

        assert (await told("1"))["state"] == ["total"]
        async with hosting(two, "cart"):
            id_ = await eventually(moved)
            found = {words: await told(id_, *words) for words in ((), ("-a", "two"), ("-a", "one"))}
        assert {each["appID"] for each in found.values()} == {"two"}
        assert [each["state"] for each in found.values()] == [[], [], ["total"]]
