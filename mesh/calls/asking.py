"""What a caller tells and asks those who serve an address; ``mesh/calls/members.py`` says how that is answered.

Those who serve an address of nodes, or an operator's, do not know each other, and do not listen: nothing is asked
there.

After an outage thousands of calls may wait while nothing is lost but time: their answers are on the way. Each that is
asked about is answered once more, so asking about all of them would double the work of those who are behind already.
So it is asked about few, the oldest first, and about more once somebody has told.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass

import orjson

from mesh import address
from mesh.address import Address, Kind
from mesh.broker import Message
from mesh.calls.context import Context, tell
from mesh.calls.link import FRAME_HEADER, Link
from mesh.calls.malformed import listed, named
from mesh.calls.waiting import MAX_ASK_AGAIN, MAX_MEMBERS, Waiting
from mesh.errors import UnprovenError

__all__ = ["GIVEN_UP", "MAX_CALLS", "Asking", "NotTakenError"]

GIVEN_UP = "given-up"
MAX_CALLS = 200  # In one frame.
MAX_GIVEN_UP = 10_000  # Beyond that, whoever runs one ends it at its deadline.
MAX_QUESTIONS = 64  # At one address, without a word from those who serve it in between.
_ALONE = (Kind.NODES, Kind.OPERATOR)
MARGIN = 3.0  # Times what a caller waits until it asks.
MAX_MARGIN = 60.0


class NotTakenError(Exception):
    """Nobody took the call, and nobody will."""


@dataclass(slots=True)
class _Round:
    """The questions last asked at an address.

    Attributes:
        at: When.
        until: How long the next ones wait for an answer to these.
        questions: How many there were, at most.
        told: Whether somebody has answered one.
    """

    at: float
    until: float
    questions: int = 1
    told: bool = False


def _next_round(last: _Round | None, now: float, ask_after: float) -> _Round:
    """Ask about more where the last questions were answered, and less often where they were not."""
    if last is None:
        return _Round(now, now + ask_after)
    if last.told:
        return _Round(now, now + ask_after, min(2 * last.questions, MAX_QUESTIONS))
    return _Round(now, now + min(1.5 * (last.until - last.at), MAX_ASK_AGAIN))


class Asking:
    """Asks about the calls of one exchange, and tells of those that nobody waits for any more."""

    def __init__(self, exchange: Context, links: Mapping[str, Link]) -> None:
        self._exchange = exchange
        self._links = links
        self._given_up: dict[Address, list[str]] = {}
        self._rounds: dict[str, _Round] = {}  # By address, while somebody may answer.
        self._least = self._margin = MARGIN * exchange.ask_after  # How long a question and its answer may take.

    def give_up(self, link: Link) -> None:
        """Have whoever took a call, which nobody knows yet, stop it; many at once go in one frame."""
        if link.served.kind in _ALONE:
            return
        if not self._given_up:
            self._exchange.soon(self._tell_given_up())
        tokens = self._given_up.setdefault(link.served, [])
        if len(tokens) < MAX_GIVEN_UP:
            tokens.append(link.token)

    async def _tell_given_up(self) -> None:
        given_up, self._given_up = self._given_up, {}
        for served, tokens in given_up.items():
            for first in range(0, len(tokens), MAX_CALLS):
                body = orjson.dumps({"calls": tokens[first : first + MAX_CALLS]})
                await tell(self._exchange, address.members(served), body, {FRAME_HEADER: GIVEN_UP})

    def ask_anew(self) -> None:
        """Ask about all that wait, from now on: the connection was lost, and is back, so what was asked may be lost."""
        self._rounds.clear()
        for link in self._links.values():
            if link.waiting is not None:
                link.waiting.ask_anew(self._exchange.ask_after)

    def ask(self) -> None:
        """Ask about those that are due."""
        if self._given_up:  # There was no room for telling it at once.
            self._exchange.soon(self._tell_given_up())
        now = self._exchange.monotonic()
        due: dict[Address, list[tuple[Link, Waiting]]] = defaultdict(list)
        for link in self._links.values():  # The oldest first.
            if link.first is None or link.first.done() or now - link.born < self._exchange.ask_after:
                continue
            if link.served.kind in _ALONE:
                continue
            if link.waiting is None:
                link.waiting = Waiting(self._exchange.ask_after)
            if link.waiting.ask_at <= now:
                due[link.served].append((link, link.waiting))
        self._rounds = {at: last for at, last in self._rounds.items() if now - last.at < 2 * MAX_ASK_AGAIN}
        for served, links in due.items():
            last = self._rounds.get(served.text)
            if last is not None and not last.told and now < last.until:
                continue
            begun = self._rounds[served.text] = _next_round(last, now, self._exchange.ask_after)
            # On the side: one that cannot be asked now keeps no other waiting.
            self._exchange.soon(self._ask(served, links[: begun.questions * MAX_CALLS], now))

    async def _ask(self, served: Address, links: list[tuple[Link, Waiting]], now: float) -> None:
        begun = self._rounds.get(served.text)
        try:
            for first in range(0, len(links), MAX_CALLS):
                await self._ask_about(served, links[first : first + MAX_CALLS], now)
        except BaseException:
            if self._rounds.get(served.text) is begun:  # It is asked again soon.
                self._rounds.pop(served.text, None)
            raise

    async def _ask_about(self, served: Address, links: list[tuple[Link, Waiting]], now: float) -> None:
        calls = [(link.token, now - link.born + self._margin, waiting.members is not None) for link, waiting in links]
        body = orjson.dumps({"inbox": self._exchange.inbox, "at": now, "calls": calls})
        await tell(self._exchange, address.members(served), body, {FRAME_HEADER: "ask"})
        for _, waiting in links:
            waiting.ask(now)

    def take(self, at: str, message: Message) -> None:
        """Take what a member says. It counts back from its answer, so on this clock it was earlier, if anything."""
        try:
            teller = None if self._exchange.guard is None else self._exchange.guard.told(at, message)
        except UnprovenError:
            return
        told = orjson.loads(message.body)
        node, members = named(told["node"]), [named(each) for each in listed(told["members"], MAX_MEMBERS)]
        left = [(named(each), ago) for each, ago in listed(list(told["left"].items()), MAX_MEMBERS)]
        now = self._exchange.monotonic()
        self._margin = min(max(self._least, 2 * (now - told["at"])), MAX_MARGIN)
        last = self._rounds.get(named(told["address"]))
        if last is not None and last.at == told["at"]:
            last.told = True
        for token in listed(told["none"], MAX_CALLS):
            link = self._links.get(token)
            if link is None or link.first is None or link.waiting is None or link.peer or link.taken:
                continue
            if link.session is not None and not link.session.may_answer(teller):
                continue
            known = None
            if now - told["known_for"] <= link.born:
                known = [node, *members, *(each for each, ago in left if now - ago >= link.born)]
            if link.waiting.take_refusal(node, known):
                link.fail(NotTakenError("nobody took it"))
