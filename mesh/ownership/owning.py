"""A node's part in owning: to take what it is wanted for, hand over what another is, drop what it may have lost."""

from __future__ import annotations

import asyncio
import logging
import math
import random
from collections.abc import AsyncIterator, Callable, Collection, Mapping
from contextlib import asynccontextmanager

from mesh.errors import MeshError
from mesh.ownership.kind import Hosted, Keeper, Tell, Waits, table_key
from mesh.ownership.session import Session, boot_clock, has_ended
from mesh.ownership.table import Member, Standing, Table
from mesh.store import StateStore
from mesh.tasks import task_group, until_any

__all__ = ["Owning"]

logger = logging.getLogger(__name__)

WATCH_SECONDS = 1.0
NEWS_AT_ONCE, NEWS_PER_SECOND = 100, 100.0  # Tables that are read because others say so, of all kinds together.


class Owning:
    """Owns partitions of the kinds that it hosts, for as long as ``run`` is entered."""

    def __init__(
        self,
        records: StateStore,
        app_id: str,
        node: str,
        tell: Tell,
        clock: Callable[[], float] = boot_clock,
    ) -> None:
        """Prepare.

        Args:
            records: The mesh's own store.
            app_id: The node's application.
            node: The node's id.
            tell: Tells others of a change.
            clock: Seconds, monotonic.
        """
        self._records = records
        self._app_id, self._node = app_id, node
        self._tell = tell
        self._clock = clock
        self._kinds: dict[str, Hosted] = {}
        self._hosted = asyncio.Event()
        self._ending = asyncio.Event()
        self._news: dict[str, None] = {}  # What is to be read, in order.
        self._news_at = -math.inf  # When the next may be, by the loop's clock; a pause saves up for some at once.
        self._news_timer: asyncio.TimerHandle | None = None
        self._look_at_once = False

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
            found = self._kinds[kind] = Hosted(kind, keeper, self._records, self._tell, single=single, lasts=lasts)
            self._hosted.set()
        elif found.ending.is_set():
            found.next = found = Hosted(kind, keeper, self._records, self._tell, single=single, lasts=lasts)
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

    def _follow(self, found: Hosted) -> None:
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

    def look(self) -> None:
        """Look soon at all tables: news may have been missed."""
        self._look_at_once = True

    def heard(self, kind: str, sessions: Collection[str] = ()) -> None:
        """Take note that the table of a kind has changed, as another says; however often, reading it is bounded.

        Args:
            kind: The kind.
            sessions: Who has something to do; none = perhaps everybody.
        """
        found = self._kinds.get(kind)
        if found is not None and not self._ending.is_set() and found.is_meant(sessions):
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
        waits = Waits()
        await until_any(self._hosted, self._ending)
        while not self._ending.is_set():
            session = Session(self._records, self._node, self._clock)
            try:
                await session.renew()
            except MeshError as error:
                logger.debug("no session: %s", error)
                await waits.next()
                continue
            waits = Waits()
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
            working: dict[Hosted, asyncio.Task[None]] = {}
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
        for kind in self._kinds.values():
            kind.looked = self._clock()
        while True:
            await asyncio.sleep(WATCH_SECONDS * random.uniform(0.8, 1.0))  # noqa: S311 - it only spreads the load
            try:
                await self._look_after_neighbours(session.id)
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
        now, everything, self._look_at_once = self._clock(), self._look_at_once, False
        kinds = [each for each in self._kinds.values() if everything or now >= each.looked + each.look_seconds]
        if not kinds:
            return
        for kind in kinds:
            kind.looked = now
        for kind, found in zip(
            kinds, await self._records.get_many([table_key(each.name) for each in kinds]), strict=True
        ):
            if not isinstance(found, MeshError) and (None if found is None else found.etag) != kind.etag:
                kind.look()
