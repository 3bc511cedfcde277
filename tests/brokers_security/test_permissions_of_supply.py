"""What `mesh broker permissions --supply` prints lets a gateway ask its operator, and not be it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from mesh import address
from mesh.broker import Broker, Frame
from mesh.calls.exchange import Exchange
from mesh.registry import Registry
from mesh.supply.asking import Operator, Who
from tests.brokers_security.test_permissions import (
    allow,
    nats_of,
    nats_user,
    rabbitmq_of,
    rabbitmq_user,
    redis_of,
    redis_user,
    violations,
)
from tests.support.eventually import eventually
from tests.support.supply import DOMAIN, Table, component, operating

NAMESPACE, CONTROL = "prod", "mesh-system"
WORDS = ("--calls", "orders", "--supply", CONTROL)


@asynccontextmanager
async def connected(url: str) -> AsyncIterator[Broker]:
    async with Registry().backbone(url).from_url(url) as broker:  # type: ignore[attr-defined]
        yield broker


async def supplies(operator_url: str, url: str) -> None:
    """Check that a gateway is answered, and hears of changes."""
    table, heard = Table(CONTROL), asyncio.Event()
    table.documents[NAMESPACE] = [component("store", NAMESPACE)]
    who = Who(NAMESPACE, "shop", "shop-0", table.admit(NAMESPACE, "shop"))
    operator = Operator(CONTROL, DOMAIN, table.root.roots)

    def hear(frame: Frame) -> None:
        if frame.message is not None and operator.heard(frame.message.body, NAMESPACE) is not None:
            heard.set()

    async with (
        connected(operator_url) as serving,
        operating(serving, table) as answering,
        connected(url) as asking,
        asking.listen(address.supplied(CONTROL, NAMESPACE), hear),
        Exchange(asking) as exchange,
    ):
        answer = await operator.ask(exchange, who, 30.0)
        assert answer.documents == tuple(table.documents[NAMESPACE])

        async def told() -> None:
            answering.changed(NAMESPACE)
            await asyncio.sleep(0.2)
            assert heard.is_set()

        await eventually(told)


async def test_nats(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    users = [nats_user(capsys, "shop", *WORDS), '{ user: operator, password: "secret" }']
    async with nats_of(tmp_path, *users) as (server, urls):
        await supplies(f"nats://operator:secret@{server.address}", urls["shop"])
        assert violations(server) == []
        async with connected(urls["shop"]) as broker, Exchange(broker) as exchange:
            serving = exchange.serve(address.supply(CONTROL), "supply", _nothing, recoverable=False)
            async with serving:
                await eventually(lambda: _refused(violations(server), f"mesh.{CONTROL}.supply"))


async def _nothing(request: object) -> None:
    raise AssertionError("nobody may ask here")


def _refused(told: list[str], what: str) -> None:
    assert any(what in each for each in told), told


async def test_redis(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    async with redis_of(tmp_path) as (admin, urls):
        await allow(admin, redis_user(capsys, "shop", *WORDS))
        port = admin.connection_pool.connection_kwargs["port"]
        await supplies(f"redis://127.0.0.1:{port}", urls["shop"])
        assert await admin.acl_log() == []


async def test_rabbitmq(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    async with rabbitmq_of(tmp_path, *rabbitmq_user(capsys, "shop", *WORDS)) as (logs, urls):
        await supplies(urls["shop"].partition("?")[0].replace("shop:secret", "guest:guest"), urls["shop"])
        assert "access_refused" not in "".join(each.read_text() for each in logs.iterdir())
