"""Topics of one side whose events go to the other.

An event is acknowledged on its own side once the other side has confirmed it. While that is away, it is held, and its
broker keeps those behind it. It goes along as it was published, with its id, its key and its trace, and with the
clusters that it has been in (``meshpath``): one that would come back to any of them, or has, is done with. So no loop
of bridges has it go round, whatever they call the clusters.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager

from msgspec.structs import replace

from mesh.blocks.proofs import UNKNOWN
from mesh.blocks.topics import PubSubComponent
from mesh.bridge.routes import TopicRoute
from mesh.bridge.side import HOLD_SECONDS, Side
from mesh.broker import Delivery, Features, Message
from mesh.delivery import SUCCESS, Attempt, Outcome, Settlement
from mesh.errors import BrokerError, BrokerUnavailableError, MeshError, PermissionDeniedError, UnprovenError
from mesh.event import decode_header_value, encode_header_value
from mesh.operation import Arrival

__all__ = ["Forwarding", "looped", "moved", "path_of"]

PUBLISH_SECONDS = 10.0
PATH, PUBLISHER = "meshpath", "meshpublisher"
_BESIDE = {PATH: "mesh-path", PUBLISHER: "mesh-publisher"}  # Of what is no event of a gateway's making.
_PROOFS = ("mesh-sign", "mesh-passed-")  # By whom it was stored on its own side.


class Forwarding:
    """Carries the events of one topic."""

    def __init__(self, route: TopicRoute, here: Side, there: Side, stopping: asyncio.Event) -> None:
        """Prepare.

        Args:
            route: From where to where.
            here: Where events are published.
            there: Where they go.
            stopping: Set when the bridge ends: what waits for the other side is handed back then.
        """
        self._route, self._here, self._there, self._stopping = route, here, there, stopping

    @asynccontextmanager
    async def running(self) -> AsyncIterator[tuple[asyncio.Event, ...]]:
        """Carry events while entered; gives what is set when a component is about to be another one.

        Raises:
            ComponentNotFoundError: A side has no such component.
            PermissionDeniedError: A scope refuses the topic.
            BrokerError: The broker could not start it.
        """
        route, here, there = self._route, self._here, self._there
        source, target = here.component(route.component), there.component(route.to_component)
        if not source.scopes.may_subscribe(here.app_id, route.topic):
            raise PermissionDeniedError(f"topic {route.topic} is not allowed for app id {here.app_id}")
        if not target.scopes.may_publish(there.app_id, route.to_topic):
            raise PermissionDeniedError(f"topic {route.to_topic} is not allowed for app id {there.app_id}")
        label = f"{route.component}/{route.topic}"
        options, inbound = here.options(source), here.parts.inbound

        async def deliver(arrival: Arrival) -> Attempt:
            return await self._forward(arrival.what, source, target)

        settlement = Settlement(
            inbound.towards(deliver, "event", label),
            retry=None,
            dead_letter=None,
            count=lambda outcome: None,
            ack_wait=options.ack_wait,
            condition=inbound.conditions.of("event", label),
            scheduled=not target.broker.features.delay,  # Else the other side holds it until its time.
        )
        async with AsyncExitStack() as stack:
            stack.enter_context(here.parts.lives[route.component])
            stack.enter_context(there.parts.lives[route.to_component])
            await stack.enter_async_context(settlement.extending())
            subscribed = source.broker.subscribe(source.address(route.topic), options, settlement)
            await stack.enter_async_context(subscribed)
            yield source.leaving, target.leaving

    async def _forward(self, delivery: Delivery, source: PubSubComponent, target: PubSubComponent) -> Attempt:
        here, there, message = self._here, self._there, delivery.message
        path = path_of(message.headers, source.broker.features)
        if looped(path, here.cluster, there.cluster):
            self._count("looped")
            return SUCCESS
        publisher = ""
        if source.proofs is not None:
            try:
                publisher = source.proofs.publisher(source.wire.signed(delivery), lenient=False, letters=False)
            except UnprovenError as error:
                self._count("unproven")
                return Attempt(Outcome.DROP, str(error))
        features = source.broker.features, target.broker.features
        said = {PATH: ",".join((*path, here.cluster))}
        if publisher not in ("", UNKNOWN):
            said[PUBLISHER] = publisher
        going = moved(message, *features, said)
        attempt = await self._stored(going, target)
        again = "_again" if delivery.attempt > 1 else ""
        self._count(f"carried{again}" if attempt is SUCCESS else "failed")
        return attempt

    def _count(self, outcome: str) -> None:
        self._here.count("event", self._there.cluster, f"{self._route.component}/{self._route.topic}", outcome)

    async def _stored(self, message: Message, target: PubSubComponent) -> Attempt:
        """Publish on the other side; while that is away, wait for it."""
        where, until = target.address(self._route.to_topic), time.time() + HOLD_SECONDS
        while True:
            try:
                signed = message
                if target.proofs is not None:
                    signed = target.wire.sign(target.proofs.prove, where, message)
                async with asyncio.timeout(PUBLISH_SECONDS):
                    await target.broker.publish(where, signed)
            except (BrokerUnavailableError, TimeoutError) as error:
                if not await self._there.until_back(until, self._stopping):
                    reason = str(error) or f"no confirmation within {PUBLISH_SECONDS:g} s"
                    return Attempt(Outcome.RETRY, f"{self._there.cluster}: {reason}", broken=True)
            except BrokerError as error:
                return Attempt(Outcome.RETRY, f"{self._there.cluster}: {error}", broken=True)
            except MeshError as error:
                return Attempt(Outcome.RETRY, str(error))
            else:
                return SUCCESS


def path_of(headers: Mapping[str, str], features: Features) -> tuple[str, ...]:
    """Give the clusters that an event has been in, in order."""
    text = headers.get(features.event_prefix + PATH) or headers.get(_BESIDE[PATH], "")
    return tuple(filter(None, decode_header_value(text).split(",")))


def looped(path: Sequence[str], here: str, there: str) -> bool:
    """Tell whether an event has been where it would go, or comes back: where two bridges name a cluster differently."""
    return there in path or here in path


def moved(message: Message, source: Features, target: Features, said: Mapping[str, str]) -> Message:
    """Give a message as it goes to the other side.

    Args:
        message: As it was published, and proven.
        source: Of its broker.
        target: Of the other one.
        said: What the bridge says of it, by attributes.
    """
    own = {*_BESIDE.values(), *(source.event_prefix + name for name in _BESIDE)}
    headers: dict[str, str] = {}
    for name, value in message.headers.items():
        if name in own or name.startswith(_PROOFS):
            continue
        if name.startswith(source.event_prefix):
            name = target.event_prefix + name.removeprefix(source.event_prefix)
        headers[name] = value
    is_event = f"{target.event_prefix}specversion" in headers
    for name, text in said.items():
        headers[target.event_prefix + name if is_event else _BESIDE[name]] = encode_header_value(text)
    return replace(message, headers=headers)
