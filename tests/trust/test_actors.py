"""Actors, reminders and jobs with identities: owners answer whom they know, and nobody else answers for them."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from mesh import address
from mesh.blocks.job_record import Delete, RunNow, encoded
from mesh.calls.context import tell
from mesh.errors import PermissionDeniedError, UnprovenError
from mesh.node.runtime import Runtime
from mesh.ownership.table import PARTITIONS, partition_of
from mesh.packing import pack
from mesh.schedules import Timing
from mesh.trust.identity import TrustSettings
from mesh.trust.standing import LEAVE_SECONDS
from tests.http.actor_app import ACTORS, ActorApp, call
from tests.http.harness import Backbone, Node, gateway
from tests.support.eventually import eventually
from tests.support.nodes import node

THINGS, JOBS = "actors.thing", "jobs.orders"
IDS = [str(number) for number in range(24)]


@dataclass
class Orders:
    """An application that hosts actors, its gateway, which is proven and seals, and where that is."""

    app: ActorApp
    gateway: Node
    backbone: Backbone
    trust: TrustSettings

    def turns(self) -> list[str]:
        return [each for each in self.app.paths() if "/method/" in each]

    def beside(self, app_id: str, *, proven: bool) -> Runtime:
        """Make another node on the same broker."""
        trust = {"trust": self.trust} if proven else {}
        return node(self.backbone.url, self.backbone.namespace, app_id=app_id, **trust)


@pytest.fixture
async def orders(trust: TrustSettings, nats: Backbone, tmp_path: Path) -> AsyncIterator[Orders]:
    trust = replace(trust, seal=True)
    async with (
        ActorApp({"entities": ["thing"]}) as app,
        gateway(nats, tmp_path, app=app, app_id="orders", trust=trust) as hosts,
    ):
        yield Orders(app, hosts, nats, trust)


async def test_gateways_prove_who_calls_an_actor(orders: Orders, tmp_path: Path) -> None:
    """The application is told; state, reminders and jobs are its own."""
    async with gateway(orders.backbone, tmp_path, app_id="shop", trust=orders.trust) as shop:
        headers = {"dapr-caller-app-id": "somebody"}
        assert (await shop.request("POST", f"{ACTORS}/thing/1/method/do", headers, b"x" * 1_000_000)).status == 200
        [got] = orders.app.at("/actors/thing/1/method/do")
        assert (got.all("dapr-caller-app-id"), len(got.body)) == (["shop"], 1_000_000)
        upsert = [{"operation": "upsert", "request": {"key": "k", "value": 1}}]
        for path, body in (("state", upsert), ("reminders/r", {"dueTime": "0s"})):
            reply = await orders.gateway.post(f"{ACTORS}/thing/1/{path}", body)
            assert reply.status == 204, reply
        assert (await orders.gateway.post("/v1.0/jobs/j", {"dueTime": "0s"})).status == 204
        await orders.app.until("/actors/thing/1/method/remind/r")
        await orders.app.until("/job/j")


ASKED = {
    "a method": (THINGS, pack("invoke", "do", "", []), b"x"),
    "to deactivate it": (THINGS, pack("deactivate"), b""),
    "to be reminded": (
        THINGS,
        pack("set_reminder", "r", Timing(0.0, "", None, None).encode(), (1.0, 3, False), True),
        b"",
    ),
    "not to be reminded": (THINGS, pack("delete_reminder", "r"), b""),
    "to run a job": (JOBS, "", encoded(RunNow())),
    "to delete a job": (JOBS, "", encoded(Delete())),
}


@pytest.mark.parametrize("liar", [("orders", False), ("shop", False), ("shop", True)], ids=str)
async def test_who_asks_an_owner_in_vain(orders: Orders, liar: tuple[str, bool]) -> None:
    """Who proves nothing gets nothing, whatever the name; who proves to be another application, no job."""
    for path in (f"{ACTORS}/thing/1/reminders/r", "/v1.0/jobs/1"):
        assert (await orders.gateway.post(path, {"dueTime": "1h"})).status == 204
    app_id, proven = liar
    async with orders.beside(app_id, proven=proven) as asker:
        for what, (kind, action, body) in ASKED.items():
            if proven and kind == THINGS:
                continue
            owners = asker.parts.owners
            with pytest.raises(PermissionDeniedError if proven else UnprovenError):
                await owners.ask(kind, "1", {"actor": action}, body, time.time() + 10.0)
                pytest.fail(what)
    assert orders.app.got == []
    for path in (f"{ACTORS}/thing/1/reminders/r", "/v1.0/jobs/1"):
        assert (await orders.gateway.get(path)).status == 200


async def test_who_says_in_vain_that_owners_have_changed(orders: Orders, caplog: pytest.LogCaptureFixture) -> None:
    at = address.owners(orders.backbone.namespace, THINGS)
    async with orders.beside("orders", proven=False) as liar:
        await tell(liar.exchange, at)

        def is_refused() -> None:
            assert f"told at {at.text}" in caplog.text

        await eventually(is_refused)


@asynccontextmanager
async def claiming(orders: Orders, home: Path) -> AsyncIterator[ActorApp]:
    """Have a gateway that proves nothing own some of the actors, in the name of who hosts them."""
    async with (
        ActorApp({"entities": ["thing"]}) as app,
        gateway(orders.backbone, home, app=app, app_id="orders") as liar,
    ):
        owning = liar.gateway._runtime.parts.owners

        def owns() -> None:
            assert [each for each in IDS if owning.epoch(THINGS, partition_of(each, PARTITIONS)) is not None]

        await eventually(owns)
        yield app


@pytest.mark.costly
async def test_who_owns_actors_and_proves_nothing(orders: Orders, tmp_path: Path) -> None:
    """It gets no call that is sealed, and its answers are none; when it has gone all actors are where they were."""
    async with gateway(orders.backbone, tmp_path, app_id="shop", trust=orders.trust) as shop:

        async def answers(id_: str) -> int:
            verb, path, _, body = call("do", id_=id_)
            reply = await shop.request(verb, path, {"mesh-timeout": "2s"}, body)
            assert reply.status == 200 or b"what came is not proven" in reply.body, reply
            return reply.status

        async with claiming(orders, tmp_path) as liar:
            async with asyncio.TaskGroup() as tasks:
                asked = [tasks.create_task(answers(id_)) for id_ in IDS]
            statuses = [each.result() for each in asked]
            assert set(statuses) == {200, 500}
            assert len(orders.turns()) >= statuses.count(200)
            assert liar.got == []
        for id_ in IDS:
            assert await answers(id_) == 200


@pytest.mark.costly
async def test_an_owner_whose_certificate_has_ended(
    orders: Orders, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its actors run where answers are believed, for as long as there is such a place; no call fails by that."""

    async def who() -> dict[str, bool]:
        before = [len(each.got) for each in apps]
        for id_ in IDS:
            assert (await shop.request(*call("do", id_=id_))).status == 200
        return {name: len(app.got) > was for name, app, was in zip(("first", "second"), apps, before, strict=True)}

    async def are(**expected: bool) -> None:
        assert await who() == expected

    async with (
        ActorApp({"entities": ["thing"]}) as app,
        gateway(orders.backbone, tmp_path, app=app, app_id="orders", trust=orders.trust) as second,
        gateway(orders.backbone, tmp_path, app_id="shop", trust=orders.trust) as shop,
    ):
        apps = (orders.app, app)
        await eventually(lambda: are(first=True, second=True))
        guard = second.gateway._runtime.exchange.guard
        assert guard is not None
        with monkeypatch.context() as patch:
            patch.setattr(guard.own, "until", time.time() + LEAVE_SECONDS - 0.5)  # As if it ended then.
            await guard.standing.ended.wait()
            await eventually(lambda: are(first=True, second=False))
        await eventually(lambda: are(first=True, second=True))
