"""One turn at a time per actor, in order of arrival; a chain of calls that comes back to the actor enters at once."""

from __future__ import annotations

import asyncio
from collections import deque
from contextlib import suppress

from mesh.actors.errors import ActorBusyError, StackTooDeepError

__all__ = ["Room", "Turns"]


class Room:
    """How many turns may run or wait, of all actors together."""

    __slots__ = ("_left", "most")

    def __init__(self, most: int) -> None:
        """Begin with all of it free."""
        self.most = self._left = most

    @property
    def taken(self) -> int:
        """How many run or wait."""
        return self.most - self._left

    def take(self) -> None:
        """Take a place.

        Raises:
            ActorBusyError: There is none.
        """
        if self._left <= 0:
            raise ActorBusyError(f"{self.most} calls of actors run or wait on this node already")
        self._left -= 1

    def give_back(self) -> None:
        """Leave a place."""
        self._left += 1


class Turns:
    """The turns of one actor.

    Who waits is let in by whoever leaves, so that nobody comes between; there is no task and no lock.
    """

    __slots__ = ("_chain", "_closed", "_depth", "_idle", "_max_depth", "_most", "_room", "_waiting")

    def __init__(self, max_depth: int | None, most_waiting: int, room: Room) -> None:
        """Begin with nobody.

        Args:
            max_depth: How often one chain may be in it; None = reentrancy is off.
            most_waiting: How many may wait.
            room: For the turns of all actors.
        """
        self._max_depth = max_depth
        self._most = most_waiting
        self._room = room
        self._chain: str | None = None
        self._depth = 0
        self._waiting: deque[asyncio.Future[bool]] | None = None
        self._closed = False
        self._idle: asyncio.Event | None = None

    @property
    def running(self) -> bool:
        """Whether a turn runs."""
        return self._depth > 0

    @property
    def waiting(self) -> int:
        """How many wait."""
        return len(self._waiting or ())

    def is_of(self, chain: str | None) -> bool:
        """Tell whether the turn that runs belongs to this chain of calls."""
        return chain is not None and self._max_depth is not None and self._depth > 0 and self._chain == chain

    async def enter(self, chain: str | None) -> bool:
        """Wait for a turn; each that was given is to be left.

        Args:
            chain: Of calls, that this one belongs to; None = it is alone.

        Returns:
            Whether it has the turn; False = the actor takes no others, and nothing ran.

        Raises:
            StackTooDeepError: The chain is in it too often.
            ActorBusyError: Too many wait.
        """
        if self.is_of(chain):
            assert self._max_depth is not None
            if self._depth >= self._max_depth:
                raise StackTooDeepError(self._max_depth)
            self._room.take()
            self._depth += 1
            return True
        if self._closed:
            return False
        if self._depth == 0:
            self._room.take()
            self._chain, self._depth = chain, 1
            return True
        if self._waiting is None:
            self._waiting = deque()
        if len(self._waiting) >= self._most:
            raise ActorBusyError(f"{self._most} calls wait for this actor already")
        self._room.take()
        turn: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        self._waiting.append(turn)
        try:
            entered = await turn
        except asyncio.CancelledError:
            if not turn.cancelled() and turn.result():  # It was given in the same moment.
                self.leave()
            else:
                with suppress(ValueError):  # Who closed it, or left, has taken it away already.
                    (self._waiting or deque()).remove(turn)
                self._room.give_back()
            raise
        if entered:
            self._chain = chain
        else:
            self._room.give_back()
        return entered

    def leave(self) -> None:
        """End a turn; who has waited longest is next."""
        self._room.give_back()
        self._depth -= 1
        if self._depth:
            return
        self._chain = None
        while self._waiting:
            turn = self._waiting.popleft()
            if not turn.done():
                self._depth = 1  # It is theirs from now on, even before they are told.
                turn.set_result(True)
                return
        if self._idle is not None:
            self._idle.set()

    def close(self) -> None:
        """Give no other turns, but to the chain that has it; who waits is told, and ran nothing."""
        self._closed = True
        waiting, self._waiting = self._waiting or (), None
        for turn in waiting:
            if not turn.done():
                turn.set_result(False)

    async def until_idle(self) -> None:
        """Wait until no turn runs, once it is closed."""
        if self._depth:
            self._idle = self._idle or asyncio.Event()
            await self._idle.wait()
