"""A cluster's API server, as a client sees it.

Source: the Kubernetes documentation, "Kubernetes API Concepts": paging, watching, server-side apply, statuses.
"""

from __future__ import annotations

import asyncio
import os
import re
from collections.abc import AsyncIterator, Callable, Collection, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from typing import Any, cast

import aiohttp
import orjson

from bindings.kubernetes._access import Access, find_access
from bindings.kubernetes.json import read_json
from mesh.steps import Steps

__all__ = ["FIELD_MANAGER", "PAGE", "REQUEST_SECONDS", "Change", "Cluster", "ClusterError", "Page"]

REQUEST_SECONDS = 10.0
FIELD_MANAGER = "brokermesh"
PAGE = 500
WATCH_SECONDS = 60
MAX_CONNECTIONS = 64  # An operator has ten watches and 32 questions under way; its lease must not wait behind them.
MAX_REASON = 200
MAX_LINE_BYTES = 8 * 2**20  # An object takes at most 3 MiB, and is announced with little around it.
# What a URL takes for something else than a part of a name: another folder, a query, an escape.
_NOT_PLAIN = re.compile(r"[?#%\\]|//|(^|/)\.{1,2}(/|$)")
_JSON = "application/json"
_METADATA = "application/json;as=PartialObjectMetadata;g=meta.k8s.io;v=v1"
_METADATA_LIST = "application/json;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1"


class ClusterError(Exception):
    """An API server could not do what it was asked.

    Attributes:
        status: The HTTP status that it answered; 0: it cannot be reached, or broke off.
        reason: Its word for why, as ``AlreadyExists`` or ``Conflict``; may be empty.
        retry_after: Seconds after which it wants to be asked again, if it says so.
    """

    def __init__(self, text: str, status: int = 0, reason: str = "", retry_after: float | None = None) -> None:
        super().__init__(text)
        self.status = status
        self.reason = reason
        self.retry_after = retry_after

    @property
    def retryable(self) -> bool:
        """Whether the same request may succeed in a moment."""
        return self.status == 0 or self.status == 429 or self.status >= 500


@dataclass(frozen=True, slots=True)
class Page:
    """Some of what a list holds, and the version that the whole list is of."""

    items: list[dict[str, Any]]
    version: str


@dataclass(frozen=True, slots=True)
class Change:
    """What a watch tells: ``ADDED``, ``MODIFIED`` or ``DELETED``, or ``BOOKMARK`` for a version alone."""

    kind: str
    item: dict[str, Any]

    @property
    def version(self) -> str:
        """The version to go on from."""
        return str(self.item["metadata"]["resourceVersion"])


