"""``configuration.redis``: plain texts in Redis, as the Dapr runtime reads them: ``value`` or ``value||version``.

Source: Dapr 1.18, the Redis configuration store.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any, cast

from bindings.redis._adapter import RedisAdapter
from bindings.redis._client import Command
from bindings.redis._listener import Listener
from mesh.blocks.configuration import ConfigurationItem
from mesh.errors import BadArgumentError, ConfigurationError

__all__ = ["RedisConfigurationStore"]

SEPARATOR = "||"
MAX_KEYS = 10_000
SCAN_COUNT = 1000


class RedisConfigurationStore(RedisAdapter):
    """Texts in Redis, read by key."""

    failure = ConfigurationError
    capabilities: Sequence[str] = ()

    def __init__(self, *arguments: Any) -> None:
        """Prepare; entering connects."""
        super().__init__(*arguments)
        self._listener = Listener(self._client)

    async def _enter(self) -> None:
        await super()._enter()
        await self._stack.enter_async_context(self._listener)

    async def get(self, keys: Sequence[str], metadata: Mapping[str, str]) -> Mapping[str, ConfigurationItem]:
        """Read the values of keys, those that are there and not empty; no keys = every text of the database.

        Raises:
            ConfigurationError: The server failed, or a key holds something else than a text.
        """
        names = [_encoded(key) for key in keys] if keys else await self._all()
        replies = await self.run_all([Command((b"GET", name), name, again=True) for name in names])
        found: dict[str, ConfigurationItem] = {}
        for name, reply in zip(names, replies, strict=True):
            if isinstance(reply, Exception):
                raise self.failed(reply)
            try:
                key, text = name.decode(), cast("bytes", reply or b"").decode()
            except UnicodeDecodeError:
                if not keys:
                    continue
                raise ConfigurationError(f"{self._client.shown}: the key {name.decode()!r} holds no text") from None
            if text:
                value, _, rest = text.partition(SEPARATOR)
                found[key] = ConfigurationItem(value, rest.partition(SEPARATOR)[0])
        return found

    async def _all(self) -> list[bytes]:
        found: set[bytes] = set()
        with self._failures():
            for server in self._client.servers():
                async for names in self._client.scan(server, ("COUNT", SCAN_COUNT, "TYPE", "string")):
                    found.update(names)
                    if len(found) > MAX_KEYS:
                        raise ConfigurationError(
                            f"{self._client.shown} has more than {MAX_KEYS} keys: name those that are wanted"
                        )
        return sorted(found)

    def watch(self, keys: Sequence[str], metadata: Mapping[str, str]) -> AbstractAsyncContextManager[asyncio.Event]:
        """Tell when something of these keys may have changed, by the server's keyspace notifications.

        Raises:
            ConfigurationError: The server does not answer, or does not let us listen.
        """
        return self._watch([_encoded(key) for key in keys])

    @asynccontextmanager
    async def _watch(self, keys: Sequence[bytes]) -> AsyncIterator[asyncio.Event]:
        watching = self._listener.watch(keys)
        with self._failures():
            event = await watching.__aenter__()
        try:
            yield event
        finally:
            await watching.__aexit__(None, None, None)


def _encoded(key: str) -> bytes:
    try:
        return key.encode()
    except UnicodeEncodeError:
        raise BadArgumentError(f"the key {key!r} is no Unicode text") from None
