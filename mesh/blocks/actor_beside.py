"""What an actor's own turn asks for, where its gateway is several processes.

State and timers are those of an activation, and it is in one of the processes; but the application's call comes to any
of them, as clients' connections do. So the process that has no such activation asks the others.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, cast

import msgspec

from mesh.blocks.actors import DELETE_TIMER, SET_TIMER, TRANSACT, Transact
from mesh.error_wire import from_wire, to_wire
from mesh.errors import MeshError
from mesh.operation import Caller, Context, Method, Operation
from mesh.part import Part
from mesh.store import Item

__all__ = ["Beside"]

NAME = "actor"
_METHODS: Mapping[str, Method] = {each.name: each for each in (TRANSACT, SET_TIMER, DELETE_TIMER)}


class Beside:
    """The other processes of the gateway."""

    def __init__(
        self,
        part: Part,
        caller: Caller,
        run: Callable[[Operation], Awaitable[object]],
        is_here: Callable[[str, str], bool],
    ) -> None:
        """Answer them.

        Args:
            part: This process.
            caller: The application.
            run: Does what is asked here.
            is_here: Tells whether an actor is active here, by type and id.
        """
        self._part, self._caller, self._run, self._is_here = part, caller, run, is_here
        part.answers[NAME] = self._answer

    async def did(self, operation: Operation) -> bool:
        """Tell whether another process has done it, since the actor is active there; raises what it came to there."""
        method, target = operation.method.name, operation.target
        if method not in _METHODS or self._is_here(target, cast("str", getattr(operation.arguments, "id", ""))):
            return False
        for told in await self._part.others(NAME, method, target, _plain(operation.arguments)):
            if told:
                raise from_wire(told)
            if told is not None:
                return True
        return False

    async def _answer(self, name: str, target: str, plain: Sequence[Any]) -> Mapping[str, object] | None:
        """Do what another process was asked; gives None if the actor is not active here, and a failure."""
        method = _METHODS[name]
        if not self._is_here(target, plain[0]):
            return None
        arguments = _made(method.arguments, plain)
        try:
            await self._run(Operation(method, target, arguments, Context(self._caller)))
        except MeshError as error:
            return to_wire(error)
        return {}


def _plain(arguments: object) -> Sequence[object]:
    """Write arguments as plain values; the first is the actor's id."""
    if isinstance(arguments, Transact):
        return arguments.id, [(each.key, each.value, each.ttl) for each in arguments.items]
    return msgspec.structs.astuple(cast("msgspec.Struct", arguments))


def _made(kind: type, plain: Sequence[Any]) -> object:
    if kind is Transact:
        return Transact(plain[0], [Item(*each) for each in plain[1]])
    return kind(*plain)
