"""What a path meant that no route answers: said behind the reference's text, so that nobody has to guess."""

from __future__ import annotations

import re
from collections.abc import Collection

__all__ = ["hint", "missing"]

_API = re.compile(r"/+v1\.0(?:-alpha[12]|-beta1)?/+([^/]+)(.*)", re.DOTALL)
_PAGE = "see docs/compatibility.md#other-blocks"

# What stands last in a path and has one segment.
LAST = {"state": "a key", "secrets": "a secret's name"}


def hint(path: str, names: Collection[str]) -> str:
    """Say what may be wrong with a path; empty = nothing is known.

    Args:
        path: As it was written.
        names: What the API's paths begin with, behind the version.
    """
    found = _API.match(path)
    if found is None:
        return ""
    name, rest = found[1], found[2]
    if name not in names:
        return f"there is no API {name!r} in this version, {_PAGE}"
    if name in LAST and rest.rstrip("/").count("/") > 2:
        return f"{LAST[name]} that holds a '/' is written with %2F in its place"
    return ""


def missing(name: str) -> str:
    """Say why a method is not there: of the service, by its name, or of another one, by its path."""
    if name.startswith("/"):
        return f"unknown service of {name[:200]}; a call to another application has the metadata dapr-app-id"
    return f"there is no method {name[:100]!r} in this version, {_PAGE}"
