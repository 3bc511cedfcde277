"""What every operation passes.

Outermost first:

=========  =====================================================  =================================
stage      what it does                                           there is one
=========  =====================================================  =================================
observe    tells what was asked, what came of it, how long        when there is an observer
policy     retry and circuit breaker of the target                when a Resiliency names anything
deadline   the client's, the policy's, or the method's own limit  always
place      here, or over the backbone to a host                   always
=========  =====================================================  =================================

It is put together once, at start: what is not configured costs nothing. A deadline bounds one attempt; the
client's own bounds all of them. Without one, a policy that retries without an end goes on until the client
hangs up, which cancels the operation.

Towards the application there are no operations: deliveries and durable calls settle in `mesh/delivery.py`, by the
inbound policies; a call passes `mesh/blocks/invocation.py` under the deadline that came with it.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Protocol

from mesh.deadlines import Deadlines
from mesh.errors import MeshError
from mesh.policies import Guard, Policy
from mesh.telemetry import CANCELLED, FAILED, OK, OPERATIONS, Observed

if TYPE_CHECKING:
    from mesh.operation import Operation
    from mesh.telemetry import Observer

__all__ = ["Handler", "Pipeline", "Service"]

MAX_GUARDS = 10_000

Handler = Callable[["Operation"], Awaitable[object]]
PolicyOf = Callable[["Operation"], Policy]


class Service(Protocol):
    """A building block at work on this node."""

    @property
    def run(self) -> Handler:
        """Do what is asked, here or elsewhere, by ``operation.deadline``."""


class Pipeline:
    """The one way to a building block.

    Attributes:
        run: Passes an operation through all stages; gives its result or raises a ``MeshError``.
    """

    def __init__(
        self, services: Mapping[str, Service], *, policy_of: PolicyOf | None = None, observer: Observer | None = None
    ) -> None:
        """Put it together.

        Args:
            services: The building blocks, by name.
            policy_of: Gives the policy around an operation; None when no policy is configured.
            observer: Is told of every operation; None = nobody.
        """
        run: Handler = partial(_placed, services)
        run = partial(_within_deadline, Deadlines(), run)
        if policy_of is not None:
            run = partial(_by_policy, policy_of, {}, run)
        if observer is not None:
            run = partial(_observed, observer, run)
        self.run = run


async def _observed(observer: Observer, proceed: Handler, operation: Operation) -> object:
    started = time.perf_counter()
    outcome = FAILED
    try:
        result = await proceed(operation)
        outcome = OK
    except MeshError as error:
        outcome = error.code
        raise
    except asyncio.CancelledError:
        outcome = CANCELLED
        raise
    finally:
        labels = operation.method.block, operation.method.name, operation.target, outcome
        observer(Observed(OPERATIONS, labels, 1, time.perf_counter() - started))
    return result


async def _by_policy(
    policy_of: PolicyOf, guards: dict[tuple[str, str], Guard | None], proceed: Handler, operation: Operation
) -> object:
    key = operation.method.block, operation.target
    if key in guards:
        guard = guards[key]
    else:
        policy = policy_of(operation)
        guard = None if policy == Policy() else Guard(policy)
        if len(guards) < MAX_GUARDS:  # Targets are the callers' words.
            guards[key] = guard
    if guard is None:
        return await proceed(operation)
    operation.limit = guard.timeout
    return await guard.run(
        lambda: proceed(operation), operation.judged, deadline=operation.context.deadline, release=_released
    )


async def _released(result: object) -> None:
    """Let go of an answer whose call is made again."""
    close = getattr(result, "aclose", None)
    if close is not None:
        await close()


async def _within_deadline(deadlines: Deadlines, proceed: Handler, operation: Operation) -> object:
    now = time.time()
    limit, given = operation.limit, operation.context.deadline
    if given is None:
        seconds = operation.method.seconds if limit is None else limit
    else:
        seconds = given - now if limit is None else min(limit, given - now)
    operation.deadline = now + seconds
    return await deadlines.within(seconds + operation.method.grace, proceed, operation)


async def _placed(services: Mapping[str, Service], operation: Operation) -> object:
    return await services[operation.method.block].run(operation)
