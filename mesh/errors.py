"""Every exception that brokermesh raises on purpose.

::

    MeshError
    ├── ConfigError                   resources or options are wrong; carries every problem found
    ├── EventError                    bytes or headers are not a valid CloudEvent
    ├── ExpressionError               a CEL expression does not compile, or does not give a boolean
    ├── MissingDependencyError        a component needs a library that is not installed
    ├── FeatureNotSupportedError      the broker or store declares that it cannot do this
    ├── PermissionDeniedError         a scope or policy refuses it
    ├── CircuitOpenError              a circuit breaker refuses the call for now
    ├── BrokerError
    │   ├── BrokerUnavailableError    no connection, or it broke
    │   ├── PublishRejectedError      the broker answered no
    │   ├── MessageTooLargeError      above the broker's limit
    │   ├── TopologyMismatchError     a stream or consumer exists and is not what we need
    │   ├── NoResponderError          nobody serves this address now
    │   ├── DeadlineExceededError     the caller's time is over; the outcome is unknown
    │   └── StreamBrokenError         a streamed request or reply ended in the middle
    ├── InvocationError               an application could not be called
    ├── StateError
    │   ├── ConflictError             the etag does not match, or first-write lost
    │   └── InvalidEtagError          the etag can not be one of this store's
    └── HandlerError
        ├── RetryLaterError           the application asks for another attempt
        └── RejectError               this event can never be handled

``code`` is stable and never reused; ``retryable`` says whether the same call may succeed
later. HTTP statuses live in ``gateway/errors.py`` alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

__all__ = [
    "BrokerError",
    "BrokerUnavailableError",
    "CircuitOpenError",
    "ConfigError",
    "ConflictError",
    "DeadlineExceededError",
    "EventError",
    "ExpressionError",
    "FeatureNotSupportedError",
    "HandlerError",
    "InvalidEtagError",
    "InvocationError",
    "MeshError",
    "MessageTooLargeError",
    "MissingDependencyError",
    "NoResponderError",
    "PermissionDeniedError",
    "Problem",
    "PublishRejectedError",
    "RejectError",
    "RetryLaterError",
    "StateError",
    "StreamBrokenError",
    "TopologyMismatchError",
]


class MeshError(Exception):
    """Anything that brokermesh raises on purpose."""

    code: ClassVar[str] = "MESH_ERROR"
    retryable: ClassVar[bool] = False


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing that is wrong in a file, and where.

    Attributes:
        message: What is wrong, and what to do about it.
        path: The field, dotted (``spec.metadata[0].name``); empty for a whole document.
        file: The file as the user named it; None for options and built-in resources.
        line: From 1; None when the file could not be read.
        column: From 1; None when the file could not be read.
    """

    message: str
    path: str = ""
    file: str | None = None
    line: int | None = None
    column: int | None = None

    def __str__(self) -> str:
        place = ":".join(str(part) for part in (self.file, self.line, self.column) if part is not None)
        return ": ".join(part for part in (place, self.path, self.message) if part)


class ConfigError(MeshError):
    """Resources or options are wrong; ``problems`` holds all of them."""

    code = "CONFIG_INVALID"

    def __init__(self, problems: Sequence[Problem] | Problem | str) -> None:
        if isinstance(problems, str):
            problems = Problem(problems)
        self.problems: tuple[Problem, ...] = (problems,) if isinstance(problems, Problem) else tuple(problems)
        super().__init__("\n".join(str(problem) for problem in self.problems))


class EventError(MeshError):
    """Bytes or headers are not a valid CloudEvent."""

    code = "EVENT_INVALID"


class ExpressionError(MeshError):
    """A CEL expression does not compile, cannot be evaluated, or does not give a boolean."""

    code = "EXPRESSION_INVALID"


class MissingDependencyError(MeshError):
    """A component needs a library that is not installed; the message names the command to run."""

    code = "DEPENDENCY_MISSING"


class FeatureNotSupportedError(MeshError):
    """The broker or store declares that it cannot do this."""

    code = "FEATURE_NOT_SUPPORTED"

    def __init__(self, provider: str, feature: str) -> None:
        self.provider = provider
        self.feature = feature
        super().__init__(f"{provider} does not support {feature}")


class PermissionDeniedError(MeshError):
    """A scope or policy refuses it."""

    code = "PERMISSION_DENIED"


class CircuitOpenError(MeshError):
    """A circuit breaker refuses the call for now; nothing was called."""

    code = "CIRCUIT_OPEN"


class BrokerError(MeshError):
    """The broker could not do what it was asked."""

    code = "BROKER_ERROR"


class BrokerUnavailableError(BrokerError):
    """There is no connection to the broker, or it broke; the outcome of a write is unknown."""

    code = "BROKER_UNAVAILABLE"
    retryable = True


class PublishRejectedError(BrokerError):
    """The broker answered that it did not take the message."""

    code = "PUBLISH_REJECTED"
    retryable = True


class MessageTooLargeError(BrokerError):
    """The message is above the broker's limit and would never be taken."""

    code = "MESSAGE_TOO_LARGE"

    def __init__(self, size_bytes: int, limit_bytes: int) -> None:
        self.size_bytes = size_bytes
        self.limit_bytes = limit_bytes
        super().__init__(f"message of {size_bytes} bytes is over the limit of {limit_bytes} bytes")


class TopologyMismatchError(BrokerError):
    """A stream, queue or consumer exists already and is not what is needed; nothing was changed."""

    code = "TOPOLOGY_MISMATCH"


class NoResponderError(BrokerError):
    """Nobody serves this address now; the request did not run."""

    code = "NO_RESPONDER"
    retryable = True


class DeadlineExceededError(BrokerError):
    """The caller's deadline passed; the outcome is unknown."""

    code = "DEADLINE_EXCEEDED"
    retryable = True


class StreamBrokenError(BrokerError):
    """A streamed request or reply ended in the middle: its other side is gone or gave up."""

    code = "STREAM_BROKEN"


class InvocationError(MeshError):
    """An application could not be called; ``app_id`` names it."""

    code = "INVOCATION_FAILED"

    def __init__(self, app_id: str, reason: str) -> None:
        self.app_id = app_id
        self.reason = reason
        super().__init__(f"failed to invoke, id: {app_id}, err: {reason}")


class StateError(MeshError):
    """A state store could not do what it was asked."""

    code = "STATE_ERROR"
    retryable = True


class ConflictError(StateError):
    """The etag does not match the stored one, or first-write lost."""

    code = "STATE_CONFLICT"
    retryable = False


class InvalidEtagError(StateError):
    """The given etag can not be one of this store's."""

    code = "STATE_ETAG_INVALID"
    retryable = False


class HandlerError(MeshError):
    """A handler's way to say how a delivery settles."""

    code = "HANDLER_FAILED"


class RetryLaterError(HandlerError):
    """The application asks for another attempt; ``status`` is its HTTP status, if it gave one."""

    code = "HANDLER_RETRY"
    retryable = True

    def __init__(self, reason: str, status: int | None = None) -> None:
        self.reason = reason
        self.status = status
        super().__init__(reason)


class RejectError(HandlerError):
    """This event can never be handled; ``reason`` goes into the dead letter."""

    code = "HANDLER_REJECT"

    def __init__(self, reason: str) -> None:
        self.reason = reason
        super().__init__(reason)
