"""Activities that other nodes run: those of other applications, and those that no worker of this node has room for.

How many are asked of the nodes of one application at once is a window: it doubles while nobody refuses, and shrinks to
what is out once somebody does. An application that is not there is looked for more and more rarely; until it is found,
what is for it waits as names and numbers.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

from mesh.errors import AppUnreachableError, MeshError
from mesh.workflows.capacity import Backoff, now
from mesh.workflows.fair_queue import FairQueue
from mesh.workflows.handout import Handout
from mesh.workflows.peers import Peer, Peers
from mesh.workflows.worker import Ref, TaskResult

__all__ = ["ABSENT_SECONDS", "FIRST_WINDOW", "FOREIGN", "MAX_WINDOW", "WIDEN_SECONDS", "Forwarder"]

logger = logging.getLogger(__name__)

FOREIGN = -1  # In place of the partition of what another node has asked for: it goes no further.
BUSY_SECONDS = 0.5  # Until nodes that have no room are asked again.
WIDEN_SECONDS = 0.1  # In which nobody refuses, then they are asked for twice as much.
ABSENT_SECONDS = 0.5, 60.0  # Until an application that is not there is looked for again: at first, and at most.
FIRST_WINDOW, MAX_WINDOW = 32, 1000


@dataclass(slots=True, eq=False)
class _Target:
    """The other nodes of an application.

    Attributes:
        queue: What waits for them alone.
        out: How many activities they are asked for.
        window: How many they may be asked for.
        widening: Whether that is about to grow.
        found: Whether there was one when it was looked last: until then nothing is taken from what waits.
        seeking: Whether it is being looked.
        backoff: While nobody is there.
    """

    app: str
    queue: FairQueue = field(default_factory=FairQueue)
    out: int = 0
    window: int = FIRST_WINDOW
    widening: bool = False
    found: bool = False
    seeking: bool = False
    backoff: Backoff = field(default_factory=lambda: Backoff(ABSENT_SECONDS))

    @property
    def open(self) -> bool:
        """Tell whether they may be asked for one more now."""
        return self.found and self.out < self.window and self.backoff.until <= now()

    @property
    def may_widen(self) -> bool:
        """Tell whether it would help to ask for more, after a while in which nobody refused."""
        return self.found and self.window <= self.out < MAX_WINDOW and not self.widening

    def widen(self) -> None:
        """Ask for more from now on."""
        self.widening, self.window = False, min(2 * self.window, MAX_WINDOW)

    def refused(self) -> None:
        """Ask for no more than what they have."""
        self.window = max(1, self.out)


class Forwarder:
    """Has other nodes run activities of this node's instances."""

    def __init__(
        self,
        app: str,
        peers: Peers,
        handout: Handout,
        want: Callable[[Ref, int, str, str | None], None],
        ready: Callable[[], None],
    ) -> None:
        """Forward nothing yet.

        Args:
            app: This node's application.
            peers: Other nodes.
            handout: Runs what waits for them.
            want: Wants an activity anew, as ``Dispatch.task`` does.
            ready: Is called when nodes of this application may be asked: what waits here is to be offered again.
        """
        self._app, self._peers, self._handout = app, peers, handout
        self._want, self._ready = want, ready
        self._targets: dict[str, _Target] = {app: _Target(app)}

    def add(self, app: str, ref: Ref, task: int, name: str) -> None:
        """Have an activity run at another application, once a node of it has room."""
        target = self._targets.get(app)
        if target is None:
            target = self._targets[app] = _Target(app)
        target.queue.add(name, ref, task)
        self._send(target)

    def overflow(self, queue: FairQueue, name: str) -> None:
        """Send activities of one name, which wait in a queue, to other nodes of this application, as far as they go."""
        target = self._targets[self._app]
        while (ref := queue.first(name)) is not None and ref.partition != FOREIGN:
            if not target.open:
                self._open(target)
                return
            self._send_one(target, queue, name)

    def forget(self, ref: Ref) -> None:
        """Send nothing more of an instance."""
        for target in self._targets.values():
            target.queue.forget(ref)

    def _send(self, target: _Target) -> None:
        """Send what waits for another application."""
        if not self._handout.open:
            return
        for name in target.queue:
            while target.queue.first(name) is not None:
                if not target.open:
                    self._open(target)
                    return
                self._send_one(target, target.queue, name)
        if target.app != self._app and not target.out and not target.queue and target.backoff.until <= now():
            self._targets.pop(target.app, None)

    def _open(self, target: _Target) -> None:
        """Look whether somebody is there, or ask for more before long."""
        if not target.found:
            if not target.seeking and target.backoff.until <= now():
                target.seeking = True
                self._handout.start(self._seek(target))
        elif target.may_widen:
            target.widening = True
            self._handout.later(WIDEN_SECONDS, partial(self._widen, target))

    def _widen(self, target: _Target) -> None:
        target.widen()
        self._go_on(target)

    def _send_one(self, target: _Target, queue: FairQueue, name: str) -> None:
        target.out += 1
        ref, number = queue.take(name)
        self._handout.start(self._run(target, queue, ref, number, name))

    async def _run(self, target: _Target, queue: FairQueue, ref: Ref, number: int, name: str) -> None:
        """Have another node run an activity."""
        handout, work = self._handout, None
        came: object = None
        try:
            peer = await self._peer(target)
            if peer is None:
                queue.add(name, ref, number)
                return
            handout.places[ref, number] = peer.node, ""
            work = await handout.engine.open_task(ref, number)
            came = None if work is None else await self._peers.task(peer, work)
        except (Exception, asyncio.CancelledError) as error:  # noqa: BLE001 - it is told, and one ends no other
            came = error
        finally:
            target.out -= 1
            handout.places.pop((ref, number), None)
        if work is None:
            handout.not_opened(came, lambda: self._want(ref, number, name, target.app))
        else:
            if isinstance(came, TaskResult):
                target.backoff.reset()
            elif isinstance(came, AppUnreachableError):
                target.refused()
            else:  # It would be asked for again at once.
                self._back_off(target)
            handout.task_over(ref, work, came)
        self._go_on(target)

    async def _seek(self, target: _Target) -> None:
        try:
            await self._peer(target)
        finally:
            target.seeking = False
        self._go_on(target)

    async def _peer(self, target: _Target) -> Peer | None:
        try:
            peer = await self._peers.peer(target.app)
        except AppUnreachableError:  # There are some, and they are busy.
            target.found = True
            self._rest(target, BUSY_SECONDS)
            return None
        except MeshError as error:
            logger.debug("nobody can tell who runs activities of %s: %s", target.app, error)
            peer = None
        target.found = peer is not None
        if peer is None:
            self._back_off(target)
        return peer

    def _back_off(self, target: _Target) -> None:
        if target.backoff.until <= now():
            self._rest(target, target.backoff.longer())

    def _rest(self, target: _Target, seconds: float) -> None:
        target.backoff.until = until = now() + seconds

        def over() -> None:
            target.backoff.end(until)
            self._go_on(target)

        self._handout.later(seconds, over)

    def _go_on(self, target: _Target) -> None:
        self._send(target)
        if target.app == self._app and target.backoff.until <= now():
            self._ready()
