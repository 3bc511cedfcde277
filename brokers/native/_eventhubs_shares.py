"""Which partitions of an event hub a member of a consumer group has: shared as the vendor's libraries do."""

from __future__ import annotations

import math
import random
from collections.abc import Mapping, Sequence

from brokers.clients.azure_checkpoints import Ownership

__all__ = ["share_of"]


def share_of(partitions: Sequence[str], owned: Mapping[str, Ownership], me: str, since: float) -> list[str]:
    """Give those that a member is to claim: its own, and what it lacks of its share.

    It takes all that it lacks of what nobody has, and one at a time of who has most.

    Args:
        partitions: All of the hub.
        owned: Who has them, as was said last.
        me: The member.
        since: When an owner must have said so last, to count; in seconds since 1970, by the blobs' clock.
    """
    free: list[str] = []
    had: dict[str, list[str]] = {}
    for name in partitions:
        said = owned.get(name)
        if said is None or not said.owner or said.modified < since:
            free.append(name)
        else:
            had.setdefault(said.owner, []).append(name)
    mine = had.pop(me, [])
    members = len(had) + 1
    lacks = math.ceil(len(partitions) / members) - len(mine)
    if free and lacks > 0:
        return [*mine, *random.sample(free, min(len(free), lacks))]
    if len(mine) < len(partitions) // members:
        return [*mine, random.choice(max(had.values(), key=len))]  # noqa: S311 - others are to choose another one
    return mine
