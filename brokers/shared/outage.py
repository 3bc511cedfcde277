"""The words about a connection that is lost, and back: the same on every broker, each said once."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

__all__ = ["Outage"]


class Outage:
    """Tells of the connections to one server, of which some may be lost while others are not."""

    def __init__(self, logger: logging.Logger, broker: str, address: str) -> None:
        """Prepare.

        Args:
            logger: The adapter's.
            broker: Its name, as people write it.
            address: Where it is, without credentials.
        """
        self._logger = logger
        self._broker = broker
        self._address = address
        self._lost: set[object] = set()
        self._since = 0.0
        self._on_back: list[Callable[[], None]] = []

    def on_back(self, callback: Callable[[], None]) -> None:
        """Call back whenever all connections are back."""
        self._on_back.append(callback)

    def lost(self, cause: object, connection: object = None) -> None:
        """Note that a connection is lost; the first one says so.

        Args:
            cause: Why.
            connection: Tells it from others to the same server.
        """
        if not self._lost:
            self._since = time.monotonic()
            why = str(cause) or type(cause).__name__
            self._logger.warning("lost the connection to %s at %s: %s", self._broker, self._address, why)
        self._lost.add(connection)

    def back(self, connection: object = None) -> None:
        """Note that a connection is back; the last one says so."""
        if connection not in self._lost:
            return
        self._lost.discard(connection)
        if not self._lost:
            seconds = time.monotonic() - self._since
            self._logger.warning("%s at %s is back after %.1f s", self._broker, self._address, seconds)
            for callback in self._on_back:
                callback()

    def forget(self, connection: object = None) -> None:
        """Note that a connection is wanted no more."""
        self._lost.discard(connection)
