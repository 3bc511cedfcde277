"""aiokafka, mended where its connections are.

- It takes a write just after a reset for the end of a connection only where that is an ``OSError``. uvloop says so by
  a ``RuntimeError``, which would end a consumer, or a producer with all that waits to be sent.
- Cancelled while it asks a first server, it leaves the connection to that open.
"""

from __future__ import annotations

from collections.abc import Callable
from contextvars import ContextVar
from functools import wraps
from typing import Any
from weakref import WeakSet

import aiokafka
from aiokafka.conn import AIOKafkaConnection, CloseReason
from aiokafka.errors import KafkaConnectionError

__all__ = ["AIOKafkaConnection", "AIOKafkaConsumer", "AIOKafkaProducer"]

# Where connections are noted that are opened; what a client begins has its own.
_opened: ContextVar[WeakSet[AIOKafkaConnection] | None] = ContextVar("opened", default=None)


def _heeding_resets(send: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(send)
    def sent(self: AIOKafkaConnection, *arguments: Any, **options: Any) -> Any:
        try:
            return send(self, *arguments, **options)
        except RuntimeError as error:
            self.close(reason=CloseReason.CONNECTION_BROKEN)
            raise KafkaConnectionError(f"the connection to {self.host}:{self.port} is lost: {error}") from error

    return sent


def _noted(connect: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(connect)
    async def connected(self: AIOKafkaConnection) -> Any:
        if (opened := _opened.get()) is not None:
            opened.add(self)
        return await connect(self)

    return connected


for _name in ("send", "_send_sasl_token"):
    setattr(AIOKafkaConnection, _name, _heeding_resets(getattr(AIOKafkaConnection, _name)))
AIOKafkaConnection.connect = _noted(AIOKafkaConnection.connect)


class _Closing:
    """Closes, when it is stopped, every connection that it has opened."""

    _connections: WeakSet[AIOKafkaConnection]

    async def start(self) -> None:
        """Start; whatever comes of it, it is to be stopped."""
        self._connections = WeakSet()
        token = _opened.set(self._connections)
        try:
            await super().start()  # type: ignore[misc]  # it stands before the library's class
        finally:
            _opened.reset(token)

    async def stop(self) -> None:
        """Stop."""
        try:
            await super().stop()  # type: ignore[misc]  # as above
        finally:
            self.let_go()

    def let_go(self) -> None:
        """Close every connection."""
        for each in list(getattr(self, "_connections", ())):
            each.close()


class AIOKafkaConsumer(_Closing, aiokafka.AIOKafkaConsumer):  # type: ignore[misc]  # the library has no types
    """The library's consumer."""


class AIOKafkaProducer(_Closing, aiokafka.AIOKafkaProducer):  # type: ignore[misc]  # the library has no types
    """The library's producer."""
