"""Which nodes there are: asked every few seconds while somebody looks, once for all who do, and never else."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager, suppress

from mesh.errors import BrokerUnavailableError, MeshError
from mesh.node.description import Node
from mesh.tasks import task_group

__all__ = ["Presence"]

logger = logging.getLogger(__name__)

INTERVAL = 3.0
FIRST_SECONDS, SECONDS = 0.5, 1.5
A_SECOND = 50  # Answers, of nodes beyond which questions are rarer.
MISSED = 2  # Questions in a row that a node may leave unanswered: a busy one is not gone.
MAX_NODES = 5_000
STALE_SECONDS = 10.0


class Presence:
    """What the nodes of a mesh said last.

    Attributes:
        problem: Why the mesh cannot be asked; "" = it can.
        heard: Set once there is news of any kind; then there is another one.
    """

    def __init__(self, ask: Callable[[float], Awaitable[Sequence[Node]]]) -> None:
        """Know of none yet.

        Args:
            ask: Asks all nodes and listens for so many seconds; may raise ``MeshError``.
        """
        self._ask = ask
        self._nodes: dict[str, Node] = {}
        self._missed: dict[str, int] = {}
        self._at: float | None = None
        self._lookers = 0
        self._looked = asyncio.Event()
        self.problem = ""
        self.heard = asyncio.Event()

    @property
    def nodes(self) -> Mapping[str, Node]:
        """The nodes, by their id."""
        return self._nodes

    @property
    def fresh(self) -> bool:
        """Whether what is known is not of old."""
        return not self._stale

    @contextmanager
    def looking(self) -> Iterator[None]:
        """Have the mesh asked while entered."""
        self._lookers += 1
        self._looked.set()
        try:
            yield
        finally:
            self._lookers -= 1
            if not self._lookers:
                self._looked.clear()

    async def current(self, deadline: float) -> Mapping[str, Node]:
        """Give the nodes as they are now.

        Args:
            deadline: Seconds of the loop's clock.

        Raises:
            BrokerUnavailableError: The mesh does not answer.
        """
        with self.looking(), suppress(TimeoutError):
            async with asyncio.timeout_at(deadline):
                while self._stale:
                    await self.heard.wait()
                    if self.problem:  # Now, and not when somebody looked last.
                        break
        if self._stale:
            raise BrokerUnavailableError(self.problem or "no node of the mesh has answered in time")
        return self._nodes

    @property
    def _stale(self) -> bool:
        return self._at is None or asyncio.get_running_loop().time() - self._at > STALE_SECONDS

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Ask while entered, as far as somebody looks."""
        async with task_group() as tasks:
            asking = tasks.create_task(self._run(), name="dashboard-presence")
            try:
                yield
            finally:
                asking.cancel()

    async def _run(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            await self._looked.wait()
            began = loop.time()
            if self._stale:  # What is known of old may be wrong altogether.
                self._nodes, self._missed = {}, {}
            await self._look(FIRST_SECONDS if self._stale or self._missed else SECONDS)
            heard, self.heard = self.heard, asyncio.Event()
            heard.set()
            wait = FIRST_SECONDS if self._missed else max(INTERVAL, len(self._nodes) / A_SECOND)
            await asyncio.sleep(max(FIRST_SECONDS, began + wait - loop.time()))

    async def _look(self, seconds: float) -> None:
        try:
            answered = {each.id: each for each in (await self._ask(seconds))[:MAX_NODES]}
        except MeshError as error:
            logger.debug("the mesh cannot be asked: %s", error)
            self.problem = str(error)
            return
        self.problem = ""
        self._at = asyncio.get_running_loop().time()
        missed = {each: self._missed.get(each, 0) + 1 for each in self._nodes if each not in answered}
        self._missed = {each: times for each, times in missed.items() if times < MISSED}
        self._nodes = {**{each: self._nodes[each] for each in self._missed}, **answered}
