"""Scans of a stream with one message per subject: by the leader's list of subjects, read in batches by any replica."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import cast

import orjson

from brokers.nats._client import Answer, Connection
from brokers.nats._errors import JSON
from mesh.errors import StateError
from mesh.tasks import task_group

__all__ = ["Scanner"]

BATCH_KEYS = 1000  # A server reads 1,024 at once.
BATCH_BYTES = 4 * 1024 * 1024
LAG_TRIES = 20
LAG_WAIT = 0.02
PARALLEL = 100
KEPT_LISTS = 4
KEEP_SECONDS = 10.0

Found = tuple[int, Mapping[str, str], bytes]
"""Sequence, headers and value of a message."""


@dataclass(slots=True)
class _Listed:
    """Subjects in order that the leader has listed: some tens of thousands at most.

    Attributes:
        subjects: Those that were not read; the next one is the last.
        sequence: What the leader had stored by then, at least.
        offset: How many there are before the next list; None = this is the last one.
    """

    subjects: list[str]
    sequence: int
    offset: int | None


class Scanner:
    """Scans one stream.

    Nothing but the leader's list has every subject in order, and it takes the longer the more match. So what a page
    has left of one is kept for the next page, for a few seconds.
    """

    def __init__(
        self, connection: Connection, stream: str, read_leader: Callable[[str], Awaitable[Found | None]]
    ) -> None:
        """Prepare.

        Args:
            connection: To the server.
            stream: Its name.
            read_leader: Reads a subject from the leader.
        """
        self._connection = connection
        self._stream = stream
        self._read_leader = read_leader
        self._left: dict[tuple[str, str], _Listed] = {}

    async def scan(self, space: str, after: str, limit: int) -> tuple[list[tuple[str, Found]], str | None]:
        """Read the next messages in order of their subjects, with the markers of those that were deleted.

        Args:
            space: Subjects that begin with it, which ends in a dot.
            after: Subject behind which it begins; empty for the first.
            limit: The most messages.

        Returns:
            The messages, and the ``after`` that goes on; None where there is nothing more.
        """
        listed = self._left.pop((space, after), None) if after else None
        if listed is None:
            listed = await self._list(space, after, 0)
        elif not listed.subjects and listed.offset is not None:
            listed = await self._list(space, after, listed.offset)
        wanted = self._batch(listed.subjects, limit)
        found = await self.read(wanted, listed.sequence) if wanted else {}
        messages = [(subject, message) for subject in wanted if (message := found.get(subject)) is not None]
        if not listed.subjects and listed.offset is None:
            return messages, None
        self._keep((space, wanted[-1]), listed)
        return messages, wanted[-1]

    def _batch(self, subjects: list[str], limit: int) -> list[str]:
        """Take off the last ones of a list, as many as go into one request."""
        taken: list[str] = []
        room = self._connection.client.max_payload // 2
        while subjects and len(taken) < min(limit, BATCH_KEYS) and room > 0:
            taken.append(subjects.pop())
            room -= len(taken[-1]) + 3
        return taken

    def _keep(self, place: tuple[str, str], listed: _Listed) -> None:
        while len(self._left) >= KEPT_LISTS:
            del self._left[next(iter(self._left))]
        self._left[place] = listed
        asyncio.get_running_loop().call_later(KEEP_SECONDS, self._forget, place, listed)

    def _forget(self, place: tuple[str, str], listed: _Listed) -> None:
        if self._left.get(place) is listed:
            del self._left[place]

    async def _list(self, space: str, after: str, offset: int) -> _Listed:
        """Ask the leader for the subjects behind one.

        A list that is too long comes in parts, each of its own moment. A part that begins at or before ``after`` has
        all that is behind it.
        """
        while True:
            request: JSON = {"subjects_filter": f"{space}>", "offset": offset}
            answer = await self._info(request)
            state = cast("JSON", answer["state"])
            sequence = cast("int", state["last_seq"])
            subjects = sorted(cast("Mapping[str, int]", state.get("subjects") or {}), reverse=True)
            if offset and (not subjects or subjects[-1] > after):  # Some before it were deleted meanwhile.
                offset = 0
                continue
            end = offset + len(subjects)
            more = bool(subjects) and end < cast("int", answer.get("total", 0))
            if more and subjects[0] <= after:
                offset = end - 1
                continue
            behind = [each for each in subjects if each > after]
            return _Listed(behind, sequence, end - 1 if more else None)

    async def _info(self, request: JSON) -> JSON:
        answer = await self._connection.api(f"STREAM.INFO.{self._stream}", request)
        if "error" in answer:
            raise StateError(f"cannot read the keys: {cast('JSON', answer['error']).get('description')}")
        return answer

    async def read_many(self, subjects: Sequence[str]) -> Mapping[str, Found]:
        """Read the last messages of subjects, as the leader has them now or later."""
        sequence = cast("int", cast("JSON", (await self._info({}))["state"])["last_seq"])
        waiting, found = list(dict.fromkeys(subjects)), dict[str, Found]()
        while waiting:
            found.update(await self.read(self._batch(waiting, BATCH_KEYS), sequence))
        return found

    async def read(self, subjects: Sequence[str], sequence: int) -> Mapping[str, Found]:
        """Read the last messages of up to ``BATCH_KEYS`` subjects, from a replica that has as much as the leader had.

        Args:
            subjects: Without wildcards.
            sequence: What the replica must have.
        """
        waiting, found = dict.fromkeys(subjects), dict[str, Found]()
        lagging = 0
        while waiting and lagging < LAG_TRIES:
            request = {"multi_last": list(waiting), "batch": len(waiting), "max_bytes": BATCH_BYTES}
            messages, end = await self._connection.gather(f"$JS.API.DIRECT.GET.{self._stream}", orjson.dumps(request))
            if end.status != "204":
                break  # It has none of them, or cannot answer: the leader knows.
            if int(end.headers["Nats-UpTo-Sequence"]) < sequence:
                lagging += 1
                await asyncio.sleep(LAG_WAIT)
                continue
            for each in messages:
                subject = each.headers["Nats-Subject"]
                found[subject] = _found(each)
                waiting.pop(subject, None)
            if not messages or end.headers["Nats-Num-Pending"] == "0":
                break
        # What was overwritten while the replica read is left out by it, like what is gone.
        found.update(await self.from_leader(list(waiting)))
        return found

    async def from_leader(self, subjects: Sequence[str]) -> Mapping[str, Found]:
        """Read the last messages of subjects, one by one, some at once."""
        found: dict[str, Found] = {}
        waiting = iter(subjects)

        async def read() -> None:
            for subject in waiting:
                if (message := await self._read_leader(subject)) is not None:
                    found[subject] = message

        async with task_group() as tasks:
            for _ in range(min(PARALLEL, len(subjects))):
                tasks.create_task(read(), name="nats-scan")
        return found


def _found(answer: Answer) -> Found:
    return int(answer.headers["Nats-Sequence"]), answer.headers, answer.body
