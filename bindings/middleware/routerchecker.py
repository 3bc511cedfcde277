"""Lets through what has a target of a certain form.

Source: Dapr 1.18, the router checker middleware.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from mesh.adapter import ComponentAdapter
from mesh.middleware import Answer, Onward, Request
from mesh.regular import Regular
from mesh.resources.settings import Kind, setting

__all__ = ["EXPRESSION", "RouterCheckerMiddleware", "plain"]


def expression(text: str) -> str:
    """Take a regular expression; raises ValueError for what is none."""
    Regular(text)
    return text


def plain(status: int, text: str, *fields: tuple[str, str]) -> Answer:
    """Answer with a line of text."""
    return Answer(status, [("Content-Type", "text/plain; charset=utf-8"), *fields], text.encode())


EXPRESSION = Kind("regular expression", expression)


@dataclass(frozen=True, slots=True)
class RouterCheckerSettings:
    """What is read of a component."""

    rule: str = setting(
        "rule",
        "A regular expression that path and query must match, somewhere unless it says `^` and `$`.",
        EXPRESSION,
        required=True,
        example="^[A-Za-z0-9/._-]+$",
    )


class RouterCheckerMiddleware(ComponentAdapter):
    """Refuses requests, with 400, whose path and query do not match a regular expression."""

    tested = "nothing outside of the gateway"
    settings: ClassVar[type[RouterCheckerSettings]] = RouterCheckerSettings

    def __init__(self, settings: RouterCheckerSettings) -> None:
        """Prepare."""
        super().__init__(settings)
        self._rule = Regular(settings.rule)

    async def handle(self, request: Request, onward: Onward) -> Answer:
        """Pass on what matches."""
        target = f"{request.path}?{request.query}" if request.query else request.path
        if not self._rule.found_in(target):
            return plain(400, "invalid router")
        return await onward(request)
