"""The keys and JWTs of a NATS operator: decentralised login, as `nsc` would make it."""

from __future__ import annotations

import base64
import json
import os
import time
from typing import Any

import nkeys

__all__ = ["Operator", "Pair"]

_LIMITS = ("subs", "data", "payload", "imports", "exports", "conn", "leaf", "mem_storage", "disk_storage", "streams")
_UNLIMITED = {**dict.fromkeys((*_LIMITS, "consumer"), -1), "wildcards": True}


class Pair:
    """An nkey."""

    def __init__(self, prefix: int) -> None:
        self.seed = nkeys.encode_seed(os.urandom(32), prefix).decode()
        self.public = nkeys.from_seed(bytearray(self.seed, "ascii")).public_key.decode()

    @classmethod
    def user(cls) -> Pair:
        return cls(nkeys.PREFIX_BYTE_USER)

    def sign(self, name: str, subject: str, kind: str, **claims: Any) -> str:
        """Make a JWT about a subject."""
        body = {
            "jti": os.urandom(16).hex(),
            "iat": int(time.time()),
            "iss": self.public,
            "name": name,
            "sub": subject,
            "nats": {"type": kind, "version": 2, **claims},
        }
        signed = ".".join(_encode(json.dumps(part).encode()) for part in ({"typ": "JWT", "alg": "ed25519-nkey"}, body))
        signature = nkeys.from_seed(bytearray(self.seed, "ascii")).sign(signed.encode())
        return f"{signed}.{_encode(signature)}"


class Operator:
    """An operator with one account, and one of the system."""

    def __init__(self) -> None:
        self._own = Pair(nkeys.PREFIX_BYTE_OPERATOR)
        self._account, self._system = Pair(nkeys.PREFIX_BYTE_ACCOUNT), Pair(nkeys.PREFIX_BYTE_ACCOUNT)

    @property
    def config(self) -> str:
        """What a server is told."""
        accounts = {self._account.public: {"limits": _UNLIMITED}, self._system.public: {}}
        signed = {key: self._own.sign("account", key, "account", **claims) for key, claims in accounts.items()}
        preload = "\n".join(f"{key}: {jwt}" for key, jwt in signed.items())
        return (
            f"operator: {self._own.sign('operator', self._own.public, 'operator')}\n"
            f"system_account: {self._system.public}\nresolver: MEMORY\nresolver_preload {{\n{preload}\n}}\n"
        )

    def user(self) -> tuple[str, str]:
        """Make a user of the account; give the JWT, and the seed that goes with it."""
        pair = Pair.user()
        limits = {"subs": -1, "data": -1, "payload": -1}
        return self._account.sign("user", pair.public, "user", pub={}, sub={}, **limits), pair.seed


def _encode(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).decode().rstrip("=")
