"""A kind of what is owned, as one node has it: it takes part in the kind's table while it hosts it."""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Awaitable, Callable, Collection, Mapping
from contextlib import suppress
from dataclasses import replace
from typing import Protocol

from mesh.errors import ConflictError, MeshError
from mesh.ownership.session import RENEW_SECONDS, Session
from mesh.ownership.table import NOBODY, PARTITIONS, Member, Moves, Standing, Table
from mesh.store import Concurrency, Item, StateStore
from mesh.tasks import task_group

__all__ = ["Hosted", "Keeper", "Tell", "Waits", "read_table", "table_key"]

logger = logging.getLogger(__name__)

MOVES_AT_ONCE = 32
MOVE_SECONDS = 0.5  # One that takes longer, as by a turn that hangs, makes room for the next.
AGAIN_SECONDS = 0.02, 1.0
MOST_CONFLICTS = 6  # Behind so many the pauses grow no more.
MEMBERS_PER_LOOK = 10  # The more there are, the less often each looks for what nobody told,
MOST_LOOKS = 10.0  # and ten times less often at most.
NAMED_OTHERS = 5
Tell = Callable[[str, Collection[str]], Awaitable[None]]
"""Tells those who host a kind that its table has changed, and which sessions that concerns; none has to hear it."""


class Keeper(Protocol):
    """What a node does with the partitions of a kind."""

    def take(self, partition: int, epoch: int) -> None:
        """Begin: this node owns it from now on. Must not block."""

    async def leave(self, partition: int) -> None:
        """Begin nothing more, and return once nothing of it runs, in a time of its own; what fails counts as left."""

    def drop(self, partition: int) -> None:
        """End at once: it may be another's by now, and what is still written for it will be refused."""


def table_key(kind: str) -> str:
    """Give the key of a kind's table."""
    return f"table.{kind}"


async def read_table(records: StateStore, kind: str, partitions: int = PARTITIONS) -> tuple[Table, str | None]:
    """Read the table of a kind, or make one of so many partitions; gives its etag, None = it is not there yet.

    Raises:
        MeshError: The store failed.
        ValueError: What is there is no table.
    """
    found = await records.get(table_key(kind), strong=True)
    return (Table.new(partitions), None) if found is None else (Table.decode(found.value), found.etag)


