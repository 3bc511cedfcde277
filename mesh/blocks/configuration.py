"""Configuration: values that are read by key, and whose changes are told.

Source: Dapr 1.18, the configuration API.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from typing import Protocol

__all__ = ["ConfigurationItem", "ConfigurationStore"]


@dataclass(frozen=True, slots=True)
class ConfigurationItem:
    """A value.

    Attributes:
        value: Its text.
        version: The store's; empty where it has none.
        metadata: What the store tells besides.
    """

    value: str
    version: str = ""
    metadata: dict[str, str] = field(default_factory=dict)


class ConfigurationStore(Protocol):
    """What an adapter implements."""

    @property
    def capabilities(self) -> Sequence[str]:
        """What metadata tells."""

    async def get(self, keys: Sequence[str], metadata: Mapping[str, str]) -> Mapping[str, ConfigurationItem]:
        """Read the values of keys, those that are there; no keys = all.

        Raises:
            ConfigurationError: The store failed.
        """

    def watch(self, keys: Sequence[str], metadata: Mapping[str, str]) -> AbstractAsyncContextManager[asyncio.Event]:
        """Tell when something of these keys may have changed; no keys = all.

        It is entered often and by many at once: a store keeps one connection for all of them. The event is set, within
        a second, by each change after it was entered, and when a lost connection is back; whoever waits clears it.

        Raises:
            ConfigurationError: The store cannot tell.
        """
