"""What fails of actors.

::

    ActorError                        an actor could not do what it was asked
    ├── ActorFailedError              the application answered a call of an actor by an error
    │   └── ActorMethodMissingError   the application has no such actor or method
    ├── NoActorHostError              no node hosts the type
    ├── ActorTypeReservedError        the type is one of the runtime's own
    ├── ActorBusyError                too many calls wait; nothing ran
    ├── StackTooDeepError             an actor was called by what it had called itself, too often
    ├── ActorMovedError               the activation ended meanwhile; what was asked may have been done
    ├── ActorNotActiveError           what is only for an active actor was asked of one that is not active here
    ├── ActorStateMissingError        there is no store for the state of actors, or it lacks an ability
    ├── ActorTypeNotHostedError       this node's application does not host the type
    ├── ActorTypeTakenError           this node has another host of the type
    ├── ReminderMissingError          there is no such reminder
    └── ReminderExistsError           there is one, and it is not to be replaced
"""

from __future__ import annotations

from mesh.errors import MeshError

__all__ = [
    "ActorBusyError",
    "ActorError",
    "ActorFailedError",
    "ActorMethodMissingError",
    "ActorMovedError",
    "ActorNotActiveError",
    "ActorStateMissingError",
    "ActorTypeNotHostedError",
    "ActorTypeReservedError",
    "ActorTypeTakenError",
    "NoActorHostError",
    "ReminderExistsError",
    "ReminderMissingError",
    "StackTooDeepError",
    "TurnNotWantedError",
]

MAX_QUOTED = 512  # Of an application's own error: chains of actors quote each other, level by level.


class ActorError(MeshError):
    """An actor could not do what it was asked."""

    code = "ACTOR_ERROR"


class ActorFailedError(ActorError):
    """The application answered a call of an actor by an error; ``status`` is that of HTTP."""

    code = "ACTOR_FAILED"
    retryable = True

    def __init__(self, status: int, body: bytes = b"") -> None:
        self.status = status
        text = body[: MAX_QUOTED + 1].decode("utf-8", "replace")
        super().__init__(
            f"error from actor service: ({status}) {text if len(text) <= MAX_QUOTED else text[:MAX_QUOTED] + '…'}"
        )


class ActorMethodMissingError(ActorFailedError):
    """The application has no such actor or method; to ask again is of no use."""

    code = "ACTOR_METHOD_MISSING"
    retryable = False

    def __init__(self) -> None:
        super().__init__(404)
        self.args = ("actor method not found",)


class NoActorHostError(ActorError):
    """No node hosts the type; nothing ran."""

    code = "ACTOR_NO_HOST"
    retryable = True

    def __init__(self, type_: str, id_: str) -> None:
        super().__init__(
            "failed to lookup actor: api error: code = FailedPrecondition desc = "
            f"did not find address for actor '{type_}/{id_}'"
        )


class ActorTypeReservedError(ActorError):
    """The type is one of the runtime's own."""

    code = "ACTOR_TYPE_RESERVED"

    def __init__(self, type_: str) -> None:
        super().__init__(f"actor type '{type_}' is reserved: names that begin with dapr.internal. are the runtime's")


class ActorBusyError(ActorError):
    """Too many calls wait; nothing ran."""

    code = "ACTOR_BUSY"
    retryable = True


class TurnNotWantedError(ActorError):
    """What was to have a turn was deleted, or put anew, while it waited for that; nothing ran."""

    code = "ACTOR_TURN_NOT_WANTED"


class StackTooDeepError(ActorError):
    """An actor was called by what it had called itself, too often."""

    code = "ACTOR_STACK_DEPTH"

    def __init__(self, depth: int) -> None:
        super().__init__(f"maximum stack depth exceeded: {depth}")


class ActorMovedError(ActorError):
    """The activation ended meanwhile, and another may run elsewhere; what was asked may have been done."""

    code = "ACTOR_MOVED"
    retryable = True


class ActorNotActiveError(ActorError):
    """What is only for an active actor was asked of one that is not active here."""

    code = "ACTOR_NOT_ACTIVE"

    def __init__(self) -> None:
        super().__init__("actor instance is missing")


class ActorStateMissingError(ActorError):
    """There is no store for the state of actors, or it lacks an ability."""

    code = "ACTOR_STATE_MISSING"


class ActorTypeNotHostedError(ActorError):
    """This node's application does not host the type."""

    code = "ACTOR_TYPE_NOT_HOSTED"

    def __init__(self) -> None:
        super().__init__("operations on actor reminders are only possible on hosted actor types")


class ActorTypeTakenError(ActorError):
    """This node has another host of the type."""

    code = "ACTOR_TYPE_TAKEN"

    def __init__(self, type_: str) -> None:
        super().__init__(f"actor type {type_} is hosted on this node already")


class ReminderMissingError(ActorError):
    """There is no such reminder."""

    code = "ACTOR_REMINDER_MISSING"

    def __init__(self, name: str) -> None:
        super().__init__(f"actor reminder not found: {name}")


class ReminderExistsError(ActorError):
    """There is one, and it is not to be replaced."""

    code = "ACTOR_REMINDER_EXISTS"

    def __init__(self, name: str) -> None:
        super().__init__(f"actor reminder already exists: {name}")
