"""``crypto.dapr.localstorage``: keys in the files of a folder.

Source: Dapr 1.18, the local storage cryptography component.
"""

from __future__ import annotations

import asyncio
import os
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from bindings._folder import opened
from bindings.crypto._keys import Key, parse_key
from bindings.crypto._provider import LocalProvider
from mesh.errors import CryptoError
from mesh.resources.settings import setting

__all__ = ["LocalStorageCrypto"]

MAX_KEY_BYTES = 1024 * 1024
_KINDS = {".json": "json", ".pem": "pem"}


@dataclass(frozen=True, slots=True)
class LocalStorageSettings:
    """Settings of ``crypto.dapr.localstorage``."""

    path: str = setting(
        "path",
        "The folder of the keys, relative to the working directory of the gateway.",
        required=True,
        example="keys",
    )


class LocalStorageCrypto(LocalProvider):
    """A folder of keys: PEM, a JSON Web Key or the bytes of a symmetric key in a file each, which is its name."""

    tested = "real files"
    bound = True
    settings = LocalStorageSettings

    async def _enter(self) -> None:
        """See that the folder is there."""
        if not await asyncio.to_thread(os.path.isdir, self._settings.path):
            raise self._problem(f"there is no folder {Path.cwd() / self._settings.path}", setting="path")

    async def _key(self, name: str) -> Key:
        inside = PurePosixPath(name)
        if not name or inside.is_absolute() or ".." in name or "\0" in name:
            raise CryptoError("invalid key path: it is the name of a file within the folder, without '..'")
        return await asyncio.to_thread(self._read, name, inside)

    def _read(self, name: str, inside: PurePosixPath) -> Key:
        try:
            with opened(Path(self._settings.path) / inside) as file:
                data = file.read(MAX_KEY_BYTES + 1)
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or "it is no name of a file"
            raise CryptoError(f"failed to load key '{name[:200]}': {reason}") from None
        if len(data) > MAX_KEY_BYTES:
            raise CryptoError(f"failed to load key '{name[:200]}': it is larger than {MAX_KEY_BYTES} bytes")
        return parse_key(data, _KINDS.get(inside.suffix.lower(), ""))
