"""Reminders of actors: durable timers (`mesh/timers`) that fire as turns, and wake their actor."""

from __future__ import annotations

import logging
from dataclasses import dataclass

import msgspec

from mesh.actors.host import CANCEL_HEADER, Turn, TurnKind
from mesh.actors.hosted import HostedType
from mesh.errors import AppUnreachableError, MeshError
from mesh.ownership.asking import NotOwnerError
from mesh.timers import FailurePolicy, Outcome, Timer

__all__ = ["MAX_DATA_BYTES", "Written", "firing", "timer_of", "written"]

logger = logging.getLogger(__name__)

MAX_DATA_BYTES = 512 * 1024
OK = 200


@dataclass(frozen=True, slots=True)
class Written:
    """What a reminder's record keeps for the application.

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


def written(timer: Timer) -> Written:
    """Read what a timer keeps; raises ValueError."""
    return msgspec.msgpack.decode(timer.data, type=Written)


def timer_of(id_: str, name: str, made: Timer, what: Written) -> Timer:
    """Put what is written into a timer."""
    return Timer(id_, name, made.timing, made.policy, msgspec.msgpack.encode(what))


def firing(hosted: HostedType, partition_of: object) -> object:
    """Placeholder."""
    raise NotImplementedError


_ = (CANCEL_HEADER, Turn, TurnKind, AppUnreachableError, MeshError, NotOwnerError, FailurePolicy, Outcome)
