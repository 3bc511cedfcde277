"""The process that was started: opens the ports, keeps the workers, and holds what is one of all of them.

A worker that ends is replaced, after a moment that grows while it ends again and again. ``SIGHUP`` replaces them one
after the other: the new one takes clients from the socket of the old one before that is told to stop, and if it does
not come up, the old one stays and the rest is left as it is. Nothing of this is between a client and its worker.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import resource
import signal
import socket
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from functools import partial
from typing import Any

from gateway.config import CLOSE_SECONDS, GatewayConfig
from gateway.descriptors import ABSENT, receive, send, shared_counts
from gateway.logs import LogRing, configure_logging, switch_level
from gateway.metrics.process import measure_process
from gateway.notify import VARIABLES, Notify
from gateway.runs import Run, registered
from gateway.workers import merging
from gateway.workers.kept import App, Kept
from gateway.workers.permits import Pool
from gateway.workers.sockets import Opened, opened
from gateway.workers.wire import ANSWER_SECONDS, VARIABLE, Link, LinkError
from mesh.errors import ConfigError
from mesh.tasks import task_group, until_any

__all__ = ["run_workers"]

logger = logging.getLogger(__name__)

FIRST_WAIT, LONGEST_WAIT = 0.1, 30.0
STEADY_SECONDS = 10.0
UP_SECONDS = 60.0
"""How long a new worker may take to be as the one that it replaces."""
KILL_SECONDS = 10.0


async def run_workers(configs: Sequence[GatewayConfig], words: Sequence[str], workers: int) -> int:
    """Run workers until they are told to stop; give the process's exit code.

    Args:
        configs: Of each application.
        words: The command line that a worker gets, too.
        workers: How many.
    """
    ring = configure_logging(configs[0])
    try:
        async with opened(configs, workers) as sockets:
            return await _Parent(configs, words, sockets, ring).run()
    except ConfigError as error:
        for problem in error.problems:
            logger.error("%s", problem)  # noqa: TRY400 - the problem says it all
        return 1


class _Parent:
    def __init__(self, configs: Sequence[GatewayConfig], words: Sequence[str], sockets: Opened, ring: LogRing) -> None:
        self._words, self._sockets, self._several = words, sockets, len(configs) > 1
        self._level = configs[0].log_level
        self._drain = max(each.drain + each.outlive for each in configs)
        self._apps = {
            each.app_id: App(each, dict(each.labels), LogRing() if self._several else ring) for each in configs
        }
        for app in self._apps.values():
            if app.config.app_max_concurrency is not None:
                told = partial(self._permit, app.config.app_id)
                app.pool = Pool(app.config.app_max_concurrency, told)
        self._in_slots: dict[int, Kept] = {}
        self._taking = [asyncio.Lock() for _ in sockets.of_slots]
        self._workers: dict[int, Kept] = {}
        self._memory, self._counts = shared_counts()
        self._number = 0
        self._speaker: Kept | None = None
        self._stopping = asyncio.Event()
        self._worked = False
        self._codes: list[int] = []
        self._rolling: asyncio.Task[None] | None = None
        self._roll_again = False
        self._notify = Notify.by(os.environ)
        self._tasks: asyncio.TaskGroup

    async def run(self) -> int:
        """Keep the workers until they are told to stop."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._stop)
        loop.add_signal_handler(signal.SIGHUP, self._roll)
        loop.add_signal_handler(signal.SIGUSR1, self._switch)
        try:
            async with task_group() as alive:
                looking = alive.create_task(self._notify.alive(), name="workers-alive")
                async with task_group() as self._tasks:
                    for slot in range(len(self._sockets.of_slots)):
                        self._tasks.create_task(self._keep(slot), name=f"workers-{slot}")
                looking.cancel()
        finally:
            for app in self._apps.values():
                app.entry.close()
        return max(self._codes, default=0)

    # Their lives

    async def _keep(self, slot: int) -> None:
        """Have a worker in a place, for as long as the gateway runs."""
        wait = FIRST_WAIT
        worker = self._in_slots[slot] = await self._start(slot)
        while not self._stopping.is_set():
            await worker.ended.wait()
            if self._in_slots[slot] is not worker:  # Another one has taken its place.
                worker = self._in_slots[slot]
                continue
            code = worker.process.returncode or 0
            if self._stopping.is_set():
                break
            if not self._worked and code > 0:  # What is wrong is wrong for all: whoever started it is to know.
                self._codes.append(code)
                self._stop()
                break
            wait = FIRST_WAIT if time.monotonic() - worker.born > STEADY_SECONDS else min(2 * wait, LONGEST_WAIT)
            how = f"signal {-code}" if code < 0 else f"exit code {code}"
            logger.error("worker %d ended (%s); another one takes its place in %g s", worker.process.pid, how, wait)
            with suppress(TimeoutError):
                async with asyncio.timeout(wait):
                    await self._stopping.wait()
            async with self._taking[slot]:  # Perhaps a new one comes up, to take the place.
                if not self._stopping.is_set() and self._in_slots[slot] is worker:
                    try:
                        self._in_slots[slot] = worker = await self._start(slot)
                    except OSError as error:  # The machine has no room for one; those that work go on.
                        logger.error("no worker can be started: %s", error)  # noqa: TRY400 - it says it all
                        worker.born = time.monotonic()

    async def _start(self, slot: int) -> Kept:
        """Start a process for a place."""
        ours, theirs = socket.socketpair()
        passing, passed = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        numbers = self._sockets.numbers(slot)
        told = {"slot": slot, "of": len(self._sockets.of_slots), "sockets": numbers, "control": theirs.fileno()}
        told |= {"passing": passed.fileno(), "counts": self._memory}
        environ = {name: value for name, value in os.environ.items() if name not in VARIABLES}
        inherited = {number for by_what in numbers.values() for of in by_what.values() for number in of}
        with theirs, passed, ExitStack() as failed:
            failed.callback(passing.close)
            failed.callback(ours.close)
            process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-P", "-m", "gateway", *self._words),
                stdin=asyncio.subprocess.DEVNULL,
                env={**environ, VARIABLE: json.dumps(told)},
                pass_fds=(theirs.fileno(), passed.fileno(), self._memory, *inherited),
                start_new_session=True,  # What is typed in a terminal reaches the parent alone.
            )
            failed.pop_all()
        self._number += 1
        handlers: dict[str, Callable[..., Any]] = {}
        worker = Kept(self._number, slot, process, Link(handlers), passing)
        handlers |= {name: partial(handler, worker) for name, handler in self._handlers().items()}
        self._workers[worker.number] = worker
        if self._stopping.is_set():
            worker.process.terminate()
        self._tasks.create_task(self._watch(worker, ours), name=f"worker-{worker.number}")
        return worker

    async def _watch(self, worker: Kept, ours: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        try:
            worker.passing.setblocking(False)
            loop.add_reader(worker.passing.fileno(), self._pass, worker)
            async with worker.link.running(ours):
                await worker.process.wait()
                with suppress(TimeoutError):  # What it said last is read before it counts as gone.
                    async with asyncio.timeout(ANSWER_SECONDS):
                        await worker.link.closed.wait()
        finally:
            worker.stopping = True
            if self._in_slots.get(worker.slot) is worker:
                self._counts[worker.slot] = ABSENT
            self._pass(worker)
            loop.remove_reader(worker.passing.fileno())
            worker.passing.close()
            del self._workers[worker.number]
            code = worker.process.returncode or 0
            if self._stopping.is_set():
                self._codes.append(int(code not in (0, -signal.SIGTERM)))
            for app_id, app in self._apps.items():
                self._count_gone(worker, app_id)
                if app.pool is not None:
                    app.pool.gone(worker.number)
            self._tell_standing()
            worker.ended.set()

    def _pass(self, worker: Kept) -> None:
        """Give a worker's clients to another: of a worker that is replaced, to the one in its place."""
        ending = self._stopping.is_set()  # Then all stop, and each takes clients until it has finished.
        for name, descriptor in receive(worker.passing):
            others = [each for each in self._workers.values() if each.opened and each is not worker]
            able = [each for each in others if ending or not each.stopping]
            able.sort(key=lambda each: (worker.stopping and each.slot != worker.slot, self._counts[each.slot]))
            for other in (*able, *((worker,) if ending or not worker.stopping else ())):
                if send(other.passing, name, descriptor):
                    self._counts[other.slot] += 1
                    break
            os.close(descriptor)

    def _stop(self) -> None:
        """Have all of them stop; told twice, without waiting."""
        if not self._stopping.is_set():
            asyncio.get_running_loop().call_later(self._drain + CLOSE_SECONDS + KILL_SECONDS, self._kill)
        self._notify.tell("STOPPING=1")
        self._stopping.set()
        for worker in self._workers.values():
            worker.stopping = True
            _signal(worker, signal.SIGTERM)

    def _kill(self) -> None:
        for worker in self._workers.values():
            _kill(worker)

    def _switch(self) -> None:
        switch_level(self._level)
        for worker in self._workers.values():
            _signal(worker, signal.SIGUSR1)

    def _roll(self) -> None:
        """Replace all workers, one after the other."""
        self._roll_again = self._rolling is not None and not self._rolling.done()
        if self._roll_again:
            logger.info("the workers are being replaced; they are once more, as the first may be older than this")
            return
        self._rolling = self._tasks.create_task(self._replace_all(), name="workers-roll")

    async def _replace_all(self) -> None:
        await self._replace_each()
        while self._roll_again and not self._stopping.is_set():
            self._roll_again = False
            await self._replace_each()

    async def _replace_each(self) -> None:
        for slot, old in sorted(self._in_slots.items()):
            while not (old.opened or old.ended.is_set()):  # It has just been started.
                old.changed.clear()
                await until_any(old.changed, old.ended)
            if old.ended.is_set():
                continue
            async with self._taking[slot]:
                new = await self._successor(slot, old)
            if new is None:
                return
            old.stopping = True
            self._tell_standing()
            old.link.tell("replaced")
            for app_id in self._apps:  # No signal: the application stays, and nobody waits for its end.
                old.link.tell("shut_down", app_id, False)
            logger.info("worker %d takes the place of %d", new.process.pid, old.process.pid)
            with suppress(TimeoutError):
                async with asyncio.timeout(self._drain + CLOSE_SECONDS + KILL_SECONDS):
                    await old.ended.wait()
            if not old.ended.is_set():
                _kill(old)
                await old.ended.wait()
        logger.info("all workers are new ones")

    async def _successor(self, slot: int, old: Kept) -> Kept | None:
        """Have a new worker in a place; None = it did not come up."""
        try:
            new = await self._start(slot)
        except OSError as error:
            logger.error("the workers stay, as no new one can be started: %s", error)  # noqa: TRY400 - it says it all
            return None
        if await self._as_good(new, old):
            self._in_slots[slot] = new
            return new
        if not self._stopping.is_set():
            text = "worker %d stays, as the one that was to take its place did not come up; so do those after it"
            logger.error(text, old.process.pid)
            new.stopping = True
            _signal(new, signal.SIGTERM)
        return None

    async def _as_good(self, new: Kept, old: Kept) -> bool:
        """Wait until a worker does all that the one does which it is to replace."""
        with suppress(TimeoutError):
            async with asyncio.timeout(UP_SECONDS):
                while not (new.opened >= old.opened and new.serving >= old.serving):
                    new.changed.clear()
                    await until_any(new.changed, new.ended)
                    if new.ended.is_set():
                        return False
                return True
        return False

    # What is one of all of them

    def _handlers(self) -> dict[str, Callable[..., Any]]:
        return {
            "begin": self._begin,
            "joined": self._joined,
            "opened": self._opened,
            "closed": self._closed,
            "serving": self._serving,
            "others": self._others,
            "measured": self._measured,
            "counted": self._counted,
            "process": self._process,
            "parent": self._about,
            "line": self._line,
            "lines": self._lines,
            "labelled": self._labelled,
            "stop": self._shut_down,
            "health": self._health,
            "want": lambda worker, app_id: self._pool(app_id).want(worker.number),
            "give": lambda worker, app_id: self._pool(app_id).give(worker.number),
        }

    async def _begin(self, worker: Kept) -> dict[str, object]:
        return {
            app_id: {"node_id": app.node_id, "key": app.key, "labels": app.labels}
            for app_id, app in self._apps.items()
            if not app.over
        }

    def _joined(self, worker: Kept) -> None:
        worker.joined = True
        self._tell_standing()
        for app_id, app in self._apps.items():
            if app.over:  # Since it asked what there is.
                worker.link.tell("shut_down", app_id, False)
            if app.healthy is not None:  # Until it knows, it would refuse the calls of its clients.
                worker.link.tell("health", app_id, app.healthy)

    def _opened(self, worker: Kept, app_id: str, told: dict[str, Any]) -> None:
        self._worked = True
        worker.opened.add(app_id)
        worker.changed.set()
        app = self._apps[app_id]
        if not app.entered:
            app.entered = True
            run = Run(**{**told, "pid": os.getpid(), "key": app.key, "labels": app.labels})
            app.entry.enter_context(registered(app.config.home, run))
            self._notify.tell("READY=1", f"STATUS={len(self._in_slots)} workers")
        self._tell_standing()

    def _closed(self, worker: Kept, app_id: str) -> None:
        self._count_gone(worker, app_id)  # Started again in the same process, it counts from zero.
        worker.opened.discard(app_id)
        worker.serving.discard(app_id)
        if not any(app_id in each.opened for each in self._workers.values()) and not self._stopping.is_set():
            self._apps[app_id].entry.close()
            self._apps[app_id].entered = False
        self._tell_standing()

    def _serving(self, worker: Kept, app_id: str, whether: bool) -> None:
        (worker.serving.add if whether else worker.serving.discard)(app_id)
        worker.changed.set()
        self._tell_standing()

    def _heard(self) -> list[Kept]:
        """Give those that can be told something."""
        return [each for each in self._workers.values() if each.joined]

    def _tell_standing(self) -> None:
        """Choose who speaks for all, and tell whether an application is served by any."""
        able = [each for each in self._workers.values() if each.opened and not each.stopping]
        speaker = self._speaker if self._speaker in able else next(iter(able), None)
        if speaker is not self._speaker:
            self._speaker = speaker
        for worker in self._heard():
            worker.link.tell("speaks", worker is speaker)
            for app_id in self._apps:
                worker.link.tell("well", app_id, any(app_id in each.serving for each in able))

    async def _others(
        self, worker: Kept, app_id: str, name: str, arguments: Sequence[object], seconds: float
    ) -> list[object]:
        told = await self._ask(worker, app_id, name, arguments, seconds)
        return list(told.values())

    async def _ask(
        self, worker: Kept, app_id: str, name: str, arguments: Sequence[object] = (), seconds: float = ANSWER_SECONDS
    ) -> dict[Kept, Any]:
        """Ask all other workers the same; gives what those answer that do so in time."""

        async def ask(other: Kept) -> None:
            with suppress(LinkError, TimeoutError):
                async with asyncio.timeout(seconds):
                    found[other] = await other.link.call("asked", app_id, name, arguments)

        found: dict[Kept, Any] = {}
        others = [
            each for each in self._workers.values() if each is not worker and (app_id in each.opened or not app_id)
        ]
        async with asyncio.TaskGroup() as tasks:
            for other in others:
                tasks.create_task(ask(other), name="workers-ask")
        return found

    async def _measured(self, worker: Kept, app_id: str, own: merging.Sent) -> list[merging.Sent]:
        self._counted(worker, app_id, own)
        for other, sent in (await self._ask(worker, app_id, "measured")).items():
            self._counted(other, app_id, sent)
        # Whoever did not answer in time has not forgotten what it counted.
        kept = [
            each.counted[app_id] for each in self._workers.values() if each is not worker and app_id in each.counted
        ]
        return [*kept, self._apps[app_id].gone]

    def _counted(self, worker: Kept, app_id: str, sent: merging.Sent) -> None:
        if app_id in worker.opened:  # Else it is counted among those that have gone.
            worker.counted[app_id] = sent

    def _count_gone(self, worker: Kept, app_id: str) -> None:
        self._apps[app_id].gone = merging.totals(self._apps[app_id].gone, worker.counted.pop(app_id, {}))

    async def _process(self, worker: Kept, own: dict[str, float]) -> dict[str, float]:
        told = await self._ask(worker, "", "process")
        ended = resource.getrusage(resource.RUSAGE_CHILDREN)
        return merging.process([await measure_process(), own, *told.values()], ended.ru_utime + ended.ru_stime)

    async def _about(self, worker: Kept, app_id: str) -> list[dict[str, object]]:
        measured = await measure_process()
        since = measured["process_start_time_seconds"]
        return [
            {
                "pid": os.getpid(),
                "since": round(since, 3),
                "uptimeSeconds": round(time.time() - since, 3),
                "cpuSeconds": measured["process_cpu_seconds_total"],
                "rssBytes": measured["process_resident_memory_bytes"],
            }
        ]

    def _line(self, worker: Kept, app_id: str, *line: str) -> None:
        self._apps[app_id].ring.keep(*line)

    async def _lines(self, worker: Kept, app_id: str, after: int | None, limit: int, level: str) -> list[object]:
        found = self._apps[app_id].ring.lines(after, limit, level)
        lines = [[each.n, each.time, each.level, each.scope, each.message] for each in found.lines]
        return [lines, found.next, found.missed]

    def _labelled(self, worker: Kept, app_id: str, name: str, value: str) -> None:
        self._apps[app_id].labels[name] = value
        for other in self._heard():
            other.link.tell("label", app_id, name, value)

    def _shut_down(self, worker: Kept, app_id: str, force: bool) -> None:
        self._apps[app_id].over = True
        if all(app.over for app in self._apps.values()) and not self._stopping.is_set():
            self._notify.tell("STOPPING=1")
            self._stopping.set()
            asyncio.get_running_loop().call_later(self._drain + CLOSE_SECONDS + KILL_SECONDS, self._kill)
        for each in self._heard():
            each.link.tell("shut_down", app_id, force)

    def _health(self, worker: Kept, app_id: str, healthy: bool) -> None:
        self._apps[app_id].healthy = healthy
        for other in self._heard():
            if other is not worker:
                other.link.tell("health", app_id, healthy)

    def _pool(self, app_id: str) -> Pool:
        pool = self._apps[app_id].pool
        assert pool is not None  # Else nobody asks.
        return pool

    def _permit(self, app_id: str, number: int, what: str) -> None:
        worker = self._workers.get(number)
        if worker is not None:
            worker.link.tell("permit", app_id, what)


def _kill(worker: Kept) -> None:
    logger.warning("worker %d is killed: it did not end in time", worker.process.pid)
    _signal(worker, signal.SIGKILL)


def _signal(worker: Kept, number: signal.Signals) -> None:
    with suppress(ProcessLookupError):
        worker.process.send_signal(number)
