"""Every exception that brokermesh raises on purpose.

::

    MeshError
    ├── ConfigError                   resources or options are wrong; carries every problem found
    ├── EventError                    bytes or headers are not a valid CloudEvent
    ├── ExpressionError               a CEL expression does not compile, or does not give a boolean
    ├── MissingDependencyError        a component needs a library that is not installed
    ├── FeatureNotSupportedError      the broker or store declares that it cannot do this
    ├── PermissionDeniedError         a scope or policy refuses it
    ├── UnprovenError                 somebody does not prove to be who it says
    ├── IdentityAwayError             nothing can be proven, or checked, for now
    ├── CircuitOpenError              a circuit breaker refuses the call for now
    ├── BadArgumentError              what was asked makes no sense; nothing was done
    ├── ComponentError                a component cannot be used
    │   ├── NotConfiguredError        the mesh has no component of this building block
    │   ├── ComponentNotFoundError    nobody has a component of this name
    │   └── HostsDifferError          hosts of this component are configured differently
    ├── RecordsMissingError           the mesh has no place of its own to remember something in
    ├── StreamEndedError              the gateway ends a stream of a client, or takes no other one
    ├── RemoteError                   another node failed in a way that this one has no class for
    ├── BrokerError
    │   ├── BrokerUnavailableError    no connection, or it broke
    │   ├── PublishRejectedError      the broker answered no
    │   ├── MessageTooLargeError      above the broker's limit
    │   ├── TopologyMismatchError     a stream or consumer exists and is not what we need
    │   ├── NoResponderError          nobody serves this address now
    │   │   ├── AppAwayError          the application had instances a moment ago
    │   │   └── HostsGoneError        the component had hosts a moment ago
    │   ├── DeadlineExceededError     the caller's time is over; the outcome is unknown
    │   └── StreamBrokenError         a streamed request or reply ended in the middle
    ├── AppUnreachableError           the application does not accept connections; nothing reached it
    ├── NotSpokenError                the application is spoken to by another protocol than a call needs
    ├── AppFailedError                the application broke the connection off; it may have run
    │   └── HandlerFailedError        the application says by an error that it failed
    ├── PublishFailedError            some events of several were not published
    ├── StateError
    │   ├── ConflictError             the etag does not match, or first-write lost
    │   ├── InvalidEtagError          the etag can not be one of this store's
    │   ├── IllegalKeyError           the key holds what separates it from its prefix
    │   ├── StateLimitError           a key, a value or a transaction is larger than the store takes
    │   │   └── TooManyOperationsError a transaction has more operations than the store takes
    │   ├── AnswerTooLargeError       what was asked for is more than one answer carries
    │   ├── EncryptionError           a stored value cannot be decrypted with the keys that are configured
    │   ├── OutboxError               an event of a transaction could not be stored, so that nothing was written
    │   └── OutcomeUnknownError       the connection was lost before the answer: it may have been done
    ├── SecretError                   a secret store could not do what it was asked
    │   └── SecretStoreAwayError      it cannot be reached, is too busy, or fails for now
    ├── ConfigurationError            a configuration store could not do what it was asked
    ├── LockError                     a lock store could not do what it was asked
    └── CryptoError                   the key, the algorithm or the data of a cryptographic operation do not fit
        └── CryptoAwayError           what keeps the keys cannot be reached for now

``code`` is stable and never reused; ``retryable`` says whether the same call may succeed later. HTTP statuses live in
``gateway/errors.py`` alone. An error crosses the backbone by its code (``mesh/error_wire.py``), with its text and those
of its attributes that are plain values, and is raised there as the same class.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

__all__ = [
    "AnswerTooLargeError",
    "AppAwayError",
    "AppFailedError",
    "AppUnreachableError",
    "BadArgumentError",
    "BrokerError",
    "BrokerUnavailableError",
    "CircuitOpenError",
    "ComponentError",
    "ComponentNotFoundError",
    "ConfigError",
    "ConfigurationError",
    "ConflictError",
    "CryptoAwayError",
    "CryptoError",
    "DeadlineExceededError",
    "EncryptionError",
    "EventError",
    "ExpressionError",
    "FeatureNotSupportedError",
    "HandlerFailedError",
    "HostsDifferError",
    "HostsGoneError",
    "IdentityAwayError",
    "IllegalKeyError",
    "InvalidEtagError",
    "LockError",
    "MeshError",
    "MessageTooLargeError",
    "MissingDependencyError",
    "NoResponderError",
    "NotConfiguredError",
    "NotSpokenError",
    "OutcomeUnknownError",
    "OutboxError",
    "PermissionDeniedError",
    "Problem",
    "PublishFailedError",
    "PublishRejectedError",
    "RecordsMissingError",
    "RemoteError",
    "SecretError",
    "SecretStoreAwayError",
    "StateError",
    "StateLimitError",
    "StreamBrokenError",
    "StreamEndedError",
    "TooManyOperationsError",
    "TopologyMismatchError",
    "UnprovenError",
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
        self.provider, self.feature = provider, feature
        super().__init__(f"{provider} does not support {feature}")


class PermissionDeniedError(MeshError):
    """A scope or policy refuses it."""

    code = "PERMISSION_DENIED"


class UnprovenError(MeshError):
    """Somebody does not prove to be who it says, or what it sent is altered, repeated or too old; nothing was done."""

    code = "IDENTITY_NOT_PROVEN"


class IdentityAwayError(MeshError):
    """A proof cannot be made or checked yet: a certificate is not valid, a root not known here, or clocks differ."""

    code = "IDENTITY_AWAY"
    retryable = True


class CircuitOpenError(MeshError):
    """A circuit breaker refuses the call for now; nothing was called."""

    code = "CIRCUIT_OPEN"


class BadArgumentError(MeshError):
    """What was asked makes no sense; nothing was done."""

    code = "BAD_ARGUMENT"


class ComponentError(MeshError):
    """A component cannot be used; ``name`` is the component's."""

    code = "COMPONENT_ERROR"

    def __init__(self, name: str, reason: str) -> None:
        self.name = name
        super().__init__(reason)


