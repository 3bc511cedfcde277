"""Pluggable components: programs of third parties that listen on sockets in one folder.

A socket's file name without its last ending is what a component's ``type`` has behind its kind: ``state.folder`` is
answered by ``folder.sock``. The folder is read whenever a type is looked for: programs come and go. That is so in the
event loop too, as with entry points and modules: to find a type reads one listing and looks at one file.

Source: Dapr 1.18, the registration of pluggable components.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from mesh.errors import ConfigError

__all__ = ["FOLDER", "find_socket", "folder", "sockets", "sockets_told"]

FOLDER = "DAPR_COMPONENTS_SOCKETS_FOLDER"
DEFAULT = "/tmp/dapr-components-sockets"  # noqa: S108  # Where programs that are made for it put them.
MOST_TOLD = 20


def folder() -> Path:
    """Give the folder, which may not be there."""
    return Path(os.environ.get(FOLDER) or DEFAULT)


def sockets(name: str | None = None) -> Mapping[str, Sequence[Path]]:
    """Give the sockets by the name that types have for them, which is in lower case; more than one is a mistake.

    Args:
        name: Only this one's are looked for; of other files nothing but the name is read then.
    """
    found: dict[str, list[Path]] = {}
    where = folder()
    try:
        for file in sorted(os.listdir(where)):
            of = os.path.splitext(file)[0].lower()
            if (name is None or of == name) and (path := where / file).is_socket():
                found.setdefault(of, []).append(path)
    except OSError:  # It is not there, is no folder, or may not be read.
        return {}
    return found


def find_socket(kind: str) -> Path | None:
    """Find the socket of a component's type.

    Raises:
        ConfigError: Several have its name.
    """
    name = kind.partition(".")[2].lower()
    found = sockets(name).get(name, ())
    if len(found) > 1:
        names = " and ".join(path.name for path in found)
        raise ConfigError(f"component type {kind!r} is provided twice: by the sockets {names} in {folder()}; end one")
    return found[0] if found else None


def sockets_told() -> str:
    """Say which sockets there are; empty where nobody has made the folder, or named one."""
    where = folder()
    if not where.exists():
        named = os.environ.get(FOLDER)
        return f"; there is no folder {where} for pluggable components ({FOLDER})" if named else ""
    if not os.access(where, os.R_OK | os.X_OK, effective_ids=True):
        return f"; the folder {where} for pluggable components may not be read"
    names = sorted(sockets())
    told = ", ".join(names[:MOST_TOLD]) + (" …" if len(names) > MOST_TOLD else "")
    return f"; pluggable components with a socket in {where}: {told or 'none'}"
