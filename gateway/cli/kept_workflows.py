"""Workflows that have ended and are kept for good, where there are many: for ``mesh doctor``."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

from mesh import address
from mesh.blocks.records import Prefixed
from mesh.blocks.state import is_marked
from mesh.blocks.workflow_service import KIND, PUT_AWAY
from mesh.errors import BrokerUnavailableError, MeshError
from mesh.inspection import Shelving
from mesh.registry import BACKBONE_TYPES
from mesh.store import KeyValueStateStore
from mesh.workflows.errors import WorkflowUnreadableError
from mesh.workflows.record import ENDED, Keys, decode, instance_of

if TYPE_CHECKING:
    from gateway.cli.opening import Looked
    from mesh.resources.component import Component
    from mesh.store import StateStore

__all__ = ["BACKBONE", "MANY", "kept_for_good"]

logger = logging.getLogger(__name__)

MANY = 1000
MOST = 2 * MANY  # Records that are read at all.
PAGE = 200
WITHIN = 5.0  # Seconds: what is away is told by who looks at the component, or at the backbone.
BACKBONE = "backbone"


async def kept_for_good(looked: Looked, within: float) -> tuple[str, Counter[str]] | None:
    """Look where gateways keep workflows, as far as files and options tell it; nothing is made.

    Args:
        looked: What is looked at.
        within: Seconds that it may take.

    Returns:
        The place, and how many of each application; None = there are less than ``MANY``, or it cannot be told.
    """
    try:
        async with asyncio.timeout(min(within, WITHIN)), _place(looked) as (name, store):
            found = Counter[str]() if store is None else await _counted(store, looked.app_id)
    except (MeshError, OSError, TimeoutError) as error:
        logger.debug("it cannot be told how many workflows are kept: %s", error)
    except Exception as error:
        logger.debug("it cannot be told how many workflows are kept", exc_info=error)
    else:
        return (name, found) if found.total() >= MANY else None
    return None


@asynccontextmanager
async def _place(looked: Looked) -> AsyncIterator[tuple[str, StateStore | None]]:
    """Open where ended instances are, with its name: the backbone, else the marked store."""
    name = address.store(looked.namespace, PUT_AWAY)
    try:
        backbone: Any = looked.on_backbone()
    except BrokerUnavailableError:  # None runs, or it is within a process.
        yield BACKBONE, None
        return
    if backbone.features.key_value:
        async with backbone:
            there = await backbone.shelf(name, dotted=True) if isinstance(backbone, Shelving) else None
            yield BACKBONE, None if there is None else KeyValueStateStore(there)
        return
    component = next((each for each in looked.components if _may_have(each)), None)
    if component is None:
        yield BACKBONE, None
        return
    adapter: Any = looked.registry.load(component.type)
    async with adapter.from_component(looked.resolved(component)) as store:
        yield component.name, Prefixed(store, f"mesh||{{{name}}}||")


def _may_have(component: Component) -> bool:
    return component.block == "state" and component.type not in BACKBONE_TYPES and is_marked(component)


async def _counted(store: StateStore, app_id: str) -> Counter[str]:
    """Count those of an application, or of all, up to ``MANY``."""
    prefix, after, read = Keys(KIND + app_id).ended if app_id else ENDED, "", 0
    found: Counter[str] = Counter()
    while read < MOST and found.total() < MANY:
        page = await store.scan(prefix, after, PAGE)
        for after, stored in page:
            if _is_for_good(after, stored.value):
                found[address.decode_token(after.split(".")[1]).removeprefix(KIND)] += 1
        read += len(page)
        if len(page) < PAGE:
            break
    return found


def _is_for_good(key: str, value: bytes) -> bool:
    try:
        return decode(instance_of(key), value).until is None
    except WorkflowUnreadableError:
        return False
