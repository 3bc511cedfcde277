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


def parts(path: str) -> list[tuple[str, str, str]]:
    r"""Split a path into what is fixed, and the name and the expression of the variable behind it; raises ValueError.

    The last one has no name: nothing is behind it. An expression may have braces in pairs, as in ``{x:[0-9]{2}}``. They
    count wherever they stand in it, as in Dapr: one alone is written ``\x7b`` or ``\x7d``.
    """
    found: list[tuple[str, str, str]] = []
    at = 0
    while (start := path.find("{", at)) >= 0:
        depth = 0
        for end in range(start, len(path)):
            depth += {"{": 1, "}": -1}.get(path[end], 0)
            if depth == 0:
                break
        name, colon, expression = path[start + 1 : end].partition(":")
        if depth or not name or "{" in name or (colon and not expression):
            break
        found.append((path[at:start], name, expression or "[^/]+"))
        at = end + 1
    found.append((path[at:], "", ""))
    if any(mark in text for text, *_ in found for mark in "{}"):
        raise ValueError(f"'{path}' has a brace that is not closed, or not open, or a variable that is empty")
    if path[:1] != "/" or any(_MARKS.search(each) for text, name, _ in found for each in (text, name)):
        raise ValueError(f"'{path}' is no path: it begins with a slash, and has no query")
    return found


def pattern(path: str) -> tuple[Regular, tuple[str, ...]]:
    """Read a path with variables, ``{name}`` or ``{name:expression}``, and their names; raises ValueError.

    Its names stand in the expression as ``v0``, ``v1``…: any text may be one.
    """
    made = ""
    names: list[str] = []
    for fixed, name, expression in parts(path):
        made += re.escape(fixed)
        if name:
            Regular(expression)  # Alone, so that none closes what is around it.
            made += f"(?P<v{len(names)}>{expression})"
            names.append(name)
    return Regular(made), tuple(names)


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
                made._aliases.append((*pattern(path), target))
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
