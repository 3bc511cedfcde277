"""A member of a group in a process of its own, to be killed: ``python -m tests.support.member``.

Says ``ready`` once it is subscribed, then the body of each delivery; it settles none of them.
"""

from __future__ import annotations

import asyncio
import json
import sys
from importlib.metadata import entry_points
from pathlib import Path
from typing import cast

from mesh.address import Address, Kind
from mesh.broker import Broker, Delivery, SubscribeOptions
from mesh.registry import Registry
from mesh.resources.component import Component, MetadataEntry


def _broker(url: str) -> Broker:
    scheme, _, rest = url.partition(":")
    if scheme == "pluggable":
        from tests.support.pluggable_server import contract_broker  # With a library that the others do not need.

        return contract_broker(Path(rest))
    if scheme == "component":
        kind, settings = json.loads(rest)
        component = Component("pubsub", kind, tuple(MetadataEntry(*each) for each in settings.items()))
        return cast("Broker", Registry().load(component.type).from_component(component))
    if scheme == "mqtt":
        return cast("Broker", Registry().load("pubsub.mqtt", "mesh").from_url(url))
    [found] = entry_points(group="mesh.components", name=f"backbone.{scheme}")
    return cast("Broker", found.load().from_url(url))


async def _main(url: str, address: str, options: str) -> None:
    space, name, label = json.loads(address)

    async def hold(delivery: Delivery) -> None:
        print(delivery.message.body.decode(), flush=True)
        await asyncio.Event().wait()

    async with (
        _broker(url) as broker,
        broker.subscribe(Address(Kind.TOPIC, space, name, label), SubscribeOptions(**json.loads(options)), hold),
    ):
        print("ready", flush=True)
        await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(_main(*sys.argv[1:]))
