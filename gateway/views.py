"""What a gateway tells of itself to those who look after it, beside metadata: process, components, resources, log."""

from __future__ import annotations

import asyncio
import os
import socket
import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING

from gateway.topic_views import TopicViews
from mesh import __version__
from mesh.resources.component import Component

if TYPE_CHECKING:
    from gateway.config import GatewayConfig
    from gateway.logs import Lines, LogRing
    from gateway.workers.child import Siblings
    from mesh.node.backlogs import Backlogs
    from mesh.node.health import ComponentStatus
    from mesh.node.runtime import Runtime

__all__ = ["Views"]


class Views:
    """Looks when it is asked.

    Attributes:
        topics: Of its pub/sub components.
        ring: The last lines of its log.
    """

    def __init__(
        self,
        runtime: Runtime,
        config: GatewayConfig,
        backlogs: Backlogs,
        ring: LogRing,
        listens: Callable[[], Mapping[str, object]],
        siblings: Siblings | None = None,
    ) -> None:
        """Use a runtime that was entered.

        Args:
            runtime: The node's.
            config: The gateway's.
            backlogs: What its subscriptions have before them.
            ring: The last lines of its log.
            listens: Gives where it listens, once it does.
            siblings: The same gateway in other processes; None = there is none.
        """
        self._siblings = siblings
        self.topics, self.ring = TopicViews(runtime, backlogs), ring
        self._runtime, self._config, self._listens = runtime, config, listens

    async def lines(self, after: int | None, limit: int, level: str) -> Lines:
        """Give the last lines of the log; see ``LogRing.lines``."""
        if self._siblings is not None:
            return await self._siblings.lines(after, limit, level)
        return self.ring.lines(after, limit, level)

    async def node(self) -> dict[str, object]:
        """Tell of the node and its process, or its processes."""
        own = self.process()
        return own if self._siblings is None else await self._siblings.node(own)

    def process(self) -> dict[str, object]:
        """Tell of the node and this process."""
        import psutil  # Takes some milliseconds, when somebody asks.

        process = psutil.Process()
        with process.oneshot():
            used, memory, since = process.cpu_times(), process.memory_info(), process.create_time()
        return {
            "node": self._runtime.remote.node_id,
            "app": self._config.app_id,
            "namespace": self._config.namespace,
            "pid": os.getpid(),
            "hostname": socket.gethostname(),
            "since": round(since, 3),
            "uptimeSeconds": round(time.time() - since, 3),
            "cpuSeconds": round(used.user + used.system, 3),
            "rssBytes": memory.rss,
            "listens": self._listens(),
            "backbone": self._runtime.backbone,
            "version": __version__,
        }

    async def components(self) -> list[dict[str, object]]:
        """Tell of the components that are open here, that could not be opened, and of others' that were used."""
        runtime = self._runtime
        health = {each.name: each for each in await runtime.health()}
        own = runtime.caller.app_id
        rows: list[dict[str, object]] = []
        for name, entry in runtime.components.items():
            hosts = [own] if entry.hosted else []
            rows.append(self._row(entry.component, hosts, health.get(name), entry.opened.capabilities))
        rows += [self._row(each, [], health.get(each.name), ()) for each in runtime.absent]
        for block, name, others in runtime.others_components:
            if name not in health:
                told: dict[str, object] = {"name": name, "type": None, "version": None, "block": block}
                told |= {"placement": "elsewhere", "hosts": others.split(", "), "health": "unknown", "reason": ""}
                rows.append({**told, "capabilities": [], "scopes": [], "file": None, "line": None})
        return rows

    @staticmethod
    def _row(
        component: Component, hosts: list[str], status: ComponentStatus | None, capabilities: object
    ) -> dict[str, object]:
        return {
            "name": component.name,
            "type": component.type,
            "version": component.version,
            "block": component.block,
            "placement": "" if status is None else status.placement,
            "hosts": hosts,
            "health": "unknown" if status is None else status.health,
            "reason": "" if status is None else status.reason,
            "capabilities": list(capabilities),  # type: ignore[call-overload]
            "scopes": list(component.scopes),
            "file": component.file,
            "line": component.line,
        }

    async def resources(self) -> list[dict[str, object]]:
        """Tell what its resource files hold now, with what is wrong with them, and without secrets."""
        from gateway.resource_views import resources  # It takes pydantic and YAML, which others do without.

        config, trust = self._config, self._config.trust
        built_in = [each.component for each in self._runtime.components.values() if each.component.file is None]
        read = partial(
            resources,
            config.resource_paths,
            config.configuration_files,
            built_in,
            app_id=None if config.host_only else config.app_id,
            namespace=os.environ.get("NAMESPACE"),
            trust_domain="" if trust is None else trust.trust_domain,
            proven=trust is not None and trust.mode == "strict",
        )
        rows = await asyncio.to_thread(read)
        for each in await self._runtime.health():
            if each.health == "absent":  # Its file may be as it should be, and what it names is not there.
                of = [row for row in rows if (row["kind"], row["name"]) == ("Component", each.name)]
                for row in of[:1]:
                    told = {"message": each.reason, "path": "", "file": row["file"], "line": row["line"]}
                    row["problems"] = [*row["problems"], {**told, "column": None, "severity": "error"}]  # type: ignore[misc]
        return rows
