"""The asking side of a tap: has all nodes tell what passes them, for as long as somebody reads it."""

from __future__ import annotations

import asyncio
import itertools
import logging
import math
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING

import msgspec

from mesh import address
from mesh.calls.context import tell
from mesh.errors import BadArgumentError, ExpressionError, MeshError, UnprovenError
from mesh.tap.sight import BUCKETS, Content, Dropped, Edge, Rates, Refused, Seen, Sight
from mesh.tap.wanted import Wanted, compiled
from mesh.tap.watch import Question
from mesh.tap.wire import as_event
from mesh.tasks import task_group

if TYPE_CHECKING:
    from mesh.broker import Frame
    from mesh.calls.exchange import Exchange
    from mesh.operation import Caller

__all__ = ["Tapping", "Tapped"]

logger = logging.getLogger(__name__)

RENEW_SECONDS = 3.0
TELL_SECONDS = 2.0
MAX_ITEMS = 5000
MAX_BYTES = 16 * 1024 * 1024
MAX_REFUSED = 1000
MAX_TIME = 253_402_300_799.0  # The end of the year 9999.
MAX_COUNT = 2**48

Tapped = Sight | Dropped | Rates | Refused
_JSON = Content((("content-type", "application/json"),), "application/json", 2, b"{}")

_SAMPLE = Sight(
    id="node-1",
    time=1.0,
    seconds=0.001,
    seen=Seen.ASKED,
    block="invocation",
    method="invoke",
    target="checkout",
    source="orders",
    app="orders",
    node="node",
    outcome="ok",
    traceparent="00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
    details={"verb": "POST", "path": "/pay", "status": 200},
    request=_JSON,
    reply=_JSON,
)
"""As there are many: an expression is tried out on it before all nodes are asked."""


class _Told(msgspec.Struct, array_like=True):
    items: list[Sight | Dropped | Rates | Refused]


_told = msgspec.msgpack.Decoder(_Told)


class _Queue:
    """What came and was not read yet; an iterator of it."""

    def __init__(self, app: str, node: str) -> None:
        self._app, self._node = app, node
        self._items: deque[tuple[Tapped, int]] = deque()
        self._bytes = self._dropped = 0
        self._came = asyncio.Event()
        self._closed = False
        self._refused: set[tuple[str, str]] = set()

    def take(self, items: list[Tapped], size: int) -> None:
        """Keep what came, unless there is too much: then sights are left out, and counted."""
        full = len(self._items) + len(items) > MAX_ITEMS or self._bytes + size > MAX_BYTES
        each_size = size // max(1, len(items))
        for item in items:
            if isinstance(item, Refused):
                if (key := (item.node, item.reason)) in self._refused or len(self._refused) >= MAX_REFUSED:
                    continue
                self._refused.add(key)
            if full and isinstance(item, Dropped):
                self._dropped += item.count
            elif full and isinstance(item, (Sight, Rates)):
                self._dropped += isinstance(item, Sight)
            else:
                self._items.append((item, each_size))
                self._bytes += each_size
        self._came.set()

    def close(self) -> None:
        """Have the iteration end."""
        self._closed = True
        self._came.set()

    def __aiter__(self) -> AsyncIterator[Tapped]:
        return self

    async def __anext__(self) -> Tapped:
        while not self._items and not self._dropped:
            if self._closed:
                raise StopAsyncIteration
            self._came.clear()
            await self._came.wait()
        if not self._items:
            count, self._dropped = self._dropped, 0
            return Dropped(self._app, self._node, count)
        item, size = self._items.popleft()
        self._bytes -= size
        return item


class Tapping:
    """Asks, for as long as the node is there."""

    def __init__(self, exchange: Exchange, own: Caller, node: str) -> None:
        """Use an entered exchange.

        Args:
            exchange: Carries questions and answers.
            own: Who asks: this node's application.
            node: This node's id.
        """
        self._exchange, self._broker = exchange, exchange.broker
        self._own, self._node = own, node
        self._numbers = itertools.count(1)
        self._open: set[_Queue] = set()

    def close(self) -> None:
        """End all of them."""
        for queue in self._open:
            queue.close()

    @asynccontextmanager
    async def tap(self, wanted: Wanted) -> AsyncIterator[AsyncIterator[Tapped]]:
        """Have all nodes tell what is wanted, those that come later too; leaving ends it.

        Gives an iterator that ends when this node does. What is read slower than it comes is left out, and counted.

        Raises:
            BadArgumentError: What is wanted makes no sense; the text names the field.
            BrokerError: Nothing can be heard on the backbone.
        """
        wanted.check()
        if wanted.where:
            await asyncio.to_thread(_check_where, wanted.where, self._own.namespace)
        tap = f"{self._node}-{next(self._numbers)}"
        at = address.taps(self._own.namespace, tap)
        queue = _Queue(self._own.app_id, self._node)

        def receive(frame: Frame) -> None:
            self._receive(queue, at, frame)

        question = Question(tap, self._own.app_id, wanted)
        self._open.add(queue)
        try:
            async with task_group() as tasks, self._broker.listen(at, receive):
                asking = tasks.create_task(self._ask(question), name="tap-ask")
                try:
                    yield queue
                finally:
                    asking.cancel()
                    with suppress(TimeoutError):
                        async with asyncio.timeout(TELL_SECONDS):
                            await self._tell(msgspec.structs.replace(question, over=True))
        finally:
            self._open.discard(queue)

    async def _ask(self, question: Question) -> None:
        while True:
            await self._tell(question)
            await asyncio.sleep(RENEW_SECONDS)

    async def _tell(self, question: Question) -> None:
        try:
            await tell(self._exchange, address.taps(self._own.namespace), msgspec.msgpack.encode(question))
        except MeshError as error:  # It is asked again soon.
            logger.debug("cannot ask for a tap: %s", error)

    def _receive(self, queue: _Queue, at: address.Address, frame: Frame) -> None:
        if frame.message is None:
            return
        guard, message, teller = self._exchange.guard, frame.message, None
        try:
            if guard is not None and (peer := guard.teller(at.text, message)) is not None:
                message, teller = guard.opened(peer, message), peer.identity
            items = _told.decode(message.body).items
        except (UnprovenError, msgspec.DecodeError) as error:
            logger.debug("ignored what a node tells a tap: %s", error)
            return
        if teller is not None:
            items = [each for each in items if (self._own.namespace, each.app) == (teller.namespace, teller.app_id)]
        queue.take([each for each in items if _is_sound(each)], len(frame.message.body))


def _is_sound(told: Tapped) -> bool:
    """Tell whether something can be shown, and added up: nodes of other versions may tell what cannot."""
    if isinstance(told, Sight):
        return 0 <= told.time < MAX_TIME and math.isfinite(told.seconds)
    if isinstance(told, Rates):
        return all(len(each.buckets) == len(BUCKETS) + 1 and _are_small(each) for each in told.edges)
    return not isinstance(told, Dropped) or 0 <= told.count < MAX_COUNT


def _are_small(edge: Edge) -> bool:
    return all(0 <= each < MAX_COUNT for each in (edge.count, edge.errors, *edge.buckets))


def _check_where(where: str, namespace: str) -> None:
    """Find what is wrong with an expression whatever passes; raises ``BadArgumentError``."""
    match = compiled(where)
    if match is None:
        return
    try:
        match.matches(as_event(namespace, _SAMPLE, _SAMPLE.time))
    except ExpressionError as error:
        if not isinstance(error.__cause__, LookupError):
            raise BadArgumentError(f"where: {error}") from None
