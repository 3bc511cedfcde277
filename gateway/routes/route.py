"""What a route is: a row of a table, and a function that parses, asks the pipeline and renders."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from gateway.errors import answer
from gateway.routes.request import unescape
from gateway.spans.context import trace_context
from mesh.blocks.block import Opened
from mesh.errors import ComponentNotFoundError, MeshError, NotConfiguredError
from mesh.flow import Body
from mesh.operation import Caller, Context, Method, Operation
from mesh.resources.configuration import APILogging
from mesh.workflows.stream import Handed

if TYPE_CHECKING:
    from aiohttp import web

    from gateway.config import GatewayConfig
    from gateway.http.response import Answered
    from gateway.views import Views
    from mesh.pipeline import Handler, Service
    from mesh.resources.configuration import APISpec
    from mesh.streams import Streams
    from mesh.tap.tapping import Tapped
    from mesh.tap.wanted import Wanted
    from mesh.telemetry import Tracing

__all__ = ["API", "WRITE", "Asked", "Asking", "Node", "Route"]

NO_LOG = APILogging()
WRITE = frozenset({"POST", "PUT"})


class Node(Protocol):
    """What the routes ask of the gateway about itself.

    Attributes:
        app_id: The application it serves.
        views: What it tells those who look after it.
    """

    app_id: str
    views: Views

    @property
    def outbound_ready(self) -> bool:
        """Whether calls out of the application work."""

    @property
    def not_ready(self) -> Sequence[str]:
        """What is missing until everything works."""

    async def metadata(self) -> dict[str, object]:
        """What the node tells about itself."""

    def end(self, *, force: bool = False) -> None:
        """Begin to stop."""

    def label(self, name: str, value: str) -> None:
        """Show something in metadata."""

    async def elsewhere(self, name: str, *arguments: object) -> bool:
        """Have another process of the gateway do what this one cannot, as what it is for is not here."""


@dataclass(frozen=True, slots=True)
class API:
    """What every route has.

    Attributes:
        run: The pipeline.
        services: The building blocks, by name.
        caller: The application of this gateway.
        tracing: Makes spans.
        tap: Has all nodes of the mesh tell what passes them.
        streams: What clients hold open.
        config: The gateway's.
        node: The gateway itself.
        labels: Shown in metadata.
        names: What the API's paths begin with, behind the version.
        message: Gives the class of one of gRPC's messages, for bodies that are one in JSON; loads what that takes.
        allowed: What a Configuration leaves of the API; None = all.
        api_log: Whether calls are logged, and what is told of them.
        handed: The work that workers of workflows have, who hold a stream open here.
        remote: Whether it is another node that asks: then nothing outside of the mesh is called.
        values: Whether applications' own values are told; else views leave them out.
    """

    run: Handler
    services: Mapping[str, Service]
    caller: Caller
    tracing: Tracing
    tap: Callable[[Wanted], AbstractAsyncContextManager[AsyncIterator[Tapped]]]
    streams: Streams
    config: GatewayConfig
    node: Node
    labels: dict[str, str]
    names: frozenset[str]
    message: Callable[[str], Any]
    allowed: APISpec | None = None
    api_log: APILogging = NO_LOG
    handed: Handed = field(default_factory=Handed)
    remote: bool = False
    values: bool = True


class Asking:
    """What routes and RPCs ask the pipeline, and how they are told of failures.

    Attributes:
        api: What all of them have.
    """

    __slots__ = ()

    api: API

    @property
    def _named(self) -> tuple[str, str]:
        return self.api.caller.app_id, self.api.caller.namespace

    def context(self, deadline: float | None = None) -> Context:
        """Give the context of an operation; ``deadline`` is what the client gave, in Unix time."""
        raise NotImplementedError

    async def find(self, method: Method, name: str) -> Opened:
        """Find the component that an operation is for, before its arguments are read.

        Raises:
            APIError: There is none.
        """
        service = self.api.services[method.block]
        try:
            return await service.find(name, self.api.caller)  # type: ignore[attr-defined,no-any-return]
        except (ComponentNotFoundError, NotConfiguredError) as error:
            raise answer(error, method, name, None, *self._named) from None
        except MeshError as error:
            raise answer(error) from error

    async def run(
        self, method: Method, target: str, arguments: object, deadline: float | None = None, body: Body | None = None
    ) -> object:
        """Have an operation done.

        Raises:
            APIError: It failed.
        """
        operation = Operation(method, target, arguments, self.context(deadline), body=body)
        try:
            return await self.api.run(operation)
        except MeshError as error:
            raise answer(error, method, target, arguments, *self._named) from error


@dataclass(slots=True)
class Asked(Asking):
    """A request that found its route.

    Attributes:
        api: What every route has.
        request: The request.
        segments: The raw path segments that the route's pattern leaves open.
        query: The raw query.
    """

    api: API
    request: web.BaseRequest
    segments: Sequence[str]
    query: str

    def text(self, index: int) -> str:
        """Give an open path segment, decoded."""
        return unescape(self.segments[index])

    def context(self, deadline: float | None = None) -> Context:
        """Give the context of an operation; ``deadline`` is what the client gave, in Unix time."""
        trace = getattr(self.request, "trace", None) or trace_context(self.request.headers)
        return Context(self.api.caller, deadline, *trace)


@dataclass(frozen=True, slots=True)
class Route:
    """A row of the table of routes.

    Attributes:
        path: ``<name>/<segments>``; ``{…}`` leaves one segment open, ``{…*}`` as the last one all that follow.
        answer: Answers a request.
        methods: HTTP methods; empty for all.
        versions: The versions of the API that have it.
        always: Whether ``spec.api`` of a Configuration cannot take it away.
        api: What ``spec.api`` calls it; empty = its name.
    """

    path: str
    answer: Callable[[Asked], Awaitable[Answered]]
    methods: frozenset[str] = frozenset()
    versions: tuple[str, ...] = ("v1.0",)
    always: bool = False
    api: str = ""

    @property
    def name(self) -> str:
        """The first segment: the building block as the API calls it."""
        return self.path.partition("/")[0]

    def matcher(self) -> Callable[[Sequence[str]], Sequence[str] | None]:
        """Make the function that gives the open segments of those behind the name, or None if they do not fit."""
        pattern = self.path.split("/")[1:]
        rest = bool(pattern) and pattern[-1].endswith("*}")
        count = len(pattern) - rest
        fixed = [(index, each) for index, each in enumerate(pattern) if not each.startswith("{")]
        opened = [index for index, each in enumerate(pattern[:count]) if each.startswith("{")]

        def match(segments: Sequence[str]) -> Sequence[str] | None:
            if len(segments) < count or (len(segments) > count and not rest):
                return None
            for index, text in fixed:
                if segments[index] != text:
                    return None
            return [*[segments[index] for index in opened], *segments[count:]] if fixed or rest else segments

        return match
