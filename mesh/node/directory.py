"""Presence: whether an application was there within the last minute, and when it is back.

A call needs none of it: the broker says at once when nobody serves an application's address. Only then the caller has
to know whether there is something to wait for. It asks at an address that is served by whoever knows, so the broker
chooses one of them to answer, and says at once when there is none.

================== =================================================================================================
``seen.<app id>``  served by those who know that it was there within the last minute
``keepers``        served by every node; the one that the broker chooses becomes the *keeper* of the node that wrote
``keepers.<node>`` where a keeper gets further signs of life
``back.<app id>``  who takes calls again says so here, to those who wait for it
================== =================================================================================================

An application's own instances know it, and their keepers: a node tells its keeper which applications it has, every ten
seconds and once more when it leaves, and then also what it keeps for others. So it is known for a minute after its
end, planned or not. No node hears of others but those that it calls and the few that it keeps, however many there are.
"""

from __future__ import annotations

import asyncio
import logging
import math
import random
import secrets
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from typing import Any

import orjson

from mesh import address
from mesh.broker import Frame, Message
from mesh.calls.context import counts, tell
from mesh.calls.exchange import Exchange, Request
from mesh.errors import BrokerError, BrokerUnavailableError, MeshError, NoResponderError
from mesh.node.description import Node, answering, collect
from mesh.part import Part, whole
from mesh.tasks import task_group

__all__ = ["Directory"]

logger = logging.getLogger(__name__)

SIGN_INTERVAL = 10.0
SEEN_WINDOW = 60.0
ANSWER_WITHIN = 5.0
LEAVE_WITHIN = 2.0
TRIES = 5
MAX_APPS = 10_000
MAX_KEPT = 1_000
_MALFORMED = (orjson.JSONDecodeError, KeyError, TypeError, ValueError, AttributeError)


