"""What the owner of an actor is asked, as it stands in a header: a JSON array that begins with the question's name."""

from __future__ import annotations

from typing import TypeAlias

import msgspec

__all__ = ["Deactivate", "DeleteReminder", "Invoke", "Question", "SetReminder"]


class Invoke(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True, tag="invoke"):
    """Call a method.

    Attributes:
        method: Its name.
        query: As it was written.
        headers: For the application.
    """

    method: str
    query: str
    headers: list[tuple[str, str]]


class Deactivate(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True, tag="deactivate"):
    """End the activation."""


class SetReminder(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True, tag="set_reminder"):
    """Have a reminder.

    Attributes:
        name: Its name.
        timing: A `mesh.schedules.Timing`, encoded.
        policy: Seconds between tries, how many (None = no end), and whether one that failed is dropped.
        overwrite: Whether it takes the place of one of its name.
    """

    name: str
    timing: dict[str, object]
    policy: tuple[float, int | None, bool]
    overwrite: bool


class DeleteReminder(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True, tag="delete_reminder"):
    """Have a reminder no more."""

    name: str


Question: TypeAlias = Invoke | Deactivate | SetReminder | DeleteReminder
"""What `mesh.packing.pack` is given: the name of one of them, and its values."""
