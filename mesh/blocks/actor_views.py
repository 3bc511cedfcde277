"""What is told of actors to those who look after them (``mesh actors``): who hosts what, and what an actor has."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import TYPE_CHECKING

from mesh.actors.errors import ActorError
from mesh.actors.settings import MAX_TYPES
from mesh.actors.state import SEPARATOR, partition_key
from mesh.blocks.actors import KIND, HostOf, Look, Reminder, Shown, TypeView
from mesh.errors import FeatureNotSupportedError
from mesh.ownership.table import NOBODY, partition_of

if TYPE_CHECKING:
    from mesh.blocks.block import Parts
    from mesh.ownership.table import Table
    from mesh.store import StateStore, Stored
    from mesh.timers import Timers

__all__ = ["shown", "told_reminder", "types_of"]

MAX_KEYS = 1000
MAX_REMINDERS = 1000
NODES_SECONDS = 1.0


def _hosts_of(type_: str, table: Table, active: Mapping[str, int]) -> TypeView:
    """Tell of a type.

    Args:
        type_: It.
        table: Of its owners.
        active: How many actors are active, by node, of those that said so.
    """
    owned = Counter(table.owners)
    hosts = [
        HostOf(each.node, each.app_id, each.standing.name.lower(), owned[session], active.get(each.node))
        for session, each in table.members.items()
    ]
    return TypeView(type_, len(table.owners), owned[NOBODY], sorted(hosts, key=lambda host: (host.app_id, host.node)))


def _owner_of(table: Table, id_: str) -> tuple[int, int, tuple[str, str] | None]:
    """Give the partition of an actor, its epoch, and node and application of who owns it."""
    partition = partition_of(id_, len(table.owners))
    member = table.members.get(table.owners[partition])
    return partition, table.epochs[partition], None if member is None else (member.node, member.app_id)


async def _state_of(
    store: StateStore, app_id: str, type_: str, id_: str, *, values: bool
) -> Mapping[str, Stored | None] | None:
    """Give the keys of an actor's state.

    Raises:
        MeshError: The store failed.
    """
    prefix = partition_key(app_id, type_, id_) + SEPARATOR
    try:
        if values:
            return {key.removeprefix(prefix): stored for key, stored in await store.scan(prefix, "", MAX_KEYS)}
        return {key.removeprefix(prefix): None for key in await store.keys(prefix, "", MAX_KEYS)}
    except FeatureNotSupportedError:
        return None


async def types_of(parts: Parts) -> tuple[TypeView, ...]:
    """Tell of the types that nodes of the mesh say they host."""
    active: dict[str, dict[str, int]] = {}
    for node in await parts.directory.nodes(NODES_SECONDS):
        for type_, count in node.actors:
            active.setdefault(type_, {})[node.id] = count
    tables = [(type_, await parts.owners.table(KIND + type_, fresh=True)) for type_ in sorted(active)[:MAX_TYPES]]
    return tuple([_hosts_of(type_, table, active[type_]) for type_, table in tables if table.members])


async def shown(parts: Parts, store: StateStore, timers: Timers, type_: str, asked: Look) -> Shown:
    """Tell of an actor of this node's application.

    Args:
        parts: The node's.
        store: Of the state of actors.
        timers: The reminders of the type.
        type_: The actor's.
        asked: Which one, and what of it.
    """
    partition, epoch, owner = _owner_of(await parts.owners.table(KIND + type_, fresh=True), asked.id)
    state = await _state_of(store, parts.caller.app_id, type_, asked.id, values=asked.values)
    reminders: dict[str, Mapping[str, str]] = {}
    for each in await timers.listed(partition, asked.id, "", MAX_REMINDERS):
        told = told_reminder(each.key, each.name, each.data)
        reminders[each.name] = {"dueTime": told.due_time, "period": told.period, "ttl": told.ttl}
    return Shown(partition, epoch, owner, state, reminders)


def told_reminder(id_: str, name: str, data: bytes) -> Reminder:
    """Tell of a reminder by its record."""
    from mesh.actors.reminders import written
    from mesh.schedules import shown_every

    try:
        found = written(data)
    except ValueError as error:
        raise ActorError(f"reminder {name} of {id_} cannot be read: {error}") from None
    return Reminder(id_, name, found.due_time, shown_every(found.period), found.ttl, found.data)
