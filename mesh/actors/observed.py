"""A host of actors whose turns are told to an observer."""

from __future__ import annotations

import asyncio
import time

from mesh.actors.host import ActorHost, Turn, TurnAnswer
from mesh.errors import MeshError
from mesh.telemetry import ACTOR_TURNS, CANCELLED, FAILED, OK, Observer

__all__ = ["ObservedHost"]


class ObservedHost:
    """See ``mesh.actors.host.ActorHost``.

    Attributes:
        settings: The types.
    """

    def __init__(self, host: ActorHost, observer: Observer) -> None:
        """Tell of each turn of a host."""
        self.settings = host.settings
        self._host = host
        self._observer = observer

    async def turn(self, turn: Turn) -> TurnAnswer:
        """Have an actor do something, and tell how it ended, and how long it took."""
        started, outcome = time.perf_counter(), FAILED
        try:
            answer = await self._host.turn(turn)
            if answer.status == 200:
                outcome = OK
            return answer
        except MeshError as error:
            outcome = error.code
            raise
        except asyncio.CancelledError:
            outcome = CANCELLED
            raise
        finally:
            self._observer(ACTOR_TURNS, (turn.type, turn.kind.value, outcome), 1, time.perf_counter() - started)
