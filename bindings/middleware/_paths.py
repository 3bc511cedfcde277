"""Which paths a middleware is for."""

from __future__ import annotations

import re
from urllib.parse import unquote

from mesh.regular import Regular

__all__ = ["PathFilter", "read"]


_INVOCATION = re.compile(r"/v1\.0/invoke/(?:(?i:https?:/.*?)|(?!\.{1,2}/)[^/]+)/method(?=/|\Z)")


class PathFilter:
    """A regular expression of paths; an empty one is all of them."""

    def __init__(self, expression: str) -> None:
        """Prepare."""
        self._found = Regular(expression) if expression else None

    def has(self, path: str) -> bool:
        """Tell whether a path, decoded, is one of them."""
        return self._found is None or self._found.found_in(unquote(path))

    def may_have(self, path: str) -> bool:
        """Tell whether it is one of them by any way to read it, so that nobody goes around what guards them."""
        decoded = unquote(path)
        return self._found is None or any(self._found.found_in(each) for each in (path, decoded, read(path)))


def read(path: str) -> str:
    """Give what a path comes to, however it is written; a called method's dots do not lead out of its application."""
    found = _INVOCATION.match(path)
    at = 0 if found is None else found.end()
    kept: list[str] = []
    for segment in unquote(path[at:]).split("/"):
        if segment == "..":
            del kept[-1:]
        elif segment not in ("", "."):
            kept.append(segment)
    return "/".join((unquote(path[:at]), *kept)) or "/"
