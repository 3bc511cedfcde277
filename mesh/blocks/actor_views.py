"""What is told of actors to those who look after them (``mesh actors``): who hosts what, and what an actor has."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import TYPE_CHECKING

from mesh.actors.state import SEPARATOR, partition_key
from mesh.blocks.actors import HostOf, TypeView
from mesh.errors import FeatureNotSupportedError
from mesh.ownership.table import NOBODY, partition_of

if TYPE_CHECKING:
    from mesh.ownership.table import Table
    from mesh.store import StateStore, Stored

__all__ = ["hosts_of", "owner_of", "state_of"]

MAX_KEYS = 1000


def hosts_of(type_: str, table: Table, active: Mapping[str, int]) -> TypeView:
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


def owner_of(table: Table, id_: str) -> tuple[int, int, tuple[str, str] | None]:
    """Give the partition of an actor, its epoch, and node and application of who owns it."""
    partition = partition_of(id_, len(table.owners))
    member = table.members.get(table.owners[partition])
    return partition, table.epochs[partition], None if member is None else (member.node, member.app_id)


async def state_of(
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
