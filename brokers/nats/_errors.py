"""Errors: what the server says, as errors of the mesh."""

from __future__ import annotations

from typing import cast

import nats.errors

from brokers.shared.errors import NotAdmittedError, map_errors, unavailable
from mesh.errors import BrokerError, BrokerUnavailableError, PublishRejectedError

__all__ = [
    "JSON",
    "REFUSALS",
    "NoStreamError",
    "RightMissingError",
    "StoreRefusedError",
    "check_api",
    "error_code",
    "errors_of",
]

# What the server says to wrong credentials; its protocol has no codes, these texts are the client's way, too.
REFUSALS = ("authorization violation", "authentication expired", "authentication revoked")
JSON = dict[str, object]


def errors_of(server: str) -> map_errors:
    """Give what becomes of the client's errors, about a server by its kind and address."""

    def lost(error: Exception) -> BrokerUnavailableError:
        final = isinstance(error, nats.errors.SecureConnWantedError)
        if final or any(each in str(error).lower() for each in REFUSALS):
            return NotAdmittedError(f"{server} is not reachable: {error}")
        return unavailable(server, error)

    def rejected(error: Exception) -> PublishRejectedError:
        return PublishRejectedError(f"{server} cannot take it: {error}")

    no_such_message = (nats.errors.BadHeaderError, nats.errors.BadSubjectError, nats.errors.MaxPayloadError)
    connecting = (OSError, ValueError)  # The latter for one that speaks another protocol.
    return map_errors(
        {nats.errors.Error: lost, **dict.fromkeys(connecting, lost), **dict.fromkeys(no_such_message, rejected)}
    )


class RightMissingError(BrokerError):
    """The user may not send to a subject; nothing was done."""


class NoStreamError(PublishRejectedError):
    """No stream has the subject; nothing was stored."""


class StoreRefusedError(PublishRejectedError):
    """A PublishRejectedError that keeps the server's error code."""

    def __init__(self, description: str, err_code: int) -> None:
        self.err_code = err_code
        super().__init__(f"NATS refused to store it: {description}")


def error_code(answer: JSON) -> object:
    """Give the code of a JetStream API answer's error; None where it is none."""
    return cast("JSON", answer.get("error") or {}).get("err_code")


def check_api(answer: JSON, what: str) -> JSON:
    """Return a JetStream API answer, or raise its error."""
    if "error" in answer:
        error = cast("JSON", answer["error"])
        raise BrokerError(f"{what}: {error.get('description')}")
    return answer
