"""Having the application let go of actors, in a time that is bounded, however many there are."""

from __future__ import annotations

import asyncio
import logging
import math

from mesh.actors.host import ActorHost, Turn, TurnKind
from mesh.errors import AppUnreachableError, MeshError

__all__ = ["DEACTIVATE_SECONDS", "DEAF_AFTER", "DEAF_SECONDS", "Deactivating"]

logger = logging.getLogger(__name__)

DEACTIVATE_SECONDS = 10.0
DEAF_AFTER = 3  # Deactivations in a row that the application did not answer.
DEAF_SECONDS = 60.0  # It is asked no more for so long: many thousands would take hours to leave.
AT_ONCE = 100


class Deactivating:
    """Asks an application to let go of actors of a type; one that does not answer is left alone for a while."""

    def __init__(self, type_: str) -> None:
        """Begin with one that answers."""
        self._type = type_
        self._free = asyncio.Semaphore(AT_ONCE)
        self._unanswered = 0  # In a row.
        self._deaf_until = -math.inf  # By the loop's clock.

    def hears(self) -> None:
        """Take note that the application answers, or that it is another one."""
        self._unanswered, self._deaf_until = 0, -math.inf

    async def ask(self, host: ActorHost, id_: str) -> None:
        """Have it let go of an actor; what fails is logged, and counts as done."""
        async with self._free:
            if asyncio.get_running_loop().time() >= self._deaf_until:
                await self._ask(host, id_)

    async def _ask(self, host: ActorHost, id_: str) -> None:
        try:
            async with asyncio.timeout(DEACTIVATE_SECONDS):
                answer = await host.turn(Turn(TurnKind.DEACTIVATION, self._type, id_))
        except AppUnreachableError:
            return  # It is gone, and what it remembered with it.
        except TimeoutError:
            self._missed(id_)
            return
        except MeshError as error:
            logger.warning("the application did not deactivate actor %s/%s: %s", self._type, id_, error)
            return
        self.hears()
        if answer.status != 200:
            logger.warning(
                "the application answered %d to the deactivation of actor %s/%s", answer.status, self._type, id_
            )

    def _missed(self, id_: str) -> None:
        now = asyncio.get_running_loop().time()
        self._unanswered += 1
        if self._unanswered < DEAF_AFTER:
            logger.warning(
                "the application did not deactivate actor %s/%s: no answer within %g s",
                self._type,
                id_,
                DEACTIVATE_SECONDS,
            )
        elif now >= self._deaf_until:
            self._deaf_until = now + DEAF_SECONDS
            logger.warning(
                "the application does not deactivate actors of type %s: it is asked no more for %g s",
                self._type,
                DEAF_SECONDS,
            )
