"""How an error crosses the backbone: by its code, with its text and those of its attributes that are plain values."""

from __future__ import annotations

import json
from collections.abc import Mapping

from mesh.errors import ConfigError, EventError, MeshError, Problem, RemoteError

__all__ = ["from_wire", "read_error", "to_wire"]

MAX_TEXT = 4096
_PLAIN = (str, int, float, bool, type(None))
_MADE_WITH = {"str": str, "int": int, "bool": bool}


def to_wire(error: MeshError) -> dict[str, object]:
    """Describe an error for another node: its code, its text, and its attributes that are plain values."""
    plain = {name: value for name, value in vars(error).items() if isinstance(value, _PLAIN)}
    return {"code": error.code, "message": str(error)[:MAX_TEXT], "attributes": plain}


def from_wire(described: Mapping[str, object]) -> MeshError:
    """Make the error that another node described, of the same class where this node has it."""
    code, message = str(described.get("code", "")), str(described.get("message", ""))
    kind = _by_code().get(code)
    if kind is None:
        return RemoteError(f"{message} ({code})")
    error = kind.__new__(kind)
    error.args = (message,)
    vars(error).update(_attributes(kind, described.get("attributes")))
    if isinstance(error, ConfigError):
        error.problems = (Problem(message),)
    return error


def _attributes(kind: type[MeshError], described: object) -> dict[str, object]:
    """Give what an error of a class has: of the types that it is made with, whatever the other node says."""
    given = described if isinstance(described, dict) else {}
    found: dict[str, object] = {
        name: value for name, value in given.items() if isinstance(value, _PLAIN) and name != "code"
    }
    for name, type_ in getattr(kind.__init__, "__annotations__", {}).items():
        expected = _MADE_WITH.get(type_)
        if expected is not None and not isinstance(found.get(name), expected):
            found[name] = expected()
    return found


def read_error(text: str) -> MeshError:
    """Read the error that another node answered, by ``to_wire`` as JSON; what is none is an ``EventError``."""
    try:
        described = json.loads(text)
    except (ValueError, RecursionError):
        described = None
    return from_wire(described) if isinstance(described, dict) else EventError("malformed error from another node")


def _by_code() -> dict[str, type[MeshError]]:
    """Find every class by its code; walked anew, since a component's package may bring errors of its own."""
    found: dict[str, type[MeshError]] = {}
    waiting: list[type[MeshError]] = [MeshError]
    while waiting:
        kind = waiting.pop()
        found.setdefault(kind.code, kind)
        waiting += kind.__subclasses__()
    return found
