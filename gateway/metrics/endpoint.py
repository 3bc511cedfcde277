"""The metrics of one gateway."""

from __future__ import annotations

import asyncio
import gzip
import math
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from typing import Protocol, cast

from gateway.config import ON_GRPC, GatewayConfig
from gateway.errors import APIError
from gateway.metrics import sources
from gateway.metrics.exposition import Measured, Told, exposed, process_lines
from gateway.metrics.recording import MAX_LABEL, MAX_SERIES, Recorder, Series
from gateway.metrics.settings import Settings
from gateway.metrics.sources import (
    BREAKERS,
    COMPONENTS,
    ERRORS_TOLD,
    GATEWAY,
    OLDEST,
    TAKEN,
    WAITING,
)
from gateway.metrics.table import METRICS
from mesh import __version__
from mesh.actors.hosted import HostedType
from mesh.blocks.actor_service import ActorService
from mesh.conditions import Condition
from mesh.node.backlogs import Backlogs, SubscriptionBacklog
from mesh.node.runtime import Runtime
from mesh.telemetry import APPLICATION_CALLED, OTHER

__all__ = ["Metrics", "Others", "Scraped", "breaker_states"]

KEPT_SECONDS = 1.0
FASTEST = 1
"""The level of gzip: lines are so much alike that others take longer for little."""
_ACTORS: Sequence[tuple[str, Callable[[HostedType], int]]] = (
    (sources.ACTORS, lambda hosted: hosted.active),
    (sources.ACTOR_TIMERS, lambda hosted: hosted.timers),
    (sources.ACTOR_CALLS, lambda hosted: hosted.calls),
)
_STATES = ("closed", "half-open", "open", "unknown")
# The reference's categories, by what the codes begin with behind ERR_.
_CATEGORIES = (
    ("PUBSUB", "pubsub"),
    ("TOPIC", "pubsub"),
    ("STATE", "state"),
    ("SECRET", "secret"),
    ("CONFIGURATION", "configuration"),
    ("CRYPTO", "crypto"),
    ("LOCK", "lock"),
    ("TRY_LOCK", "lock"),
    ("UNLOCK", "lock"),
    ("RESOURCE_ID", "lock"),
    ("INVOKE_OUTPUT_BINDING", "binding"),
    ("DIRECT_INVOKE", "service-invocation"),
    ("CONVERSATION", "conversation"),
    ("ACTOR", "actor"),
    ("DAPR_SCHEDULER", "job"),
    ("HEALTH", "health"),
    ("OUTBOUND_HEALTH", "health"),
)


class Others(Protocol):
    """The same gateway in other processes."""

    async def measured(self, own: Measured) -> Measured:
        """Add what they have counted to what this one has."""


class Metrics:
    """What is measured, and how it is told.

    Attributes:
        recorder: Is told what happens.
    """

    def __init__(self, config: GatewayConfig, settings: Settings, namespace: str) -> None:
        """Begin to measure.

        Args:
            config: The gateway's.
            settings: Of its Configuration.
            namespace: That the user gave; else empty.
        """
        self.recorder = Recorder(settings.buckets, settings.relabel)
        self._config, self._settings, self._namespace = config, settings, namespace
        left_out = {APPLICATION_CALLED} if config.app_protocol in ON_GRPC else set()
        self._rows = [row for row in METRICS if row.source not in left_out]

    @property
    def note_error(self) -> Callable[[APIError], None] | None:
        """Counts an error that a client is told; None when that is not wanted."""
        return self._note_error if self._settings.error_codes else None

    def _note_error(self, error: APIError) -> None:
        category = next(
            (name for begin, name in _CATEGORIES if error.code.removeprefix("ERR_").startswith(begin)), "common"
        )
        self.recorder(ERRORS_TOLD, (error.code, category))

    async def counted(self, runtime: Runtime, backlogs: Backlogs) -> Measured:
        """Give what was measured in this process, and what is so now.

        Args:
            runtime: The node.
            backlogs: Of its subscriptions.
        """
        waiting = await backlogs.look()
        return {**self.recorder.measured(), **_now(runtime), **_before(waiting)}

    async def told(self, runtime: Runtime, backlogs: Backlogs, others: Others | None = None) -> Told:
        """Give all that is told of the application now.

        Args:
            runtime: The node.
            backlogs: Of its subscriptions.
            others: The same gateway in other processes; None = there is none.
        """
        own = await self.counted(runtime, backlogs)
        measured = own if others is None else await others.measured(own)
        settings = self._settings
        return Told(measured, self._config.app_id, self._namespace, settings.rules, settings.raw, self._rows)


