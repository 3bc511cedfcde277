"""How components say who may use a storage account of Azure."""

from __future__ import annotations

import base64
import binascii

from mesh.resources.settings import Kind

__all__ = ["key_kind"]


def _key(text: str) -> str:
    try:
        base64.b64decode(text, validate=True)
    except binascii.Error:
        raise ValueError("is the account's key, in base64") from None
    return text


key_kind = Kind("key", _key)
