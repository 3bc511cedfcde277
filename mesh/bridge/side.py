"""One side of a bridge: a node on the backbone of a cluster."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, cast

from mesh.blocks.pubsub import PubSub
from mesh.blocks.topics import PubSubComponent
from mesh.broker import SubscribeOptions
from mesh.errors import BrokerError, ComponentNotFoundError, FeatureNotSupportedError
from mesh.telemetry import BRIDGED

if TYPE_CHECKING:
    from mesh.blocks.block import Parts
    from mesh.node.runtime import Runtime

__all__ = ["HOLD_SECONDS", "MAX_IN_FLIGHT", "Side"]

logger = logging.getLogger(__name__)

MAX_IN_FLIGHT = 256
HOLD_SECONDS = 600.0  # So long what is stored waits here for the other side; then its broker hands it out again.
LOOK_SECONDS = 2.0
CHECK_SECONDS = 5.0


class Side:
    """A side.

    Attributes:
        cluster: Its name.
        runtime: Its node.
        parts: What the node gives its blocks.
    """

    def __init__(self, cluster: str, runtime: Runtime) -> None:
        """Use a node that is entered."""
        self.cluster = cluster
        self.runtime = runtime
        self.parts: Parts = runtime.parts
        self._away_since: float | None = None
        self._reason = ""

    @property
    def namespace(self) -> str:
        """The namespace that it bridges."""
        return self.parts.caller.namespace

    @property
    def app_id(self) -> str:
        """Its app id."""
        return self.parts.caller.app_id

    def component(self, name: str) -> PubSubComponent:
        """Find a pub/sub component of the node whose topics can be bridged.

        Raises:
            ComponentNotFoundError: There is none of the name.
            FeatureNotSupportedError: Its messages have no place for the clusters that they have passed.
        """
        found = cast("PubSub", self.runtime.services["pubsub"]).components.get(name)
        if found is None:
            raise ComponentNotFoundError(name, f"the bridge has no pub/sub component {name!r} in {self.cluster}")
        if found.broker.features.layout != "mesh":
            text = "bridged topics in the native layout: what they have passed, which ends loops, has no place there"
            raise FeatureNotSupportedError(found.broker.features.name, text)
        return found

    def options(self, component: PubSubComponent | None = None) -> SubscribeOptions:
        """Say how bridges take what is stored: they compete, and keep the order of each key where the broker does."""
        if component is None:
            return SubscribeOptions(self.app_id, max_in_flight=MAX_IN_FLIGHT)
        ordered = component.broker.features.ordering
        return SubscribeOptions(component.group, max_in_flight=MAX_IN_FLIGHT, ordered=ordered)

    def count(self, what: str, to: str, of: str, outcome: str) -> None:
        """Count something that came from this side."""
        self.parts.observer(BRIDGED, (what, self.cluster, to, of, outcome))

    async def until_back(self, until: float, stopping: asyncio.Event) -> bool:
        """Wait for the backbone's connection; False when there is none by then (Unix time), or the bridge ends."""
        while not stopping.is_set() and (now := time.time()) < until:
            if await self.parts.exchange.comeback.by(min(until, now + LOOK_SECONDS)):
                return not stopping.is_set()
        return False

    async def watch(self, other: Callable[[], str]) -> None:
        """Look now and then whether the backbone answers, and say when that changes, until cancelled."""
        while True:
            try:
                async with asyncio.timeout(CHECK_SECONDS):
                    await self.parts.broker.check()
            except (BrokerError, TimeoutError) as error:
                self._reason = str(error) or f"no answer for {CHECK_SECONDS:g} s"
                if self._away_since is None:
                    self._away_since = time.time()
                    text = "the backbone of %s is away: %s; what %s sends it waits there"
                    logger.warning(text, self.cluster, self._reason, other())
            else:
                if self._away_since is not None:
                    lasted = time.time() - self._away_since
                    logger.info("the backbone of %s is back after %.3g s", self.cluster, lasted)
                    self._away_since, self._reason = None, ""
            await asyncio.sleep(LOOK_SECONDS)

    def described(self) -> Mapping[str, object]:
        """Tell how it is, for metadata."""
        told: dict[str, object] = {
            "cluster": self.cluster,
            "namespace": self.namespace,
            "backbone": self.runtime.backbone,
            "connected": self._away_since is None,
        }
        if self._away_since is not None:
            told |= {"awaySeconds": round(time.time() - self._away_since, 1), "reason": self._reason}
        return told