class Hosted:
    """A kind as this node has it.

    Attributes:
        member: What this node says of itself.
        table: As it was seen last.
        etag: Its etag then.
        ending: Set when it is to be hosted no longer.
        left: Set once all of it is handed over, or may be another's.
        next: What is hosted by its name after that.
        looked: When it was last looked whether the table has changed.
    """

    def __init__(
        self,
        name: str,
        keeper: Keeper,
        records: StateStore,
        tell: Tell,
        *,
        single: bool,
        lasts: bool,
    ) -> None:
        self.name = name
        self.member = Member("", "")
        self._single, self._lasts = single, lasts
        self._partitions = 1 if single else PARTITIONS
        self.table = Table.new(self._partitions)
        self.etag: str | None = None
        self.ending, self.left = asyncio.Event(), asyncio.Event()
        self.next: Hosted | None = None
        self.looked = 0.0
        self._shared = False  # With another application, and the log says so.
        self._keeper = keeper
        self._records = records
        self._tell = tell
        self._session: Session | None = None
        self._held: dict[int, int] = {}  # The epochs of what is owned here.
        self._leaving: set[int] = set()  # Owned, and being finished.
        self._moving: set[int] = set()  # Those of them that are not slow.
        self._left: dict[int, int] = {}  # The epochs in which this session is done with a partition.
        self._gone: set[str] = set()
        self._changed = asyncio.Event()
        self._moves = Moves()

    @property
    def works(self) -> bool:
        """Whether it takes part in a session."""
        return self._session is not None

    @property
    def look_seconds(self) -> float:
        """How often it is looked whether news of the table were missed: it is as long as its members are many."""
        return RENEW_SECONDS * min(max(1.0, len(self.table.members) / MEMBERS_PER_LOOK), MOST_LOOKS)

    def is_meant(self, sessions: Collection[str]) -> bool:
        """Tell whether news concern this node."""
        return not sessions or self._session is None or self._session.id in sessions

    def look(self) -> None:
        """Read the table soon."""
        self._changed.set()

    def is_gone(self, session: str) -> None:
        """Take note that another's session has ended."""
        self._gone.add(session)
        self.look()

    def epoch(self, partition: int) -> int | None:
        """Give the epoch of a partition that is owned here now, for sure; None = it is not."""
        session = self._session
        return None if session is None or not session.sure else self._held.get(partition)

    def moves(self) -> Mapping[int, str]:
        """Give what this node has by the table, and another is to have."""
        session = self._session
        return {} if session is None else self._moves.of(self.table, session.id, self.member)

    def begin(self, session: Session) -> None:
        """Take part in a session; ``work`` follows."""
        self._session = session

    def drop_all(self) -> None:
        """Own nothing any more: the session is over."""
        held, self._session = self._held, None
        self._held, self._leaving, self._moving, self._left = {}, set(), set(), {}
        for partition in held:
            self._keeper.drop(partition)
        if self.ending.is_set():
            self.left.set()

    async def work(self, session: Session) -> None:
        """Do this node's part until it is to end, and all of it is handed over or given back."""
        waits, conflicts = Waits(), 0
        async with task_group() as tasks:
            while True:
                self._changed.clear()
                try:
                    if await self._step(session, tasks, leaving=self.ending.is_set()):
                        self.left.set()
                        return
                except ConflictError:  # Somebody else changed the table, and so may many.
                    longest = AGAIN_SECONDS[0] * 2 ** min(conflicts, MOST_CONFLICTS)
                    conflicts += 1
                    await asyncio.sleep(random.uniform(0.0, longest))  # noqa: S311 - it only spreads the load
                    continue
                except (MeshError, ValueError) as error:
                    logger.warning("owners of %s: %s", self.name, error)
                    self.look()
                    await waits.next()
                    continue
                waits, conflicts = Waits(), 0
                await self._changed.wait()

    async def _step(self, session: Session, tasks: asyncio.TaskGroup, *, leaving: bool) -> bool:
        """Look once, and do what follows; tells whether this node has left.

        Raises:
            ConflictError: The table has changed meanwhile.
            MeshError: The store failed.
            ValueError: There is no table.
        """
        table, self.etag = await read_table(self._records, self.name, self._partitions)
        self.table = table
        me = session.id
        self._tell_of_others(table)
        self._gone &= table.members.keys()
        for partition, epoch in list(self._held.items()):
            if table.owners[partition] != me or table.epochs[partition] != epoch:
                self._lose(partition)
        changed = table.without(self._gone)
        member = replace(self.member, standing=Standing.LEAVING) if leaving else self.member
        if changed.members.get(me) != member:
            changed = changed.joined(me, member)
        # Where the records were lost or are those of a backup, and what carries epochs is not, these are above it.
        least = int(time.time())
        changed = changed.given({**self._done_with(changed, me), **dict.fromkeys(changed.claims(me), me)}, least)
        left = leaving and not self._held and me not in changed.owners
        if left:
            changed = changed.without({me})
        if changed != table:
            await self._write(changed, table)
        if left:
            return True
        if session.sure:
            self._take(changed, me)
        self._leave(changed, me, tasks, everything=leaving)
        return False

    def _tell_of_others(self, table: Table) -> None:
        others = {each.app_id for each in table.members.values()} - {self.member.app_id}
        if others and not self._shared and not self._single:
            names = ", ".join(sorted(others)[:NAMED_OTHERS]) + (", …" if len(others) > NAMED_OTHERS else "")
            logger.warning("%s is hosted by app id %s as well: what either keeps of it is its own", self.name, names)
        self._shared = bool(others)

    def _done_with(self, table: Table, me: str) -> dict[int, str]:
        """Give what is this session's by the table, and finished here, and whose it is to be."""
        wanted = table.wanted
        return {
            partition: wanted[partition]
            for partition, epoch in self._left.items()
            if table.owners[partition] == me and table.epochs[partition] == epoch
        }

    def _take(self, table: Table, me: str) -> None:
        for partition, owner in enumerate(table.owners):
            epoch = table.epochs[partition]
            if owner == me and partition not in self._held and epoch > self._left.get(partition, -1):
                self._held[partition] = epoch
                self._keeper.take(partition, epoch)

    def _leave(self, table: Table, me: str, tasks: asyncio.TaskGroup, *, everything: bool) -> None:
        wanted = table.wanted
        for partition in self._held:
            if len(self._moving) >= MOVES_AT_ONCE:
                return
            if partition not in self._leaving and (everything or wanted[partition] not in (me, NOBODY)):
                self._leaving.add(partition)
                self._moving.add(partition)
                tasks.create_task(self._finish(partition, self._held[partition]), name="owning-leave")

    async def _finish(self, partition: int, epoch: int) -> None:
        slow = asyncio.get_running_loop().call_later(MOVE_SECONDS, self._makes_room, partition, epoch)
        try:
            await self._keeper.leave(partition)
        except MeshError as error:
            logger.warning("partition %d of %s was left in the middle: %s", partition, self.name, error)
        except Exception:  # A kind that is defective must not end the owning of all others.
            logger.exception("partition %d of %s was left in the middle", partition, self.name)
        finally:
            slow.cancel()
        if self._held.get(partition) == epoch:
            self._forget(partition)
            self._left[partition] = epoch
            self.look()

    def _makes_room(self, partition: int, epoch: int) -> None:
        if self._held.get(partition) == epoch:
            self._moving.discard(partition)
            self.look()

    def _lose(self, partition: int) -> None:
        """Own no more what the table gives to another."""
        self._forget(partition)
        self._keeper.drop(partition)

    def _forget(self, partition: int) -> None:
        del self._held[partition]
        self._leaving.discard(partition)
        self._moving.discard(partition)

    async def _write(self, table: Table, before: Table) -> None:
        first = Concurrency.FIRST_WRITE if self.etag is None else None
        kept = table.encode() if self._lasts or table.members else None
        await self._records.write([Item(table_key(self.name), kept, self.etag, first)])
        self.table = table
        concerned = table.concerned(before)
        if self._session is not None:
            concerned.discard(self._session.id)
        with suppress(MeshError):
            await self._tell(self.name, concerned)


class Waits:
    """Pauses between tries, growing, with jitter."""

    def __init__(self) -> None:
        """Begin with the shortest."""
        self._seconds, self._longest = AGAIN_SECONDS

    async def next(self) -> None:
        """Wait for the next one."""
        await asyncio.sleep(self._seconds * random.uniform(0.5, 1.0))  # noqa: S311 - it only spreads the load
        self._seconds = min(self._seconds * 2, self._longest)
