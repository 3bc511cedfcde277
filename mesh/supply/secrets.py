"""Values of secrets that an operator gave a gateway, for the resources that refer to them, and for nobody else."""

from __future__ import annotations

import hashlib
import secrets as randomness
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import msgspec

if TYPE_CHECKING:
    from mesh.resources.component import Component, HTTPEndpoint, SecretRef

__all__ = ["SECRETS", "marked", "secret_of"]

SECRETS = "secrets.json"
_KEY = randomness.token_bytes(32)  # So that a mark tells nothing of what it is made of.
_R = TypeVar("_R", "Component", "HTTPEndpoint")


def secret_of(folder: Path, name: str) -> Mapping[str, str] | None:
    """Read what was given of a secret, as far as it is text; None = nothing. Blocks."""
    found = _read(folder).get(name)
    return None if found is None else {key: text for key, value in found.items() if (text := _text(value)) is not None}


def marked(resources: Sequence[_R], folder: Path) -> tuple[_R, ...]:
    """Have resources differ whose secrets do, so that these reach them; blocks."""
    if not any(each.secret_refs() for each in resources):
        return tuple(resources)
    secrets = _read(folder)
    return tuple(replace(each, secrets=_mark(each.secret_refs(), secrets)) for each in resources)


def _mark(refs: Sequence[SecretRef], secrets: Mapping[str, Mapping[str, bytes]]) -> str:
    given = [secrets.get(each.name, {}).get(each.key) for each in refs]
    if all(each is None for each in given):
        return ""
    return hashlib.blake2b(msgspec.msgpack.encode(given), key=_KEY, digest_size=16).hexdigest()


def _read(folder: Path) -> Mapping[str, Mapping[str, bytes]]:
    try:
        return msgspec.json.decode((folder / SECRETS).read_bytes(), type=dict[str, dict[str, bytes]])
    except (OSError, msgspec.DecodeError):
        return {}


def _text(value: bytes) -> str | None:
    try:
        return value.decode()
    except UnicodeDecodeError:
        return None
