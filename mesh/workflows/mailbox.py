"""The mailbox of an instance: messages, calls that need it in memory, results of activities, watchers of its state."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mesh.errors import MeshError
from mesh.workflows.contracts import Until
from mesh.workflows.events import Failure
from mesh.workflows.messages import AnyMessage, Purge, Told
from mesh.workflows.outgoing import parent_of
from mesh.workflows.state import Sent, State
from mesh.workflows.worker import TaskResult, TaskWork

if TYPE_CHECKING:
    from mesh.workflows.instance import Instance

__all__ = ["ChildrenOpenError", "Expired", "Mailbox", "PendingCall", "Refused", "Request"]


@dataclass(frozen=True, slots=True)
class Refused:
    """A message of an instance's outbox can never be delivered: the instance is told why."""

    sent: Sent
    failure: Failure


@dataclass(frozen=True, slots=True)
class Expired:
    """An instance that was put away was to be kept until a Unix time, and not longer: it is told so."""

    until: float


class ChildrenOpenError(Exception):
    """An id cannot be used again before somebody has looked whether children of the one that had it go on.

    Attributes:
        generation: Of that one.
        children: Those of which it knows no end: application, id, and whose children they are.
    """

    def __init__(self, instance: Instance) -> None:
        """Name the instance, which has ended."""
        super().__init__(f"the workflow '{instance.id}' has ended, and its children may not have")
        self.generation = instance.state.generation
        self.children = [
            (child.app or instance.app, child.instance, parent_of(instance.app, instance.id, instance.state, child))
            for child in instance.children.values()
        ]


@dataclass(slots=True, eq=False)
class Request:
    """A message, and who waits for what comes of it; None = nobody, as it is the engine's own.

    Attributes:
        over: Of a start: the generation that had the id, of which no child goes on.
    """

    message: AnyMessage | Refused | Expired
    told: asyncio.Future[Told] | None = None
    over: int = 0

    @property
    def abandoned(self) -> bool:
        """Tell whether who waited has gone."""
        return self.told is not None and self.told.done()

    def answer(self, told: Told | Exception) -> None:
        """Tell who waits, if somebody still does."""
        if self.told is None or self.told.done():
            return
        if isinstance(told, Told):
            self.told.set_result(told)
        else:
            self.told.set_exception(told)


@dataclass(slots=True, eq=False)
class PendingCall:
    """A function of an instance, called once it is in memory and before anything else happens to it."""

    made: asyncio.Future[Any]
    make: Callable[[], object]

    def run(self) -> None:
        """Make it, if somebody still waits."""
        if self.made.done():
            return
        try:
            self.made.set_result(self.make())
        except Exception as error:  # noqa: BLE001 - whoever asks gets it; the instance goes on
            self.made.set_exception(error)

    def fail(self, error: MeshError) -> None:
        """Tell who waits that it cannot be made."""
        if not self.made.done():
            self.made.set_exception(error)


class Mailbox:
    """All that waits for one instance.

    Attributes:
        requests: Messages, in order.
        calls: What is to be made of the instance.
        results: What came of activities while it was not in memory, or was written; None = nobody knows what.
        watchers: Who waits for a state, and for which.
    """

    __slots__ = ("calls", "requests", "results", "watchers")

    def __init__(self) -> None:
        """Have nobody wait."""
        self.requests: list[Request] = []
        self.calls: list[PendingCall] = []
        self.results: list[tuple[TaskWork, TaskResult | None]] = []
        self.watchers: dict[asyncio.Future[None], Until] = {}

    def __bool__(self) -> bool:
        """Tell whether the instance has to be read for something here: a state is watched without that."""
        return bool(self.requests or self.calls or self.results)

    def take(self) -> Request | None:
        """Take the next message that may go in one write with others; None = there is none, or its turn has not come.

        What purges the instance goes alone.
        """
        while self.requests and not isinstance(self.requests[0].message, (Purge, Expired)):
            request = self.requests.pop(0)
            if not request.abandoned:
                return request
        return None

    def take_purge(self) -> Request | None:
        """Take the next message if it purges the instance."""
        if self.requests and isinstance(self.requests[0].message, (Purge, Expired)):
            return self.requests.pop(0)
        return None

    def take_calls(self) -> list[PendingCall]:
        """Take what is to be made of the instance."""
        calls, self.calls = self.calls, []
        return calls

    def take_results(self) -> list[tuple[TaskWork, TaskResult | None]]:
        """Take what came of activities."""
        results, self.results = self.results, []
        return results

    def refuse(self, error: MeshError) -> list[Request]:
        """Fail messages and calls, none of which has had an effect; gives the messages."""
        requests, self.requests = self.requests, []
        for request in requests:
            request.answer(error)
        for call in self.take_calls():
            call.fail(error)
        return requests

    # Who waits for a state

    def watch(self, until: Until, seen: asyncio.Future[None]) -> None:
        """Have somebody told once the state is as wanted, until ``unwatch``."""
        self.watchers[seen] = until

    def unwatch(self, seen: asyncio.Future[None]) -> None:
        """Have nobody told any more."""
        self.watchers.pop(seen, None)

    def see(self, state: State | None) -> None:
        """Tell who waits for a state that it is this one now; None = there is no instance."""
        for seen, until in self.watchers.items():
            if not seen.done() and until(state):
                seen.set_result(None)

    def dismiss(self, error: MeshError) -> None:
        """Send those away who wait for a state."""
        for seen in self.watchers:
            if not seen.done():
                seen.set_exception(error)
