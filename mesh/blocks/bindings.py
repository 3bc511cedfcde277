"""Bindings: calls to what is outside of the mesh, and events from there.

What adapters implement stands in ``mesh/blocks/binding_contract.py``; how events reach applications in
``mesh/blocks/binding_events.py``.

Source: Dapr 1.18, the bindings API.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence
from contextlib import aclosing, asynccontextmanager
from functools import partial
from typing import TYPE_CHECKING, cast

from mesh.blocks.binding_contract import (
    INVOKE,
    STREAM,
    BindingError,
    InputBinding,
    Invoke,
    Invoked,
    OutputBinding,
    Remembering,
    Sharing,
    StreamHead,
    StreamingBinding,
)
from mesh.blocks.binding_events import Here, Source, announced, read, read_for_others
from mesh.blocks.block import Block, Held, Inbound, Opened, Parts
from mesh.blocks.components import ComponentService
from mesh.blocks.records import RECORD_SECONDS, LazyRecords, Prefixed
from mesh.errors import ComponentNotFoundError, ConfigError
from mesh.flow import Body, Flow
from mesh.operation import Operation
from mesh.resources.settings import Setting, choice
from mesh.scopes import in_scope
from mesh.tasks import task_group
from mesh.telemetry import BAGGAGE

if TYPE_CHECKING:
    from mesh.resources.component import Component

__all__ = ["BLOCK", "INVOKE", "STREAM", "BindingComponent", "Bindings", "open_binding"]

RECORDS, TIMERS = "bindings", "mesh:timers"
DIRECTIONS = ("input", "output")

SETTINGS = (
    Setting(
        "direction",
        "What it is used as: `input`, `output`, or `input, output`; with `input` the application is not asked.",
        example="input",
    ),
    Setting(
        "mesh.answer",
        "`do`: what the application answers to an event is a document of what to save and whom to call.",
        choice("do"),
        example="do",
    ),
    Setting("route", "The path that events are posted to; if not set, the component's name.", example="/orders"),
)


class BindingComponent:
    """A configured binding; its functions are the block's methods.

    Attributes:
        name: The component's.
        input: What reads its source; None = it is used as an output alone, or is one.
        store: The adapter.
        source: What applications are told of it.
        ending: Set when it is about to be closed.
    """

    def __init__(self, component: Component, adapter: object, directions: Sequence[str]) -> None:
        """Use an open adapter.

        Raises:
            ConfigError: It has none of the directions.
        """
        self.name = component.name
        self.store = adapter
        used = {*(directions or DIRECTIONS)} & {*getattr(adapter, "directions", DIRECTIONS)}
        self.input = adapter if isinstance(adapter, InputBinding) and "input" in used else None
        self._output = adapter if isinstance(adapter, OutputBinding) and "output" in used else None
        if self.input is None and self._output is None:
            known = " and ".join(_directions_of(type(adapter)))
            raise ConfigError(component.problem(f"{component.type} is {known} only", setting="direction"))
        self.source = Source(self.name, _route(component), "input" in directions, _answers(component))
        self.ending = asyncio.Event()

    @property
    def capabilities(self) -> Sequence[str]:
        """What metadata tells."""
        return ("INPUT_BINDING",) * (self.input is not None) + ("OUTPUT_BINDING",) * (self._output is not None)

    def leave(self) -> None:
        """Read no more for others: it is about to be closed."""
        self.ending.set()

    async def invoke(self, operation: Operation) -> Invoked | None:
        """Make a call."""
        output, asked = self._asked(operation)
        return await output.invoke(asked)

    async def stream(self, operation: Operation) -> Flow:
        """Make a call whose data, or answer, are passed on in parts; what is small may be of any operation."""
        output, asked = self._asked(operation)
        body, whole = operation.body, asked.data not in (b"", b"null")
        if isinstance(output, StreamingBinding) and asked.operation in output.streamed and not whole:
            given = await output.stream(Invoke(asked.operation, b"", asked.metadata), _parts_of(body))
            return Flow(StreamHead(given.length, given.metadata), given.parts)
        async for _ in _parts_of(body):
            raise BindingError(f"{asked.operation} of binding {self.name} takes no stream: send its data as JSON")
        found = await output.invoke(asked if whole else Invoke(asked.operation, b"null", asked.metadata))
        if found is None:
            return Flow(StreamHead(), None)
        data = found.data or b""
        return Flow(StreamHead(len(data), found.metadata), _parts_of(data))

    def _asked(self, operation: Operation) -> tuple[OutputBinding, Invoke]:
        """Give whom to call, and what with.

        Raises:
            ComponentNotFoundError: It is no output binding, or not used as one.
            BindingError: It has no such operation.
        """
        output, asked, context = self._output, cast("Invoke", operation.arguments), operation.context
        if output is None:
            raise ComponentNotFoundError(self.name, f"couldn't find output binding {self.name}")
        if asked.operation not in output.operations:
            known = " ".join(output.operations)
            raise BindingError(
                f"binding {self.name} does not support operation {asked.operation}. supported operations:{known}"
            )
        if context.traceparent:
            trace = {"traceparent": context.traceparent}
            trace |= {"tracestate": context.tracestate} if context.tracestate else {}
            asked = Invoke(asked.operation, asked.data, {**asked.metadata, **trace})
        if context.baggage:
            asked = Invoke(asked.operation, asked.data, {**asked.metadata, BAGGAGE: context.baggage})
        return output, asked


async def _parts_of(data: Body | bytes | None) -> AsyncGenerator[bytes, None]:
    if isinstance(data, Body):
        async with aclosing(data.parts()) as parts:
            async for part in parts:
                yield part
    elif data is not None:
        yield data


def _directions_of(adapter: type) -> Sequence[str]:
    """Give the directions of an adapter's class."""
    return ("input",) * hasattr(adapter, "reading") + ("output",) * hasattr(adapter, "invoke")


