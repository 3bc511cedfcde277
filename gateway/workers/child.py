"""A worker: a process that is, with others, one gateway to everybody else.

Each of its applications' gateways has `Siblings`: what it asks the same gateway in the other workers, and tells them.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import asdict, replace
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol

from gateway.config import GatewayConfig, sharing
from gateway.errors import APIError
from gateway.given import Given
from gateway.http.passing import Passing
from gateway.logs import Line, Lines, LogRing, line_of
from gateway.metrics.exposition import Measured
from gateway.metrics.process import measure_process
from gateway.runs import Run
from gateway.workers import merging
from gateway.workers.permits import Permits
from gateway.workers.sockets import given
from gateway.workers.wire import ANSWER_SECONDS, VARIABLE, Link, LinkError
from mesh.errors import ConfigError, Problem

if TYPE_CHECKING:
    from mesh.node.spec import NodeSettings

__all__ = ["Siblings", "Worker", "worker_of"]

logger = logging.getLogger(__name__)

HEALTH_TURNS = 2.5
"""Intervals after which a worker probes by itself, when the one that does it for all is silent."""

Told = dict[str, Any]


class ShutDown(Protocol):
    """Ends a gateway; told twice, or with force, without waiting."""

    def __call__(self, *, force: bool = False) -> None: ...


class Worker:
    """This process.

    Attributes:
        siblings: By application: the same gateway in the other workers.
        given: By application: its sockets.
        closed: Set once the parent has gone.
    """

    def __init__(self, environment: str) -> None:
        """Read what the parent has set in ``MESH_WORKER``."""
        told = json.loads(environment)
        self.slot: int = told["slot"]
        self._control = socket.socket(fileno=told["control"])
        handlers: dict[str, Callable[..., Any]] = {
            name: getattr(self, f"_{name}") for name in ("asked", "speaks", "replaced")
        }
        handlers |= {name: partial(self._take, name) for name in ("label", "shut_down", "permit", "health", "well")}
        self.link = Link(handlers)
        self.closed = self.link.closed
        self.speaks_for_all = False
        self._workers: int = told["of"]
        self._passing = Passing(self.slot, socket.socket(fileno=told["passing"]), told["counts"])
        self.given: dict[str, Given] = given(told["sockets"], self._passing, self.process)
        self.siblings: dict[str, Siblings] = {}

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Be connected with the parent while entered."""
        async with self._passing.running(self._workers), self.link.running(self._control):
            begin = await self.link.call("begin")
            self.siblings = {app_id: Siblings(self, app_id, told) for app_id, told in begin.items()}
            self.link.tell("joined")  # From here on, what is told has somebody who hears it.
            yield

    def own(self, configs: Sequence[GatewayConfig]) -> tuple[GatewayConfig, ...]:
        """Give those of applications that are not over; sockets of one that is are those of the next beside it."""
        left = tuple(each for each in configs if each.app_id in self.siblings)
        groups = [(group, ("http", "grpc")) for group in sharing(configs)] + [(list(configs), ("metrics", "public"))]
        for group, what in groups:
            first = self.given[group[0].app_id]
            heir = next((each.app_id for each in group if each in left), group[0].app_id)
            self.given[heir] = replace(self.given[heir], **{name: getattr(first, name) for name in what})
        return left

    async def process(self) -> Mapping[str, float]:
        """Measure all processes of the gateway together."""
        measured = dict(await measure_process())
        with suppress(LinkError, TimeoutError):
            async with asyncio.timeout(2 * ANSWER_SECONDS):
                return dict(await self.link.call("process", measured))
        return measured

    @property
    def replaced(self) -> bool:
        """Whether another worker takes the place of this one, which ends."""
        return self._passing.replaced

    # What the parent says and asks

    async def _asked(self, app_id: str, name: str, arguments: Sequence[object]) -> object:
        if name == "process":
            return await measure_process()
        return await self.siblings[app_id].answers[name](*arguments)

    def _speaks(self, whether: bool) -> None:
        self.speaks_for_all = whether

    def _replaced(self) -> None:
        self._passing.replaced = True

    def _take(self, what: str, app_id: str, *told: object) -> None:
        siblings = self.siblings.get(app_id)
        if siblings is not None:  # Else it was over before this worker began.
            getattr(siblings, f"take_{what}")(*told)


