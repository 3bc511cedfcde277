"""``mesh doctor`` and ``mesh dlq`` on RabbitMQ as everybody has it: a group's queue of letters, and the server's."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

from gateway.cli import main
from mesh.broker import Delivery, Message, SubscribeOptions
from tests.e2e.test_doctor import COMPONENT, SUBSCRIPTION
from tests.native.test_rabbitmq import at, server, topics
from tests.support.contract import Inbox
from tests.support.eventually import eventually
from tests.support.rabbitmq_server import RabbitMQServer

__all__ = ["server"]


async def test_doctor_and_dlq(server: RabbitMQServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    settings = {"connectionString": server.url, "enableDeadLetter": "true"}
    entries = json.dumps([{"name": name, "value": value} for name, value in settings.items()])
    resources = COMPONENT.format(name="pubsub", type="pubsub.rabbitmq", settings=entries) + SUBSCRIPTION
    (tmp_path / "all.yaml").write_text(resources)

    async def run(*words: str) -> tuple[int, Any, str]:
        capsys.readouterr()
        code = await asyncio.to_thread(main, [*words, "-d", str(tmp_path), "-a", "shop", "-o", "json"])
        out, err = capsys.readouterr()
        return code, json.loads(out) if out else None, err

    async def checks() -> dict[tuple[str, str], Any]:
        _, found, _ = await run("doctor")
        return {(each["what"], each["name"]): each for each in found["checks"]}

    found = await checks()
    assert found["topic", "orders"]["status"] == "note", "it is not there yet, and asking has not made it"
    options = SubscribeOptions("shop", dead_letters=at("failed"))
    async with topics(server.url, enableDeadLetter="true") as ours:
        async with ours.subscribe(at("orders"), options, Inbox(Delivery.reject)):
            await ours.publish(at("orders"), Message({"a": "b"}, b'{"data":{"n":1}}'))
            letter = Message(
                {"mesh-dead-letter-topic": "orders", "mesh-dead-letter-attempts": "3"}, b'{"data":{"n":2}}'
            )
            await ours.publish(at("failed"), letter)

            async def has_letters() -> None:
                found = await checks()
                assert [found["letters", name]["letters"] for name in ("dlq-shop-orders", "failed")] == [1, 1]
                assert found["group", "shop of orders"]["status"] == "ok"

            await eventually(has_letters, within=30.0)

        code, [shown], _ = await run("dlq", "show", "pubsub", "dlq-shop-orders")
        assert (code, shown["topic"], shown["reason"]) == (0, "orders", "rejected")
        code, told, _ = await run("dlq", "replay", "pubsub", "dlq-shop-orders", "--all")
        assert (code, told["replayed"]) == (1, 0), "no subscription names that queue, so somebody has to"
        code, told, _ = await run("dlq", "replay", "pubsub", "dlq-shop-orders", "--all", "--topic", "orders")
        assert (code, told["replayed"]) == (0, 1)
        code, told, _ = await run("dlq", "replay", "pubsub", "failed", "--all")
        assert (code, told["replayed"]) == (0, 1)
        async with topics(server.url) as other, other.subscribe(at("failed"), SubscribeOptions("shop"), Inbox()):
            code, _, err = await run("dlq", "show", "pubsub", "failed")
        assert code == 1
        assert "queue shop-failed on RabbitMQ has consumers (1)" in err
        async with ours.subscribe(at("orders"), options, inbox := Inbox()):
            await inbox.holds(2)
    assert sorted(inbox.bodies) == [b'{"data":{"n":1}}', b'{"data":{"n":2}}']
    assert not any("death" in name or "dead" in name for each in inbox.deliveries for name in each.message.headers)
