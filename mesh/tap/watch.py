"""One watch at a node: compares what passes with what is wanted, and keeps it until it is sent, within bounds."""

from __future__ import annotations

import random
import time
from collections import deque
from collections.abc import Iterator
from itertools import count
from typing import TYPE_CHECKING

import msgspec

from mesh.access import TapRights
from mesh.errors import ExpressionError
from mesh.expressions import Match
from mesh.passing import Passing
from mesh.tap.content import content, query
from mesh.tap.rates import Counted
from mesh.tap.sight import Dropped, Rates, Refused, Seen, Sight, Value
from mesh.tap.wanted import Names, Wanted
from mesh.tap.wire import as_event

if TYPE_CHECKING:
    from mesh.trust.credential import Peer

__all__ = ["LEASE_SECONDS", "Place", "Question", "Told", "Watch"]

LEASE_SECONDS = 10.0
MAX_SIGHTS = 1000
MAX_KEPT_BYTES = 4 * 1024 * 1024
BATCH_SIGHTS = 200
BATCH_BYTES = 256 * 1024
SLOW_SECONDS = 0.1
MAX_TOLD = 20

_encode = msgspec.msgpack.Encoder().encode


class Question(msgspec.Struct, array_like=True):
    """What is to be told, asked of all nodes again and again: who hears it no more tells nothing more."""

    tap: str
    app: str
    wanted: Wanted
    over: bool = False


class Told(msgspec.Struct, array_like=True):
    """What a node tells one who asked."""

    items: list[msgspec.Raw]


class Place(msgspec.Struct, frozen=True):
    """The node that is watched."""

    namespace: str
    app: str
    node: str


class Watch:
    """What one tap wants of this node.

    Attributes:
        tap: Its id.
        asker: The app id of who asks.
        reader: Who alone is to read what is told, where that is proven; None = nobody asks for that.
        names: What is among it.
        until: Monotonic time in seconds at which it ends, unless it is asked for again.
        rates_due: Monotonic time in seconds at which rates are told; infinite = never.
    """

    def __init__(self, place: Place, question: Question, match: Match | None, limit: int, numbers: count[int]) -> None:
        """Prepare; `renew` begins it.

        Args:
            place: The node.
            question: What is wanted.
            match: Its expression; None = there is none.
            limit: Bytes of a body that fit into what is sent.
            numbers: Of sights.
        """
        self.tap, self.asker = question.tap, question.app
        self.reader: Peer | None = None
        self._place, self._wanted, self._match, self._numbers = place, question.wanted, match, numbers
        self.names = Names(question.wanted, place.app)
        self._limit = min(question.wanted.max_body, limit)
        self._kept: deque[bytes] = deque()
        self._bytes = 0
        self._dropped = 0
        self._told: set[str] = set()
        now = time.monotonic()
        self.until = now + LEASE_SECONDS
        self._counted = Counted(place.app) if question.wanted.rates else None
        self._counted_since = now
        self.rates_due = now + question.wanted.rates if question.wanted.rates else float("inf")
        self._values = self._reasons = self._gone = False

    def renew(self, rights: TapRights, reader: Peer | None) -> None:
        """Go on for a lease, with what may be seen now."""
        self.reader = reader
        self.until = time.monotonic() + LEASE_SECONDS
        self._values, self._reasons = self._wanted.values and rights.values, rights.values
        if self._wanted.values and not rights.values:
            self.refuse(rights.why_values)

    def refuse(self, reason: str) -> None:
        """Tell once what is not told."""
        if reason not in self._told and len(self._told) < MAX_TOLD:
            self._told.add(reason)
            self._keep(_encode(Refused(self._place.app, self._place.node, reason)))

    @property
    def values(self) -> bool:
        """Whether headers and bodies are told."""
        return self._values

    @property
    def waits(self) -> bool:
        """Whether something is to be sent."""
        return bool(self._kept) or self._dropped > 0

    def see(self, passing: Passing) -> None:
        """Take note of something that is over, if it is wanted."""
        if self._gone or not self.names.take(passing):
            return
        wanted = self._wanted
        told = wanted.sights and (wanted.sample >= 1.0 or random.random() < wanted.sample)  # noqa: S311 - no secret
        sight = None
        if self._match is not None and (told or self._counted is not None):
            sight = self._sight(passing)
            if not self._matches(self._match, sight):
                return
        if self._counted is not None:
            self._counted.add(passing)
        if not told:
            return
        if len(self._kept) >= MAX_SIGHTS or self._bytes >= MAX_KEPT_BYTES:
            self._dropped += 1
        else:
            self._keep(_encode(sight or self._sight(passing)))

    def _keep(self, item: bytes) -> None:
        self._kept.append(item)
        self._bytes += len(item)

    def _sight(self, passing: Passing) -> Sight:
        place = self._place
        return Sight(
            id=f"{place.node}-{next(self._numbers)}",
            time=time.time(),
            seconds=passing.seconds,
            seen=Seen(passing.seen),
            block=passing.block,
            method=passing.method,
            target=passing.target,
            source=passing.source,
            app=place.app,
            node=place.node,
            outcome=passing.outcome,
            traceparent=passing.traceparent,
            details=self._details(passing),
            request=content(passing, passing.request, self._limit, values=self._values),
            reply=content(passing, passing.reply, self._limit, values=self._values),
            hidden=self._wanted.values and not self._values,
        )

    def _details(self, passing: Passing) -> dict[str, Value]:
        """Give what is told besides; a reason may quote a value, so it is for those who may see these."""
        details = passing.details
        if not self._reasons and "reason" in details:
            return {name: value for name, value in details.items() if name != "reason"}
        return {**details, "query": query(passing.query)} if self._values and passing.query else details

    def _matches(self, match: Match, sight: Sight) -> bool:
        """Evaluate the expression; what it names and a sight does not have is no match."""
        began = time.perf_counter()
        try:
            return match.matches(as_event(self._place.namespace, sight, sight.time))
        except ExpressionError as error:
            if not isinstance(error.__cause__, LookupError):
                self.refuse(f"where: {error}, of {sight.block}.{sight.method} and perhaps others, which are left out")
            return False
        finally:
            if (took := time.perf_counter() - began) > SLOW_SECONDS:
                self.refuse(
                    f"where: took {took * 1000:.0f} ms for one event and holds up this node; this tap ends here"
                )
                self._gone = True

    def tick(self, now: float) -> None:
        """Put the rates among what is to be sent, when it is time."""
        if self._counted is not None and now >= self.rates_due:
            seconds, self._counted_since = now - self._counted_since, now
            edges = self._counted.take()
            self._keep(_encode(Rates(self._place.app, self._place.node, seconds, edges)))
            due = self.rates_due + self._wanted.rates
            self.rates_due = due if due > now else now + self._wanted.rates

    def batches(self) -> Iterator[tuple[bytes, int, int]]:
        """Give what is to be sent now, how many items are in each, and how many sights were left out before it."""
        while self.waits:
            items: list[msgspec.Raw] = []
            dropped, self._dropped = self._dropped, 0
            if dropped:
                items.append(msgspec.Raw(_encode(Dropped(self._place.app, self._place.node, dropped))))
            size = 0
            while self._kept and len(items) < BATCH_SIGHTS and (not size or size + len(self._kept[0]) <= BATCH_BYTES):
                item = self._kept.popleft()
                size += len(item)
                items.append(msgspec.Raw(item))
            self._bytes -= size
            yield _encode(Told(items)), len(items) - bool(dropped), dropped

    def lost(self, count: int) -> None:
        """Note that so much could not be sent; what is refused is told anew."""
        self._dropped += count
        self._told.clear()
