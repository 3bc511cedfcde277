"""Sweeps: they take the markers of a bucket away, with all that lies before them in the server's files.

A marker cannot be taken away alone: its subject's earlier messages are in the files yet, and a server that is killed
reads those anew. So what lives is written once more, behind everything, and then all before that is purged. ADR 53.
"""

from __future__ import annotations

import asyncio
import logging
import math
import random
import time
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from typing import cast

from brokers.nats._client import Connection, unix_time
from brokers.nats._errors import JSON, RightMissingError, StoreRefusedError
from brokers.nats._scan import Found, Scanner
from mesh.errors import BrokerError, StateError
from mesh.tasks import task_group

__all__ = [
    "EXPECTED",
    "EXPIRES",
    "IN_FLIGHT",
    "MARKER",
    "REVISION",
    "WRONG_LAST_SEQUENCE",
    "Sweeper",
    "is_marker",
    "revision_of",
]

logger = logging.getLogger("brokers.nats")

LOOK_AFTER = 5_000  # Keys that this node has deleted, or given a time to live.
SWEEP_FROM = 10_000  # Markers; fewer are not worth it.
# Longer than servers take to sync, which is two minutes as they come: else a loss of power would take what is written
# once more, and the purge what was there before it.
SYNC_WAIT = 150.0
STEP_WAIT = 30.0
PURGE_WAIT = 30.0
# Until what failed is tried again, ever longer, for each try writes what lives once more; the second is the longest.
# That long it waits for a right as well, whose lack is found out before anything is written.
AGAIN_SECONDS = 600.0, 6 * 3600.0
CLAIM_SECONDS = 300.0
SAMPLE = 100
LISTED = 100_000  # Subjects that the server gives at once.
PAGE = 50  # Each may have a megabyte.
PARALLEL = 10
PAUSE = 0.02
# A purge removes whole files, and of the one in which it ends it may keep what is superseded. So in that one there is
# nothing but filling before where it ends: this is longer than a file, which has 8 MiB at most, and one batch.
FILLING_BYTES = 16 * 1024 * 1024
FILLING_ROOM = 1024
IN_FLIGHT = 10164  # A member of a cluster is storing another message of the subject.
WRONG_LAST_SEQUENCE = (10071, IN_FLIGHT)
EXPECTED = "Nats-Expected-Last-Subject-Sequence"
EXPIRES = "Mesh-Expires"
REVISION = "Mesh-Revision"
# It never expires: a server that is killed reads its files anew, and would take what was before a marker that is gone
# for the last one again. So it is with what expires, after which the server leaves a marker.
MARKER = {"KV-Write": "DEL"}
_MARKERS = (*MARKER, "Nats-Marker-Reason")


def is_marker(headers: Mapping[str, str]) -> bool:
    """Tell what stands for a key that was deleted, or has expired."""
    return any(each in headers for each in _MARKERS)


def revision_of(sequence: int, headers: Mapping[str, str]) -> int:
    """Give the sequence that a message had before any sweep: under that, its readers know it."""
    return _number(headers.get(REVISION, "")) or sequence


def _number(text: str) -> int:
    return int(text) if text.isascii() and text.isdigit() and len(text) < 20 else 0


