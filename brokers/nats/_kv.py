"""Key/value on a stream with one message per subject."""

from __future__ import annotations

import asyncio
import base64
import itertools
import math
import secrets
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from functools import lru_cache
from typing import cast

from msgspec.structs import replace

from brokers.nats._client import JSON, Connection, StoreRefusedError, check_api
from brokers.nats._scan import Found, Scanner
from brokers.nats._sweep import (
    EXPECTED,
    EXPIRES,
    IN_FLIGHT,
    MARKER,
    REVISION,
    WRONG_LAST_SEQUENCE,
    Sweeper,
    is_marker,
    revision_of,
)
from mesh.address import decode_token, encode_token
from mesh.broker import Entry, Write
from mesh.errors import ConflictError, MeshError, StateError, StateLimitError
from mesh.key_value import check_key, check_path, check_prefix
from mesh.tasks import task_group

__all__ = ["NatsKeyValue"]

MAX_OPERATIONS = 1000
HEADER_ROOM_BYTES = 512
PAGE_KEYS = 100
IN_FLIGHT_WAIT = 0.005
CHECKED_KEYS = 1024  # What stands in a condition stands in many, as fences do: its subject is remembered.
EXPECTED_OF = f"{EXPECTED}-Subject"


class NatsKeyValue:
    """One bucket."""

    max_operations = MAX_OPERATIONS
    alone = True

    def __init__(self, connection: Connection, bucket: str, *, dotted: bool = False) -> None:
        """Open a bucket whose stream exists."""
        self.dotted = dotted
        self._connection = connection
        self._stream = f"KV_{bucket}"
        self._prefix = f"$KV.{bucket}."
        self._id, self._numbers = f"{secrets.token_hex(12)}-", itertools.count()
        self._checked = lru_cache(CHECKED_KEYS)(self._subject)
        self._scanner = Scanner(connection, self._stream, self._read_subject)
        self.sweeper = Sweeper(connection, self._stream, self._prefix, self._read_subject)

    def _subject(self, key: str) -> str:
        if self.dotted:
            check_path(key)
            return self._prefix + key
        check_key(key)
        return self._prefix + encode_token(key)

    async def get(self, key: str, *, strong: bool = False) -> Entry | None:
        """Read a key: from any replica, or ``strong`` from the leader."""
        found = await (self._read_leader(key) if strong else self._read_any(key))
        return None if found is None else _entry(found)

    async def get_many(self, keys: Sequence[str]) -> Sequence[Entry | None]:
        """Read several in few round trips, as strongly as from the leader."""
        subjects = [self._subject(key) for key in keys]
        found = await self._scanner.read_many(subjects)
        return [None if (message := found.get(subject)) is None else _entry(message) for subject in subjects]

    async def _read_any(self, key: str) -> Found | None:
        answer = await self._connection.call(f"$JS.API.DIRECT.GET.{self._stream}.{self._subject(key)}", b"")
        if answer.status == "404":
            return None
        if answer.status == "503":  # No replica answers yet; the leader is waited for.
            return await self._read_leader(key)
        if answer.status is not None:
            raise StateError(f"cannot read key {key!r}: {answer.headers.get('Description', answer.status)}")
        return int(answer.headers["Nats-Sequence"]), answer.headers, answer.body

    async def _read_leader(self, key: str) -> Found | None:
        return await self._read_subject(self._subject(key))

    async def _read_subject(self, subject: str) -> Found | None:
        """Read from the leader."""
        answer = await self._connection.api(f"STREAM.MSG.GET.{self._stream}", {"last_by_subj": subject})
        if "error" in answer:
            error = cast("JSON", answer["error"])
            if error.get("code") == 404:
                return None
            raise StateError(f"cannot read key {self._key(subject)!r}: {error.get('description')}")
        message = cast("dict[str, str]", answer["message"])
        lines = base64.b64decode(message.get("hdrs", "")).decode().split("\r\n")[1:]
        headers = {name: value.strip() for name, _, value in (line.partition(":") for line in lines) if name}
        headers["Nats-Time-Stamp"] = message["time"]
        return int(message["seq"]), headers, base64.b64decode(message.get("data", ""))

    async def apply(self, operations: Sequence[Write]) -> None:
        """Write; several go as one atomic batch."""
        if len(operations) > MAX_OPERATIONS:
            raise StateLimitError(f"a transaction has at most {MAX_OPERATIONS} operations, this one {len(operations)}")
        limit = self._connection.client.max_payload - HEADER_ROOM_BYTES
        for operation in operations:
            if operation.value is not None and len(operation.value) > limit:
                raise StateLimitError(f"the value of key {operation.key!r} is over the limit of {limit} bytes")
        if not operations:
            return
        if len(operations) > 1 and not _is_guarded(operations):
            operations = _folded(operations)
        tried = operations
        while True:
            try:
                await self._write(tried)
                break
            except ConflictError as error:
                repaired = await self._repaired(operations)
                if repaired == list(tried):
                    if cast("StoreRefusedError", error.__cause__).err_code != IN_FLIGHT:
                        raise
                    await asyncio.sleep(IN_FLIGHT_WAIT)  # What it is, and whether it conflicts, is known soon.
                tried = repaired
        self.sweeper.dead += sum([each.value is None or each.ttl is not None for each in operations if not each.check])

    async def apply_guarded(self, operations: Sequence[tuple[Write, Write]]) -> Sequence[MeshError | None]:
        """Do each write if what is checked beside it holds; each is a message, and all are on their way at once."""
        results: list[MeshError | None] = [None] * len(operations)

        async def apply(place: int) -> None:
            try:
                await self.apply(operations[place])
            except MeshError as error:
                results[place] = error

        async with task_group() as tasks:
            for place in range(len(operations)):
                tasks.create_task(apply(place), name="nats-write-guarded")
        return results

    async def _repaired(self, operations: Sequence[Write]) -> list[Write]:
        """Expect what a revision stands for now: 0 for a marker, since no key is there, another for what was swept."""
        subjects = [self._subject(each.key) for each in operations]
        asked = [subject for subject, each in zip(subjects, operations, strict=True) if each.expected is not None]
        found = await self._scanner.from_leader(asked)
        return [_repair(each, found.get(subject)) for subject, each in zip(subjects, operations, strict=True)]

    async def _write(self, operations: Sequence[Write]) -> None:
        messages = self._messages(operations)
        try:
            if len(messages) == 1:
                subject, value, headers = messages[0]
                headers["Nats-Msg-Id"] = f"{self._id}{next(self._numbers)}"
                await self._connection.store(subject, value, headers)
                return
            await self._connection.store_batch(messages)
        except StoreRefusedError as error:
            if error.err_code in WRONG_LAST_SEQUENCE:
                which = f"key {operations[0].key!r}" if len(operations) == 1 else "a key of the transaction"
                raise ConflictError(f"{which} is at another revision") from error
            raise StateError(str(error)) from error

    def _messages(self, operations: Sequence[Write]) -> list[tuple[str, bytes, dict[str, str]]]:
        """Make the messages of writes: what is only checked rides on a write without a condition, or on a marker."""
        if _is_guarded(operations):  # As nearly all are.
            write, check = operations
            headers = self._headers(write)
            headers[EXPECTED], headers[EXPECTED_OF] = str(check.expected or 0), self._checked(check.key)
            return [(self._subject(write.key), write.value or b"", headers)]
        writes = [
            (self._subject(each.key), each.value or b"", self._headers(each)) for each in operations if not each.check
        ]
        free = [headers for _, _, headers in writes if EXPECTED not in headers]
        for number, check in enumerate(each for each in operations if each.check):
            condition = {EXPECTED: str(check.expected or 0), EXPECTED_OF: self._subject(check.key)}
            if free:
                free.pop().update(condition)
            else:
                marker = f"{self._prefix}{encode_token(f'mesh.check.{number}')}"
                writes.append((marker, b"", {**condition, **MARKER}))
        return writes

    def _headers(self, operation: Write) -> dict[str, str]:
        headers: dict[str, str] = {}
        if operation.expected is not None:
            headers[EXPECTED] = str(operation.expected)
        if operation.value is None:
            headers |= MARKER
        elif operation.ttl is not None:
            headers["Nats-TTL"] = f"{max(1, math.ceil(operation.ttl))}s"
            if not operation.lease:
                headers[EXPIRES] = str(int((time.time() + operation.ttl) * 1000))
        return headers

    async def keys(self, prefix: str = "") -> AsyncIterator[str]:
        """Iterate over live keys; reads each, so this is for tools, not for the hot path."""
        filter_subject = f"{self._prefix}>"
        offset = 0
        while True:
            request: JSON = {"subjects_filter": filter_subject, "offset": offset}
            info = check_api(await self._connection.api(f"STREAM.INFO.{self._stream}", request), self._stream)
            state = cast("JSON", info["state"])
            subjects = cast("dict[str, int]", state.get("subjects") or {})
            wanted = [each for each in sorted(subjects) if self._key(each).startswith(prefix)]
            for start in range(0, len(wanted), PAGE_KEYS):
                page = wanted[start : start + PAGE_KEYS]
                found = await self._scanner.read(page, cast("int", state["last_seq"]))
                for subject in page:
                    if (message := found.get(subject)) is not None and _entry(message) is not None:
                        yield self._key(subject)
            offset += len(subjects)
            if not subjects or offset >= cast("int", info.get("total", 0)):
                return

    def _key(self, subject: str) -> str:
        name = subject[len(self._prefix) :]
        return name if self.dotted else decode_token(name)

    async def scan(self, prefix: str, after: str, limit: int) -> Sequence[tuple[str, Entry]]:
        """List live keys below a path in order, with their values: by the leader's list, which markers are in, too."""
        check_prefix(prefix, dotted=self.dotted)
        found: list[tuple[str, Entry]] = []
        place: str | None = self._prefix + after if after else ""
        while place is not None and (wanted := limit - len(found)) > 0:
            messages, place = await self._scanner.scan(self._prefix + prefix, place, wanted)
            for subject, message in messages:
                if (entry := _entry(message)) is not None:
                    found.append((self._key(subject), entry))
        return found


