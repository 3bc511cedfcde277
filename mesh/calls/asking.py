"""Asking what became of calls that wait for long; ``mesh/calls/members.py`` says how that is answered."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from typing import TYPE_CHECKING

import orjson

from mesh import address
from mesh.address import Address
from mesh.broker import Message
from mesh.calls.link import FRAME_HEADER, Link
from mesh.errors import BrokerError

if TYPE_CHECKING:
    from mesh.calls.exchange import Exchange

__all__ = ["Asking", "NotTakenError", "Waiting"]

MAX_ASK_AGAIN = 10.0
MAX_CALLS = 200
ASK_WAIT = 2.0


class NotTakenError(Exception):
    """Nobody took the call, and nobody will."""


class Waiting:
    """What a caller knows of a call that waits.

    Attributes:
        number: Of the question that was asked last.
        refused: Who says it did not take it, and will not.
        members: Who could have; None while nobody knows.
        vouched: Whether somebody has ever known.
    """

    __slots__ = ("ask_again", "ask_at", "members", "number", "refused", "vouched")

    def __init__(self, ask_again: float) -> None:
        self.number = 0
        self.ask_at = 0.0
        self.ask_again = ask_again
        self.refused: set[str] = set()
        self.members: set[str] | None = None
        self.vouched = False

    def ask(self, now: float) -> int:
        """Begin anew to count who answers; give the question's number."""
        self.number += 1
        self.refused.clear()
        self.members = None
        self.ask_at = now + self.ask_again
        return self.number

    def held(self) -> None:
        """Ask less often: somebody is at work on it."""
        self.ask_again = min(self.ask_again * 2, MAX_ASK_AGAIN)

    def take_refusal(self, node: str, members: list[str] | None) -> bool:
        """Note that one did not take it; tell whether nobody did."""
        self.refused.add(node)
        if members is not None:
            self.members = set(members) | (self.members or set())
            self.vouched = True
        return self.members is not None and self.members <= self.refused


class Asking:
    """Asks about the calls of one exchange."""

    def __init__(self, exchange: Exchange) -> None:
        self._exchange = exchange

    async def ask(self) -> None:
        """Ask about all that are due."""
        now = self._exchange.monotonic()
        due: dict[Address, list[tuple[Link, Waiting]]] = defaultdict(list)
        for link in self._exchange.links.values():
            if link.first is None or link.first.done() or now - link.born < self._exchange.ask_after:
                continue
            if link.waiting is None:
                link.waiting = Waiting(1.5 * self._exchange.ask_after)
            if link.waiting.ask_at <= now:
                due[link.served].append((link, link.waiting))
        for served, links in due.items():
            for first in range(0, len(links), MAX_CALLS):
                await self._ask(served, links[first : first + MAX_CALLS], now)

    async def _ask(self, served: Address, links: list[tuple[Link, Waiting]], now: float) -> None:
        calls = [(link.token, waiting.ask(now), round(now - link.born, 3), waiting.vouched) for link, waiting in links]
        body = orjson.dumps({"inbox": self._exchange.inbox, "calls": calls})
        try:
            async with asyncio.timeout(ASK_WAIT):
                await self._exchange.broker.broadcast(address.members(served), Message({FRAME_HEADER: "ask"}, body))
        except (BrokerError, TimeoutError):
            for _, waiting in links:
                waiting.ask_at = now

    def take(self, message: Message) -> None:
        """Take what a member says."""
        told = orjson.loads(message.body)
        for token in told["held"]:
            link = self._exchange.links.get(token)
            if link is not None and link.first is not None and link.waiting is not None:
                link.waiting.held()
        for token, number in told["none"]:
            link = self._exchange.links.get(token)
            if link is None or link.first is None or link.waiting is None or link.waiting.number != number or link.peer:
                continue
            if link.waiting.take_refusal(told["node"], told["members"]):
                link.fail(NotTakenError("nobody took it"))
