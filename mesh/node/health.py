"""How the components of a node are: what their adapters say when they are asked.

An adapter may have ``async def check(self) -> None``, which raises a ``MeshError`` when it cannot be used now. It is
asked when somebody looks, two seconds at most, and not again for the next five.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, Literal

from mesh.errors import MeshError
from mesh.node.components import Components, Entry

__all__ = ["ComponentStatus", "Health"]

CHECK_SECONDS = 2.0
KEPT_SECONDS = 5.0


@dataclass(frozen=True, slots=True)
class ComponentStatus:
    """How a component is.

    Attributes:
        name: Of it.
        type: Of it.
        health: ``unknown`` when its adapter has no way to tell; ``absent`` when it could not be opened.
        placement: Where its operations run; empty when it is absent.
        reason: Why it cannot be used.
    """

    name: str
    type: str
    health: Literal["ok", "failing", "unknown", "absent"]
    placement: str = ""
    reason: str = ""


class Health:
    """Asks the components of a node how they are."""

    def __init__(self, components: Components) -> None:
        """Know nothing yet."""
        self._components = components
        self._known: dict[str, tuple[Entry, float, str]] = {}
        self._asking = asyncio.Lock()

    async def look(self) -> list[ComponentStatus]:
        """Tell how each is, in the order of metadata; then those that could not be opened."""
        async with self._asking:  # Whoever waited finds the answer.
            await self._ask()
        told: list[ComponentStatus] = []
        for name, entry in self._components.entries.items():
            known = self._known.get(name)
            reason = _failed(entry) if known is None or known[0] is not entry else known[2]
            health: Literal["ok", "failing", "unknown"] = "unknown" if reason is None else "failing" if reason else "ok"
            told.append(ComponentStatus(name, entry.component.type, health, entry.placement, reason or ""))
        told += [
            ComponentStatus(name, component.type, "absent", reason=reason)
            for name, (component, reason) in self._components.absent.items()
            if name not in self._components.entries
        ]
        return told

    async def _ask(self) -> None:
        now = time.monotonic()
        entries = self._components.entries
        self._known = {
            name: known
            for name, known in self._known.items()
            if entries.get(name) is known[0] and now - known[1] < KEPT_SECONDS
        }
        async with asyncio.TaskGroup() as tasks:
            for name, entry in entries.items():
                check = _check_of(entry.opened)
                if check is not None and name not in self._known:
                    tasks.create_task(self._check(name, entry, check), name="health-check")

    async def _check(self, name: str, entry: Entry, check: Callable[[], Awaitable[object]]) -> None:
        reason = ""
        try:
            with entry.life:
                async with asyncio.timeout(CHECK_SECONDS):
                    await check()
        except TimeoutError:
            reason = f"it did not answer within {CHECK_SECONDS:g} s"
        except MeshError as error:
            reason = str(error)
        except Exception as error:  # noqa: BLE001 - whatever an adapter raises, it says that it cannot be used
            reason = f"its check failed: {type(error).__name__}"  # A library's text may hold a secret.
        self._known[name] = entry, time.monotonic(), reason


def _failed(entry: Entry) -> str | None:
    """Say why the last operation on a component failed; None = none did, which says nothing."""
    condition = entry.life.condition
    return condition.reason or None if condition is not None else None


def _check_of(opened: Any) -> Callable[[], Awaitable[object]] | None:
    """Find the check of a component's adapter, which its block may have wrapped; else the block's own."""
    for each in (getattr(opened, "store", None), getattr(opened, "broker", None), opened):
        check = getattr(each, "check", None)
        if callable(check):
            return check  # type: ignore[no-any-return]  # as adapters promise
    return None
