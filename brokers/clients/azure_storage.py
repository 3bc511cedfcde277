"""How components say what a storage account of Azure is, and who may use it."""

from __future__ import annotations

import base64
import binascii

from brokers.clients.azure_amqp import fields_of
from mesh.resources.settings import Kind

__all__ = ["account_kind", "key_kind"]


def _key(text: str) -> str:
    try:
        base64.b64decode(text, validate=True)
    except binascii.Error:
        raise ValueError("is the account's key, in base64") from None
    return text


def _account(text: str) -> str:
    if not {name for name, _ in fields_of(text)} & {"accountname", "blobendpoint", "usedevelopmentstorage"}:
        raise ValueError("is no connection string of a storage account")
    return text


key_kind = Kind("key", _key)
account_kind = Kind("connection string", _account)
