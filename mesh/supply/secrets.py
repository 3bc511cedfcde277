"""Values of secrets that an operator gave a gateway, for the resources that refer to them, and for nobody else."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import msgspec

__all__ = ["SECRETS", "secret_of"]

SECRETS = "secrets.json"


def secret_of(folder: Path, name: str) -> Mapping[str, str] | None:
    """Read what was given of a secret, as far as it is text; None = nothing. Blocks."""
    try:
        secrets = msgspec.json.decode((folder / SECRETS).read_bytes(), type=dict[str, dict[str, bytes]])
    except (OSError, msgspec.DecodeError):
        return None
    found = secrets.get(name)
    return None if found is None else {key: text for key, value in found.items() if (text := _text(value)) is not None}


def _text(value: bytes) -> str | None:
    try:
        return value.decode()
    except UnicodeDecodeError:
        return None
