"""The table of a kind: who hosts it, who owns which partition, and what each is to do next. A value, and pure."""

from __future__ import annotations

from array import array
from bisect import bisect_left
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import IntEnum
from functools import lru_cache
from hashlib import blake2b
from typing import Self

import orjson

__all__ = ["NOBODY", "PARTITIONS", "Member", "Moves", "Standing", "Table", "partition_of"]

PARTITIONS = 256  # Of a new table; a table that is there keeps what it has.
NOBODY = ""


class Standing(IntEnum):
    """What a member is there for. Partitions go to those of the highest standing, and to none who leaves."""

    LEAVING = 0  # It hands over what it has.
    WAITING = 1  # It takes what nobody else can do more with: its application is not there now.
    READY = 2


@dataclass(frozen=True, slots=True)
class Member:
    """A session that hosts the kind.

    Attributes:
        app_id: The application that it hosts it for.
        node: The node's id, by which it is called.
        standing: What it is there for.
    """

    app_id: str
    node: str
    standing: Standing = Standing.READY


@dataclass(frozen=True, slots=True)
class Table:
    """Who hosts a kind, and who owns what of it.

    Attributes:
        members: By session.
        owners: The session that owns each partition; ``NOBODY`` where none does.
        epochs: Of each partition; it rises whenever that changes hands.
    """

    members: Mapping[str, Member]
    owners: tuple[str, ...]
    epochs: tuple[int, ...]

    @classmethod
    def new(cls, partitions: int = PARTITIONS) -> Self:
        """Make one that has no members."""
        return cls({}, (NOBODY,) * partitions, (0,) * partitions)

    @classmethod
    def decode(cls, data: bytes) -> Self:
        """Read what ``encode`` wrote; raises ValueError."""
        try:
            found = orjson.loads(data)
            sessions = [NOBODY, *found["members"]]
            members = {
                session: Member(app_id, node, Standing(standing))
                for session, (app_id, node, standing) in found["members"].items()
            }
            owners = tuple(sessions[index] for index in found["owners"])
            epochs = tuple(map(int, found["epochs"]))
        except (ValueError, LookupError, TypeError, AttributeError) as error:
            raise ValueError(f"it is no table of owners: {error!r}") from error
        if not owners or len(owners) != len(epochs):
            raise ValueError("it is no table of owners: not each partition has an epoch")
        return cls(members, owners, epochs)

    def encode(self) -> bytes:
        """Write it: some 2 KB with 256 partitions, and 60 bytes for each member."""
        sessions = {session: index for index, session in enumerate((NOBODY, *self.members))}
        return orjson.dumps(
            {
                "members": {session: [each.app_id, each.node, each.standing] for session, each in self.members.items()},
                "owners": [sessions[owner] for owner in self.owners],
                "epochs": self.epochs,
            }
        )

    # What it comes to

    def joined(self, session: str, member: Member) -> Table:
        """Have a member, or have it as it is now."""
        return replace(self, members={**self.members, session: member})

    def without(self, sessions: Collection[str]) -> Table:
        """Have members no more; nobody owns what they did."""
        members = {session: each for session, each in self.members.items() if session not in sessions}
        return replace(
            self, members=members, owners=tuple(NOBODY if each in sessions else each for each in self.owners)
        )

    def given(self, owners: Mapping[int, str], least: int = 0) -> Table:
        """Give partitions to members, in epochs that are the next ones, and ``least`` at least."""
        now, epochs = list(self.owners), list(self.epochs)
        for partition, owner in owners.items():
            now[partition] = owner
            epochs[partition] = max(epochs[partition] + 1, least)
        return replace(self, owners=tuple(now), epochs=tuple(epochs))

    # What is to be done

    @property
    def wanted(self) -> Sequence[str]:
        """Who should own each partition; ``NOBODY`` for all where every member leaves.

        Rendezvous hashing: when a member comes or goes, only what it gets or had moves.
        """
        highest = max((each.standing for each in self.members.values()), default=Standing.LEAVING)
        taking = [] if highest is Standing.LEAVING else self.members.items()
        return _rendezvous(
            tuple(sorted(session for session, each in taking if each.standing is highest)), len(self.owners)
        )

    def claims(self, session: str) -> list[int]:
        """Give what nobody owns and a member should."""
        wanted = self.wanted
        return [each for each, owner in enumerate(self.owners) if owner == NOBODY and wanted[each] == session]

    def moves(self, session: str) -> dict[int, str]:
        """Give what a member owns and another should, and who."""
        wanted = self.wanted
        return {
            each: wanted[each]
            for each, owner in enumerate(self.owners)
            if owner == session and wanted[each] not in (session, NOBODY)
        }

    def neighbour(self, session: str) -> str | None:
        """Give the member whose session this one watches: each is watched by one, however many there are."""
        ring = sorted({session, *self.members})
        found = ring[(ring.index(session) + 1) % len(ring)]
        return None if found == session else found

    def concerned(self, before: Table) -> set[str]:
        """Give the sessions that have something to do, or to learn, now that the table was another one before.

        Those are who has gained or lost something, who has what another should have, or should have what nobody has;
        and of each who has come or gone, the one who watches it.
        """
        changed = self.members.keys() ^ before.members.keys()
        ring = sorted(self.members)
        found = changed | {ring[bisect_left(ring, session) - 1] for session in changed if ring}
        for owner, former, wanted in zip(self.owners, before.owners, self.wanted, strict=True):
            if owner != former:
                found |= {owner, former}
            if wanted not in (owner, NOBODY):
                found.add(wanted if owner == NOBODY else owner)
        return found - {NOBODY}


def partition_of(key: str, partitions: int) -> int:
    """Give the partition of a key; the same in every process and version."""
    return _hash(key.encode()) % partitions


@lru_cache(maxsize=64)
def _rendezvous(sessions: tuple[str, ...], partitions: int) -> Sequence[str]:
    if not sessions:
        return (NOBODY,) * partitions
    columns = zip(*[_weights(each, partitions) for each in sessions], strict=True)
    return tuple(sessions[max(range(len(column)), key=column.__getitem__)] for column in columns)


@lru_cache(maxsize=2048)
def _weights(session: str, partitions: int) -> Sequence[int]:
    """Give how much a session wants each partition: 8 bytes each, as there may be many of both."""
    return array("Q", (_hash(f"{partition} {session}".encode()) for partition in range(partitions)))


def _hash(data: bytes) -> int:
    return int.from_bytes(blake2b(data, digest_size=8).digest(), "big")


class Moves:
    """What a member owns by a table, and another should; found once for all who ask."""

    def __init__(self) -> None:
        """Know none yet."""
        self._of: tuple[Table, str, Member] | None = None
        self._found: Mapping[int, str] = {}

    def of(self, table: Table, session: str, member: Member) -> Mapping[int, str]:
        """Give them, and who is to have each, where the member is as it says of itself."""
        of = self._of
        if of is None or of[0] is not table or of[1:] != (session, member):
            self._of, self._found = (table, session, member), table.joined(session, member).moves(session)
        return self._found
