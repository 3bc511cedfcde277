"""Asking the owner of something, wherever it is, and answering for what this node owns.

A question goes to the node that the kind's table names, by that node's own address. The table is kept for a second, or
until somebody refuses: a caller needs no news. It waits, within its deadline, while a partition has no owner or changes
hands, so a planned move fails nothing. One that meets the owner while that hands over waits there: then the table names
the next one. A node that hosts nothing serves nothing, and costs nothing.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import logging
import math
import random
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Mapping
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass
from typing import TypeVar
from urllib.parse import unquote

import msgspec

from mesh import address
from mesh.broker import Broker, Message
from mesh.calls.exchange import Exchange, Request
from mesh.error_wire import read_error, to_wire
from mesh.errors import (
    BrokerUnavailableError,
    DeadlineExceededError,
    MeshError,
    NoResponderError,
    PermissionDeniedError,
    RecordsMissingError,
)
from mesh.event import required_headers
from mesh.host import joined
from mesh.operation import Caller
from mesh.ownership.errors import NobodyHostsError, NotOwnerError
from mesh.ownership.kind import Keeper, read_table
from mesh.ownership.news import News
from mesh.ownership.owning import Owning
from mesh.ownership.session import boot_clock
from mesh.ownership.table import Table, partition_of
from mesh.ownership.watching import Watch
from mesh.recent import Recent
from mesh.store import StateStore
from mesh.tasks import task_group, until_any

__all__ = ["OWNERS", "Answer", "Asked", "Owners"]

logger = logging.getLogger(__name__)
_T = TypeVar("_T")

OWNERS = "mesh:owners"  # The name of the records.
EVENT_TYPE = "mesh.owner.question"
KIND_HEADER, KEY_HEADER = "mesh-kind", "mesh-key"
ERROR_HEADER = "mesh-error"
WAITS = (0.01, 0.02, 0.04, 0.08, 0.15, 0.25)
KNOWN_SECONDS = 1.0  # An owner that died may refuse nothing: a broker may keep its questions for it.
NOBODY_WAIT = 5.0  # Who hosts a kind may just be starting.
SERVE_AGAIN = 1.0
PROBE_SECONDS = 1.0
MOVING_SECONDS = 1.0
MAX_KINDS = 1024


class Asked(msgspec.Struct, frozen=True):
    """A question as it reaches the owner.

    Attributes:
        kind: Of what is owned.
        key: Which one.
        partition: Of the key.
        epoch: Under which this node owns the partition.
        headers: Of the question, as the asker gave them.
        body: Of the question.
        deadline: Unix time in seconds until which the asker waits.
        caller: Who asks; of the same namespace.
    """

    kind: str
    key: str
    partition: int
    epoch: int
    headers: Mapping[str, str]
    body: bytes
    deadline: float
    caller: Caller


Answer = Callable[[Asked], Awaitable[Message]]
"""Answers at the owner; a ``MeshError`` is the asker's. ``NotOwnerError`` has it look again: nothing may have run."""