class Scraped:
    """What those get who scrape a process: a moment old at most, so that it is made as often however many ask."""

    def __init__(self, process: Callable[[], Awaitable[Mapping[str, float]]]) -> None:
        """Tell of no application yet.

        Args:
            process: Measures the process, or those that are one gateway.
        """
        self._process = process
        self.sources: dict[str, Callable[[], Awaitable[Told]]] = {}
        self._asking = asyncio.Lock()
        self._made, self._made_at = b"", -math.inf
        self._packed: bytes | None = None

    async def text(self, packed: bool) -> bytes:
        """Give everything as Prometheus reads it.

        Args:
            packed: By gzip.
        """
        async with self._asking:
            if time.monotonic() - self._made_at >= KEPT_SECONDS:
                told = [await source() for source in list(self.sources.values())]
                process = process_lines(await self._process())
                # In a thread: some thousands of series take a while.
                self._made = await asyncio.to_thread(exposed, *told, process=process)
                self._made_at, self._packed = time.monotonic(), None
            if not packed:
                return self._made
            if self._packed is None:
                self._packed = await asyncio.to_thread(gzip.compress, self._made, FASTEST)
            return self._packed


def _before(waiting: Sequence[SubscriptionBacklog]) -> Measured:
    """Give what subscriptions have before them, as far as their brokers say it."""
    found: dict[str, list[tuple[tuple[str, ...], Series]]] = {WAITING: [], TAKEN: [], OLDEST: []}
    for each in waiting:
        labels, backlog = (each.component, each.topic), each.backlog
        for source, value in ((WAITING, backlog.waiting), (TAKEN, backlog.taken), (OLDEST, each.oldest_seconds)):
            if value is not None:
                found[source].append((labels, Series(times=value)))
    return found


def _now(runtime: Runtime) -> Measured:
    """Give what is not counted but is so now."""
    told = runtime.description
    actors = [each for each in cast("ActorService", runtime.services["actors"]).types.values() if each.hosted]
    return {
        COMPONENTS: [((), Series(times=len(told.components)))],
        **{source: [((each.name,), Series(times=count(each))) for each in actors] for source, count in _ACTORS},
        BREAKERS: breaker_states(runtime.conditions.breakers()),
        GATEWAY: [((__version__,), Series(times=1))],
    }


def breaker_states(conditions: Iterable[Condition]) -> list[tuple[tuple[str, ...], Series]]:
    """Tell which states the breakers of each target have.

    Callers choose targets: of as many as other counts have, those first that are not closed. The rest are told as one.
    """
    found: dict[tuple[str, ...], set[str]] = {}
    for each in conditions:
        labels = tuple(label[:MAX_LABEL] for label in (*each.names, each.resource))
        found.setdefault(labels, set()).update(breaker.status for breaker in list(each.breakers.values()))
    first = sorted(found.items(), key=lambda each: each[1] == {"closed"})
    kept, rest = first[:MAX_SERIES], first[MAX_SERIES:]
    if rest:
        kept.append((tuple(OTHER for _ in rest[0][0]), set().union(*(states for _, states in rest))))
    return [((*labels, state), Series(times=float(state in now))) for labels, now in kept for state in _STATES]
