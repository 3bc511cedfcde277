"""Why a channel or a connection ended, in our words."""

from __future__ import annotations

from aiormq import (
    AMQPError,
    ChannelAccessRefused,
    ChannelClosed,
    ChannelLockedResource,
    ChannelNotFoundEntity,
    ChannelPreconditionFailed,
)
from pamqp.exceptions import PAMQPException

from brokers.shared.errors import map_errors
from mesh.errors import BrokerError, BrokerUnavailableError

__all__ = ["ERRORS", "RefusedError", "again", "is_foreign", "reason_of"]

# All that aiormq, and what it reads frames with, may raise.
FOREIGN = (AMQPError, PAMQPException, RuntimeError)

REPLY_CODES = {
    ChannelAccessRefused: 403,
    ChannelNotFoundEntity: 404,
    ChannelLockedResource: 405,
    ChannelPreconditionFailed: 406,
}


class RefusedError(BrokerError):
    """The server closed a channel or a connection since it did not like what it was asked.

    ``reply_code`` is AMQP's reply code: 403 access refused, 404 not found, 405 locked, 406 precondition failed…
    """

    def __init__(self, code: int, text: str) -> None:
        self.reply_code = code
        self.text = text
        super().__init__(f"RabbitMQ refused it: {text}")


def is_foreign(error: BaseException) -> bool:
    """Tell whether aiormq ended something: it raises a plain ``Exception`` where it knows no reason."""
    return isinstance(error, FOREIGN) or type(error) is Exception


def reason_of(error: BaseException | None) -> BrokerError:
    """Say in our words why aiormq ended something."""
    for kind, code in REPLY_CODES.items():
        if isinstance(error, kind):
            return RefusedError(code, str(error))
    if isinstance(error, ChannelClosed) and error.args[:1] != (None,):
        code, text = (error.args[0], error.args[-1]) if len(error.args) > 1 else (0, str(error))
        return RefusedError(code, text)
    if isinstance(error, ChannelClosed) or error is None:
        return BrokerUnavailableError("the channel is closed")
    return BrokerUnavailableError(f"the connection broke: {str(error) or 'no sign of life'}")


ERRORS = map_errors(dict.fromkeys(FOREIGN, reason_of))


def again(error: BrokerError) -> BrokerError:
    """Make an error anew for each who gets it: one that is raised often collects tracebacks."""
    return RefusedError(error.reply_code, error.text) if isinstance(error, RefusedError) else type(error)(str(error))