class Cluster(Steps):
    """Asks an API server. Every request has a deadline of ten seconds; a watch ends by itself after a minute."""

    def __init__(
        self,
        path: str | None = None,
        failure: Callable[[str], Exception] | None = None,
        away: Callable[[str], Exception] | None = None,
    ) -> None:
        """Prepare; entering reads how to connect.

        Args:
            path: Of a kubeconfig file; None looks for it: as a pod is told, KUBECONFIG, ``~/.kube/config``.
            failure: Makes the errors; None: they are ``ClusterError``.
            away: Makes those after which the same request may succeed, if they are of a class of their own.
        """
        super().__init__()
        self._path = path
        self._failure = failure
        self._away = away or failure
        self._access: Access
        self._session: aiohttp.ClientSession
        self._paths: dict[tuple[str, str], tuple[str, bool]] = {}

    async def _enter(self) -> None:
        try:
            self._access = access = await asyncio.to_thread(find_access, self._path, os.environ)
            tls = await asyncio.to_thread(access.tls)
        except (OSError, ValueError) as error:
            raise self._error(f"cannot tell how to reach the cluster: {error}", 400) from error
        connector = aiohttp.TCPConnector(limit=MAX_CONNECTIONS, ssl=tls or True)
        login = None if access.login is None else aiohttp.BasicAuth(*access.login)
        timeout = aiohttp.ClientTimeout(total=REQUEST_SECONDS)
        session = aiohttp.ClientSession(connector=connector, auth=login, timeout=timeout)
        self._session = await self._stack.enter_async_context(session)

    async def version(self) -> tuple[int, ...]:
        """Give the version of Kubernetes: major and minor."""
        told = await self._told("GET", "/version", {})
        return tuple(int("".join(filter(str.isdigit, str(told.get(each) or "0"))) or 0) for each in ("major", "minor"))

    async def get(
        self, path: str, query: Mapping[str, str] = {}, *, absent: Collection[int] = (404,)
    ) -> dict[str, Any] | None:
        """Read an object, or a page of a list; None for an answer of such a status."""
        return await self._ask("GET", path, query, absent=absent)

    async def pages(
        self, path: str, query: Mapping[str, str] = {}, *, limit: int = PAGE, metadata: bool = False
    ) -> AsyncIterator[Page]:
        """Read a list page by page.

        Args:
            path: Of the list.
            query: ``labelSelector``, ``fieldSelector``; ``resourceVersion`` with ``resourceVersionMatch``.
            limit: The most items of a page.
            metadata: Whether only that of each object is asked for.

        Raises:
            ClusterError: Also of status 410, when reading took so long that the list has to be begun anew.
        """
        further = ""
        while True:
            asked = {**query, "limit": str(limit)}
            if further:  # Of the version that the first page is of.
                asked = {name: asked[name] for name in asked if not name.startswith("resourceVersion")}
                asked["continue"] = further
            found = await self._told("GET", path, asked, accept=_METADATA_LIST if metadata else _JSON)
            about = found.get("metadata") or {}
            yield Page(found.get("items") or [], str(about.get("resourceVersion") or ""))
            further = str(about.get("continue") or "")
            if not further:
                return

    async def list(self, path: str, query: Mapping[str, str] = {}) -> list[dict[str, Any]]:
        """Read a whole list, however many pages it takes; items have no ``kind`` and no ``apiVersion``."""
        return [item async for page in self.pages(path, query) for item in page.items]

    @asynccontextmanager
    async def watch(
        self,
        path: str,
        version: str,
        query: Mapping[str, str] = {},
        *,
        seconds: int = WATCH_SECONDS,
        metadata: bool = False,
    ) -> AsyncIterator[AsyncIterator[Change]]:
        """Follow the changes of a list since a version; what an ``Informer`` does again and again.

        Args:
            path: Of the list.
            version: Of a page of it, or of the last change.
            query: ``labelSelector``, ``fieldSelector``.
            seconds: After which the server ends it.
            metadata: Whether only that of each object is asked for.

        Raises:
            ClusterError: Also of status 410, when changes since the version are forgotten: list anew. Also later, from
                the iterator.
        """
        asked = {**query, "resourceVersion": version, "allowWatchBookmarks": "true", "timeoutSeconds": str(seconds)}
        accept = _METADATA if metadata else _JSON
        async with self.watching(path, asked, seconds + REQUEST_SECONDS, accept) as stream:
            yield self._changes(stream)

    async def _changes(self, stream: AsyncIterator[bytes]) -> AsyncIterator[Change]:
        rest = b""
        async for chunk in stream:
            *lines, rest = (rest + chunk).split(b"\n")
            if len(rest) > MAX_LINE_BYTES:
                raise self._error(f"the API server {self._access.server} sends an object that has no end")
            for line in lines:
                told = read_json(line)
                item = told["object"]
                if told["type"] == "ERROR":
                    text = f"the watch was ended: {item.get('message')}"
                    raise self._error(text, int(item.get("code") or 0), str(item.get("reason") or ""))
                yield Change(told["type"], item)

    async def apply(
        self,
        manifest: Mapping[str, Any],
        *,
        path: str | None = None,
        manager: str = FIELD_MANAGER,
        force: bool = True,
        dry_run: bool = False,
    ) -> dict[str, Any]:
        """Make an object what a manifest says, by server-side apply; returns the whole object.

        Args:
            manifest: With ``apiVersion``, ``kind`` and ``metadata.name``, and ``metadata.namespace`` where it has one.
            path: Of the object, where it is known; else the server is asked once for each kind.
            manager: Who owns the fields of it.
            force: Take fields from others who own them; else this is an error of status 409.
            dry_run: Only check it.
        """
        query = {"fieldManager": manager, "force": "true" if force else "false"}
        if dry_run:
            query["dryRun"] = "All"
        path = path or await self.path_of(manifest)
        return await self._told("PATCH", path, query, manifest, "application/apply-patch+yaml")

    async def patch(self, path: str, changes: Mapping[str, Any], query: Mapping[str, str] = {}) -> dict[str, Any]:
        """Change fields of an object (merge patch: None removes); of its status, at ``…/status``."""
        return await self._told("PATCH", path, query, changes, "application/merge-patch+json")

    async def create(self, path: str, item: Mapping[str, Any]) -> dict[str, Any]:
        """Make an object in a list; an error of status 409 when there is one of this name."""
        return await self._told("POST", path, {}, item)

    async def replace(self, path: str, item: Mapping[str, Any]) -> dict[str, Any]:
        """Write an object; an error of status 409 when it has another ``metadata.resourceVersion`` by now."""
        return await self._told("PUT", path, {}, item)

    async def delete(self, path: str, *, uid: str | None = None, foreground: bool = False) -> bool:
        """Delete an object; False when there is none.

        Args:
            path: Of the object.
            uid: Only this one, not a later one of the same name.
            foreground: It goes once what it owns is gone; else what it owns goes afterwards.
        """
        options: dict[str, Any] = {"propagationPolicy": "Foreground" if foreground else "Background"}
        if uid is not None:
            options["preconditions"] = {"uid": uid}
        return await self._ask("DELETE", path, {}, options, absent=(404,)) is not None

    async def path_of(self, manifest: Mapping[str, Any]) -> str:
        """Find the path of an object by its ``apiVersion``, ``kind`` and names; asks the server once for each kind.

        Raises:
            ClusterError: Of status 404, when the cluster has no such kind.
        """
        version, kind = str(manifest["apiVersion"]), str(manifest["kind"])
        root = f"/apis/{version}" if "/" in version else f"/api/{version}"
        if (version, kind) not in self._paths:
            found = await self.get(root) or {}
            for each in found.get("resources") or ():
                if "/" not in each["name"]:
                    self._paths[version, each["kind"]] = each["name"], each["namespaced"]
        if (version, kind) not in self._paths:
            raise self._error(f"the cluster has no {kind} of {version}", 404, "NotFound")
        plural, namespaced = self._paths[version, kind]
        about = manifest["metadata"]
        within = f"/namespaces/{about.get('namespace') or 'default'}" if namespaced else ""
        return f"{root}{within}/{plural}/{about['name']}"

    def watching(
        self, path: str, query: Mapping[str, str], silence: float, accept: str = _JSON
    ) -> AbstractAsyncContextManager[AsyncIterator[bytes]]:
        """Open a watch; gives its bytes as they come, as ``stream`` does."""
        return self.stream(path, {**query, "watch": "1"}, silence, accept)

    @asynccontextmanager
    async def stream(
        self, path: str, query: Mapping[str, str] = {}, silence: float | None = None, accept: str = _JSON
    ) -> AsyncIterator[AsyncIterator[bytes]]:
        """Read an answer as it comes, as a container's log.

        Args:
            path: Of what is read.
            query: What else is asked.
            silence: Seconds without a byte after which the connection is given up; None waits.
            accept: The form that it is asked for in.
        """
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=REQUEST_SECONDS, sock_read=silence)
        async with self._asking("GET", path, query, timeout, accept=accept) as response:
            await self._check(response)
            yield response.content.iter_any()

    @asynccontextmanager
    async def websocket(
        self, path: str, query: Mapping[str, str], protocol: str
    ) -> AsyncIterator[aiohttp.ClientWebSocketResponse]:
        """Open a stream in both directions, as to a port of a pod."""
        token = await self._token()
        async with self._session.ws_connect(
            self._url(path),
            params=query,
            protocols=(protocol,),
            headers={"Authorization": f"Bearer {token}"} if token else {},
            server_hostname=self._access.server_name,
            max_msg_size=0,
            autoping=True,
        ) as stream:
            yield stream

    async def _told(
        self,
        method: str,
        path: str,
        query: Mapping[str, str],
        body: Mapping[str, Any] | None = None,
        kind: str = _JSON,
        accept: str = _JSON,
    ) -> dict[str, Any]:
        return cast("dict[str, Any]", await self._ask(method, path, query, body, kind, accept))

    async def _ask(
        self,
        method: str,
        path: str,
        query: Mapping[str, str],
        body: Mapping[str, Any] | None = None,
        kind: str = _JSON,
        accept: str = _JSON,
        absent: Collection[int] = (),
    ) -> dict[str, Any] | None:
        limits = aiohttp.ClientTimeout(total=REQUEST_SECONDS)
        async with self._asking(method, path, query, limits, body, kind, accept) as response:
            if response.status in absent:
                return None
            await self._check(response)
            return cast("dict[str, Any]", read_json(await response.read()))

    @asynccontextmanager
    async def _asking(
        self,
        method: str,
        path: str,
        query: Mapping[str, str],
        limits: aiohttp.ClientTimeout,
        body: Mapping[str, Any] | None = None,
        kind: str = _JSON,
        accept: str = _JSON,
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        try:
            headers = {"Accept": accept}
            token = await self._token()
            if token:
                headers["Authorization"] = f"Bearer {token}"
            if body is not None:
                headers["Content-Type"] = kind
            async with self._session.request(
                method,
                self._url(path),
                params=query,
                data=None if body is None else orjson.dumps(body),
                headers=headers,
                timeout=limits,
                server_hostname=self._access.server_name,
                allow_redirects=False,
            ) as response:
                yield response
        except (aiohttp.ClientError, OSError, TimeoutError, ValueError) as error:
            reason = str(error) or "it does not answer"
            raise self._error(f"the API server {self._access.server} cannot be asked: {reason}") from error

    def _url(self, path: str) -> str:
        """Give the URL of a path as it stands: names come from people, and lead nowhere else."""
        if _NOT_PLAIN.search(path):
            raise self._error(f"no object of a cluster has the path {path[:MAX_REASON]!r}", 400)
        return self._access.server + path

    async def _token(self) -> str | None:
        """Give the token of now: one in a file is replaced there before its time is over."""
        file = self._access.token_file
        return self._access.token if file is None else (await asyncio.to_thread(file.read_text)).strip()

    async def _check(self, response: aiohttp.ClientResponse) -> None:
        if response.status in (200, 201, 202):
            return
        reason = ""
        try:
            told = orjson.loads(await response.content.read(65536))
            text, reason = str(told["message"])[:MAX_REASON], str(told.get("reason") or "")
        except (orjson.JSONDecodeError, KeyError, TypeError):
            text = response.reason or ""
        after = response.headers.get("Retry-After", "")
        raise self._error(
            f"the API server {self._access.server} answered {response.status}: {text}",
            response.status,
            reason,
            float(after) if after.isdigit() else None,
        )

    def _error(self, text: str, status: int = 0, reason: str = "", after: float | None = None) -> Exception:
        error = ClusterError(text, status, reason, after)
        make = self._away if error.retryable else self._failure
        return error if make is None else make(text)
