"""Guards of nodes of one root, for tests that run with and without proofs."""

from __future__ import annotations

import datetime
from collections.abc import Callable
from pathlib import Path

from mesh.trust.certificates import issue, make_root
from mesh.trust.folder import Issued
from mesh.trust.guard import Guard
from mesh.trust.identity import Identity, TrustSettings

__all__ = ["Guards", "no_guards", "strict_guards"]

LIFE = datetime.timedelta(days=30)  # Longer than tests of what is kept say that time has passed.

Guards = Callable[[str], Guard | None]


def no_guards(app_id: str) -> None:
    """Prove nothing."""


def strict_guards(namespace: str) -> Guards:
    """Make a root, and what gives each application's node a guard that takes nothing unproven."""
    root, key = make_root("public", LIFE)

    def guard(app_id: str) -> Guard:
        made, identity = Guard(TrustSettings("strict", folder=Path())), Identity("public", namespace, app_id)
        leaf, own = issue(identity, root, key, LIFE)
        made.take(Issued((leaf,), own, (root,)), identity)
        return made

    return guard
