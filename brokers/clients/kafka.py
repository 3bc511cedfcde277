"""aiokafka, whose connections take a write just after a reset for the end of a connection.

uvloop says so by a RuntimeError, which the client does not know: it would end a consumer, or a producer with all that
waits to be sent.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any

from aiokafka import AIOKafkaConsumer, AIOKafkaProducer
from aiokafka.conn import AIOKafkaConnection, CloseReason
from aiokafka.errors import KafkaConnectionError

__all__ = ["AIOKafkaConnection", "AIOKafkaConsumer", "AIOKafkaProducer"]


def _heeding_resets(send: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(send)
    def sent(self: AIOKafkaConnection, *arguments: Any, **options: Any) -> Any:
        try:
            return send(self, *arguments, **options)
        except RuntimeError as error:
            self.close(reason=CloseReason.CONNECTION_BROKEN)
            raise KafkaConnectionError(f"the connection to {self.host}:{self.port} is lost: {error}") from error

    return sent


for _name in ("send", "_send_sasl_token"):
    setattr(AIOKafkaConnection, _name, _heeding_resets(getattr(AIOKafkaConnection, _name)))
