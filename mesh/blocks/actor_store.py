"""The state store that is marked for actors, as it is at any time."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

from mesh.actors.errors import ActorStateMissingError
from mesh.errors import TooManyOperationsError
from mesh.store import Item, StateStore, Stored

if TYPE_CHECKING:
    from collections.abc import Iterator

    from mesh.life import Life

__all__ = ["NEEDED", "ActorStore", "Marked"]

logger = logging.getLogger(__name__)

NEEDED = ("ETAG", "TRANSACTIONAL")
"""What the store has to be able to do."""
MARK = 'spec.metadata: - {name: actorStateStore, value: "true"}'
Marked = Callable[[], "tuple[str, StateStore, Life] | None"]
"""Gives name, store and life of the component that is marked, if there is one."""


class ActorStore(StateStore):
    """The marked store; each use finds it anew, since a change of resources may bring another one.

    Every function raises ActorStateMissingError where there is none, or it lacks what actors need.
    """

    def __init__(self, marked: Marked) -> None:
        """Open nothing."""
        self._marked = marked
        self._warned = False

    async def get(self, key: str, *, strong: bool, metadata: Mapping[str, str] | None = None) -> Stored | None:
        """Read a key."""
        with self._used() as store:
            return await store.get(key, strong=strong, metadata=metadata)

    async def write(self, items: Sequence[Item]) -> None:
        """Write all, or nothing."""
        with self._used() as store:
            most = store.max_transaction
            if most is not None and len(items) > most:
                raise TooManyOperationsError(len(items) - 1, most - 1)  # The fence is no operation of the actor's.
            await store.write(items)

    async def keys(self, prefix: str, after: str, limit: int) -> Sequence[str]:
        """List keys, where the store can."""
        with self._used() as store:
            return await store.keys(prefix, after, limit)

    async def scan(self, prefix: str, after: str, limit: int) -> Sequence[tuple[str, Stored]]:
        """List keys with their values, where the store can."""
        with self._used() as store:
            return await store.scan(prefix, after, limit)

    @property
    def guards(self) -> bool:  # type: ignore[override]  # another store may be marked at any time
        """Whether it takes items that are only checked."""
        with self._used() as store:
            return store.guards

    @property
    def lets_expire(self) -> bool:
        """Whether values may expire."""
        with self._used() as store:
            return "TTL" in store.capabilities

    def warn_of_none(self) -> None:
        """Log, once, that actors have nowhere to keep state: there may be such, and each use of it is refused."""
        if self._warned:
            return
        try:
            self._found()
        except ActorStateMissingError as error:
            self._warned = True
            logger.warning("actors are hosted that can keep no state: %s", error)

    @contextmanager
    def _used(self) -> Iterator[StateStore]:
        store, life = self._found()
        with life:
            yield store

    def _found(self) -> tuple[StateStore, Life]:
        found = self._marked()
        if found is None:
            raise ActorStateMissingError(
                f"the state store is not configured to use the actor runtime: mark one, by this line in its {MARK}"
            )
        name, store, life = found
        missing = [each for each in NEEDED if each not in store.capabilities]
        if missing:
            raise ActorStateMissingError(
                f"the state store {name} cannot keep the state of actors: it has no {' and no '.join(missing)}"
            )
        return store, life
