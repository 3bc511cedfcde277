"""What asking for what others own can come to."""

from __future__ import annotations

from mesh.errors import MeshError, StateError

__all__ = ["NobodyHostsError", "NotOwnerError", "OwnerLostError"]


class NotOwnerError(MeshError):
    """Whoever was asked does not own it, or will not for long: nothing ran, and the owner is looked for again."""

    code = "ERR_NOT_OWNER"
    retryable = True


class NobodyHostsError(MeshError):
    """No node hosts the kind."""

    code = "ERR_NOBODY_HOSTS"


class OwnerLostError(StateError):
    """The owner may have lost it while it was at work: it may have been done, and is to be repeated."""

    code = "TIMER_OWNER_LOST"
