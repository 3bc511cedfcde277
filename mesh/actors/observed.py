"""A host of actors whose turns are told to an observer."""

from __future__ import annotations

import asyncio
import time

from mesh.actors.host import ActorHost, Turn, TurnAnswer
from mesh.errors import MeshError
from mesh.passing import NOBODY, Part, Passing, Taps
from mesh.telemetry import ACTOR_TURNS, CANCELLED, FAILED, OK, Observer, trace_header

__all__ = ["ObservedHost"]


class ObservedHost:
    """See ``mesh.actors.host.ActorHost``.

    Attributes:
        settings: The types.
    """

    def __init__(self, host: ActorHost, observer: Observer, taps: Taps = NOBODY) -> None:
        """Tell of each turn of a host, and those who watch the node as well."""
        self.settings = host.settings
        self._host = host
        self._observer = observer
        self._taps = taps

    async def turn(self, turn: Turn) -> TurnAnswer:
        """Have an actor do something, and tell how it ended, and how long it took."""
        started, outcome, reason = time.perf_counter(), FAILED, ""
        passing = _passing(turn) if self._taps.on else None
        try:
            answer = await self._host.turn(turn)
            if passing is not None:
                passing.answered(answer.status, answer.headers, answer.body)
            if answer.status == 200:
                outcome = OK
            return answer
        except MeshError as error:
            outcome, reason = error.code, str(error)
            raise
        except asyncio.CancelledError:
            outcome = CANCELLED
            raise
        finally:
            if passing is not None:
                passing.ends(outcome, reason)
                self._taps.tell(passing)
            self._observer(ACTOR_TURNS, (turn.type, turn.kind.value, outcome), 1, time.perf_counter() - started)


def _passing(turn: Turn) -> Passing:
    """Begin with what is told of a turn."""
    passing = Passing("turn", "actors", turn.kind.value, f"{turn.type}/{turn.id}")
    passing.traceparent = trace_header(turn.headers) or ""
    passing.details |= {"type": turn.type, "id": turn.id}
    if turn.name:
        passing.details["name"] = turn.name
    passing.request = Part(turn.headers, body=turn.body)
    return passing
