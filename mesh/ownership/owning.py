"""A node's part in owning: to take what it is wanted for, hand over what another is, drop what it may have lost."""

from __future__ import annotations

import asyncio
import logging
import math
import random
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from typing import Protocol

from mesh.errors import ConflictError, MeshError
from mesh.ownership.session import RENEW_SECONDS, Session, boot_clock, has_ended
from mesh.ownership.table import NOBODY, PARTITIONS, Member, Moves, Standing, Table
from mesh.store import Concurrency, Item, StateStore
from mesh.tasks import task_group, until_any

__all__ = ["Keeper", "Owning", "read_table", "table_key"]

logger = logging.getLogger(__name__)

WATCH_SECONDS = 1.0
MOVES_AT_ONCE = 32
MOVE_SECONDS = 0.5  # One that takes longer, as by a turn that hangs, makes room for the next.
NEWS_AT_ONCE, NEWS_PER_SECOND = 100, 100.0  # Tables that are read because others say so, of all kinds together.
AGAIN_SECONDS = 0.02, 1.0


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


class Owning:
    """Owns partitions of the kinds that it hosts, for as long as ``run`` is entered."""

    def __init__(
        self,
        records: StateStore,
        app_id: str,
        node: str,
        tell: Callable[[str], Awaitable[None]],
        clock: Callable[[], float] = boot_clock,
    ) -> None:
        """Prepare.

        Args:
            records: The mesh's own store.
            app_id: The node's application.
            node: The node's id.
            tell: Tells all nodes that a kind's table has changed; none has to hear it.
            clock: Seconds, monotonic.
        """
        self._records = records
        self._app_id, self._node = app_id, node
        self._tell = tell
        self._clock = clock
        self._kinds: dict[str, _Kind] = {}
        self._hosted = asyncio.Event()
        self._ending = asyncio.Event()
        self._news: dict[str, None] = {}  # What is to be read, in order.
        self._news_at = -math.inf  # When the next may be, by the loop's clock; a pause saves up for some at once.
        self._news_timer: asyncio.TimerHandle | None = None

    def host(self, kind: str, keeper: Keeper, *, ready: bool = True, single: bool = False, lasts: bool = True) -> None:
        """Host a kind; again to say whether it is ready, or only takes what nobody else is ready for.

        Args:
            kind: The kind.
            keeper: What this node does with its partitions.
            ready: Whether partitions go here also while others are ready.
            single: Whether it is one partition only, which nodes of any application have in common.
            lasts: Whether its table stays where nobody hosts it; else its epochs begin anew, at the time by the clock
                of whoever comes next, which may be behind.
        """
        found = self._kinds.get(kind)
        if found is None:
            found = self._kinds[kind] = _Kind(kind, keeper, self._records, self._tell, single=single, lasts=lasts)
            self._hosted.set()
        elif found.ending.is_set():
            found.next = found = _Kind(kind, keeper, self._records, self._tell, single=single, lasts=lasts)
        found.member = Member(self._app_id, self._node, Standing.READY if ready else Standing.WAITING)
        found.look()

    async def leave(self, kind: str) -> None:
        """Host a kind no longer: returns once all that was owned of it is handed over, or may be another's."""
        found = self._kinds.get(kind)
        if found is None:
            return
        found.ending.set()
        found.next = None
        found.look()
        if found.works:
            await found.left.wait()
        self._follow(found)

    def _follow(self, found: _Kind) -> None:
        """Go on with what was hosted by the name of a kind that was left."""
        if self._kinds.get(found.name) is found:
            del self._kinds[found.name]
            if found.next is not None:
                self._kinds[found.name] = found.next
                self._hosted.set()

    def hosts(self, kind: str) -> bool:
        """Tell whether a kind is hosted here, or was not left yet."""
        return kind in self._kinds

    def table(self, kind: str) -> Table | None:
        """Give the table of a kind as it was seen last; None = it is not hosted here."""
        found = self._kinds.get(kind)
        return None if found is None else found.table

    def heard(self, kind: str) -> None:
        """Take note that the table of a kind has changed, as another says; however often, reading it is bounded."""
        if kind in self._kinds and not self._ending.is_set():
            self._news[kind] = None
            if self._news_timer is None:
                self._look_at_news()

    def _look_at_news(self) -> None:
        loop = asyncio.get_running_loop()
        now, self._news_timer = loop.time(), None
        self._news_at = max(self._news_at, now - NEWS_AT_ONCE / NEWS_PER_SECOND)
        while self._news and self._news_at <= now:
            kind = next(iter(self._news))
            del self._news[kind]
            if (found := self._kinds.get(kind)) is not None:
                self._news_at += 1 / NEWS_PER_SECOND
                found.look()
        if self._news:
            self._news_timer = loop.call_at(self._news_at, self._look_at_news)

    def epoch(self, kind: str, partition: int) -> int | None:
        """Give the epoch of a partition that this node owns now, for sure; None = it does not."""
        found = self._kinds.get(kind)
        return None if found is None else found.epoch(partition)

    def moves(self, kind: str) -> Mapping[int, str]:
        """Give what this node has by the table, and another is to have, who is there: it is on its way."""
        found = self._kinds.get(kind)
        return {} if found is None else found.moves()

    @asynccontextmanager
    async def run(self) -> AsyncIterator[None]:
        """Take part; leaving hands over what is owned to others, or back, and ends the session."""
        async with task_group() as tasks:
            working = tasks.create_task(self._work(), name="owning")
            try:
                yield
            finally:
                self._ending.set()
                if self._news_timer is not None:
                    self._news_timer.cancel()
                for kind in self._kinds.values():
                    kind.ending.set()
                    kind.look()
                try:
                    await asyncio.wait([working])
                finally:
                    working.cancel()

    async def _work(self) -> None:
        waits = _Waits()
        await until_any(self._hosted, self._ending)
        while not self._ending.is_set():
            session = Session(self._records, self._node, self._clock)
            try:
                await session.renew()
            except MeshError as error:
                logger.debug("no session: %s", error)
                await waits.next()
                continue
            waits = _Waits()
            if not await self._in(session):
                logger.warning("this node could not renew its session in time: others may take what it owned")

    async def _in(self, session: Session) -> bool:
        """Take part in a session until it is over or ended; tells whether it was ended."""
        try:
            async with task_group() as tasks:
                keeping = tasks.create_task(session.keep(), name="owning-session")
                working = tasks.create_task(self._own(session), name="owning-work")
                done, _ = await asyncio.wait([keeping, working], return_when=asyncio.FIRST_COMPLETED)
                for kind in list(self._kinds.values()):  # Before anything else runs.
                    kind.drop_all()
                for task in (keeping, working):
                    task.cancel()
        finally:
            for kind in list(self._kinds.values()):
                kind.drop_all()
        if working in done:
            await session.end()
        return working in done

    async def _own(self, session: Session) -> None:
        """Work until the end is wanted, and all is handed over."""
        async with task_group() as tasks:
            working: dict[_Kind, asyncio.Task[None]] = {}
            watching = tasks.create_task(self._watch(session), name="owning-watch")
            ending = tasks.create_task(self._ending.wait(), name="owning-ending")
            while not self._ending.is_set():
                self._hosted.clear()
                working = {kind: task for kind, task in working.items() if not task.done()}
                busy = {kind.name for kind in working}
                for kind in list(self._kinds.values()):
                    if kind.left.is_set():  # Whoever waited for that may have been cancelled.
                        self._follow(kind)
                for kind in self._kinds.values():
                    if kind.name not in busy and not kind.ending.is_set():
                        kind.begin(session)
                        working[kind] = tasks.create_task(kind.work(session), name="owning-kind")
                        working[kind].add_done_callback(lambda _: self._hosted.set())
                hosted = tasks.create_task(self._hosted.wait(), name="owning-hosted")
                await asyncio.wait([hosted, ending], return_when=asyncio.FIRST_COMPLETED)
                hosted.cancel()
            if working:
                await asyncio.wait(working.values())
            watching.cancel()

    async def _watch(self, session: Session) -> None:
        """Look after the neighbours, and now and then for what nobody told."""
        looked = self._clock()
        while True:
            await asyncio.sleep(WATCH_SECONDS * random.uniform(0.8, 1.0))  # noqa: S311 - it only spreads the load
            everything = self._clock() >= looked + RENEW_SECONDS
            if everything:
                looked = self._clock()
            try:
                await self._look_after_neighbours(session.id)
                if everything:
                    await self._look_for_changes()
            except MeshError as error:
                logger.debug("owners cannot be looked at: %s", error)

    async def _look_after_neighbours(self, me: str) -> None:
        """Remove those whose sessions have ended: the next one, and then the one behind it, up to one that is there."""
        there: set[str] = set()
        ended: set[str] = set()
        for kind in list(self._kinds.values()):
            while (neighbour := kind.table.without(ended).neighbour(me)) is not None and neighbour not in there:
                if not await has_ended(self._records, neighbour):
                    there.add(neighbour)
                    break
                ended.add(neighbour)
            for session in ended & kind.table.members.keys():
                kind.is_gone(session)

    async def _look_for_changes(self) -> None:
        kinds = list(self._kinds.values())
        for kind, found in zip(
            kinds, await self._records.get_many([table_key(each.name) for each in kinds]), strict=True
        ):
            if not isinstance(found, MeshError) and (None if found is None else found.etag) != kind.etag:
                kind.look()


