"""The life of a gateway process: one application or several in it, until it is told to stop.

Of several, each is a gateway of its own, with its own connection to the backbone, its own ports and its own resources:
what one does is no other's. One that cannot start, or that has lost its backbone, is started anew while the others
work on; one that was told to stop by its API stays away.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack, suppress
from typing import TYPE_CHECKING

from gateway.app import Gateway
from gateway.config import CLOSE_SECONDS, GatewayConfig
from gateway.doors import Doors, Listening
from gateway.given import Given
from gateway.logs import APPLICATION, Logged, LogRing, configure_logging, switch_level
from gateway.notify import Notify
from mesh.errors import ConfigError, MeshError, Problem
from mesh.tasks import task_group, until_any

if TYPE_CHECKING:
    from gateway.supplied import Agent
    from gateway.workers.child import Worker

__all__ = ["run"]

logger = logging.getLogger(__name__)

FIRST_WAIT, LONGEST_WAIT = 1.0, 60.0


async def run(*configs: GatewayConfig, worker: Worker | None = None) -> int:
    """Run gateways until they are told to stop; give the process's exit code.

    Args:
        configs: One for each application; app ids differ.
        worker: What this process is of a gateway of several; None = it is all of it.
    """
    ring = configure_logging(configs[0])
    doors: Callable[[GatewayConfig], Doors] = Listening
    async with AsyncExitStack() as stack:
        given = None
        if worker is not None:
            await stack.enter_async_context(worker.running())
            configs, given = worker.own(configs), worker.given
            if not configs:  # They have been told to stop meanwhile.
                return 0
            doors = lambda config: Listening(config, given[config.app_id])  # noqa: E731
        if len(configs) > 1:
            from gateway.shared_port import opened

            of = (lambda config: given[config.app_id]) if given is not None else (lambda _: Given())
            doors = await stack.enter_async_context(opened(configs, of))
        life = _Life(configs, ring, doors, worker)
        if worker is not None:
            orphaned = await stack.enter_async_context(task_group())
            watching = orphaned.create_task(life.stop_with(worker.closed), name="worker-orphaned")
            stack.callback(watching.cancel)
        return await life.run()


class _Life:
    def __init__(
        self,
        configs: Sequence[GatewayConfig],
        ring: LogRing | None,
        doors: Callable[[GatewayConfig], Doors],
        worker: Worker | None,
    ) -> None:
        self._configs, self._doors = configs, doors
        self._siblings = {} if worker is None else worker.siblings
        several = len(configs) > 1
        self._rings: dict[str, LogRing | None]
        if worker is None:
            self._rings = {each.app_id: LogRing() if several else ring for each in configs}
        else:
            self._rings = {app_id: each.ring for app_id, each in worker.siblings.items()}
        self._running: dict[str, Gateway] = {}
        self._lives: list[asyncio.Task[int]] = []
        self._opened: set[str] = set()
        self._failed: set[str] = set()
        self._ending = asyncio.Event()
        self._forced = self._worked = False
        self._notify = Notify.by(os.environ)

    async def run(self) -> int:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self.stop)
        loop.add_signal_handler(signal.SIGUSR1, switch_level, self._configs[0].log_level)
        supplied = self._configs[0].supply is not None
        live = self._kept if len(self._configs) > 1 else self._supplied if supplied else self._once
        async with task_group() as alive:
            looking = alive.create_task(self._notify.alive(), name="gateway-alive")
            async with task_group() as tasks:
                self._lives = [tasks.create_task(live(each), name=f"gateway-{each.app_id}") for each in self._configs]
            looking.cancel()
        return max(life.result() for life in self._lives)

    def stop(self) -> None:
        """Have all of them stop; told twice, without waiting."""
        loop, told = asyncio.get_running_loop(), [each.stopping.is_set() for each in self._running.values()]
        if (self._ending.is_set() and not self._outlived()) or (told and all(told)):
            self._forced = True
            for life in self._lives:
                life.cancel()  # Ends whatever is waited for: the start, deliveries, calls or open requests.
            loop.call_later(CLOSE_SECONDS, self._end)
        self._ending.set()
        self._notify.tell("STOPPING=1", "STATUS=finishes what is in flight")
        for gateway in self._running.values():
            if gateway.config.outlive and not gateway.draining.is_set():
                gateway.drain(gateway.config.outlive)
            else:
                gateway.shut_down()
        if self._begins():
            self._lives[0].cancel()

    def _begins(self) -> bool:
        """Tell whether this is a bridge that has not come up: it may wait for a backbone for ever."""
        return self._configs[0].bridge is not None and not self._worked

    def _outlived(self) -> bool:
        """Tell whether one has drained, and waits for its application: the next signal ends that alone."""
        return any(each.draining.is_set() and not each.stopping.is_set() for each in self._running.values())

    async def stop_with(self, closed: asyncio.Event) -> None:
        """Stop once the parent has gone."""
        await closed.wait()
        if not self._ending.is_set():
            logger.error("this worker ends, as the process that started it has gone")
            self.stop()

    def _end(self) -> None:
        logger.warning("ended without closing all connections: it took more than %g s", CLOSE_SECONDS)
        os._exit(int(self._forced or any(each.forced or each.lost for each in self._running.values())))

    async def _kept(self, config: GatewayConfig) -> int:
        """Run one of several for as long as the process lives, unless it is told to stop by its API."""
        APPLICATION.set(Logged(config.app_id, self._rings[config.app_id]))
        siblings, wait = self._siblings.get(config.app_id), FIRST_WAIT
        over = self._ending if siblings is None else siblings.over
        while True:
            self._opened.discard(config.app_id)
            code = await self._once(config)
            gateway = self._running.pop(config.app_id)
            if self._ending.is_set() or over.is_set() or (gateway.stopping.is_set() and not gateway.lost):
                return code
            self._failed.add(config.app_id)
            if not self._worked and len(self._failed) == len(self._configs):  # Whoever starts it is to know.
                self._ending.set()
                return code
            wait = FIRST_WAIT if config.app_id in self._opened else wait
            logger.error("the application is without its gateway, which is started again in %g s", wait)
            with suppress(TimeoutError):
                async with asyncio.timeout(wait):
                    await until_any(self._ending, over)
                return code
            wait = min(wait * 2, LONGEST_WAIT)

    def _tell_ready(self, gateway: Gateway) -> None:
        """Say that all that can work works: applications that fail are not waited for, since others work on."""
        if len(self._opened | self._failed) == len(self._configs):
            where = f"answers on {gateway.port}" if gateway.port else "answers on a socket"
            told = where if len(self._configs) == 1 else f"serves {len(self._opened)} of {len(self._configs)}"
            self._notify.tell("READY=1", f"STATUS={told}")

    async def _supplied(self, config: GatewayConfig) -> int:
        """Run one with what the operator of its cluster gives; what it cannot start with is given anew."""
        from gateway.supplied import Agent

        agent = await asyncio.to_thread(Agent, config, self._ending)
        code = 0
        while await agent.ready():
            code = await self._once(agent.config, agent)
            gateway = self._running[config.app_id]
            if config.app_id in self._opened or gateway.stopping.is_set():
                break
        return code

    async def _once(self, config: GatewayConfig, agent: Agent | None = None) -> int:
        """Run one gateway until it is told to stop, or cannot go on; gives its exit code."""
        siblings = self._siblings.get(config.app_id)
        gateway = Gateway(config, self._rings[config.app_id], self._doors(config), siblings, agent)
        if siblings is not None:
            APPLICATION.set(Logged(config.app_id, siblings.ring))
        loop, life = asyncio.get_running_loop(), asyncio.current_task()
        assert life is not None
        self._running[config.app_id] = gateway
        ends: list[asyncio.TimerHandle] = []
        # Many things close one after the other, each in its own time when a broker does not answer.
        gateway.told = lambda: ends.append(loop.call_later(gateway.grace() + CLOSE_SECONDS, self._end))
        try:
            async with gateway.running():
                self._opened.add(config.app_id)
                self._worked = True
                self._tell_ready(gateway)
                await gateway.until_ending()
            for end in ends:
                end.cancel()
        except asyncio.CancelledError:
            if not (gateway.forced or self._forced or (gateway.stopping.is_set() and self._begins())):
                raise
            life.uncancel()  # Everything has been taken down, without waiting.
        except ConfigError as error:
            for problem in error.problems:
                logger.error("%s", problem)  # noqa: TRY400 - the problem says it all
            if agent is not None:
                agent.failed(error.problems)
            return 1
        except MeshError as error:
            logger.error("%s", error)  # noqa: TRY400 - the message is for people
            if agent is not None:
                agent.failed([Problem(str(error))])
            return 1
        return 1 if gateway.forced or gateway.lost else 0
