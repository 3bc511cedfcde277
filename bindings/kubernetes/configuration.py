"""``configuration.kubernetes``: the values of a ConfigMap.

Source: Dapr 1.18, the Kubernetes configuration store; the Kubernetes API, ConfigMap and watching.
"""

from __future__ import annotations

import asyncio
import logging
import os
import re
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, ClassVar, cast

from bindings.kubernetes.api import REQUEST_SECONDS, Cluster
from mesh.adapter import ComponentAdapter
from mesh.blocks.configuration import ConfigurationItem
from mesh.errors import ConfigurationError
from mesh.resources.settings import Kind, Setting, ignored, setting

__all__ = ["KubernetesConfigurationStore"]

logger = logging.getLogger(__name__)

STREAM_SECONDS = 60
AGAIN_SECONDS = 1.0
_LABEL = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")
_ENDS = b'"type":"ERROR"'  # Within a value the quotes would be escaped.


def _label(text: str) -> str:
    if not _LABEL.fullmatch(text):
        raise ValueError(f"is lower-case letters, digits and dashes, at most 63, not {text!r}")
    return text


@dataclass(frozen=True, slots=True)
class KubernetesConfigurationSettings:
    """Which ConfigMap."""

    name: str = setting(
        "configMapName",
        "Name of the ConfigMap, in the gateway's namespace.",
        Kind("name", _label),
        required=True,
        example="shop",
    )
    path: str | None = setting(
        "kubeconfigPath",
        "Path of a kubeconfig file; without it the pod's own access is used.",
        example="kubeconfig.yaml",
    )

    ignored: ClassVar[tuple[Setting, ...]] = ignored(
        "the values are read again every ten seconds for each subscription", "resyncPeriod"
    )


class KubernetesConfigurationStore(ComponentAdapter):
    """A ConfigMap: read when it is asked for, and followed by one stream for all who watch."""

    tested = "Kubernetes 1.37"
    settings = KubernetesConfigurationSettings
    capabilities: Sequence[str] = ()

    def __init__(self, settings: Any) -> None:
        """Prepare; entering connects."""
        super().__init__(settings)
        namespace = os.environ.get("NAMESPACE") or "default"
        self._told = f"ConfigMap {settings.name} of the namespace {namespace}"
        self._many = f"/api/v1/namespaces/{namespace}/configmaps"
        self._one = f"{self._many}/{settings.name}"
        self._query = {"fieldSelector": f"metadata.name={settings.name}", "timeoutSeconds": str(STREAM_SECONDS)}
        self._cluster = Cluster(settings.path, ConfigurationError)
        self._events: set[asyncio.Event] = set()
        self._watched, self._opened = asyncio.Event(), asyncio.Event()
        self._failed = "it does not answer"

    async def _enter(self) -> None:
        """Connect, and see that the ConfigMap may be read."""
        await self._stack.enter_async_context(self._cluster)
        if await self._cluster.get(self._one) is None:
            logger.warning("there is no %s", self._told)
        tasks = await self._stack.enter_async_context(asyncio.TaskGroup())
        listening = tasks.create_task(self._listen(), name="configmap-listen")
        self._stack.callback(listening.cancel)

    async def get(self, keys: Sequence[str], metadata: Mapping[str, str]) -> Mapping[str, ConfigurationItem]:
        """Read values; the version is that of the whole ConfigMap."""
        found = await self._cluster.get(self._one)
        if found is None:
            return {}
        items = _items(found)
        return {key: items[key] for key in (keys or sorted(items)) if key in items}

    @asynccontextmanager
    async def watch(self, keys: Sequence[str], metadata: Mapping[str, str]) -> AsyncIterator[asyncio.Event]:
        """Tell of every change of the ConfigMap, whatever its key.

        Raises:
            ConfigurationError: The stream of changes cannot be opened.
        """
        event = asyncio.Event()
        self._events.add(event)
        self._watched.set()
        try:
            try:
                async with asyncio.timeout(REQUEST_SECONDS):
                    await self._opened.wait()
            except TimeoutError:
                raise ConfigurationError(f"changes of the {self._told} cannot be watched: {self._failed}") from None
            yield event
        finally:
            self._events.discard(event)

    def _tell(self) -> None:
        for event in self._events:
            event.set()

    async def _listen(self) -> None:
        """Keep a stream open while somebody watches; one that nobody needs any more is left at its end."""
        loop = asyncio.get_running_loop()
        while True:
            if not self._events:
                self._watched.clear()
            await self._watched.wait()
            began = loop.time()
            try:
                await self._stream()
            except ConfigurationError as error:
                self._failed = str(error)
            finally:
                self._opened.clear()
            if loop.time() - began < AGAIN_SECONDS:  # Else it ended in its time.
                await asyncio.sleep(AGAIN_SECONDS)

    async def _stream(self) -> None:
        async with self._cluster.watching(self._many, self._query, STREAM_SECONDS + REQUEST_SECONDS) as stream:
            self._opened.set()
            self._tell()  # What happened while there was no stream.
            async for chunk in stream:
                self._tell()
                if _ENDS in chunk:
                    return


def _items(found: Mapping[str, object]) -> dict[str, ConfigurationItem]:
    version = str(cast("Mapping[str, object]", found.get("metadata") or {}).get("resourceVersion") or "")
    texts, bytes_ = (cast("Mapping[str, str]", found.get(name) or {}) for name in ("data", "binaryData"))
    items = {key: ConfigurationItem(value, version, shared_version=True) for key, value in texts.items()}
    encoded = {"encoding": "base64"}
    return items | {
        key: ConfigurationItem(value, version, encoded, shared_version=True) for key, value in bytes_.items()
    }
