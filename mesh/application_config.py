"""What the application says of itself in ``GET /dapr/config``: one request, whoever reads the answer.

Which actors it hosts stands there (``mesh/actors/settings.py``), and which workflows and activities it has
(``mesh/workflows/declared.py``).
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import TYPE_CHECKING, Protocol

from mesh.application import read_within
from mesh.errors import AppFailedError
from mesh.values import parse_duration

if TYPE_CHECKING:
    from mesh.application import Application

__all__ = ["MAX_PROBLEMS", "ApplicationConfig", "Reading", "There", "lowered", "shown"]

SECONDS = 30.0
MAX_BYTES = 1024 * 1024
MAX_PROBLEMS = 20
OK = 200


class There(Protocol):
    """The application, for the time that it is there (a `mesh.blocks.block.Inbound`)."""

    @property
    def application(self) -> Application:
        """It."""


class ApplicationConfig:
    """Asks the application once for each time that it is there."""

    def __init__(self, app_id: str, *, asks: bool = True) -> None:
        """Prepare.

        Args:
            app_id: The application's.
            asks: Whether it is asked at all; else it says nothing.
        """
        self._app_id = app_id
        self._asks = asks
        self._told: tuple[There, bytes] | None = None

    async def of(self, inbound: There) -> bytes:
        """Give what it answered; empty where it has nothing to say, or speaks gRPC alone.

        Raises:
            AppUnreachableError: Nothing reached it.
            AppFailedError: It broke off, or took too long.
        """
        if not self._asks or inbound.application.is_grpc:
            return b""
        if self._told is None or self._told[0] is not inbound:
            self._told = inbound, await self._ask(inbound)
        return self._told[1]

    async def _ask(self, inbound: There) -> bytes:
        headers = [("dapr-app-id", self._app_id)]
        try:
            async with (
                asyncio.timeout(SECONDS),
                inbound.application.call("GET", "/dapr/config", headers, b"") as response,
            ):
                if response.status != OK:
                    return b""
                body = await read_within(response, MAX_BYTES)
        except TimeoutError:
            raise AppFailedError(f"no answer to GET /dapr/config within {SECONDS:g} s") from None
        if body is None:
            raise AppFailedError(f"the application's answer is larger than {MAX_BYTES} bytes")
        return body


class Reading:
    """Reads members of the answer, and notes what is wrong: then the default counts.

    Attributes:
        problems: What is wrong; each text names the field.
    """

    def __init__(self) -> None:
        """Note nothing yet."""
        self.problems: list[str] = []

    def wrong(self, at: str, value: object, wanted: str) -> None:
        """Note that a member is not what it should be."""
        self.note(f"{at} must be {wanted}, and is {shown(value)}; the default counts")

    def note(self, problem: str) -> None:
        """Note what is wrong, up to a limit: each is logged."""
        if len(self.problems) < MAX_PROBLEMS:
            self.problems.append(problem)
        elif len(self.problems) == MAX_PROBLEMS:
            self.problems.append("there is more that is wrong")

    def seconds(self, members: Mapping[str, object], name: str, at: str, default: float) -> float:
        """Read a duration; zero stands for what was not set, as in the reference."""
        value = members.get(name.lower())
        if value is None or value == "":
            return default
        try:
            return parse_duration(value if isinstance(value, str) else "") or default
        except ValueError:
            self.wrong(f"{at}{name}", value, "a duration such as '60m' or '1h30m'")
            return default

    def flag(self, members: Mapping[str, object], name: str, at: str, *, default: bool) -> bool:
        """Read true or false."""
        value = members.get(name.lower())
        if value is None:
            return default
        if not isinstance(value, bool):
            self.wrong(f"{at}{name}", value, "true or false")
            return default
        return value


def shown(value: object) -> str:
    """Show a value in a text about it, as far as there is room."""
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:80]}…"


def lowered(members: Mapping[str, object]) -> dict[str, object]:
    """Give members by their names in lower case: case means nothing in them."""
    return {name.lower(): value for name, value in members.items()}
