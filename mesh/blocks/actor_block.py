"""The row of actors in the table of building blocks."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mesh.blocks.actors import (
    DEACTIVATE,
    DELETE_REMINDER,
    DELETE_REMINDERS,
    DELETE_TIMER,
    GET_REMINDER,
    GET_STATE,
    INVOKE,
    LIST_REMINDERS,
    LIST_TYPES,
    SET_REMINDER,
    SET_TIMER,
    SHOW,
    TRANSACT,
)
from mesh.blocks.block import Block

if TYPE_CHECKING:
    from collections.abc import Mapping

    from mesh.blocks.actor_service import ActorService
    from mesh.blocks.block import Opened, Parts

__all__ = ["BLOCK"]


def _start(block: Block, parts: Parts, components: Mapping[str, Opened]) -> ActorService:
    from mesh.blocks.actor_service import ActorService  # With all that owners need, for nodes alone.

    return ActorService(block, parts, components)


BLOCK = Block(
    "actors",
    (
        INVOKE,
        GET_STATE,
        TRANSACT,
        SET_TIMER,
        DELETE_TIMER,
        SET_REMINDER,
        GET_REMINDER,
        DELETE_REMINDER,
        LIST_REMINDERS,
        DELETE_REMINDERS,
        DEACTIVATE,
        LIST_TYPES,
        SHOW,
    ),
    _start,
    policy=lambda policies, target: policies.for_actor(target),
)
