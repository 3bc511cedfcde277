"""A gateway that is a bridge: the node on the other backbone, and the file with what is carried."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from gateway.reload import look, watching
from gateway.settings import Reader
from mesh.bridge.bridge import Bridge
from mesh.bridge.side import Side
from mesh.errors import BrokerUnavailableError, ConfigError
from mesh.node.runtime import Runtime
from mesh.registry import Registry
from mesh.tasks import drained_within, task_group

if TYPE_CHECKING:
    from gateway.bridge_file import BridgeFile
    from gateway.config import BridgeConfig

__all__ = ["Bridging"]

logger = logging.getLogger(__name__)

LOOK_SECONDS = 1.0


class Bridging:
    """The bridge of a gateway process, whose own node is on the one side."""

    def __init__(self, config: BridgeConfig, near: Runtime, grace: Callable[[], float]) -> None:
        """Prepare.

        Args:
            config: What it is told.
            near: The gateway's node, entered.
            grace: Gives the seconds for what is in flight at the end.
        """
        self._config, self._near, self._grace = config, near, grace
        self._bridge: Bridge | None = None
        self._far: Runtime | None = None
        self._ending = asyncio.Event()
        self._complained = ""

    @property
    def works(self) -> bool:
        """Whether both sides were connected."""
        return self._bridge is not None

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Join the two sides while entered, once the other backbone is there; leaving drains.

        Raises:
            BrokerUnavailableError: Later; its connection to the other backbone is over for good.
            ConfigError: Something is wrong with what the other side was given.
        """
        async with task_group() as tasks:
            work = tasks.create_task(self._work(), name="bridge-work")
            try:
                yield
            finally:
                self._ending.set()
                if self._bridge is None:
                    work.cancel()

    async def _work(self) -> None:
        config, peer = self._config, self._config.peer
        reader = Reader(peer)
        looked = look(reader.paths)
        settings = replace(
            await asyncio.to_thread(reader.load),
            observer=self._near.settings.observer,
            backbone_from=config.peer_from,
        )
        reader.log_warnings()
        async with AsyncExitStack() as stack:
            far = self._far = await stack.enter_async_context(Runtime(settings, Registry(), grace=self._grace))
            sides = Side(config.cluster, self._near), Side(config.peer_cluster, far)
            bridge = Bridge(*sides, config.routes)
            running = drained_within(bridge.running(), self._grace, "what was on its way over the bridge")
            await stack.enter_async_context(running)
            self._bridge = bridge
            logger.info("bridge between %s and %s, backbone %s", config.cluster, config.peer_cluster, far.backbone)
            await stack.enter_async_context(watching(reader, looked, far.reload))
            async with task_group() as tasks:
                looking = [tasks.create_task(each, name="bridge-look") for each in (self._lost(far), self._reload())]
                await self._ending.wait()
                for each in looking:
                    each.cancel()

    @staticmethod
    async def _lost(far: Runtime) -> None:
        raise BrokerUnavailableError(await far.until_lost())

    async def _reload(self) -> None:
        """Carry by other lists when the file has others."""
        file = self._config.file
        if file is None:
            return
        seen = await asyncio.to_thread(look, [file])
        while True:
            await asyncio.sleep(LOOK_SECONDS)
            now = await asyncio.to_thread(look, [file])
            if now != seen:
                seen = now
                await self._take(file)

    async def _take(self, file: Path) -> None:
        from gateway.bridge_file import read_bridge_file

        try:
            found = await asyncio.to_thread(read_bridge_file, file)
        except (ConfigError, OSError) as error:
            problems = error.problems if isinstance(error, ConfigError) else (error,)
            told = "; ".join(map(str, problems))
            if told != self._complained:
                logger.error("the bridge carries what it did: %s", told)  # noqa: TRY400 - the problems say it all
            self._complained = told
            return
        self._complained = ""
        if self._sides_of(found) != self._config.sides:
            logger.warning("%s: what it says of 'from' and 'to' takes effect with the next start", file)
        if self._bridge is not None:
            self._bridge.apply(found.routes)
            logger.info("%s: the bridge carries by its lists from here on", file)

    @staticmethod
    def _sides_of(found: BridgeFile) -> object:
        return found.from_, found.to

    def described(self) -> Mapping[str, object]:
        """Tell how it is, for metadata."""
        if self._bridge is not None:
            return self._bridge.described()
        text = f"the backbone of {self._config.peer_cluster} was not there yet"
        return {"sides": [], "apps": [], "topics": [], "problems": [text]}

    def conditions(self) -> Sequence[dict[str, object]]:
        """Tell what is not as it should be on the other side, for ``mesh status``."""
        if self._bridge is None or self._far is None:
            return ()
        cluster = self._config.peer_cluster
        return [{**each, "target": f"{each['target']} ({cluster})"} for each in self._far.conditions.described()]