class Directory:
    """What this node knows of others, and tells of itself.

    Attributes:
        node_id: This node.
        part: Which of several processes of the node this one is; None = the node is one process.
        describe: Gives what this node tells whoever asks all of them (``mesh/node/description.py``).
    """

    def __init__(
        self,
        exchange: Exchange,
        namespace: str,
        clock: Callable[[], float] = time.monotonic,
        part: Part | None = None,
    ) -> None:
        """Use an entered exchange.

        Args:
            exchange: Carries questions and signs of life.
            namespace: Only nodes of one namespace know each other.
            clock: Seconds, monotonic.
            part: Which of several processes this one is; None = the node is one process.
        """
        self.part = part
        self._exchange = exchange
        self._broker = exchange.broker
        self._namespace = namespace
        self._clock = clock
        self.node_id = secrets.token_hex(8) if part is None else f"{part.node_id}-{secrets.token_hex(3)}"
        if part is not None:
            part.answers["presence"] = self._presence
        self.describe: Callable[[], Mapping[str, object]] = dict
        self._hosted: dict[str, bool] = {}  # Whether it is ready.
        self._seen: dict[str, float] = {}
        self._keeping: dict[str, asyncio.Event] = {}  # Set once questions are answered.
        self._asking: dict[str, asyncio.Task[bool]] = {}
        self._news: dict[str, asyncio.Event] = {}
        self._keeper = ""
        self._back: set[str] = set()
        self._changed = asyncio.Event()
        self._ended = asyncio.Event()
        self._tasks: asyncio.TaskGroup
        self._running: set[asyncio.Task[None]] = set()

    # What this node's own blocks say and ask

    async def nodes(self, seconds: float) -> Sequence[Node]:
        """Ask all nodes of the namespace what they do; see ``collect``."""
        return await collect(self._broker, self._namespace, seconds)

    def host(self, app_id: str, *, ready: bool) -> None:
        """Say that this node has an application, and whether it takes calls now.

        One that is just starting counts as seen, so that calls wait for it.
        """
        was_ready = self._hosted.get(app_id)
        if ready or was_ready is not False:
            self._seen[app_id] = self._clock()
        if ready and not was_ready:
            self._back.add(app_id)
        self._hosted[app_id] = ready
        self._changed.set()

    def saw(self, app_id: str) -> None:
        """Note that an application has just answered."""
        self._note(app_id, self._clock())
        if self._news:
            self._tell_those_who_wait(app_id)

    async def was_seen(self, app_id: str, deadline: float) -> bool:
        """Tell whether an application that nobody serves now was there within the last minute.

        Asks the mesh, one question at a time for each application, unless this node knows it. True when the
        answer fails to come: somebody knows then, or the connection is away.

        Args:
            app_id: The application.
            deadline: Unix time in seconds by which to give up.
        """
        if self._left(app_id) > 0:
            return True
        asking = self._asking.get(app_id)
        if asking is None:
            asking = self._asking[app_id] = self._tasks.create_task(self._ask(app_id), name="directory-ask")
            asking.add_done_callback(lambda _: self._asking.pop(app_id))
        # Others may wait for it too: it outlives one that is cancelled.
        await asyncio.wait([asking], timeout=max(0.0, deadline - time.time()))
        return not asking.done() or (not asking.cancelled() and asking.result())

    async def until_news(self, app_id: str) -> None:
        """Wait until an application is back. What is missed stays so: bound it in time, and try."""
        news = self._news.get(app_id)
        if news is None:
            news = self._news[app_id] = asyncio.Event()
            self._start(self._listen(app_id, news), "directory-listen")
        await news.wait()

    @asynccontextmanager
    async def run(self) -> AsyncIterator[None]:
        """Answer, and give signs of life; leaving hands on what is known here."""
        exchange, own = self._exchange, address.keepers(self._namespace, self.node_id)
        async with task_group() as self._tasks:
            try:
                async with (
                    answering(self._broker, self._namespace, self._answer_all),
                    exchange.serve(address.keepers(self._namespace), "keepers", self._take, recoverable=False),
                    exchange.serve(own, self.node_id, self._take, recoverable=False),
                ):
                    signing = self._tasks.create_task(self._sign(), name="directory-sign")
                    try:
                        yield
                    finally:
                        signing.cancel()
            finally:
                try:
                    await self._leave()
                finally:
                    for task in (*self._running, *self._asking.values()):
                        task.cancel()

    def _start(self, work: Coroutine[Any, Any, None], name: str) -> None:
        task = self._tasks.create_task(work, name=name)
        self._running.add(task)
        task.add_done_callback(self._running.discard)

    async def _leave(self) -> None:
        """Hand on what is known here, and only then answer questions no more; those that have come are answered."""
        for app_id in self._hosted:
            self.host(app_id, ready=False)
        with suppress(TimeoutError):
            async with asyncio.timeout(LEAVE_WITHIN):
                await self._tell_keeper(self._ages([*self._hosted, *self._keeping]))
        self._ended.set()
        for app_id in list(self._news):
            self._tell_those_who_wait(app_id)
        if self._running:
            await asyncio.wait(self._running, timeout=LEAVE_WITHIN)

    # What is known here

    def _age(self, app_id: str) -> float:
        return 0.0 if self._hosted.get(app_id) else self._clock() - self._seen.get(app_id, -math.inf)

    def _left(self, app_id: str) -> float:
        """Give the seconds for which it still counts as seen."""
        return SEEN_WINDOW - self._age(app_id)

    def _ages(self, app_ids: Iterable[str]) -> dict[str, float]:
        return {app_id: round(self._age(app_id), 1) for app_id in app_ids if self._left(app_id) > 0}

    def _note(self, app_id: str, at: float) -> None:
        before = self._seen.get(app_id)
        if (before is None and len(self._seen) < MAX_APPS) or (before is not None and before < at):
            self._seen[app_id] = at

    async def _ask(self, app_id: str) -> bool:
        question = Message({}, b"")
        where = address.seen(self._namespace, app_id)
        try:
            reply = await self._exchange.request(where, question, time.time() + ANSWER_WITHIN)
            self._note(app_id, self._clock() - max(0.0, float(orjson.loads(reply.body))))
        except NoResponderError:
            return False
        except (MeshError, *_MALFORMED) as error:
            logger.debug("no answer whether %s was seen: %s", app_id, error)
            return True
        return self._left(app_id) > 0

    def _keep(self, app_id: str) -> asyncio.Event:
        active = self._keeping.get(app_id)
        if active is None:
            active = self._keeping[app_id] = asyncio.Event()
            self._start(self._answer(app_id, active), "directory-answer")
        return active

    async def _answer(self, app_id: str, active: asyncio.Event) -> None:
        """Answer whether an application was seen, for as long as it was."""

        async def answer(request: Request) -> None:
            await request.reply({}, orjson.dumps(min(round(self._age(app_id), 1), 2 * SEEN_WINDOW)))

        try:
            async with self._exchange.serve(address.seen(self._namespace, app_id), "seen", answer, recoverable=False):
                active.set()
                while not self._ended.is_set() and (left := self._left(app_id)) > 0:
                    with suppress(TimeoutError):
                        async with asyncio.timeout(min(left, SIGN_INTERVAL)):
                            await self._ended.wait()
                del self._keeping[app_id]  # While it ends, a new sign already begins it anew.
        except BrokerError as error:
            logger.debug("cannot keep %s in mind: %s", app_id, error)
        finally:
            if self._keeping.get(app_id) is active:
                del self._keeping[app_id]
            active.set()

    # Signs of life

    async def _sign(self) -> None:
        while True:
            wait = SIGN_INTERVAL if self._keeper or not self._hosted else SIGN_INTERVAL / 5
            with suppress(TimeoutError):
                async with asyncio.timeout(wait * random.uniform(0.8, 1.0)):  # noqa: S311 - it only spreads
                    await self._changed.wait()
            self._changed.clear()  # Before it is told: what changes meanwhile is told next.
            self._seen = {app_id: at for app_id, at in self._seen.items() if self._left(app_id) > 0}
            back, self._back = self._back, set()
            for app_id in back:
                with suppress(BrokerError):
                    await tell(self._exchange, address.back(self._namespace, app_id))
            known = self._ages(self._hosted)
            for app_id in known:
                self._keep(app_id)
            await self._tell_keeper(known)

    async def _tell_keeper(self, known: Mapping[str, float]) -> None:
        """Have another node keep in mind what is known here: the one that did so before, or any."""
        body = orjson.dumps({"node": self.node_id, "seen": known})
        for _ in range(TRIES if known else 0):
            keeper, self._keeper = self._keeper, ""
            where = address.keepers(self._namespace, keeper)
            try:
                reply = await self._exchange.request(where, Message({}, body), time.time() + ANSWER_WITHIN)
                self._keeper = str(orjson.loads(reply.body)["keeper"])  # None: it is this node itself, or full.
            except BrokerUnavailableError:
                return  # The next sign comes in seconds.
            except NoResponderError:
                if not keeper:
                    return  # This node leaves, as the last one.
            except (MeshError, *_MALFORMED) as error:
                logger.debug("no keeper: %s", error)
            if self._keeper:
                return

    async def _take(self, request: Request) -> None:
        """Keep in mind what another node knows."""
        try:
            said = orjson.loads(request.body)
            ages = {app_id: max(0.0, float(age)) for app_id, age in said["seen"].items() if age <= SEEN_WINDOW}
            kept = said["node"] != self.node_id and len(self._keeping.keys() | ages) <= MAX_KEPT
        except _MALFORMED:
            logger.warning("ignored a malformed sign of life")
            kept, ages = False, {}
        if kept:
            now = self._clock()
            for app_id, age in ages.items():
                self._note(app_id, now - age)
            for active in [self._keep(app_id) for app_id in ages]:
                await active.wait()
            kept = self._keeping.keys() >= ages.keys()
        await request.reply({}, orjson.dumps({"keeper": self.node_id if kept else ""}))

    # News

    async def _listen(self, app_id: str, news: asyncio.Event) -> None:
        """Listen for an application that is waited for, until it is back or counts as seen no more."""
        where = address.back(self._namespace, app_id)

        def receive(frame: Frame) -> None:
            if counts(self._exchange, where, frame, self._namespace, app_id):
                self._tell_those_who_wait(app_id)

        try:
            async with self._broker.listen(where, receive):
                with suppress(TimeoutError):
                    async with asyncio.timeout(SEEN_WINDOW):
                        await news.wait()
        except BrokerError as error:
            logger.debug("cannot listen for %s: %s", app_id, error)
        finally:
            if self._news.get(app_id) is news:
                del self._news[app_id]

    def _tell_those_who_wait(self, app_id: str) -> None:
        news = self._news.pop(app_id, None)
        if news is not None:
            news.set()

    async def _answer_all(self) -> Mapping[str, object] | None:
        if self.part is None:
            return self._told()
        return await self.part.together(self._told()) if self.part.speaks() else None

    async def _presence(self) -> Mapping[str, object]:
        return self._told()

    def _told(self) -> Mapping[str, object]:
        ready = [app_id for app_id, ready in self._hosted.items() if ready]
        return {"node": whole(self.node_id), "ready": ready, "about": self.describe()}