class Owners:
    """What this node owns, and whom it asks for what others own; enter ``run`` once the exchange works.

    Attributes:
        node: This node's id.
    """

    def __init__(self, broker: Broker, exchange: Exchange, records: StateStore, caller: Caller, node: str) -> None:
        """Prepare.

        Args:
            broker: Entered.
            exchange: Calls over it.
            records: The mesh's own store.
            caller: The node's own application.
            node: The node's id.
        """
        self.node = node
        self._broker, self._exchange, self._records, self._caller = broker, exchange, records, caller
        self._owning = Owning(records, caller.app_id, node, self._tell, boot_clock)
        self._news = News(exchange, caller.namespace, self._owning.heard)
        self._answers: dict[str, Answer] = {}
        self._hosting: dict[str, tuple[Keeper, bool, bool, bool]] = {}
        self._wanted, self._serves, self._proven = asyncio.Event(), False, True
        self._ending = asyncio.Event()
        self._known: Recent[str, _Known] = Recent(MAX_KINDS, lambda _: False)
        self._reading: dict[str, asyncio.Lock] = {}
        self._numbers = itertools.count()
        self._watch = Watch(self.table, self._is_gone)
        self._singles: dict[str, asyncio.Event] = {}  # What is set when each is left.
        self._writing: dict[str, asyncio.Event] = {}  # By kind, what is set once its table is written.

    # At the owner

    def host(self, kind: str, keeper: Keeper, answer: Answer, *, ready: bool = True) -> None:
        """Host a kind; again to say whether it is ready, or only takes what nobody else is ready for."""
        self._answers[kind] = answer
        self._host(kind, keeper, ready)

    def _host(self, kind: str, keeper: Keeper, ready: bool, *, single: bool = False, lasts: bool = True) -> None:
        self._hosting[kind] = keeper, ready, single, lasts
        if self._serves:
            self._stand(kind)
        else:
            self._wanted.set()

    @asynccontextmanager
    async def single(self, kind: str, keeper: Keeper, ending: asyncio.Event, *, lasts: bool) -> AsyncIterator[None]:
        """Host a kind of one partition while it is entered: what one node does at a time, of whatever application.

        Nobody asks for it. Of several on this node one is entered after the other; one that is ending by then is
        entered for nothing. What keeps epochs elsewhere, as timers do in their fences, has to last; what is often there
        for a while only, as a shard of a stream, leaves nothing behind.
        """
        while (other := self._singles.get(kind)) is not None and not ending.is_set():
            await until_any(other, ending)
        if ending.is_set():
            yield
            return
        left = self._singles[kind] = asyncio.Event()
        self._host(kind, keeper, ready=True, single=True, lasts=lasts)
        try:
            yield
        finally:
            try:
                await self.leave(kind)
            finally:
                del self._singles[kind]
                left.set()

    async def leave(self, kind: str) -> None:
        """Host a kind no longer: returns once all that was owned of it is handed over, or may be another's."""
        self._hosting.pop(kind, None)
        await self._owning.leave(kind)
        if kind not in self._hosting and not self._owning.hosts(kind):  # Nor was it hosted again meanwhile.
            self._answers.pop(kind, None)
            self._news.forget(kind)

    def epoch(self, kind: str, partition: int) -> int | None:
        """Give the epoch of a partition that this node owns now, for sure; None = it does not."""
        return self._owning.epoch(kind, partition)

    @asynccontextmanager
    async def run(self) -> AsyncIterator[None]:
        """Take part; leaving hands over what is left."""
        on_restored = getattr(self._broker, "on_restored", None)  # Of a ``Restorable`` broker.
        if on_restored is not None:
            on_restored(self._owning.look)
        async with task_group() as tasks:
            working = tasks.create_task(self._work(), name="owners")
            watching = tasks.create_task(self._watch.run(), name="owners-watch")
            try:
                yield
            finally:
                self._ending.set()
                try:
                    await asyncio.wait([working])
                finally:
                    working.cancel()
                    watching.cancel()

    async def _work(self) -> None:
        await until_any(self._wanted, self._ending)
        while not self._ending.is_set():
            try:
                async with AsyncExitStack() as stack:
                    await self._enter(stack)
                    await self._keep_standing()
            except MeshError as error:
                if self._serves:
                    raise
                logger.warning("cannot own anything, trying again: %s", error)
                await asyncio.sleep(SERVE_AGAIN)

    async def _enter(self, stack: AsyncExitStack) -> None:
        own = address.owner(self._caller.namespace, self._caller.app_id, self.node)
        await stack.enter_async_context(self._news.run())
        await stack.enter_async_context(self._exchange.serve(own, self.node, self._handle))
        await stack.enter_async_context(self._owning.run())
        self._serves = True

    async def _keep_standing(self) -> None:
        """Own nothing that another can, for as long as nobody believes what this node answers; until it ends."""
        standing = None if self._exchange.guard is None else self._exchange.guard.standing
        while not self._ending.is_set():
            self._proven = standing is None or standing.proven.is_set()
            for kind in self._hosting:
                self._stand(kind)
            if standing is None:
                await self._ending.wait()
            else:
                await until_any(self._ending, standing.ended if self._proven else standing.proven)

    def _stand(self, kind: str) -> None:
        keeper, ready, single, lasts = self._hosting[kind]
        self._news.follow(kind)
        self._owning.host(kind, keeper, ready=ready and self._proven, single=single, lasts=lasts)

    async def _tell(self, kind: str, sessions: Collection[str]) -> None:
        if (written := self._writing.pop(kind, None)) is not None:
            written.set()
        if sessions:
            await self._news.tell(kind, sessions)

    async def _handle(self, request: Request) -> None:
        try:
            headers = request.headers
            kind, key = (address.decode_token(headers.get(name, "=")) for name in (KIND_HEADER, KEY_HEADER))
            caller = self._caller_of(request)
            body = await joined(request.parts())
            answer = await self._answer(kind, key, headers, body, request.deadline, caller)
        except MeshError as error:
            if isinstance(error, DeadlineExceededError) and request.deadline <= time.time():
                return  # Nobody waits any more.
            await request.reply({ERROR_HEADER: json.dumps(to_wire(error))})
            return
        await request.reply(answer.headers, answer.body)

    def _caller_of(self, request: Request) -> Caller:
        app_id = unquote(request.headers.get("ce-source", ""))
        request.check_caller(app_id)
        if request.caller is None:
            return Caller(self._caller.namespace, app_id)
        if request.caller.namespace != self._caller.namespace:
            raise PermissionDeniedError(f"what is owned here is for the namespace {self._caller.namespace} alone")
        return Caller.proven_by(request.caller)

    async def _answer(
        self, kind: str, key: str, headers: Mapping[str, str], body: bytes, deadline: float, caller: Caller
    ) -> Message:
        table, answer = self._owning.table(kind), self._answers.get(kind)
        if table is None or answer is None:
            raise NotOwnerError(f"this node does not host {kind}")
        partition = partition_of(key, len(table.owners))
        try:
            epoch = self._owning.epoch(kind, partition)
            if epoch is None:
                raise NotOwnerError(f"this node does not own partition {partition} of {kind}")
            return await answer(Asked(kind, key, partition, epoch, headers, body, deadline, caller))
        except NotOwnerError:
            # Who is refused once it has moved finds its next owner at once, and need not look again and again.
            await self._written(kind, lambda: partition in self._owning.moves(kind), deadline)
            raise

    async def moved(self, kind: str) -> None:
        """Wait, not for long, until others have what they are to have of a kind."""
        await self._written(kind, lambda: bool(self._owning.moves(kind)), math.inf)

    async def _written(self, kind: str, waits: Callable[[], bool], deadline: float) -> None:
        """Look whenever this node has written the table of a kind, until there is nothing to wait for."""
        with suppress(TimeoutError):
            async with asyncio.timeout(min(MOVING_SECONDS, deadline - time.time())):
                while waits():
                    await self._writing.setdefault(kind, asyncio.Event()).wait()

    # At the asker

    async def table(self, kind: str, *, fresh: bool = False) -> Table:
        """Give the table of a kind as it was known a second ago at most, or as it is.

        While the store fails, what was known last is still true as far as anybody can tell: who is not the owner any
        more refuses.

        Raises:
            MeshError: The store failed and nothing is known or it is to be fresh, or there is no store
                (``RecordsMissingError``).
        """
        asked_at = time.monotonic() - (0.0 if fresh else KNOWN_SECONDS)
        if not fresh and (known := self._known.get(kind)) is not None and known.tried_at >= asked_at:
            return known.table
        lock = self._reading.setdefault(kind, asyncio.Lock())
        try:
            async with lock:  # One reads for all who wait.
                known = self._known.get(kind)
                if known is None or (known.read_at if fresh else known.tried_at) < asked_at:
                    known = self._known.keep(kind, await self._read(kind, None if fresh else known))
                return known.table
        except ValueError as error:
            raise MeshError(f"owners of {kind}: {error}") from error
        finally:
            if not lock.locked():
                self._reading.pop(kind, None)

    async def _read(self, kind: str, known: _Known | None) -> _Known:
        began = time.monotonic()
        try:
            return _Known((await read_table(self._records, kind))[0], began, began)
        except RecordsMissingError:
            raise
        except MeshError as error:
            if known is None:
                raise
            logger.debug("owners of %s are those of before: %s", kind, error)
            return _Known(known.table, known.read_at, time.monotonic())

    async def ask(self, kind: str, key: str, headers: Mapping[str, str], body: bytes, deadline: float) -> Message:
        """Ask the owner of a key.

        Args:
            kind: Of what is owned.
            key: Which one.
            headers: Those of the question; their names are lower case and do not begin with ``mesh-`` or ``ce-``,
                but for ``ce-traceparent``, ``ce-tracestate`` and ``ce-baggage``.
            body: The question's.
            deadline: Unix time in seconds.

        Raises:
            NobodyHostsError: No node hosts the kind, nor did one come up soon.
            DeadlineExceededError: Nobody owned it in time, or did not answer in time: then the outcome is unknown.
            StreamBrokenError: It broke off; the outcome is unknown.
            BrokerUnavailableError: There was no connection until the deadline.
            MeshError: What the owner answered.
        """
        nobody_until = min(deadline, time.time() + NOBODY_WAIT)
        waits, wait, fresh = iter(WAITS), 0.0, False
        while True:
            try:
                table = await self.table(kind, fresh=fresh)
            except MeshError as error:
                wait = _spread(next(waits, wait))
                back = isinstance(error, BrokerUnavailableError) and await self._exchange.comeback.by(deadline)
                if not (back or (fresh and error.retryable)) or time.time() + wait >= deadline:
                    raise
                await asyncio.sleep(wait)
                continue
            session = table.owners[partition_of(key, len(table.owners))]
            member = table.members.get(session)
            answer: Message | MeshError | None = None
            try:
                if member is not None and member.node == self.node:
                    answer = await self._outcome(kind, key, headers, body, deadline)
                elif member is not None:
                    to = address.owner(self._caller.namespace, member.app_id, member.node)
                    answer = await self._request(to, session, kind, key, headers, body, deadline)
            except NoResponderError:
                pass
            except BrokerUnavailableError:
                if not await self._exchange.comeback.by(deadline):
                    raise
            if isinstance(answer, Message):
                return answer
            if answer is not None and not isinstance(answer, NotOwnerError):
                try:
                    raise answer
                finally:
                    answer = None  # Its traceback has this frame: they would keep each other, and the body.
            now = time.time()
            if not table.members and now >= nobody_until:
                raise NobodyHostsError(f"no node hosts {kind}")
            fresh, wait = True, _spread(next(waits, wait))
            if now + wait >= deadline:
                raise DeadlineExceededError(f"nobody owned {key[:100]!r} of {kind} within the deadline")
            await asyncio.sleep(wait)

    async def _outcome(
        self, kind: str, key: str, headers: Mapping[str, str], body: bytes, deadline: float
    ) -> Message | MeshError:
        """Answer here; an error of the handler is none of the way to it, and given."""
        try:
            return await self._answer(kind, key, headers, body, deadline, self._caller)
        except MeshError as error:
            return error

    async def _request(
        self,
        to: address.Address,
        session: str,
        kind: str,
        key: str,
        headers: Mapping[str, str],
        body: bytes,
        deadline: float,
    ) -> Message | MeshError:
        """Ask another node; an error of the handler is none of the way to it, and given."""
        sent = required_headers(f"{self.node}-o{next(self._numbers)}", self._caller.app_id, EVENT_TYPE)
        sent |= {**headers, KIND_HEADER: address.encode_token(kind), KEY_HEADER: address.encode_token(key)}
        whole = len(body) <= self._exchange.part_bytes
        stream = None if whole else _parts(body)
        # An owner that dies in the middle is noticed by the end of its session, or by its silence: nobody else can tell
        # what became of the question.
        message = Message(sent, body if whole else b"")
        asked = self._exchange.request(to, message, deadline, stream, watched=True)
        reply = await self._watch.wait(kind, session, to, asked)
        try:
            answer = await joined(reply.parts())
        finally:
            await reply.aclose()
        if (problem := reply.headers.get(ERROR_HEADER)) is not None:
            return read_error(problem)
        return Message(reply.headers, answer)

    async def watched(self, kind: str, session: str, to: address.Address, answer: Awaitable[_T]) -> _T:
        """Wait for what another member of a kind answers at an address of its own, which it serves as long as it lives.

        Raises:
            StreamBrokenError: It is gone; the outcome is unknown.
        """
        return await self._watch.wait(kind, session, to, answer)

    async def _is_gone(self, to: address.Address) -> bool:
        """Tell whether a node serves its address no more; one that stands still does, and one that works answers."""
        sent = required_headers(f"{self.node}-o{next(self._numbers)}", self._caller.app_id, EVENT_TYPE)
        try:
            reply = await self._exchange.request(to, Message(sent, b""), time.time() + PROBE_SECONDS)
        except NoResponderError:
            return True
        except MeshError:
            return False
        await reply.aclose()
        return False


@dataclass(frozen=True, slots=True)
class _Known:
    table: Table
    read_at: float
    tried_at: float


def _spread(wait: float) -> float:
    return wait * random.uniform(0.75, 1.25)  # noqa: S311 - it spreads the load


async def _parts(body: bytes) -> AsyncIterator[bytes]:
    yield body
