"""The service of a block whose work is done by components: here, or by a host elsewhere on the mesh."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, cast

from mesh.address import MAX_NAME_BYTES
from mesh.conditions import Condition
from mesh.errors import ComponentNotFoundError, MeshError, NotConfiguredError
from mesh.flow import held_open
from mesh.scopes import in_scope

if TYPE_CHECKING:
    from mesh.blocks.block import Block, Held, Inbound, Opened, Parts
    from mesh.life import Life
    from mesh.operation import Caller, Operation
    from mesh.pipeline import Handler

__all__ = ["ComponentService"]


class ComponentService:
    """Runs a block's operations.

    Attributes:
        components: Those whose operations run in this process, by name.
        run: Does what is asked.
    """

    def __init__(
        self,
        block: Block,
        parts: Parts,
        components: Mapping[str, Opened],
        around: Callable[[Handler, Operation], Awaitable[object]] | None = None,
    ) -> None:
        """Use open components; any other name is looked for on the mesh, where the block may be hosted.

        Args:
            block: Whose operations.
            parts: Of the node.
            components: The open ones, by name, as they are at any time.
            around: What every operation passes besides, wherever the component is.
        """
        self.components = components
        self.run: Handler = self._run if around is None else partial(around, self._run)
        self._block = block
        self._parts = parts

    async def find(self, name: str, caller: Caller) -> Opened:
        """Find a component, wherever it is.

        Raises:
            ComponentNotFoundError: Nobody has it for this caller.
            NoResponderError: Its hosts went within the last minute.
            NotConfiguredError: Nobody has it, and this node has no component of the block at all.
            HostsDifferError: Its hosts are configured differently.
        """
        component = self.components.get(name)
        if component is not None and in_scope(self._parts.scopes.get(name, ()), caller.app_id):
            return component
        if self._may_be_hosted(name, component, caller):
            found = await self._parts.hosts.find(self._block.name, name, caller)
            if found is not None:
                return found
            raise self._parts.hosts.gone(self._block.name, name, caller) or self._missing(name)
        raise self._missing(name)

    async def _run(self, operation: Operation) -> object:
        """Do what is asked, here or where the component is; one that is replaced stays open until it is done."""
        name = operation.target
        component = self.components.get(name)
        scopes = self._parts.scopes.get(name)
        if component is None or (scopes and operation.context.caller.app_id not in scopes):
            if not self._may_be_hosted(name, component, operation.context.caller):
                raise self._missing(name)
            return await self._parts.hosts.ask(operation, self._missing)
        with self._parts.lives[name] as life:
            try:
                run = cast("Callable[[Operation], Awaitable[object]]", getattr(component, operation.method.name))
                if operation.method.streamed:
                    result: object = await held_open(run, operation, operation.body, life)
                else:
                    result = await run(operation)
            except MeshError as error:
                if error.retryable:
                    self._note(life, operation, str(error))
                raise
            except asyncio.CancelledError:
                if time.time() >= operation.deadline:
                    self._note(life, operation, "it did not answer in time")
                raise
            if life.condition is not None:
                life.condition.works(repeated=False)
            return result

    def _note(self, life: Life, operation: Operation, reason: str) -> None:
        """Note that a component failed, unless a policy says what follows: that notes it itself."""
        if operation.waits:
            life.condition = life.condition or Condition(f"{self._block.name} {operation.target}")
            life.condition.fails(reason)

    def _may_be_hosted(self, name: str, component: Opened | None, caller: Caller) -> bool:
        """Tell whether to look elsewhere: for one that is here, nobody else is asked; a long name is nobody's.

        One that this node answers others for is looked for among its hosts, but not for whom its scopes leave out:
        another node may have one of this name that is for everybody.
        """
        if component is not None or not in_scope(self._parts.scopes.get(name, ()), caller.app_id):
            return False
        return self._block.hosted and len(name.encode("utf-8", "replace")) <= MAX_NAME_BYTES

    def _missing(self, name: str) -> ComponentNotFoundError | NotConfiguredError:
        if self._block.name not in self._parts.configured:
            return NotConfiguredError(name, f"no {self._block.kind} component is configured")
        return ComponentNotFoundError(name, f"there is no {self._block.kind} component {name!r}")

    async def inbound(self, inbound: Inbound) -> Sequence[Held]:
        """Reach no application."""
        return ()

    def described(self) -> Mapping[str, object]:
        """Add nothing to the node's description."""
        return {}