class Sweeper:
    """Sweeps one bucket, when it is worth it; any number may do so at once, and while others write."""

    def __init__(
        self, connection: Connection, stream: str, space: str, read_leader: Callable[[str], Awaitable[Found | None]]
    ) -> None:
        """Prepare.

        Args:
            connection: To the server.
            stream: The bucket's.
            space: What its subjects begin with; ends in a dot.
            read_leader: Reads a subject from the leader.
        """
        self.dead = LOOK_AFTER  # Keys of which this node has made markers, or the server will; earlier nodes have, too.
        self._connection = connection
        self._stream = stream
        self._space = space
        self._claim = f"{space}$sweep"  # No key's subject has such a letter.
        self._nothing = f"{space}$nothing"
        self._read_leader = read_leader
        self._scanner = Scanner(connection, stream, read_leader)
        self._not_before = -math.inf
        self._pause = AGAIN_SECONDS[0]

    async def sweep_if_due(self) -> None:
        """Sweep, if this node has made some markers since it looked, and there are many; what fails is logged."""
        due = self.dead >= LOOK_AFTER and time.monotonic() >= self._not_before
        if not due or not self._connection.connected.is_set():
            return
        try:
            await self.sweep(SWEEP_FROM)
        except (BrokerError, StateError, TimeoutError, ValueError) as error:
            pause = AGAIN_SECONDS[1] if isinstance(error, RightMissingError) else self._pause
            self.dead, self._not_before = LOOK_AFTER, time.monotonic() + pause
            self._pause = min(2 * self._pause, AGAIN_SECONDS[1])
            why = f"{str(error) or 'no answer in time'}; it is tried again in {pause / 60:.0f} minutes"
            logger.warning("cannot sweep %s on NATS at %s: %s", self._stream, self._connection.shown, why)
        else:
            self._pause = AGAIN_SECONDS[0]

    async def sweep(self, least: int = 1) -> int:
        """Take away markers, unless more keys live, or another node does it; give how many messages were purged.

        Args:
            least: How many markers there must be, by a sample.

        Raises:
            BrokerError: The server refused (``RightMissingError``: to purge, and nothing was done).
            StateError: It cannot be read now.
            TimeoutError: No answer came.
        """
        async with asyncio.timeout(STEP_WAIT):
            if not await self._mostly_dead(least):
                self.dead = 0
                return 0
            await self._purge({"filter": self._nothing})
            if not await self._claimed():
                return 0
            self.dead = 0
            before = await self._fill()
            ahead = unix_time(cast("str", (await self._info({}))["ts"])) - time.monotonic()
        await self._each(lambda subject, found: self._renew(subject, found, before, ahead))
        await asyncio.sleep(SYNC_WAIT)
        async with asyncio.timeout(STEP_WAIT):
            if cast("JSON", (await self._info({}))["state"])["last_seq"] < before:  # type: ignore[operator]
                raise StateError("it has lost what was stored")
        await self._each(lambda subject, found: self._check(subject, found, before))
        # Nothing but markers is before it, and never again, for sequences only rise.
        return await self._purge({"seq": before})

    async def _info(self, request: JSON) -> JSON:
        answer = await self._connection.api(f"STREAM.INFO.{self._stream}", request)
        if "error" in answer:
            raise StateError(f"cannot read the keys: {cast('JSON', answer['error']).get('description')}")
        return answer

    async def _mostly_dead(self, least: int) -> bool:
        """Look at some of the keys, wherever they stand."""
        count = cast("int", cast("JSON", (await self._info({}))["state"]).get("num_subjects", 0))
        if count < least:
            return False
        request: JSON = {
            "subjects_filter": f"{self._space}>",
            "offset": random.randrange(max(1, count - LISTED)),  # noqa: S311 - a sample
        }
        state = cast("JSON", (await self._info(request))["state"])
        subjects = list(cast("Mapping[str, int]", state.get("subjects") or {}))
        sample = random.sample(subjects, min(SAMPLE, len(subjects)))
        dead = 0
        for start in range(0, len(sample), PAGE):
            found = await self._scanner.read(sample[start : start + PAGE], cast("int", state["last_seq"]))
            dead += sum(is_marker(headers) for _, headers, _ in found.values())
        return 2 * dead > len(sample) and count * dead >= least * len(sample)

    async def _claimed(self) -> bool:
        """Tell the others, by a marker that says until when; for the sake of the work alone."""
        found, now = await self._read_leader(self._claim), time.time()
        if found is not None and now * 1000 < _number(found[1].get(EXPIRES, "")) < (now + CLAIM_SECONDS) * 1000:
            return False
        return await self._stored(self._claim, b"", self._claiming(), 0 if found is None else found[0])

    def _claiming(self) -> dict[str, str]:
        return {**MARKER, EXPIRES: str(int((time.time() + CLAIM_SECONDS) * 1000))}

    async def _fill(self) -> int:
        """Write what fills a file, and give where it ends; the last message stays, so that no stream is ever empty."""
        body = bytes(min(self._connection.client.max_payload, 1024 * 1024) - FILLING_ROOM)
        count = FILLING_BYTES // len(body) + 1
        messages = [(self._claim, body, self._claiming())] * count
        return await self._connection.store_batch([*messages, (self._claim, b"", self._claiming())])

    async def _stored(self, subject: str, value: bytes, headers: Mapping[str, str], sequence: int) -> bool:
        """Store a message, unless its subject is at another sequence."""
        try:
            await self._connection.store(subject, value, {**headers, EXPECTED: str(sequence)})
        except StoreRefusedError as error:
            if error.err_code not in WRONG_LAST_SEQUENCE:
                raise
            return False
        return True

    async def _each(self, work: Callable[[str, Found], Coroutine[None, None, None]]) -> None:
        """Do something with each key's last message."""
        place: str | None = ""
        while place is not None:
            async with asyncio.timeout(STEP_WAIT):
                messages, place = await self._scanner.scan(self._space, place, PAGE)
                for start in range(0, len(messages), PARALLEL):
                    async with task_group() as tasks:
                        for subject, message in messages[start : start + PARALLEL]:
                            tasks.create_task(work(subject, message), name="nats-sweep")
            await asyncio.sleep(PAUSE)

    async def _renew(self, subject: str, message: Found, before: int, ahead: float) -> None:
        """Write a message once more that is before a sequence, until it is behind it, or gone.

        A replica is believed: it has all that was there before the list, and the condition is the leader's.
        """
        found: Found | None = message
        while found is not None and not is_marker(found[1]) and found[0] < before:
            sequence, headers, value = found
            kept = {REVISION: str(revision_of(sequence, headers))}
            if EXPIRES in headers:
                kept[EXPIRES] = headers[EXPIRES]
            if "Nats-TTL" in headers:  # By the server's clock alone, so that a lease keeps its time.
                until = unix_time(headers["Nats-Time-Stamp"]) + int(headers["Nats-TTL"].removesuffix("s"))
                kept["Nats-TTL"] = f"{max(1, math.ceil(until - time.monotonic() - ahead))}s"
            if await self._stored(subject, value, kept, sequence):
                return
            found = await self._read_leader(subject)

    async def _check(self, subject: str, message: Found, before: int) -> None:
        if not is_marker(message[1]) and message[0] < before:
            raise StateError(f"{subject} is not where it was written")

    async def _purge(self, what: JSON) -> int:
        subject = f"STREAM.PURGE.{self._stream}"
        async with asyncio.timeout(PURGE_WAIT):
            answer = await self._connection.api(subject, what, refusable=True)
        if "error" in answer:
            raise StateError(f"{subject}: {cast('JSON', answer['error']).get('description')}")
        return cast("int", answer["purged"])
