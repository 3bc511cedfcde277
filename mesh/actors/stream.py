"""An application that hosts actors over a stream that it holds open to us, and listens at no port."""

from __future__ import annotations

import asyncio
import itertools
import logging
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mesh.actors.host import Turn, TurnAnswer, TurnKind
from mesh.errors import AppFailedError, AppUnreachableError

if TYPE_CHECKING:
    from mesh.actors.settings import HostSettings

__all__ = ["StreamHost"]

logger = logging.getLogger(__name__)

ENDED = "the stream of the actors' host has ended"


@dataclass(slots=True, eq=False)
class _Asked:
    """A turn: what is written of it, and what it waits for."""

    kind: TurnKind
    message: Any
    answer: asyncio.Future[TurnAnswer]
    sent: bool = False


class StreamHost:
    """See ``mesh.actors.host.ActorHost``; turns go out with an id each, and answers come back in any order.

    Attributes:
        settings: The types.
        begun: Set once the types are hosted.
        ended: Set when nobody holds the stream open any more.
    """

    def __init__(self, settings: HostSettings, render: Callable[[str, Turn], Any]) -> None:
        """Begin.

        Args:
            settings: What the application says that it hosts.
            render: Makes of an id and a turn what is written; raises ValueError where that cannot be.
        """
        self.settings = settings
        self.begun, self.ended = asyncio.Event(), asyncio.Event()
        self._render = render
        self._waiting: dict[str, None] = {}
        self._pending: dict[str, _Asked] = {}
        self._ids = itertools.count(1)
        self._wake = asyncio.Event()
        self._told = False

    # Towards whoever holds it open

    async def outgoing(self) -> AsyncIterator[Any]:
        """Iterate over what is to be written, until the stream ends."""
        while not self.ended.is_set():
            while self._waiting:
                id_ = next(iter(self._waiting))
                del self._waiting[id_]
                asked = self._pending[id_]
                asked.sent = True
                yield asked.message
            self._wake.clear()
            if not self.ended.is_set():
                await self._wake.wait()

    def answered(self, id_: str, kind: TurnKind | None, answer: TurnAnswer) -> None:
        """Take the answer to a turn.

        One to a turn that is not there is no mistake of anybody's: nobody may wait for it any more.

        Args:
            id_: The turn's.
            kind: What it answers; None = anything.
            answer: It.
        """
        asked = self._pending.get(id_)
        if asked is None or not asked.sent:
            if not self._told:
                self._told = True
                logger.warning("a host of actors answered the turn %.100r, which is not open, and perhaps others", id_)
            return
        if kind not in (None, asked.kind):
            answer = TurnAnswer(500, (), f"a {asked.kind} was answered as a {kind}".encode())
        if not asked.answer.done():
            asked.answer.set_result(answer)

    def end(self) -> None:
        """Hand out nothing more; who waits for an answer is told."""
        self.ended.set()
        self._wake.set()
        for asked in self._pending.values():
            if not asked.answer.done():
                asked.answer.set_exception(AppFailedError(ENDED) if asked.sent else AppUnreachableError(ENDED))
        self._waiting.clear()

    # As a host

    async def turn(self, turn: Turn) -> TurnAnswer:
        """Have an actor do something."""
        if self.ended.is_set():
            raise AppUnreachableError(ENDED)
        id_ = str(next(self._ids))
        try:
            message = self._render(id_, turn)
        except ValueError as error:
            raise AppFailedError(f"the call does not go into a message of gRPC: {error}") from None
        asked = self._pending[id_] = _Asked(turn.kind, message, asyncio.get_running_loop().create_future())
        self._waiting[id_] = None
        self._wake.set()
        try:
            return await asked.answer
        finally:
            del self._pending[id_]
            self._waiting.pop(id_, None)