class _Kind:
    """A kind as this node has it.

    Attributes:
        member: What this node says of itself.
        table: As it was seen last.
        etag: Its etag then.
        ending: Set when it is to be hosted no longer.
        left: Set once all of it is handed over, or may be another's.
        next: What is hosted by its name after that.
    """

    def __init__(
        self,
        name: str,
        keeper: Keeper,
        records: StateStore,
        tell: Callable[[str], Awaitable[None]],
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
        self.next: _Kind | None = None
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

    def look(self) -> None:
        """Read the table soon."""
        self._changed.set()

    def is_gone(self, session: str) -> None:
        """Take note that another's session has ended."""
        self._gone.add(session)
        self.look()

    def epoch(self, partition: int) -> int | None:
        session = self._session
        return None if session is None or not session.sure else self._held.get(partition)

    def moves(self) -> Mapping[int, str]:
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
        waits = _Waits()
        async with task_group() as tasks:
            while True:
                self._changed.clear()
                try:
                    if await self._step(session, tasks, leaving=self.ending.is_set()):
                        self.left.set()
                        return
                except ConflictError:  # Somebody else changed the table.
                    await asyncio.sleep(random.uniform(0.0, AGAIN_SECONDS[0]))  # noqa: S311 - it only spreads the load
                    continue
                except (MeshError, ValueError) as error:
                    logger.warning("owners of %s: %s", self.name, error)
                    self.look()
                    await waits.next()
                    continue
                waits = _Waits()
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
            await self._write(changed)
        if left:
            return True
        if session.sure:
            self._take(changed, me)
        self._leave(changed, me, tasks, everything=leaving)
        return False

    def _tell_of_others(self, table: Table) -> None:
        others = {each.app_id for each in table.members.values()} - {self.member.app_id}
        if others and not self._shared and not self._single:
            names = ", ".join(sorted(others))
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

    async def _write(self, table: Table) -> None:
        first = Concurrency.FIRST_WRITE if self.etag is None else None
        kept = table.encode() if self._lasts or table.members else None
        await self._records.write([Item(table_key(self.name), kept, self.etag, first)])
        self.table = table
        with suppress(MeshError):
            await self._tell(self.name)


class _Waits:
    """Pauses between tries, growing, with jitter."""

    def __init__(self) -> None:
        self._seconds, self._longest = AGAIN_SECONDS

    async def next(self) -> None:
        await asyncio.sleep(self._seconds * random.uniform(0.5, 1.0))  # noqa: S311 - it only spreads the load
        self._seconds = min(self._seconds * 2, self._longest)