class NotConfiguredError(ComponentError):
    """The mesh has no component of this building block."""

    code = "COMPONENT_NOT_CONFIGURED"


class ComponentNotFoundError(ComponentError):
    """Neither this node nor a host on the mesh has a component of this name."""

    code = "COMPONENT_NOT_FOUND"


class HostsDifferError(ComponentError):
    """Hosts of one component are configured differently, so that none of them is asked."""

    code = "COMPONENT_HOSTS_DIFFER"


class RecordsMissingError(MeshError):
    """The mesh has no place of its own to remember something in; the text says which line gives it one."""

    code = "RECORDS_MISSING"


class RemoteError(MeshError):
    """Another node failed in a way that this one has no class for; the text names its code."""

    code = "REMOTE_ERROR"


class StreamEndedError(MeshError):
    """The gateway ends a client's stream, or takes no other one; the client may open it again, here or elsewhere."""

    code = "STREAM_ENDED"
    retryable = True


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
        self.size_bytes, self.limit_bytes = size_bytes, limit_bytes
        super().__init__(f"message of {size_bytes} bytes is over the limit of {limit_bytes} bytes; send less")


class TopologyMismatchError(BrokerError):
    """A stream, queue or consumer exists already and is not what is needed; nothing was changed."""

    code = "TOPOLOGY_MISMATCH"


class NoResponderError(BrokerError):
    """Nobody serves this address now; the request did not run."""

    code = "NO_RESPONDER"
    retryable = True


class AppAwayError(NoResponderError):
    """No instance of an application is there, and one was within the last minute; it may be back soon."""

    code = "APP_AWAY"


class HostsGoneError(NoResponderError):
    """The hosts that this component had do not answer; nothing ran."""

    code = "COMPONENT_HOSTS_GONE"


class DeadlineExceededError(BrokerError):
    """The caller's deadline passed; the outcome is unknown."""

    code = "DEADLINE_EXCEEDED"
    retryable = True


class StreamBrokenError(BrokerError):
    """A streamed request or reply ended in the middle: its other side is gone or gave up; the outcome is unknown."""

    code = "STREAM_BROKEN"
    retryable = True


