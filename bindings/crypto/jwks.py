"""``crypto.dapr.jwks``: a set of JSON Web Keys.

Source: Dapr 1.18, the JSON Web Key Set cryptography component; RFC 7517 section 5.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import logging
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson

from bindings.crypto._keys import Key, key_from_jwk
from bindings.crypto._provider import LocalProvider
from brokers.clients.http import HTTPService
from mesh.errors import ConfigError, CryptoAwayError, CryptoError
from mesh.resources.settings import DURATION, LIMIT, setting

__all__ = ["JWKSCrypto"]

logger = logging.getLogger(__name__)

MAX_FILE_BYTES = 16 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class JWKSSettings:
    """Settings of ``crypto.dapr.jwks``."""

    jwks: str = setting(
        "jwks",
        "The set: JSON, base64 of it, the URL it is read from, or the path of a file.",
        required=True,
        secret=True,
        example="keys.json",
    )
    timeout: float = setting("requestTimeout", "How long reading from a URL may take.", LIMIT, default=30.0)
    refresh: float = setting(
        "minRefreshInterval", "After which time a set from a URL or a file is read anew.", DURATION, default=600.0
    )


class JWKSCrypto(LocalProvider):
    """The keys of a set, by their ids (`kid`); those without one are not used."""

    tested = "real files, and a server of HTTP"
    settings = JWKSSettings

    def __init__(self, settings: Any) -> None:
        """Prepare; entering reads the set."""
        super().__init__(settings)
        self._keys: Mapping[str, object] = {}
        self._read_at = 0.0
        self._service: HTTPService | None = None
        self._file: Path | None = None
        self._reading = asyncio.Lock()

    async def _enter(self) -> None:
        """Read the set."""
        text = self._settings.jwks.strip()
        if text.startswith(("http://", "https://")):
            self._service = await self._stack.enter_async_context(
                HTTPService("the key set", text, _no_headers, CryptoAwayError)
            )
        elif (told := _inline(text)) is not None:
            self._keys = self._by_id(told)
            return
        else:
            self._file = Path(text)
        await self._read()

    async def _key(self, name: str) -> Key:
        if (self._service or self._file) and time.monotonic() - self._read_at >= self._settings.refresh:
            async with self._reading:
                if time.monotonic() - self._read_at >= self._settings.refresh:
                    await self._read_again()
        if name not in self._keys:
            raise CryptoError("key not found")
        return key_from_jwk(self._keys[name])

    async def _read_again(self) -> None:
        """Read the set anew; the one before stays where that fails."""
        try:
            await self._read()
        except (CryptoError, ConfigError) as error:
            self._read_at = time.monotonic()
            logger.warning("the key set could not be read anew: %s", error)

    async def _read(self) -> None:
        if self._service is not None:
            try:
                async with asyncio.timeout(self._settings.timeout):
                    answer = await self._service.get("")
            except TimeoutError:
                raise CryptoAwayError("the key set's server does not answer") from None
            if answer.status != 200:
                raise CryptoAwayError(f"the key set's server answered {answer.reason()}")
            told = answer.body
        else:
            told = await asyncio.to_thread(self._read_file)
        self._keys = self._by_id(told)
        self._read_at = time.monotonic()

    def _read_file(self) -> object:
        assert self._file is not None
        try:
            with self._file.open("rb") as file:
                data = file.read(MAX_FILE_BYTES + 1)
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or "it is neither JSON, a URL nor a path"
            raise self._problem(f"cannot read the key set: {reason}", setting="jwks") from None
        try:
            return orjson.loads(data[:MAX_FILE_BYTES])
        except orjson.JSONDecodeError as error:
            raise self._problem(f"the key set is no JSON: {error}", setting="jwks") from None

    def _by_id(self, told: object) -> Mapping[str, object]:
        listed = told.get("keys") if isinstance(told, dict) else None
        if not isinstance(listed, list):
            raise self._problem("a key set is a JSON object with a list of keys", setting="jwks")
        found: dict[str, object] = {}
        for each in listed:
            if isinstance(each, dict) and isinstance(each.get("kid"), str):
                found.setdefault(each["kid"], each)
        return found


def _inline(text: str) -> object:
    """Read a set that stands in the setting itself; None = it does not."""
    if text.startswith("{"):
        data = text.encode()
    else:
        try:
            data = base64.b64decode(text + "=" * (-len(text) % 4), validate=True)
        except (binascii.Error, ValueError):
            return None
    try:
        return orjson.loads(data)
    except orjson.JSONDecodeError:
        return "" if text.startswith("{") else None


async def _no_headers() -> Mapping[str, str]:
    return {}
