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

MARGIN = 3.0  # Times what a caller waits until it asks.
MAX_MARGIN = 60.0
MAX_ASK_AGAIN = 10.0
MAX_CALLS = 200
ASK_WAIT = 2.0


class NotTakenError(Exception):
    """Nobody took the call, and nobody will."""


class Waiting:
    """What a caller knows of a call that waits.

    Attributes:
        ask_at: When it is asked about next.
        margin: How long the question and its answer may take, in seconds; later ones vouch for nobody.
        refused: Who says it did not take it, and will not.
        members: Who could have; None while nobody knows.
    """

    __slots__ = ("ask_again", "ask_at", "margin", "members", "refused")

    def __init__(self, ask_after: float) -> None:
        self.ask_at = 0.0
        self.ask_again = ask_after
        self.margin = MARGIN * ask_after
        self.refused: set[str] = set()
        self.members: set[str] | None = None

    def ask(self, now: float) -> None:
        """Ask less and less often, with more and more patience: the broker may be slow."""
        self.ask_again = min(self.ask_again * 1.5, MAX_ASK_AGAIN)
        self.margin = min(self.margin * 1.5, MAX_MARGIN)
        self.ask_at = now + self.ask_again

    def take_refusal(self, node: str, members: list[str] | None) -> bool:
        """Note that one did not take it; tell whether nobody did."""
        self.refused.add(node)
        if members is not None:
            self.members = set(members) | (self.members or set())
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
                link.waiting = Waiting(self._exchange.ask_after)
            if link.waiting.ask_at <= now:
                due[link.served].append((link, link.waiting))
        for served, links in due.items():
            for first in range(0, len(links), MAX_CALLS):
                await self._ask(served, links[first : first + MAX_CALLS], now)

    async def _ask(self, served: Address, links: list[tuple[Link, Waiting]], now: float) -> None:
        calls = [
            (link.token, now - link.born + waiting.margin, waiting.margin, waiting.members is not None)
            for link, waiting in links
        ]
        body = orjson.dumps({"inbox": self._exchange.inbox, "at": now, "calls": calls})
        try:
            async with asyncio.timeout(ASK_WAIT):
                await self._exchange.broker.broadcast(address.members(served), Message({FRAME_HEADER: "ask"}, body))
        except (BrokerError, TimeoutError):
            return  # It is asked again soon.
        for _, waiting in links:
            waiting.ask(now)

    def take(self, message: Message) -> None:
        """Take what a member says."""
        told = orjson.loads(message.body)
        took = self._exchange.monotonic() - told["at"]
        for token, margin, index in told["none"]:
            link = self._exchange.links.get(token)
            if link is None or link.first is None or link.waiting is None or link.peer:
                continue
            members = told["members"][index] if index is not None and took < margin else None
            if link.waiting.take_refusal(told["node"], members):
                link.fail(NotTakenError("nobody took it"))
