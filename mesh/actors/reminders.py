"""Reminders of actors: durable timers (`mesh/timers`) that fire as turns, and wake their actor."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import TYPE_CHECKING

import msgspec

from mesh.actors.errors import ActorBusyError, TurnNotWantedError
from mesh.actors.host import CANCEL_HEADER, Turn, TurnKind
from mesh.errors import DeadlineExceededError, MeshError
from mesh.ownership.errors import NotOwnerError
from mesh.timers import Outcome, Timer

if TYPE_CHECKING:
    from mesh.actors.hosted import HostedType

__all__ = ["MAX_DATA_BYTES", "Written", "remind", "written"]

logger = logging.getLogger(__name__)

MAX_DATA_BYTES = 512 * 1024
OK = 200


class Written(msgspec.Struct, frozen=True):
    """What the record of a reminder keeps for the application.

    Attributes:
        data: JSON; empty for none.
        due_time: As the application wrote it.
        period: As the application wrote it.
        ttl: As the application wrote it.
    """

    data: bytes = b""
    due_time: str = ""
    period: str = ""
    ttl: str = ""

    def encode(self) -> bytes:
        """Write it."""
        return msgspec.msgpack.encode(self)


def written(data: bytes) -> Written:
    """Read what ``Written.encode`` wrote; raises ValueError."""
    if len(data) > 2 * MAX_DATA_BYTES:
        raise ValueError("a reminder's data are too large")
    return msgspec.msgpack.decode(data, type=Written)


async def remind(hosted: HostedType, partition: int, timer: Timer, wanted: Callable[[], bool] | None = None) -> Outcome:
    """Have an actor take the turn of a reminder that is due, unless it is not ``wanted`` any more when that begins."""
    try:
        data = written(timer.data).data
    except ValueError as error:
        logger.warning("reminder %s of actor %s/%s cannot be read: %s", timer.name, hosted.name, timer.key, error)
        return Outcome.FAILED
    turn = Turn(TurnKind.REMINDER, hosted.name, timer.key, timer.name, hosted.chained(()), data, wanted=wanted)
    try:
        answer = await hosted.turn(turn, partition)
    except (NotOwnerError, ActorBusyError):
        return Outcome.AWAY
    except (DeadlineExceededError, TurnNotWantedError):
        return Outcome.BUSY
    except MeshError as error:
        logger.warning("reminder %s of actor %s/%s: %s", timer.name, hosted.name, timer.key, error)
        return Outcome.FAILED
    if answer.status != OK:
        logger.warning(
            "reminder %s of actor %s/%s: the application answered %d",
            timer.name,
            hosted.name,
            timer.key,
            answer.status,
        )
        return Outcome.FAILED
    return Outcome.CANCEL if (answer.header(CANCEL_HEADER) or "").lower() == "true" else Outcome.DONE
