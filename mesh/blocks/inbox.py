"""Deduplication: an event whose ``source`` and ``id`` were handled within a window is not handled again.

Where it is proven who publishes, an event of somebody else is another event: nobody has one of another left out.

The note is made after the application said yes, so nothing is lost: an event that comes twice at the
same moment, or whose handler's gateway dies before the note, may still be handled twice.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Awaitable, Callable

import orjson

from mesh.blocks.records import LazyRecords
from mesh.broker import Message
from mesh.delivery import SUCCESS, Attempt, Outcome
from mesh.errors import MeshError, RecordsMissingError
from mesh.store import Item

__all__ = ["Inbox"]

logger = logging.getLogger(__name__)


class Inbox:
    """What a group has handled lately."""

    def __init__(self, records: LazyRecords, group: str, window: float, prefix: str, count: Callable[[], None]) -> None:
        """Use an open store.

        Args:
            records: Shared by the members of the group.
            group: The group and its topic.
            window: Seconds for which a handled event is remembered.
            prefix: Of CloudEvents attributes in headers.
            count: Counts a duplicate.
        """
        self._records = records
        self._group = group
        self._window = window
        self._source, self._id = f"{prefix}source", f"{prefix}id"
        self._count = count
        self._told = False

    async def attempt(self, message: Message, by: str, call: Callable[[], Awaitable[Attempt]]) -> Attempt:
        """Handle an event, unless that was done.

        Args:
            message: The event.
            by: Who has proven to publish it; empty = nobody.
            call: Handles it.
        """
        key = self._key(message, by)
        if key is None:
            return await call()
        try:
            found = await self._records.get(key)
        except RecordsMissingError as error:
            if not self._told:  # Until there is one nothing of this topic is handled.
                self._told = True
                logger.warning("%s: no event can be handled: %s", self._group, error)
            raise
        if found is not None:
            self._count()
            return SUCCESS
        attempt = await call()
        if attempt.outcome is Outcome.SUCCESS:
            try:
                await self._records.write([Item(key, b"", ttl=self._window)])
            except MeshError as error:
                # The application has said yes: asking it again is what this is here to avoid.
                logger.warning("%s: a handled event was not noted, and may be handled again: %s", self._group, error)
        return attempt

    def _key(self, message: Message, by: str) -> str | None:
        """Identify an event; None when it has no identity."""
        source, event_id = message.headers.get(self._source), message.headers.get(self._id)
        if source is None or event_id is None:
            try:
                members = orjson.loads(message.body)
                source, event_id = members["source"], members["id"]
            except (orjson.JSONDecodeError, KeyError, TypeError):
                return None
        parts = self._group, source, event_id, *([by] if by else [])
        return hashlib.blake2s("\0".join(map(str, parts)).encode(), digest_size=20).hexdigest()
