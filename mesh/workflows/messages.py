"""Messages: what an instance is told, by its application or another instance; as they travel and as they are stored.

Fields are only ever added at the end of a class, with a default.
"""

from __future__ import annotations

import msgspec

from mesh.workflows.events import AnyEvent, Failure, Inherited, Parent, Trace

__all__ = [
    "AnyMessage",
    "ChildDone",
    "Purge",
    "Raise",
    "Restore",
    "Resume",
    "Start",
    "StartWithHistory",
    "Suspend",
    "Terminate",
    "Told",
]


class _Message(msgspec.Struct, frozen=True, array_like=True):
    pass


class Start(_Message, frozen=True, array_like=True, tag=1):
    """Begin.

    Attributes:
        name: The workflow's.
        execution: Id of the execution, made by whoever asks: the same start, asked for once more, has the same.
        scheduled: Before which it is not to begin, Unix time in seconds.
        caller: The application that asks, where that is another one; else empty.
    """

    name: str
    execution: str
    version: str | None = None
    input: str | None = None
    parent: Parent | None = None
    scheduled: float | None = None
    trace: Trace | None = None
    tags: dict[str, str] = {}
    caller: str = ""


class Raise(_Message, frozen=True, array_like=True, tag=2):
    """An event; ``token`` is the same where it is asked for once more."""

    name: str
    input: str | None = None
    token: str = ""


class Suspend(_Message, frozen=True, array_like=True, tag=3):
    """Begin no turn until it is resumed."""

    reason: str | None = None


class Resume(_Message, frozen=True, array_like=True, tag=4):
    """Go on."""

    reason: str | None = None


class Terminate(_Message, frozen=True, array_like=True, tag=5):
    """End now; where ``parent`` says whose child it is, it is left alone if it is another one's."""

    output: str | None = None
    recursive: bool = False
    parent: Parent | None = None


class ChildDone(_Message, frozen=True, array_like=True, tag=6):
    """A child ended.

    Attributes:
        execution: That of the parent, which has asked for it.
        task: The id of the parent's `ChildCreated`.
        app: The child's application.
        failure: None where it has a result.
    """

    execution: str
    task: int
    app: str
    result: str | None = None
    failure: Failure | None = None


class Purge(_Message, frozen=True, array_like=True, tag=7):
    """Forget it; ``force`` also where it has not ended, ``recursive`` its children too; ``parent`` as above."""

    recursive: bool = False
    force: bool = False
    parent: Parent | None = None


class Restore(_Message, frozen=True, array_like=True, tag=8):
    """Begin with a history, as that of another instance which is run again from one of its events.

    Attributes:
        execution: As of `Start`.
        history: What is taken over, with a `Started` of this instance.
    """

    execution: str
    history: tuple[AnyEvent, ...]


class StartWithHistory(Start, frozen=True, array_like=True, tag=9):
    """Begin as a child that its parent hands history on to.

    Attributes:
        inherited: That; None = it is put in when the message goes out (`mesh.workflows.propagation`).
    """

    inherited: Inherited | None = None


AnyMessage = Start | StartWithHistory | Raise | Suspend | Resume | Terminate | ChildDone | Purge | Restore


class Told(msgspec.Struct, frozen=True, array_like=True):
    """The answer to a message.

    Attributes:
        count: How many instances were changed; 0 where it was done before, or had no effect.
        complete: Whether that is all of them.
    """

    count: int = 1
    complete: bool = True
