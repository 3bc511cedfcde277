"""Who watches this node: the node's side of a tap. It hears what is wanted, and tells it in batches.

One task sends for all. What is watched never waits for it: what comes faster than it can be sent is left out, and
counted. A watch ends when it is not asked for any more, so that nobody has to be told of one who asked and died.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import TYPE_CHECKING, Protocol

import msgspec

from mesh import address
from mesh.broker import Frame, Message
from mesh.errors import BadArgumentError, MeshError, UnprovenError
from mesh.operation import Caller
from mesh.passing import Passing, Taps
from mesh.tap.sight import Refused
from mesh.tap.wanted import compiled
from mesh.tap.watch import LEASE_SECONDS, Place, Question, Told, Watch
from mesh.tasks import task_group
from mesh.telemetry import SIGHTS, Observer, nobody

if TYPE_CHECKING:
    from mesh.access import Gate
    from mesh.broker import Broker
    from mesh.calls.exchange import Exchange
    from mesh.operation import Operation
    from mesh.trust.credential import Peer

__all__ = ["Watches"]

logger = logging.getLogger(__name__)

MAX_WATCHES = 16
MAX_OF_ONE = 8  # Of one application, so that others have room.
MAX_REFUSED = 64
BATCH_SECONDS = 0.05
SEND_SECONDS = 5.0
ROOM_BYTES = 128 * 1024  # Of a frame, for what is around two bodies.
MAX_LOGGED = 100

_question = msgspec.msgpack.Decoder(Question)


class Telling(Protocol):
    """What knows building blocks (``mesh/blocks/telling.py``)."""

    def asked(self, passing: Passing, operation: Operation) -> None:
        """Note what is told of an operation that begins."""

    def came(self, passing: Passing, operation: Operation, result: object) -> None:
        """Note what is told of one that is over; ``result`` is None where it failed."""


class Watches(Taps):
    """See ``mesh.passing.Taps``; hears of watches while `run` is entered."""

    def __init__(self, own: Caller, access: Gate, telling: Telling, observer: Observer = nobody) -> None:
        """Be watched by nobody yet.

        Args:
            own: This node's application.
            access: Says who may see what.
            telling: Notes what is told of an operation.
            observer: Is told how much of it is sent.
        """
        self._observer = observer
        self.on = False
        self._own, self._access, self._telling = own, access, telling
        self._watches: dict[str, Watch] = {}
        self._beginning: dict[str, str] = {}  # The app id of who asks, by tap.
        self._refused: dict[str, float] = {}
        self._logged: set[tuple[str, str]] = set()
        self._numbers = itertools.count(1)
        self._wake = asyncio.Event()
        self._place: Place
        self._exchange: Exchange
        self._broker: Broker
        self._limit = 0
        self._tasks: asyncio.TaskGroup

    @property
    def count(self) -> int:
        """How many watch."""
        return len(self._watches)

    # What passes

    def takes(self, block: str) -> bool:
        """Tell whether anybody is to be told of a building block."""
        return self.on and any(each.names.block(block) for each in self._watches.values())

    def reads(self, block: str) -> bool:
        """Tell whether anybody is to be told the values of a building block."""
        return self.on and any(each.values and each.names.block(block) for each in self._watches.values())

    def tell(self, passing: Passing) -> None:
        """Tell those who watch of something that is over."""
        if not passing.outcome:  # They began to watch in the middle of it.
            return
        for watch in self._watches.values():
            try:
                watch.see(passing)
            except Exception:  # noqa: BLE001 - what is watched must not fail for it
                self._note(passing)
        self._wake.set()

    def asked(self, passing: Passing, operation: Operation) -> None:
        """Note what is told of an operation that begins."""
        try:
            self._telling.asked(passing, operation)
        except Exception:  # noqa: BLE001 - as above
            self._note(passing)

    def came(self, passing: Passing, operation: Operation, result: object) -> None:
        """Note what is told of one that is over."""
        try:
            self._telling.came(passing, operation, result)
        except Exception:  # noqa: BLE001 - as above
            self._note(passing)

    def _note(self, passing: Passing) -> None:
        """Log an error of ours, once of its kind."""
        kind = passing.block, passing.method
        if kind not in self._logged and len(self._logged) < MAX_LOGGED:
            self._logged.add(kind)
            logger.exception("cannot tell a tap of %s.%s; the same is not told again", *kind)

    # Who watches

    @asynccontextmanager
    async def run(self, exchange: Exchange, node: str) -> AsyncIterator[None]:
        """Hear what is wanted, and tell it.

        Args:
            exchange: Entered.
            node: This node's id.
        """
        self._exchange, self._broker = exchange, exchange.broker
        self._place = Place(self._own.namespace, self._own.app_id, node)
        self._limit = max(0, (exchange.broker.features.max_message_bytes - ROOM_BYTES) // 2)
        async with task_group() as self._tasks, AsyncExitStack() as stack:
            await self._listen(stack)
            sending = self._tasks.create_task(self._send(), name="taps-send")
            try:
                yield
            finally:
                self.on = False
                self._watches.clear()
                sending.cancel()

    async def _listen(self, stack: AsyncExitStack) -> None:
        where = address.taps(self._own.namespace)
        try:
            await stack.enter_async_context(self._broker.listen(where, self._receive))
        except Exception as error:  # Rights of before there were taps must not keep a node from its work.
            if isinstance(error, MeshError) and error.retryable:
                raise
            text = "nobody can tap this node, as it may not listen at %s: %s; see mesh broker permissions"
            logger.warning(text, where, error)

    def _receive(self, frame: Frame) -> None:
        if frame.message is None:
            return
        try:
            question = _question.decode(frame.message.body)
            where = address.taps(self._own.namespace, question.tap)
            if (wrong := address.app_id_problem(question.app)) is not None:
                raise BadArgumentError(wrong)
        except (msgspec.DecodeError, BadArgumentError) as error:
            logger.debug("ignored what a tap wants: %s", error)
            return
        found = self._asker(question, frame.message)
        if found is None:
            return
        asker, reader = found
        watch = self._watches.get(question.tap)
        if watch is not None and watch.asker != asker.app_id:
            return
        if question.over:
            self._end(question.tap)
            return
        rights = self._access.tap(asker)
        if not rights.sights:
            self._end(question.tap)
            self._refuse(where, question.tap, rights.why)
        elif watch is not None:
            watch.renew(rights, reader)
        elif question.tap in self._beginning:
            return
        elif full := self._full(asker.app_id):
            self._refuse(where, question.tap, full)
        else:
            self._beginning[question.tap] = asker.app_id
            self._tasks.create_task(self._begin(question, asker, reader), name="taps-begin")

    def _full(self, asker: str) -> str:
        """Say why there is no room for a further tap of an application; "" = there is."""
        own, askers = self._own.app_id, [*(each.asker for each in self._watches.values()), *self._beginning.values()]
        if len(askers) >= MAX_WATCHES:
            return f"{own} is watched by {MAX_WATCHES} taps already, which is the most; end one of them"
        if askers.count(asker) >= MAX_OF_ONE:
            return f"{own} is watched by {MAX_OF_ONE} taps of {asker} already, the most of one; end one of them"
        return ""

    def _asker(self, question: Question, message: Message) -> tuple[Caller, Peer | None] | None:
        """Give who asks, and what it is proven by; None where that is not proven, and has to be."""
        guard = self._exchange.guard
        claimed = Caller(self._own.namespace, question.app)
        if guard is None:
            return claimed, None
        at = address.taps(self._own.namespace).text
        try:
            peer = guard.teller(at, message)
        except UnprovenError:
            return None
        if peer is None:
            return claimed, None
        who = peer.identity
        if (who.namespace, who.app_id) == (self._own.namespace, question.app):
            return Caller.proven_by(who), peer
        guard.refuse("told", at, "invalid", f"{who} may not ask in the name of {question.app[:200]}")
        return None

    async def _begin(self, question: Question, asker: Caller, reader: Peer | None) -> None:
        where = address.taps(self._own.namespace, question.tap)
        try:
            question.wanted.check()
            match = await asyncio.to_thread(compiled, question.wanted.where) if question.wanted.where else None
            watch = Watch(self._place, question, match, self._limit, self._numbers)
            watch.renew(self._access.tap(asker), reader)
            self._watches[question.tap] = watch
            self.on = True
            self._wake.set()
            logger.info(
                "%s watches what passes here%s", asker.app_id, ", with values" if question.wanted.values else ""
            )
        except BadArgumentError as error:
            self._refuse(where, question.tap, str(error))
        finally:
            self._beginning.pop(question.tap, None)

    def _refuse(self, where: address.Address, tap: str, why: str) -> None:
        """Say it once for as long as it is asked for."""
        now = time.monotonic()
        known = self._refused.get(tap, 0.0) > now
        if not known and len(self._refused) >= MAX_REFUSED:
            self._refused = {each: until for each, until in self._refused.items() if until > now}
            if len(self._refused) >= MAX_REFUSED:
                return
        self._refused[tap] = now + LEASE_SECONDS
        if known:
            return
        told = msgspec.Raw(msgspec.msgpack.encode(Refused(self._place.app, self._place.node, why)))
        body = msgspec.msgpack.encode(Told([told]))
        self._tasks.create_task(self._tell(where, body), name="taps-refuse")

    def _end(self, tap: str) -> None:
        if self._watches.pop(tap, None) is not None:
            self.on = bool(self._watches)

    # What they are told

    async def _send(self) -> None:
        while True:
            due = min((min(each.until, each.rates_due) for each in self._watches.values()), default=None)
            try:
                async with asyncio.timeout(None if due is None else max(0.0, due - time.monotonic())):
                    await self._wake.wait()
                await asyncio.sleep(BATCH_SECONDS)
            except TimeoutError:
                pass
            self._wake.clear()
            now = time.monotonic()
            for tap, watch in list(self._watches.items()):
                if now >= watch.until:
                    self._end(tap)
                    continue
                watch.tick(now)
                await self._send_all(watch)

    async def _send_all(self, watch: Watch) -> None:
        where = address.taps(self._own.namespace, watch.tap)
        for body, count, dropped in watch.batches():
            if not await self._tell(where, body, watch.reader):
                watch.lost(count + dropped)
                return
            self._observer(SIGHTS, (watch.asker, "told"), count)
            if dropped:
                self._observer(SIGHTS, (watch.asker, "left out"), dropped)

    async def _tell(self, where: address.Address, body: bytes, reader: Peer | None = None) -> bool:
        guard = self._exchange.guard
        message = Message({}, body)
        try:
            async with asyncio.timeout(SEND_SECONDS):
                sent = message if guard is None else guard.tell(where.text, message, reader)
                await self._broker.broadcast(where, sent)
        except (MeshError, TimeoutError) as error:
            logger.debug("cannot tell a tap: %s", error)
            return False
        return True
