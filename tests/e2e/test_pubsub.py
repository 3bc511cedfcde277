"""Publisher, subscriber and dead letters, as a user declares them in YAML."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import NamedTuple

import aiohttp
import pytest

from tests.support.eventually import eventually
from tests.support.mesh import AppProcess, GatewayProcess

RESOURCES = """
apiVersion: dapr.io/v1alpha1
kind: Component
metadata:
  name: pubsub
spec:
  type: pubsub.mesh
  version: v1
---
apiVersion: dapr.io/v2alpha1
kind: Subscription
metadata:
  name: orders
spec:
  pubsubname: pubsub
  topic: orders
  routes:
    rules:
      - match: event.type == "order.cancelled"
        path: /events/cancelled
      - match: int(event.data.amount) > 100
        path: /events/large
    default: /events/small
  deadLetterTopic: failed
scopes: [shop]
---
apiVersion: dapr.io/v1alpha1
kind: Subscription
metadata:
  name: failed
spec:
  pubsubname: pubsub
  topic: failed
  route: /events/dead
scopes: [operations]
---
apiVersion: dapr.io/v1alpha1
kind: Resiliency
metadata:
  name: retries
spec:
  policies:
    retries:
      short:
        policy: constant
        duration: 100ms
        maxRetries: 2
  targets:
    components:
      pubsub:
        inbound:
          retry: short
scopes: [shop]
"""


class Shop(NamedTuple):
    shop: AppProcess
    operations: AppProcess
    publisher: GatewayProcess


@pytest.fixture
async def shop(mesh_home: Path) -> AsyncIterator[Shop]:
    """Two subscribing applications and a publisher that has none."""
    resources = mesh_home / "resources"
    resources.mkdir()
    (resources / "all.yaml").write_text(RESOURCES)
    arguments = ["--resources-path", str(resources)]
    async with (
        AppProcess(mesh_home) as first,
        AppProcess(mesh_home) as second,
        GatewayProcess("publisher", mesh_home, arguments=arguments) as publisher,
        GatewayProcess("shop", mesh_home, app=first, arguments=arguments),
        GatewayProcess("operations", mesh_home, app=second, arguments=arguments),
    ):
        yield Shop(first, second, publisher)


async def publish(gateway: GatewayProcess, event: object, content_type: str = "application/json") -> None:
    async with (
        aiohttp.ClientSession() as session,
        session.post(
            f"{gateway.api}/publish/pubsub/orders", json=event, headers={"Content-Type": content_type}
        ) as response,
    ):
        assert response.status == 204, await response.text()


async def test_rules_choose_the_route(shop: Shop) -> None:
    """By data, by an attribute of an event that the application made, and else the default."""
    await publish(shop.publisher, {"id": "a", "amount": 5})
    await publish(shop.publisher, {"id": "b", "amount": 500})
    own = {
        "specversion": "1.0",
        "id": "own",
        "source": "test",
        "type": "order.cancelled",
        "data": {"id": "c", "amount": 5},
    }
    await publish(shop.publisher, own, "application/cloudevents+json")

    def check() -> None:
        assert {kind: shop.shop.recorded(kind) for kind in ("small", "large", "cancelled")} == {
            "small": ["a"],
            "large": ["b"],
            "cancelled": ["c"],
        }

    await eventually(check, 40.0)


async def test_what_fails_is_tried_again_and_then_dead_lettered(shop: Shop) -> None:
    """Three attempts by policy, then another application finds it in the dead letter topic; others are undisturbed."""
    await publish(shop.publisher, {"id": "bad", "amount": 1, "status": 500})
    await publish(shop.publisher, {"id": "dropped", "amount": 1, "status": 404})
    await publish(shop.publisher, {"id": "good", "amount": 1})

    def check() -> None:
        assert sorted(shop.operations.recorded("dead")) == ["bad", "dropped"]
        assert sorted(shop.shop.recorded("small")) == ["bad", "bad", "bad", "dropped", "good"]

    await eventually(check, 40.0)


async def test_an_event_that_no_rule_can_read_is_dead_lettered(shop: Shop) -> None:
    """Where there is a topic for it, somebody can look at it."""
    await publish(shop.publisher, {"id": "odd", "amount": "many"})

    def check() -> None:
        assert shop.operations.recorded("dead") == ["odd"]

    await eventually(check, 40.0)
    assert shop.shop.recorded("small") == []
