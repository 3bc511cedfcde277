"""Makes bodies upper case; to try a pipeline out."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

from mesh.adapter import ComponentAdapter
from mesh.middleware import Answer, Given, Onward, Request

__all__ = ["UppercaseMiddleware"]


@dataclass(frozen=True, slots=True)
class UppercaseSettings:
    """It has none."""


class UppercaseMiddleware(ComponentAdapter):
    """Makes the body of each request upper case, to see that a pipeline works; for tests alone."""

    tested = "nothing outside of the gateway"
    settings: ClassVar[type[UppercaseSettings]] = UppercaseSettings

    async def handle(self, request: Request, onward: Onward) -> Answer:
        """Pass it on in upper case."""
        data = await request.body.read()
        text = data.decode("utf-8", "surrogateescape").upper()
        return await onward(replace(request, body=Given(text.encode("utf-8", "surrogateescape"))))