class AppUnreachableError(MeshError):
    """The application does not accept connections; nothing reached it."""

    code = "APP_UNREACHABLE"
    retryable = True


class NotSpokenError(MeshError):
    """The application is spoken to by another protocol than a call needs; nothing reached it."""

    code = "NOT_SPOKEN"


class AppFailedError(MeshError):
    """The application broke the connection off; it may have run."""

    code = "APP_FAILED"
    retryable = True


class HandlerFailedError(AppFailedError):
    """The application says by an error that it failed, as one on gRPC does; ``status`` is that of gRPC, or 500."""

    code = "HANDLER_FAILED"

    def __init__(self, message: str, status: int = 500) -> None:
        super().__init__(message)
        self.status = status


class PublishFailedError(MeshError):
    """Some events of several were not published; ``failed`` has the error of each, by entry id."""

    code = "PUBLISH_PARTLY_FAILED"

    def __init__(self, failed: Mapping[str, MeshError]) -> None:
        self.failed = failed
        self.retryable = any(error.retryable for error in failed.values())  # type: ignore[misc]  # of these, not of all
        super().__init__("some entries were not published")


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


class IllegalKeyError(StateError):
    """The key holds what separates it from its prefix."""

    code = "STATE_ILLEGAL_KEY"
    retryable = False

    def __init__(self, key: str) -> None:
        self.key = key
        super().__init__(f"input key/keyPrefix '{key}' can't contain '||'")


class StateLimitError(StateError):
    """A key, a value or a transaction is larger than the store takes; nothing was done, and never will be."""

    code = "STATE_LIMIT"
    retryable = False


class OutcomeUnknownError(StateError):
    """The connection to the store was lost before it had answered; what was asked may have been done."""

    code = "STATE_OUTCOME_UNKNOWN"
    retryable = False


class TooManyOperationsError(StateLimitError):
    """A transaction has more operations than the store takes at once; nothing was done."""

    code = "STATE_TOO_MANY_OPERATIONS"

    def __init__(self, count: int, most: int) -> None:
        self.count, self.most = count, most
        super().__init__(
            f"the transaction contains {count} operations, which is more than what the state store supports: {most}"
        )


class AnswerTooLargeError(StateError):
    """What was asked for is more than one answer carries; the same, asked for in parts, has room."""

    code = "STATE_ANSWER_TOO_LARGE"
    retryable = False

    def __init__(self, most_bytes: int, instead: str) -> None:
        self.most_bytes, self.instead = most_bytes, instead
        super().__init__(f"the answer would be larger than {most_bytes // 2**20} MiB; {instead}")


class EncryptionError(StateError):
    """A stored value cannot be decrypted with the keys that are configured."""

    code = "STATE_ENCRYPTION"
    retryable = False


class OutboxError(StateError):
    """An event of a transaction could not be stored first, so that nothing was written."""

    code = "STATE_OUTBOX"

    def __init__(self, reason: str, *, retryable: bool = True) -> None:
        self.retryable = retryable  # type: ignore[misc]  # as what went wrong with the event
        super().__init__(reason)


class SecretError(MeshError):
    """A secret store could not do what it was asked: it has no such secret, or cannot be read."""

    code = "SECRET_ERROR"


class SecretStoreAwayError(SecretError):
    """A secret store cannot be reached, is too busy, or fails for now: the same call may succeed later."""

    code = "SECRET_STORE_AWAY"
    retryable = True


class ConfigurationError(MeshError):
    """A configuration store could not do what it was asked."""

    code = "CONFIGURATION_ERROR"
    retryable = True


class LockError(MeshError):
    """A lock store could not do what it was asked; whether a lock is held now may be unknown."""

    code = "LOCK_ERROR"


class CryptoError(MeshError):
    """A cryptographic operation was not done: the key, the algorithm or the data do not fit."""

    code = "CRYPTO_ERROR"


class CryptoAwayError(CryptoError):
    """What keeps the keys cannot be reached for now: the same call may succeed later."""

    code = "CRYPTO_AWAY"
    retryable = True
