"""What actors, methods, reminders and timers may be called."""

from __future__ import annotations

import re

from mesh.actors.errors import ActorTypeReservedError
from mesh.errors import BadArgumentError

__all__ = ["RESERVED", "check_name", "check_names"]

RESERVED = "dapr.internal."
MAX_NAME_BYTES = 256
_FINE = re.compile(r"[A-Za-z0-9_-][ -\"$-.0->@-\[\]-~]{0,255}")  # What nearly all are: ASCII, and no "." in front.
_FORBIDDEN = re.compile(r"[#?/\\\x00-\x1f\x7f]")


def check_name(what: str, name: str) -> None:
    """Refuse what cannot be a segment of a path, or is read in two ways as one.

    Raises:
        BadArgumentError: It is such a name.
    """
    if _FINE.fullmatch(name) is not None:
        return
    if not name:
        raise BadArgumentError(f"{what} is empty")
    if len(name.encode("utf-8", "surrogatepass")) > MAX_NAME_BYTES:
        raise BadArgumentError(f"{what} is longer than {MAX_NAME_BYTES} bytes: {name[:40]!r}…")
    if name in (".", ".."):
        raise BadArgumentError(f"{what} must not be {name!r}")
    if (found := _FORBIDDEN.search(name)) is not None:
        raise BadArgumentError(f"{what} must not contain {found[0]!r}: {name!r}")


def check_names(type_: str, id_: str, **others: str) -> None:
    """Check the names of an actor, and others by what they are of.

    Raises:
        BadArgumentError: One cannot be a name.
        ActorTypeReservedError: The type is the runtime's own.
    """
    check_name("actor type", type_)
    if type_.startswith(RESERVED):
        raise ActorTypeReservedError(type_)
    check_name("actor id", id_)
    for what, name in others.items():
        check_name(what, name)
