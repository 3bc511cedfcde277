"""Middleware: what requests over HTTP pass on their way to the API, and to the application.

Its components have no operations; the gateway asks for a whole way of them (`MiddlewareService.through`).

Source: Dapr 1.18, the Configuration resource (``httpPipeline``, ``appHttpPipeline``).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import cast

from mesh.blocks.block import Block, Parts
from mesh.blocks.components import ComponentService
from mesh.errors import Problem
from mesh.middleware import Middleware, Onward, through
from mesh.resources.component import Component
from mesh.resources.configuration import PIPELINES, Configuration, Pipeline, PipelineHandler
from mesh.spelling import did_you_mean

__all__ = ["BLOCK", "MiddlewareService", "OpenMiddleware", "check_pipelines", "named_by", "scoped_in_pipelines"]

PREFIX = "middleware.http."


class OpenMiddleware:
    """An open component."""

    capabilities: Sequence[str] = ()

    def __init__(self, adapter: Middleware) -> None:
        """Use an open adapter."""
        self.adapter = adapter
        self.handle = adapter.handle


class MiddlewareService(ComponentService):
    """Gives what stands in front of the API, and of the application."""

    def through(self, section: str, last: Onward) -> Onward | None:
        """Put a Configuration's middleware around what takes the requests at last; None = there is none.

        Args:
            section: Of `PIPELINES`.
            last: What is behind it.
        """
        names = [each.name for each in _handlers(self._parts.configuration, section)]
        opened = cast("Mapping[str, Middleware]", self.components)
        conditions = self._parts.inbound.conditions
        return through(names, opened, self._parts.lives, conditions, last) if names else None


async def open_middleware(component: Component, parts: Parts) -> OpenMiddleware:
    """Open one; raises ``ConfigError``."""
    adapter = parts.registry.load(component.type).from_component(component)  # type: ignore[attr-defined]
    return OpenMiddleware(await parts.stack.enter_async_context(adapter))


def check_pipelines(
    components: Sequence[Component], withheld: frozenset[str], configuration: Configuration, *, complete: bool = True
) -> list[Problem]:
    """Find what a Configuration names and is not there: it may be what keeps somebody out.

    Args:
        components: Of this node.
        withheld: Names of those that are for other applications alone.
        configuration: Merged.
        complete: Whether there may be no others.
    """
    there = {each.name: each for each in components if each.block == BLOCK.kind}
    found: list[Problem] = []
    for section in PIPELINES:
        for index, handler in enumerate(_handlers(configuration, section)):
            component, wrong = there.get(handler.name), ""
            if not handler.type.lower().startswith(PREFIX):
                wrong = f"'{handler.type}' is no type of middleware: those begin with {PREFIX}"
            elif component is not None and component.type != handler.type.lower():
                wrong = f"the component {handler.name} is of the type {component.type}, not {handler.type}"
            elif component is None and handler.name in withheld:
                wrong = f"the component {handler.name} is for other applications alone, by its scopes"
            elif component is None and complete:
                guess = did_you_mean(handler.name, sorted(there))
                wrong = f"there is no middleware component '{handler.name}'"
                wrong += f"; did you mean '{guess}'?" if guess else ""
            if wrong:
                found.append(configuration.problem(wrong, section, index))
    return found


def scoped_in_pipelines(components: Sequence[Component], configuration: Configuration) -> list[Problem]:
    """Find what a Configuration names and some applications alone have; whose it will be is not known here."""
    scoped = {each.name: each for each in components if each.block == BLOCK.kind and each.scopes}
    return [
        configuration.problem(
            f"the component {handler.name} is for {', '.join(scoped[handler.name].scopes)} alone, by its scopes: no "
            "other application starts with this",
            section,
            index,
        )
        for section in PIPELINES
        for index, handler in enumerate(_handlers(configuration, section))
        if handler.name in scoped
    ]


def named_by(configuration: Configuration, name: str) -> str:
    """Say which sections let requests pass a component; empty = none."""
    return " and ".join(
        f"spec.{told}"
        for section, told in PIPELINES.items()
        if any(each.name == name for each in _handlers(configuration, section))
    )


def _handlers(configuration: Configuration, section: str) -> Sequence[PipelineHandler]:
    pipeline: Pipeline | None = getattr(configuration.spec, section)
    return () if pipeline is None else pipeline.handlers


BLOCK = Block(
    "middleware",
    (),
    MiddlewareService,
    kind="middleware",
    open=open_middleware,
    called="middleware",
)