def _abilities(adapter: type) -> Sequence[str]:
    return [f"{each.upper()}_BINDING" for each in _directions_of(adapter)]


def _route(component: Component) -> str:
    return (component.setting("route") or "").strip() or component.name


def _answers(component: Component) -> bool:
    """Read whether answers are done; raises ``ConfigError``."""
    given = (component.setting("mesh.answer") or "").strip().lower()
    if given not in ("", "do"):
        raise ConfigError(component.problem("is `do`, or not there", setting="mesh.answer"))
    return given == "do"


def _check(component: Component) -> Sequence[str]:
    """Read ``direction``; raises ``ConfigError``."""
    given = [each.strip().lower() for each in (component.setting("direction") or "").split(",") if each.strip()]
    if set(given) - {*DIRECTIONS}:
        raise ConfigError(component.problem("is `input`, `output` or `input, output`", setting="direction"))
    _answers(component)
    return given


async def open_binding(component: Component, parts: Parts) -> BindingComponent:
    """Open a binding; raises ``ConfigError``."""
    adapter = parts.registry.load(component.type).from_component(component)  # type: ignore[attr-defined]
    directions = _check(component)
    if isinstance(adapter, Remembering):
        records = LazyRecords(RECORDS, parts.records, RECORD_SECONDS)
        adapter.remember_in(component.name, Prefixed(records, f"{component.name}||"))
    if isinstance(adapter, Sharing):
        timers = LazyRecords(TIMERS, partial(parts.records, dotted=True), RECORD_SECONDS)
        adapter.share_by(parts.owners, timers)
    await parts.stack.enter_async_context(adapter)
    opened = BindingComponent(component, adapter, directions)
    own = parts.caller.app_id
    usual = "local" if getattr(adapter, "bound", False) else parts.configuration.spec.placement
    placement = component.placement or usual or "nearest"
    if opened.input is not None and placement != "local":
        mine = None if placement == "backbone" else own
        others = read_for_others(parts, opened.input, opened.source, component.scopes, mine, opened.ending)
        await parts.stack.enter_async_context(others)
    return opened


class Bindings(ComponentService):
    """Makes calls, and has the sources read that this node's application wants."""

    def __init__(self, block: Block, parts: Parts, components: Mapping[str, Opened]) -> None:
        """Use open components."""
        super().__init__(block, parts, components)
        self._here: tuple[Inbound, Here] | None = None

    async def inbound(self, inbound: Inbound) -> Sequence[Held]:
        """Read for the application while it is there, here and elsewhere."""
        if self._here is None or self._here[0] is not inbound:
            self._here = inbound, Here(self._parts, inbound.application)
        here = self._here[1]
        sources = {
            name: component
            for name, component in cast("Mapping[str, BindingComponent]", self.components).items()
            if component.input is not None and in_scope(self._parts.scopes.get(name, ()), here.app_id)
        }
        held = [Held(f"input binding {each.name}", each, self._reading(each, here)) for each in sources.values()]
        own = frozenset(sources)
        return [*held, Held("input bindings", (inbound, own), announced(self._parts, here, dict.fromkeys(own)))]

    @asynccontextmanager
    async def _reading(self, component: BindingComponent, here: Here) -> AsyncIterator[None]:
        assert component.input is not None
        ending = asyncio.Event()
        with self._parts.lives[component.name]:
            async with task_group() as tasks:
                reading = read(component.input, component.source, here, ending)
                tasks.create_task(reading, name="bindings-read")
                try:
                    yield
                finally:
                    ending.set()


BLOCK = Block(
    "bindings",
    (INVOKE, STREAM),
    Bindings,
    kind="bindings",
    open=open_binding,
    settings=SETTINGS,
    check=_check,
    hosted=True,
    policy=lambda policies, target: policies.for_component(target, "binding", "outbound"),
    called="binding",
    abilities=_abilities,
)
