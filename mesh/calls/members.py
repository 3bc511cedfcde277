"""Who serves an address, as one of them knows it, and what it says of calls that a caller asks about.

A frame is at most once, so a request or its answer may be lost with a connection. The caller then cannot know whether
it ran: only those who serve the address can. Each of them listens to the others, and to callers that ask:

======== ================ ====================================================================================
frame    goes             meaning
======== ================ ====================================================================================
here     to all members   one more serves the address, or still does; to one who asks for it, also from each of them
bye      to all members   one less does
ask      to all members   calls that wait for long: was it you who took them?
told     to the caller    which of them were not, and never will be; and who else could have
given-up to all members   calls whose callers are gone: whoever runs one ends it, and nobody takes it any more
======== ================ ====================================================================================

An answer that is still kept is sent again. A call that every member says it did not take, and will not take, is sent
again by its caller: it certainly did not run. Whoever has been a member since before the call vouches for the list of
members, those included that have left since, or died: what these took stays unknown, and is not repeated.

Who asks who is there are those who are new, and those whose connection was lost for a while: they may have missed who
came meanwhile. They ask more than once, as an answer may be lost as well. They say which ones they know, as a sum of
all names, and nobody answers who knows the same: so a second question, or an outage of all, costs no answers of all to
all.

A broker may let a node listen to the members, and not tell them anything; some do not even say so. The only sure sign
is to hear oneself. Who does not may know no others, nor they of it: it vouches for no list, and says to each
caller at once that it took the call (``taken``, in ``mesh/calls/exchange.py``). Such a call is never
sent again, unless that frame is lost; so it is told again to a caller that asks.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from hashlib import blake2s
from typing import Any

import orjson

from mesh import address
from mesh.address import Address, Kind
from mesh.broker import Frame, Message
from mesh.calls.asking import GIVEN_UP, MAX_CALLS
from mesh.calls.context import Context
from mesh.calls.link import FRAME_HEADER
from mesh.calls.malformed import careful, listed, named
from mesh.calls.taken import Taken
from mesh.calls.waiting import MAX_MEMBERS
from mesh.errors import BrokerError, BrokerUnavailableError, UnprovenError
from mesh.tasks import task_group
from mesh.trust.identity import Identity

__all__ = ["LOST", "Members"]

logger = logging.getLogger(__name__)

HERE = "here"
LOST = "it ran, and its answer was lost"
BEAT = 20.0
MEMBERS_PER_BEAT = 10  # The more there are, the less often each says that it is here.
MISSED_BEATS = 3
REMEMBERED = 600.0
BYE_WAIT = 1.0
ECHO_WAIT = 5.0  # Twice that is less than there is between two beats.
SOON = 1.0
ASKS = 3  # Times that a member asks who else is there: at once, soon after, and with the next beat.
ANSWERS_PER_SECOND = 100.0  # So many may come at one member when all ask, as after an outage of the broker.


class Members:
    """This node as a member, and the others that it knows of.

    Attributes:
        node: Names this member; its inbox, and a number.
        at: The address.
        served: Its text.
        label: The user's own name for it.
    """

    def __init__(self, exchange: Context, taken: Taken, served: Address, number: int) -> None:
        """Prepare; ``joined`` takes part."""
        self._exchange = exchange
        self._taken = taken
        self.served = served.text
        self.label = served.label
        self.at = served
        self._alone = (
            served.kind is Kind.OWNER
        )  # By the id of a node, which no other one had before: nobody else took it.
        self._address = address.members(served)
        self._joined = self._leaving = False
        self._known_since: float | None = None  # When what it said to all came back, if it has since.
        self._said = 0
        self._asks = ASKS
        self._restored = asyncio.Event()
        self._echo = asyncio.Event()
        self._unheard = False  # Whether the log says so.
        self._heard: dict[str, float] = {}
        self._left: dict[str, float] = {}
        self._overflowed_at: float | None = None
        self.node = f"{exchange.inbox}.{number}"
        self._sum = _hash(self.node)  # Of all that it knows, and itself.

    @asynccontextmanager
    async def joined(self) -> AsyncIterator[None]:
        """Be one of them while entered."""
        async with self._exchange.broker.listen(self._address, careful(self._hear)), task_group() as tasks:
            self._joined = True
            said = await self._say_here()
            beating = tasks.create_task(self._beat(said), name="exchange-member")
            try:
                yield
            finally:
                beating.cancel()
                self._leaving = True  # Whoever asks from now on is told nothing: it would take the farewell back.
                await self._say("bye")

    @property
    def is_unknown(self) -> bool:
        """Whether it takes part, and the others may not know of it."""
        return self._joined and self._known_since is None and not self._alone

    def ask_again(self) -> None:
        """Say at once that it is here, and ask who else is: the connection was lost, and is back."""
        self._asks = ASKS
        self._restored.set()
        self._echo.set()  # What was said before may be lost: it is waited for no more.

    async def _say_here(self) -> bool:
        """Say that it is here, and ask who else is, where that is due. False = there is no connection."""
        self._said += 1
        self._echo.clear()
        asks = self._asks > 0
        new = asks or self._known_since is None
        said = await self._say(HERE, new=new, said=self._said, known=f"{self._sum:x}")
        if said and asks:
            self._asks -= 1
        return said

    async def _say(self, kind: str, **values: object) -> bool:
        try:
            async with asyncio.timeout(BYE_WAIT):
                message = self._message(self._address.text, kind, **values)
                await self._exchange.broker.broadcast(self._address, message)
        except (BrokerUnavailableError, TimeoutError):
            return False  # The next beat says it; one who left unheard is waited for as if it had died.
        except BrokerError:
            self._known_since = None
        return True

    async def _is_heard(self) -> bool:
        with suppress(TimeoutError):
            async with asyncio.timeout(ECHO_WAIT):
                await self._echo.wait()
        return self._echo.is_set()

    async def _await_echo(self) -> None:
        """See that what was said comes back. It may have gone with a connection, so it is said once more.

        What the broker lets a node do outlives a connection, so an outage takes nothing from what is vouched for.
        """
        if await self._is_heard() or not await self._say_here() or await self._is_heard():
            return
        self._known_since = None
        guard = self._exchange.guard
        if not self._unheard and (guard is None or guard.standing.proven.is_set()):
            self._unheard = True
            logger.warning(
                "what this node tells the other instances of %s does not come back, so no call to it is made again "
                "whose request got lost; the broker has to let this node publish and subscribe to %s "
                "(see `mesh broker permissions`)",
                self.label,
                self._address,
            )

    def _hear_itself(self, said: dict[str, Any]) -> None:
        if said.get("said") != self._said:
            return  # An earlier one, or its farewell.
        self._echo.set()
        if said["new"] and self._known_since is None:
            self._known_since = self._exchange.monotonic()
        if self._unheard:
            self._unheard = False
            logger.info("the other instances of %s hear this node again", self.label)

    def _message(self, to: str, kind: str, **values: object) -> Message:
        message = Message({FRAME_HEADER: kind}, orjson.dumps({"node": self.node, "address": self.served, **values}))
        return message if self._exchange.guard is None else self._exchange.guard.tell(to, message)

    async def _beat(self, said: bool) -> None:
        while True:
            again_soon = self._asks > 1 or (not said and self._known_since is None)
            if said and not again_soon:
                await self._await_echo()
            await self._wait(SOON if again_soon else self._interval())
            said = await self._say_here()
            now = self._exchange.monotonic()
            silent = MISSED_BEATS * self._interval()
            for node in [node for node, heard_at in self._heard.items() if now - heard_at > silent]:
                self._leave(node, now)
            self._left = {node: left_at for node, left_at in self._left.items() if now - left_at < REMEMBERED}

    async def _wait(self, seconds: float) -> None:
        """Wait until it is to say again that it is here; less when the connection was lost and is back."""
        all_answer = len(self._heard) / ANSWERS_PER_SECOND
        seconds = min(max(seconds, all_answer), self._interval())
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds * random.uniform(0.8, 1.0)):  # noqa: S311 - it only spreads the load
                await self._restored.wait()
                self._restored.clear()
                await asyncio.sleep(all_answer * random.random())  # noqa: S311 - the same
        self._restored.clear()

    def _interval(self) -> float:
        return BEAT * max(1.0, len(self._heard) / MEMBERS_PER_BEAT)

    def _hear(self, frame: Frame) -> None:
        if frame.message is None:
            return
        try:
            teller = None if (guard := self._exchange.guard) is None else guard.told(self._address.text, frame.message)
        except UnprovenError:
            return
        by = "" if teller is None else f"{teller} "
        kind, said = frame.message.headers.get(FRAME_HEADER), orjson.loads(frame.message.body)
        if kind == "ask":
            self._exchange.soon(self._answer(said, by))
        elif kind == GIVEN_UP:
            for token in [named(each) for each in listed(said["calls"], MAX_CALLS)]:
                self._taken.end(token, by)
        elif said["node"] == self.node:  # Also where others alone may answer.
            if guard is None or teller in (None, guard.own.identity):
                self._hear_itself(said)
        elif self._is_member(teller):
            if kind == "bye":
                self._leave(named(said["node"]), self._exchange.monotonic())
                return
            self.note(named(said["node"]))
            if said["new"] and not self._leaving and said.get("known") != f"{self._sum:x}":
                to = f"{said['node'].rpartition('.')[0]}.{HERE}"
                self._exchange.tell(to, self._message(to, HERE))

    def _is_member(self, teller: Identity | None) -> bool:
        return teller is None or self._exchange.guard is None or self._exchange.guard.may_answer(self.at, teller)

    def hear_one(self, at: str, message: Message, said: dict[str, Any]) -> None:
        """Take what another member tells this one."""
        try:
            teller = None if self._exchange.guard is None else self._exchange.guard.told(at, message)
        except UnprovenError:
            return
        if self._is_member(teller):
            self.note(named(said["node"]))

    def note(self, node: str) -> None:
        """Note that another is here."""
        now = self._exchange.monotonic()
        self._left.pop(node, None)
        if node != self.node and (node in self._heard or len(self._heard) < MAX_MEMBERS):
            if node not in self._heard:
                self._sum ^= _hash(node)
            self._heard[node] = now
        elif node != self.node:
            self._overflowed_at = now

    def _leave(self, node: str, now: float) -> None:
        if self._heard.pop(node, None) is not None:
            self._sum ^= _hash(node)
        if len(self._left) < MAX_MEMBERS:
            self._left[node] = now
        else:
            self._overflowed_at = now

    async def _answer(self, asked: dict[str, Any], by: str) -> None:
        """Tell a caller what is known here of its calls."""
        exchange, caller = self._exchange, named(asked["inbox"])
        calls = [(named(token), age, vouched) for token, age, vouched in listed(asked["calls"], MAX_CALLS)]
        answers: list[tuple[str, Message, str]] = []
        none: list[str] = []
        now = exchange.monotonic()
        known_for = REMEMBERED if self._alone else 0.0
        if self._known_since is not None and not self._alone:
            known_for = min(now - max(self._known_since, self._overflowed_at or 0.0), REMEMBERED)
        for token, age, vouched in calls:
            request = self._taken.get(token, by)
            if request is not None:
                if request.answered:
                    answers.append((f"{caller}.{token}", request.last_word(), request.end_address))
                elif self.is_unknown:
                    request.tell_taken()
                continue
            if not self._taken.knows(token, by):
                if not self._taken.knows_all_since(now - age):
                    continue
                if known_for < age and not vouched:
                    continue  # It may be waiting for a member in the broker, and come yet.
            self._taken.add(token, None, by)
            none.append(token)
        oldest = max((age for _, age, _ in calls), default=0.0)
        left = {node: now - left_at for node, left_at in self._left.items() if now - left_at <= oldest}
        to = f"{caller}.told"
        told = self._message(
            to, "told", at=asked["at"], none=none, known_for=known_for, members=list(self._heard), left=left
        )
        await exchange.broker.send(to, told)  # Also where all are known: how many more are asked about depends on it.
        for link, message, end in answers:
            await exchange.broker.send(link, message, end)


def _hash(node: str) -> int:
    return int.from_bytes(blake2s(node.encode(), digest_size=8).digest(), "big")
