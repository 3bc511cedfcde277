"""Ending questions whose owner is gone.

Who waits for an answer notices the silence of a node that died, but late: a busy one may be silent, too. The table of
owners tells sooner: once a session is no member any more, it has ended, or all that was asked of it was answered. Its
node may only have stood still, though: then it refuses what it had not begun, which goes to the next owner. So it is
gone when nobody serves its address either.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Awaitable, Callable, Sequence
from typing import TypeVar

from mesh.address import Address
from mesh.errors import MeshError, StreamBrokenError
from mesh.ownership.table import Table

__all__ = ["Watch"]

LOOK_SECONDS = 1.0
LONG_SECONDS = 2.0  # Most questions are answered before: no table is read for these.
GRACE_SECONDS = 1.0  # For an answer that is on its way.
GONE = "the node that owned it is gone, and did not answer: it may have been done"
_T = TypeVar("_T")


class _Question:
    """One that waits for its answer.

    Attributes:
        kind: Of what is asked for.
        session: Of the owner that is asked.
        to: Its node's address.
        task: Waits.
        began: When, by the loop's clock.
        gone: When its session was first seen to be no member any more; None = it is one.
        struck: Whether it was ended.
    """

    __slots__ = ("began", "gone", "kind", "session", "struck", "task", "to")

    def __init__(self, kind: str, session: str, to: Address, task: asyncio.Task[object]) -> None:
        self.kind, self.session, self.to, self.task = kind, session, to, task
        self.began = asyncio.get_running_loop().time()
        self.gone: float | None = None
        self.struck = False


class Watch:
    """The questions of a node."""

    def __init__(self, table: Callable[[str], Awaitable[Table]], is_gone: Callable[[Address], Awaitable[bool]]) -> None:
        """Watch nothing yet.

        Args:
            table: Gives the table of a kind as it was a moment ago; while the store fails, as it was known last.
            is_gone: Tells whether nobody serves an address, for sure; bounded in time.
        """
        self._table, self._is_gone = table, is_gone
        self._questions: set[_Question] = set()
        self._some = asyncio.Event()

    async def wait(self, kind: str, session: str, to: Address, answer: Awaitable[_T]) -> _T:
        """Wait for the answer of an owner.

        Args:
            kind: Of what is asked for.
            session: The owner's.
            to: Its node's address.
            answer: What to wait for; cancelled when the owner is gone.

        Raises:
            StreamBrokenError: The owner is gone; the outcome is unknown.
        """
        task = asyncio.current_task()
        assert task is not None
        before = task.cancelling()
        question = _Question(kind, session, to, task)
        self._questions.add(question)
        self._some.set()
        try:
            return await answer
        except asyncio.CancelledError:
            # Somebody else may have cancelled as well; then it is theirs.
            if question.struck and task.cancelling() <= before + 1:
                raise StreamBrokenError(GONE) from None
            raise
        finally:
            self._questions.discard(question)
            if question.struck:
                task.uncancel()

    async def run(self) -> None:
        """End those whose owners are gone, without an end; it costs nothing while nobody waits."""
        while True:
            await self._some.wait()
            await asyncio.sleep(LOOK_SECONDS)
            await self._look()
            if not self._questions:
                self._some.clear()

    async def _look(self) -> None:
        long = asyncio.get_running_loop().time() - LONG_SECONDS
        waiting: dict[str, list[_Question]] = defaultdict(list)
        for each in self._questions:
            if each.began <= long:
                waiting[each.kind].append(each)
        for kind, questions in waiting.items():
            try:
                table = await self._table(kind)
            except MeshError:
                continue  # Silence will end them, if need be.
            now = asyncio.get_running_loop().time()
            lost: dict[Address, list[_Question]] = defaultdict(list)
            for each in questions:
                if each.session in table.members:
                    each.gone = None
                elif each.gone is None:
                    each.gone = now
                elif now - each.gone >= GRACE_SECONDS:
                    lost[each.to].append(each)
            for to, asked in lost.items():
                if await self._is_gone(to):
                    self._end(asked)

    def _end(self, questions: Sequence[_Question]) -> None:
        for each in questions:
            if each in self._questions and not each.struck:  # It may have been answered meanwhile.
                each.struck = True
                each.task.cancel()
