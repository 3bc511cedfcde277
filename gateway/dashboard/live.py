"""What is heard of the mesh while somebody looks: told to each, at the pace at which he reads."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from functools import partial

import orjson
from aiohttp import web

from gateway.config import DashboardConfig
from gateway.dashboard.overview import overview
from gateway.dashboard.presence import Presence
from gateway.dashboard.taps import RATES, Taps
from gateway.dashboard.viewers import Viewer, Viewers, event
from gateway.errors import answer, bad_request
from gateway.http.response import Answered, StreamedResponse
from gateway.replaying.recording import beginning
from gateway.routes.request import every, query_of
from mesh import __version__
from mesh.errors import MeshError
from mesh.node.description import Node, collect
from mesh.node.runtime import Runtime
from mesh.tap.sight import Dropped
from mesh.tap.wanted import Wanted
from mesh.tap.wire import as_event
from mesh.tasks import task_group
from mesh.values import parse_bool, parse_size

__all__ = ["Live"]

MESH_APART = 2.0
KEEP_ALIVE_SECONDS = 10.0
WRITE_SECONDS = 30.0  # In which a viewer may take nothing.
END_SECONDS = 1.0
COMMENT = b":\n\n"


class Live:
    """What is heard of the mesh.

    Attributes:
        presence: Which nodes there are.
    """

    def __init__(self, own: DashboardConfig, runtime: Runtime) -> None:
        """Hear nothing yet.

        Args:
            own: What the dashboard is told.
            runtime: The node's, entered.
        """
        self._own, self._runtime = own, runtime
        self._namespace, self._app_id = runtime.settings.namespace, runtime.settings.app_id
        self.presence = Presence(partial(collect, runtime.broker, self._namespace))
        self._viewers = Viewers()
        self._taps = Taps(runtime.tap, self._namespace)
        self._heard: tuple[Mapping[str, Node], str] = {}, ""
        self._known: dict[str, object] = {}
        self._last: dict[str, object] = {}

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Hear while entered, as far as somebody looks."""
        async with self.presence.running(), self._taps.running(), task_group() as tasks:
            telling = tasks.create_task(self._tell_changes(), name="dashboard-tell")
            try:
                yield
            finally:
                telling.cancel()

    def overview(self) -> bytes:
        """Give what there is, as JSON."""
        about = {"namespace": self._namespace, "backbone": self._runtime.backbone, "version": __version__}
        if self._own.traces_url:
            about["tracesURL"] = self._own.traces_url
        return orjson.dumps({**about, "at": time.time(), **self._there()})

    def _there(self) -> dict[str, object]:
        """Put together what there is, once for what was heard last: of many nodes it takes a tenth of a second."""
        heard = self.presence.nodes, self.presence.problem
        if heard[0] is not self._heard[0] or heard[1] != self._heard[1]:
            self._heard, self._known = heard, overview(heard[0].values(), without=self._app_id)
            if heard[1]:
                of = {"app": self._app_id, "node": "", "target": "backbone"}
                self._known["problems"] = [{**of, "state": heard[1]}]
        return self._known

    async def _tell_changes(self) -> None:
        """Tell all who look what there is, whenever that has changed."""
        while True:
            await self.presence.heard.wait()
            while (there := self._there()) != self._last:
                self._last = there
                self._viewers.renew("mesh", self.overview())
                await asyncio.sleep(MESH_APART)

    async def stream(self, request: web.BaseRequest, query: str) -> Answered:
        """Tell a page what there is and what flows, as server-sent events.

        Args:
            request: Its request.
            query: With ``mesh=false`` the page is not told what there is, with ``rates=false`` not how much flows.

        Raises:
            APIError: A parameter is wrong, there are too many viewers, or the mesh cannot be asked.
        """
        given = query_of(query)
        mesh, rates = (each not in given or _flag(given, each) for each in ("mesh", "rates"))
        wanted = (RATES if rates else None, _wanted(query) if _flag(given, "sights") else None)
        try:
            async with AsyncExitStack() as stack:
                stack.enter_context(self._runtime.streams.one())
                viewer = stack.enter_context(self._viewers.one(event if mesh else _all_but_mesh))
                if mesh:
                    stack.enter_context(self.presence.looking())
                    if self.presence.fresh:
                        viewer.renew("mesh", self.overview())
                    else:  # Then the next answer is news to him, also where it is the one before.
                        self._last = {}
                for each in wanted:
                    if each is not None:
                        await stack.enter_async_context(self._taps.watching(each, viewer))
                return await self._told(request, viewer, [("Content-Type", "text/event-stream")], COMMENT)
        except MeshError as error:
            raise answer(error) from error

    async def recording(self, request: web.BaseRequest, query: str) -> Answered:
        """Tell what flows with its values, as the lines of a recording; arguments and errors as of `stream`."""
        wanted = _wanted(query, values=True)
        at = time.time()
        name = time.strftime("mesh-%Y-%m-%dT%H-%M-%SZ.jsonl", time.gmtime(at))
        fields = [("Content-Type", "application/x-ndjson"), ("Content-Disposition", f'attachment; filename="{name}"')]
        asked = {"app": wanted.apps, "topic": wanted.topics, "block": wanted.blocks, "where": wanted.where}
        try:
            async with AsyncExitStack() as stack:
                stack.enter_context(self._runtime.streams.one())
                viewer = stack.enter_context(self._viewers.one(_line))
                await stack.enter_async_context(self._taps.watching(wanted, viewer))
                first = beginning(self._namespace, at, {name: given for name, given in asked.items() if given})
                return await self._told(request, viewer, fields, b"\n", orjson.dumps(first) + b"\n")
        except MeshError as error:
            raise answer(error) from error

    async def _told(
        self, request: web.BaseRequest, viewer: Viewer, fields: list[tuple[str, str]], idle: bytes, first: bytes = b""
    ) -> Answered:
        """Write what a viewer is told until he goes, takes nothing more, or this gateway drains."""
        ending = self._runtime.streams.ending
        stream = StreamedResponse(200, fields, None)
        await stream.prepare(request)
        if request.method == "HEAD":
            return stream
        await stream.write(first)
        async with task_group() as tasks:
            writing = tasks.create_task(self._write(viewer, stream, idle), name="dashboard-write")
            waiting = tasks.create_task(ending.wait(), name="dashboard-ending")
            await asyncio.wait([writing, waiting], return_when=asyncio.FIRST_COMPLETED)
            if not writing.done():  # No line is cut in its middle, unless nobody reads it.
                viewer.close()
                await asyncio.wait([writing], timeout=END_SECONDS)
            writing.cancel()
            waiting.cancel()
        await stream.write_eof()
        return stream

    async def _write(self, viewer: Viewer, stream: StreamedResponse, idle: bytes) -> None:
        while not viewer.closed:
            part = await viewer.next(KEEP_ALIVE_SECONDS)
            if dropped := viewer.take_dropped():
                told = Dropped(self._app_id, self._runtime.remote.node_id, dropped)
                part += viewer.written("dropped", orjson.dumps(as_event(self._namespace, told, time.time())))
            try:
                async with asyncio.timeout(WRITE_SECONDS):
                    await stream.write(part or idle)
            except TimeoutError:
                stream.break_off()
                return


def _all_but_mesh(kind: str, data: bytes) -> bytes:
    return b"" if kind == "mesh" else event(kind, data)


def _line(kind: str, data: bytes) -> bytes:
    """Write what belongs into a recording: all of it stands beside what flows."""
    return data + b"\n" if kind in ("sight", "dropped", "refused") else b""


def _wanted(query: str, *, values: bool = False) -> Wanted:
    given = query_of(query)
    wanted = Wanted(
        apps=every(query, "app"),
        topics=every(query, "topic"),
        blocks=every(query, "block"),
        where=given.get("where", ""),
        values=values or _flag(given, "values"),
    )
    if "maxBody" not in given:
        return wanted
    try:
        return replace(wanted, max_body=parse_size(given["maxBody"]))
    except ValueError as error:
        raise bad_request(f"maxBody: {error}") from None


def _flag(given: dict[str, str], name: str) -> bool:
    try:
        return parse_bool(given.get(name) or "false", words=True)
    except ValueError as error:
        raise bad_request(f"{name}: {error}") from None
