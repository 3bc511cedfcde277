"""How the application's side of actors is reached; what a turn is."""

from __future__ import annotations

from collections.abc import Callable
from enum import StrEnum
from typing import TYPE_CHECKING, Protocol

import msgspec

from mesh.application import Headers

if TYPE_CHECKING:
    from mesh.actors.settings import HostSettings

__all__ = [
    "CANCEL_HEADER",
    "ERROR_HEADER",
    "REENTRANCY_HEADER",
    "TURN_HEADER",
    "ActorHost",
    "Turn",
    "TurnAnswer",
    "TurnKind",
]

CANCEL_HEADER = "x-daprremindercancel"
"""Of an answer: the reminder or timer is not to fire again."""
ERROR_HEADER = "x-daprerrorresponseheader"
"""Of an answer with status 200: it is an error of the actor's own, for its caller as it is."""
REENTRANCY_HEADER = "dapr-reentrancy-id"
"""Of a call: the chain of calls that it belongs to."""
TURN_HEADER = "mesh-turn-id"
"""Of each turn: ``<epoch>-<number>``; of one actor both rise, so that what is outside can refuse an owner of before."""


class TurnKind(StrEnum):
    """Why the application is called."""

    METHOD = "method"
    REMINDER = "reminder"
    TIMER = "timer"
    DEACTIVATION = "deactivation"


class Turn(msgspec.Struct, frozen=True):
    """What an actor is to do.

    Attributes:
        kind: Why.
        type: The actor's.
        id: The actor's.
        name: Of the method, reminder or timer; empty for a deactivation.
        headers: Sent with it; the chain of calls and the turn's id are among them.
        body: Of a method the bytes as sent; of a reminder or timer the JSON of its data, empty for none.
        query: Of a method, raw.
        callback: Of a timer.
        due_time: Of a timer, as it was set.
        period: Of a timer, as it was set.
        wanted: Tells, when it begins, whether it still is; None = it is.
    """

    kind: TurnKind
    type: str
    id: str
    name: str = ""
    headers: Headers = ()
    body: bytes = b""
    query: str = ""
    callback: str = ""
    due_time: str = ""
    period: str = ""
    wanted: Callable[[], bool] | None = None


class TurnAnswer(msgspec.Struct, frozen=True):
    """What the application answered.

    Attributes:
        status: As over HTTP: 200 is success, and nothing else is; 404 = there is no such method.
        headers: Of it; ``CANCEL_HEADER`` and ``ERROR_HEADER`` among them mean something.
        body: The bytes.
    """

    status: int = 200
    headers: Headers = ()
    body: bytes = b""

    def header(self, name: str) -> str | None:
        """Give a header by its lower-case name."""
        return next((value for given, value in self.headers if given.lower() == name), None)


class ActorHost(Protocol):
    """An application that hosts actors, for as long as it is there: on a port of its own, or on a stream to us.

    Attributes:
        settings: The types, and what it says of them.
    """

    settings: HostSettings

    async def turn(self, turn: Turn) -> TurnAnswer:
        """Have an actor do something. Cancelled, it is no longer waited for, and may still do it.

        Raises:
            AppUnreachableError: Nothing reached the application.
            AppFailedError: It broke off.
        """
