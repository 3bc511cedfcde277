"""What a caller tells and asks those who serve an address; ``mesh/calls/members.py`` says how that is answered."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Mapping

import orjson

from mesh import address
from mesh.address import Address
from mesh.broker import Message
from mesh.calls.context import Context
from mesh.calls.link import FRAME_HEADER, Link
from mesh.calls.waiting import Waiting
from mesh.errors import BrokerError, UnprovenError

__all__ = ["GIVEN_UP", "Asking", "NotTakenError"]

GIVEN_UP = "given-up"
MAX_CALLS = 200
ASK_WAIT = 2.0
MARGIN = 3.0  # Times what a caller waits until it asks.
MAX_MARGIN = 60.0


class NotTakenError(Exception):
    """Nobody took the call, and nobody will."""


class Asking:
    """Asks about the calls of one exchange, and tells of those that nobody waits for any more."""

    def __init__(self, exchange: Context, links: Mapping[str, Link]) -> None:
        self._exchange = exchange
        self._links = links
        self._given_up: dict[Address, list[str]] = {}
        self._least = self._margin = MARGIN * exchange.ask_after  # How long a question and its answer may take.

    def give_up(self, link: Link) -> None:
        """Have whoever took a call, which nobody knows yet, stop it; many at once go in one frame."""
        if not self._given_up:
            self._exchange.soon(self._tell_given_up())
        self._given_up.setdefault(link.served, []).append(link.token)

    async def _tell_given_up(self) -> None:
        given_up, self._given_up = self._given_up, {}
        for served, tokens in given_up.items():
            for first in range(0, len(tokens), MAX_CALLS):
                body = orjson.dumps({"calls": tokens[first : first + MAX_CALLS]})
                await self._broadcast(served, Message({FRAME_HEADER: GIVEN_UP}, body))

    async def _broadcast(self, served: Address, message: Message) -> None:
        to, guard = address.members(served), self._exchange.guard
        await self._exchange.broker.broadcast(to, message if guard is None else guard.tell(to.text, message))

    async def ask(self) -> None:
        """Ask about all that are due."""
        if self._given_up:  # There was no room for telling it at once.
            self._exchange.soon(self._tell_given_up())
        now = self._exchange.monotonic()
        due: dict[Address, list[tuple[Link, Waiting]]] = defaultdict(list)
        for link in self._links.values():
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
        calls = [(link.token, now - link.born + self._margin, waiting.members is not None) for link, waiting in links]
        body = orjson.dumps({"inbox": self._exchange.inbox, "at": now, "calls": calls})
        try:
            async with asyncio.timeout(ASK_WAIT):
                await self._broadcast(served, Message({FRAME_HEADER: "ask"}, body))
        except (BrokerError, TimeoutError):
            return  # It is asked again soon.
        for _, waiting in links:
            waiting.ask(now)

    def take(self, at: str, message: Message) -> None:
        """Take what a member says. It counts back from its answer, so on this clock it was earlier, if anything."""
        try:
            teller = None if self._exchange.guard is None else self._exchange.guard.told(at, message)
        except UnprovenError:
            return
        told = orjson.loads(message.body)
        now = self._exchange.monotonic()
        self._margin = min(max(self._least, 2 * (now - told["at"])), MAX_MARGIN)
        for token in told["none"]:
            link = self._links.get(token)
            if link is None or link.first is None or link.waiting is None or link.peer:
                continue
            if link.session is not None and not link.session.may_answer(teller):
                continue
            members = None
            if now - told["known_for"] <= link.born:
                left = [node for node, ago in told["left"].items() if now - ago >= link.born]
                members = [told["node"], *told["members"], *left]
            if link.waiting.take_refusal(told["node"], members):
                link.fail(NotTakenError("nobody took it"))