def _is_guarded(operations: Sequence[Write]) -> bool:
    """Tell whether they are a write without a condition, and what is only checked beside it."""
    if len(operations) != 2:
        return False
    write, check = operations
    return check.check and not write.check and write.expected is None and write.key != check.key


def _folded(operations: Sequence[Write]) -> Sequence[Write]:
    """Make one write of those of a key: its conditions are of what was there before, and its last value counts.

    NATS refuses a batch in which a subject that is written already has a condition.
    """
    folded: dict[str, Write] = {}
    for each in operations:
        before = folded.setdefault(each.key, each)
        if before is each:
            continue
        if None not in (before.expected, each.expected) and before.expected != each.expected:
            raise ConflictError(f"key {each.key!r} is not at two revisions")
        expected = before.expected if each.expected is None else each.expected
        folded[each.key] = replace(before if each.check else each, expected=expected)
    return list(folded.values())


def _repair(operation: Write, found: Found | None) -> Write:
    if found is None or operation.expected is None:
        return operation
    sequence, headers, _ = found
    same = _is_gone(headers) if operation.expected == 0 else headers.get(REVISION) == str(operation.expected)
    return replace(operation, expected=sequence) if same else operation


def _entry(found: Found) -> Entry | None:
    sequence, headers, value = found
    if _is_gone(headers):
        return None
    expires = headers.get(EXPIRES)
    return Entry(value, revision_of(sequence, headers), None if expires is None else int(expires) / 1000)


def _is_gone(headers: Mapping[str, str]) -> bool:
    """Tell a deleted key, or one whose time is over: NATS expires by whole seconds, some time later."""
    if is_marker(headers):
        return True
    expires = headers.get(EXPIRES)
    return expires is not None and int(expires) <= time.time() * 1000