class Siblings:
    """The same gateway in the other workers.

    Attributes:
        node_id: Which node all of them are to others.
        key: Of the gateway (``gateway.runs.Run``).
        slot: The place of this worker; the one that comes after it has the same.
        labels: Shown in metadata.
        answers: What the others may ask, by name; the gateway writes into it.
        permits: Of calls into the application, where they are limited.
        well: Whether any of the workers serves the application.
        ring: Of log lines, which go to the parent.
        shutting_down: Ends this gateway, at once when it is told to be forced; None = it is not there now.
        over: Set once it is to end, whether it is there or about to start again.
    """

    def __init__(self, worker: Worker, app_id: str, told: Told) -> None:
        """Take what the parent told at the beginning."""
        self._worker, self._app_id, self._link = worker, app_id, worker.link
        self.node_id: str = told["node_id"]
        self.key: str = told["key"]
        self.slot = worker.slot
        self.labels: dict[str, str] = told["labels"]
        self.answers: dict[str, Callable[..., Awaitable[object]]] = {}
        self.permits = Permits(lambda what: self._link.tell(what, app_id))
        self.well = False
        self.ring = _Ring(self)
        self.shutting_down: ShutDown | None = None
        self.over = asyncio.Event()
        self._healthy: bool | None = None
        self._heard = asyncio.Event()

    @property
    def replaced(self) -> bool:
        """Whether another worker takes the place of this one, which ends."""
        return self._worker.replaced

    @property
    def late(self) -> bool:
        """Whether the parent has much to read before what it is told now."""
        return self._link.late

    def tell(self, name: str, *arguments: object) -> None:
        """Say something to the parent."""
        self._link.tell(name, self._app_id, *arguments)

    @asynccontextmanager
    async def joined(
        self,
        shut_down: ShutDown,
        drained: Callable[[], Awaitable[None]],
        metadata: Callable[[], Awaitable[Told]],
        process: Callable[[], Told],
        counted: Callable[[], Awaitable[Measured]] | None,
        unsubscribe: Callable[[str, str], Awaitable[object]],
    ) -> AsyncIterator[None]:
        """Let the others ask and tell this gateway, while entered; at the end, what it counted is left with the parent.

        Args:
            shut_down: Ends this gateway.
            drained: Has it take nothing more for its application, and waits until nothing is in flight.
            metadata: Gives what it tells of itself.
            process: Gives what it tells of its process.
            counted: Gives its metrics; None = there are none.
            unsubscribe: Ends a subscription of a configuration store; gives whether there was one.
        """

        async def node() -> Told:
            return process()

        async def measured() -> merging.Sent:
            return {} if counted is None else merging.as_sent(await counted())

        self.shutting_down = shut_down
        if self.over.is_set():
            shut_down()
        answers: dict[str, Callable[..., Awaitable[object]]] = {"drained": drained, "metadata": metadata, "node": node}
        answers |= {"measured": measured, "unsubscribe": unsubscribe}
        self.answers |= answers
        try:
            yield
        finally:
            self.shutting_down = None
            for name in answers:
                del self.answers[name]
            self.tell("counted", await measured())
            self.tell("closed")

    def check(self, settings: NodeSettings) -> None:
        """Refuse what one process cannot share with others.

        Raises:
            ConfigError: Names the components.
        """
        alone = [each for each in settings.scoped if each.type.endswith(".in-memory")]
        if alone:
            text = "is in the memory of one process, and this gateway has several (--workers)"
            raise ConfigError([Problem(f"{each.type} {text}", f"component {each.name}") for each in alone])

    async def others(self, name: str, *arguments: object) -> list[Any]:
        """Ask the others; gives what those answer that do so in time."""
        return await self._ask("others", name, arguments, ANSWER_SECONDS)

    async def drained(self, seconds: float) -> None:
        """Have the others take nothing more for the application, and wait until nothing is in flight, for a time."""
        await self._ask("others", "drained", (), seconds, within=seconds)

    async def _ask(self, name: str, *arguments: object, within: float = ANSWER_SECONDS) -> list[Any]:
        try:
            async with asyncio.timeout(within + ANSWER_SECONDS):
                return list(await self._link.call(name, self._app_id, *arguments))
        except (LinkError, TimeoutError) as error:
            logger.debug("the other workers do not answer: %s", error)
            return []

    # What the parent says of this application

    def take_label(self, name: str, value: str) -> None:
        """Show something in metadata."""
        self.labels[name] = value

    def take_shut_down(self, force: bool) -> None:
        """End this gateway."""
        self.over.set()
        if self.shutting_down is not None:
            self.shutting_down(force=force)

    def take_permit(self, what: str) -> None:
        """Take a permit, or give one back."""
        (self.permits.grant if what == "grant" else self.permits.recall)()

    def take_health(self, healthy: bool) -> None:
        """Take what the one that asks has found."""
        self._healthy = healthy
        self._heard.set()

    def take_well(self, whether: bool) -> None:
        """Take whether any of the workers serves the application."""
        self.well = whether

    # One presence

    def serves(self, whether: bool) -> None:
        """Say whether this worker serves the application now."""
        self.tell("serving", whether)

    def speaks(self) -> bool:
        """Tell whether this worker answers the mesh for all of them."""
        return self._worker.speaks_for_all

    async def together(self, told: Mapping[str, object]) -> Mapping[str, object]:
        """Give what all of them tell whoever asks all nodes."""
        return merging.presence([dict(told), *await self.others("presence")])

    def opened(self, run: Run) -> None:
        """Say that the gateway listens."""
        self.tell("opened", asdict(run))

    async def metadata(self, own: Told) -> Told:
        """Give what all of them tell of the gateway."""
        return merging.metadata([own, *await self.others("metadata")])

    async def node(self, own: Told) -> Told:
        """Give what is told of all processes."""
        parent = await self._ask("parent")
        return merging.node([own, *await self.others("node")], parent[0]) if parent else own

    async def measured(self, own: Measured) -> Measured:
        """Give what all of them have counted, those that have gone included.

        Raises:
            APIError: It is not known now; a part of it would look as if counts had gone back.
        """
        sent = merging.as_sent(own)
        if not (told := await self._ask("measured", sent)):
            raise APIError(503, "ERR_GATEWAY_AWAY", "the gateway's other processes do not answer; try again")
        return merging.measured(sent, *told)

    # One log

    async def lines(self, after: int | None, limit: int, level: str) -> Lines:
        """Give lines of all of them, in the order in which the parent got them."""
        told = await self._ask("lines", after, limit, level)
        if not told:
            return Lines((), after or 0, 0)
        lines, following, missed = told
        return Lines([Line(*each) for each in lines], following, missed)

    # One who asks the application how it is

    async def probe(self, ask: Callable[[], Awaitable[bool]], seconds: float) -> bool:
        """Give whether the application is healthy: one of the workers asks it, the others are told.

        Args:
            ask: Asks it.
            seconds: Between probes.
        """
        if not self.speaks():
            with suppress(TimeoutError):
                async with asyncio.timeout(seconds * HEALTH_TURNS):
                    await self._heard.wait()
            if self._heard.is_set() and self._healthy is not None:
                self._heard.clear()
                return self._healthy
        healthy = await ask()
        self.tell("health", healthy)
        return healthy


class _Ring(LogRing):
    """Sends lines to the parent, which keeps those of all workers."""

    def __init__(self, siblings: Siblings) -> None:
        super().__init__()
        self._siblings = siblings

    def add(self, record: logging.LogRecord) -> None:
        if not self._siblings.late:  # A parent that stands still is told no more than it may keep.
            self._siblings.tell("line", *line_of(record))


def worker_of(environ: Mapping[str, str]) -> Worker | None:
    """Give what this process is, if it is a worker."""
    told = environ.get(VARIABLE)
    if told is None:
        return None
    os.environ.pop(VARIABLE, None)  # Nobody that this one starts is a worker.
    return Worker(told)
