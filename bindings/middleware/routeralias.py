"""Gives paths of the API other names.

Source: Dapr 1.18, the router alias middleware.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar, Self
from urllib.parse import quote, unquote, urlencode

from mesh.adapter import ComponentAdapter
from mesh.errors import ConfigError, Problem
from mesh.middleware import Answer, Onward, Request
from mesh.regular import Regular
from mesh.resources.component import Component
from mesh.resources.settings import Kind, setting

__all__ = ["RouterAliasMiddleware"]

_VARIABLE = re.compile(r"\{([^{}:]+)(?::([^{}]+))?\}")
_MARKS = re.compile(r"[?#\r\n]")


def routes(text: str) -> Mapping[str, str]:
    """Read a dictionary in JSON or YAML; raises ValueError for anything else."""
    import yaml  # For such a setting alone.

    try:
        found = yaml.safe_load(text)
    except yaml.YAMLError:
        raise ValueError("is neither JSON nor YAML") from None
    if not isinstance(found, dict) or not all(isinstance(each, str) for pair in found.items() for each in pair):
        raise ValueError("is no dictionary of paths")
    return found


def pattern(path: str) -> Regular:
    """Read a path with variables, ``{name}`` or ``{name:expression}``; raises ValueError.

    Its names stand in the expression as ``v0``, ``v1``…: any text may be one.
    """
    if path[:1] != "/" or _MARKS.search(path):
        raise ValueError(f"'{path}' is no path: it begins with a slash, and has no query")
    made, at = "", 0
    for number, found in enumerate(_VARIABLE.finditer(path)):
        made += re.escape(path[at : found.start()]) + f"(?P<v{number}>{found[2] or '[^/]+'})"
        at = found.end()
    rest = path[at:]
    if "{" in rest or "}" in rest:
        raise ValueError(f"'{path}' has a brace that is not closed, or not open")
    return Regular(made + re.escape(rest))


@dataclass(frozen=True, slots=True)
class RouterAliasSettings:
    """What is read of a component."""

    routes: Mapping[str, str] | None = setting(
        "routes",
        "A dictionary, in JSON or YAML, of paths and what stands for them.",
        Kind("dictionary", routes),
        example='{"/v1.0/orders/{id}": "/v1.0/invoke/orders/method/order"}',
    )
    one: str = setting("/", "A path, which is the setting's name, and what stands for it.", default="")


class RouterAliasMiddleware(ComponentAdapter):
    """Puts other paths in the place of those that clients ask for, by patterns with variables."""

    tested = "nothing outside of the gateway"
    settings: ClassVar[type[RouterAliasSettings]] = RouterAliasSettings

    def __init__(self, settings: RouterAliasSettings) -> None:
        """Prepare."""
        super().__init__(settings)
        self._aliases: list[tuple[Regular, tuple[str, ...], str]] = []

    @classmethod
    def from_component(cls, component: Component) -> Self:
        """Read the settings, those that are named as a path, too."""
        made = super().from_component(component)
        named = [each.name for each in component.metadata if each.name[:1] == "/"]
        given = [(name, component.setting(name) or "", name) for name in named]
        given += [(path, target, "routes") for path, target in (made._settings.routes or {}).items()]
        problems: list[Problem] = []
        for path, target, place in given:
            try:
                if target[:1] != "/":
                    raise ValueError(f"'{target}' is no path: it begins with a slash")
                variables = tuple(found[1] for found in _VARIABLE.finditer(path))
                made._aliases.append((pattern(path), variables, target))
            except ValueError as error:
                problems.append(component.problem(str(error), setting=place))
        if problems:
            raise ConfigError(problems)
        return made

    async def handle(self, request: Request, onward: Onward) -> Answer:
        """Pass it on by the first path that matches; variables are added to the query."""
        path = unquote(request.path)
        for found, variables, target in self._aliases:
            match = found.whole(path)
            if match is not None:
                given = [(name, match[found.names[f"v{number}"]] or "") for number, name in enumerate(variables)]
                values = urlencode(given)
                own, _, fixed = target.partition("?")
                query = "&".join(each for each in (fixed, request.query, values) if each)
                return await onward(replace(request, path=quote(own, safe="/%:@!$&'()*+,;=-._~"), query=query))
        return await onward(request)
