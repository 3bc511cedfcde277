"""The table of docs/limits.md on actors, and on what is kept for later: rows as in `docs.limits`."""

from __future__ import annotations

from collections.abc import Sequence

from mesh.actors import activation, application, deactivating, hosted, names, reminders, settings, timers
from mesh.blocks import actor_service
from mesh.ownership import asking, owning, session
from mesh.timers import firing
from mesh.timers.keeping import AT_ONCE

__all__ = ["rows"]

NONE = "nothing"
TYPE = settings.TypeSettings()
Row = tuple[str, str, str, str]


def rows() -> Sequence[Row]:
    """Give them."""
    return (
        (
            "a node without a sign of life, until others take what it owned",
            f"{session.HOLD_SECONDS:g} s",
            NONE,
            "calls of its actors wait, reminders and jobs come later",
        ),
        (
            "a type of actors that nobody hosts",
            f"{asking.NOBODY_WAIT:g} s",
            "`DaprBuiltInActorNotFoundRetries`, see [resiliency](resiliency.md)",
            "500 `ERR_ACTOR_INVOKE_METHOD`",
        ),
        (
            "a question to a node that hands over what it is about, until it has",
            f"{asking.MOVING_SECONDS:g} s",
            NONE,
            "the asker looks for the next owner again and again",
        ),
        (
            "a host of a type that another one follows, to end",
            f"{hosted.TAKEN_SECONDS:g} s",
            NONE,
            "409 `ERR_ACTOR_TYPE_HOSTED`",
        ),
        (
            "tables of owners that a node reads since others say that they have changed",
            f"{owning.NEWS_AT_ONCE} at once, then {owning.NEWS_PER_SECOND:g} a second",
            NONE,
            "they are read a little later",
        ),
        (
            "an idle actor",
            f"{TYPE.idle_seconds / 60:g} min",
            "`actorIdleTimeout`, see [settings](actors.md#settings)",
            "the application is asked to let go of it",
        ),
        (
            "a turn whose actor moves or whose gateway stops",
            f"{TYPE.drain_seconds:g} s",
            "`drainOngoingCallTimeout`, and for what stops `--dapr-graceful-shutdown-seconds`",
            "it is cut off: its caller gets an error, and its state cannot be written any more",
        ),
        (
            "a turn of a reminder or timer",
            f"{hosted.TURN_SECONDS:g} s",
            NONE,
            "it has failed: a reminder is tried again as its `failurePolicy` says; the next turn waits",
        ),
        (
            "reminders of a type, or jobs of an application, that a gateway hands over at a time",
            f"{AT_ONCE:,}",
            NONE,
            f"others wait until one of them ends; while fewer hang, not longer than {1000 * firing.FEW_SECONDS:g} ms",
        ),
        (
            "a turn that nobody waits for any more",
            f"{hosted.ABANDONED_SECONDS:g} s",
            NONE,
            "the next turn begins",
        ),
        (
            "letting go of an actor",
            f"{deactivating.DEACTIVATE_SECONDS:g} s",
            NONE,
            f"it counts as done; after {deactivating.DEAF_AFTER} in a row"
            f" all do, unasked, for {deactivating.DEAF_SECONDS:g} s",
        ),
        ("calls that wait for one actor", f"{activation.MAX_WAITING:,}", NONE, "500 `ERR_ACTOR_INVOKE_METHOD`"),
        (
            "turns that run or wait, of all actors of a gateway",
            f"{hosted.MAX_TURNS:,}",
            NONE,
            "500 `ERR_ACTOR_INVOKE_METHOD`",
        ),
        (
            "how deep a chain of calls may come back to an actor",
            f"{settings.DEFAULT_DEPTH}",
            f"`reentrancy.maxStackDepth`, at most {settings.MAX_DEPTH:,}",
            "500 `ERR_ACTOR_STACK_DEPTH`",
        ),
        ("types of actors of an application", f"{settings.MAX_TYPES:,}", NONE, "a line in the log"),
        (
            "names of types, actors, timers and reminders",
            f"{names.MAX_NAME_BYTES} bytes",
            NONE,
            "400 `ERR_BAD_REQUEST`",
        ),
        ("timers of an actor", f"{timers.MAX_TIMERS:,}", NONE, "500 `ERR_ACTOR_TIMER_CREATE`"),
        (
            "the data of a reminder",
            f"{reminders.MAX_DATA_BYTES // 1024} KiB",
            NONE,
            "500 `ERR_ACTOR_REMINDER_CREATE`; what is larger belongs in the actor's state",
        ),
        (
            "reminders that `ListActorReminders` gives",
            f"{actor_service.MAX_LISTED:,}",
            NONE,
            "`INTERNAL`",
        ),
        (
            "what a gateway keeps in memory of the state of active actors",
            f"{actor_service.CACHED_BYTES // 2**20} MiB",
            NONE,
            "what was not used for longest is read again",
        ),
        (
            "an application's answer to a turn",
            f"{application.MAX_ANSWER_BYTES // 2**20} MiB",
            NONE,
            "500 `ERR_ACTOR_INVOKE_METHOD`",
        ),
    )
