"""What adapters to state stores behind a network have in common: many writes at once, and TLS from texts."""

from __future__ import annotations

import asyncio
import re
import ssl
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import ClassVar

from mesh.adapter import ComponentAdapter
from mesh.errors import ConflictError, MeshError, OutcomeUnknownError, StateError, StateLimitError
from mesh.store import Concurrency, Item, StateStore

__all__ = [
    "PARALLEL",
    "RemoteStateStore",
    "conditional",
    "conflict",
    "merged",
    "must_be_absent",
    "parse_hosts",
    "tls_context",
    "uncertain",
]

PARALLEL = 16


class RemoteStateStore(ComponentAdapter, StateStore):
    """A store whose writes are requests to a server.

    Attributes:
        tested: Against what, one sentence for its reference page.
        batch: Most items without conditions that `write_batch` takes.
        batch_bytes: Most bytes of keys and values in it, unless it is one item.
    """

    batch: int = 1
    batch_bytes: ClassVar[int] = 1024 * 1024

    async def write_batch(self, items: Sequence[Item]) -> None:
        """Write items without conditions whose keys differ; part of them may be written when it fails."""
        await self.write(items)

    async def save_each(self, items: Sequence[Item]) -> Sequence[MeshError | None]:
        """Write each for itself, several at once; one that fails does not keep the others from being tried."""
        results: list[MeshError | None] = [None] * len(items)

        async def work(waiting: Iterator[list[int]]) -> None:
            for indexes in waiting:
                for index, error in zip(indexes, await self._tried([items[each] for each in indexes]), strict=True):
                    results[index] = error

        for indexes in _rounds(items):
            batches = list(self._batches(items, indexes))
            waiting = iter(batches)
            async with asyncio.TaskGroup() as tasks:
                for _ in range(min(PARALLEL, len(batches))):
                    tasks.create_task(work(waiting), name="state-save-each")
        return results

    async def _tried(self, items: Sequence[Item]) -> Sequence[MeshError | None]:
        try:
            await (self.write(items) if len(items) == 1 else self.write_batch(items))
        except StateLimitError as error:
            if len(items) == 1:
                return [error]
            return [each for item in items for each in await self._tried([item])]  # One of them is at fault.
        except MeshError as error:
            return [error] * len(items)
        return [None] * len(items)

    def _batches(self, items: Sequence[Item], indexes: Sequence[int]) -> Iterator[list[int]]:
        batch: list[int] = []
        size = 0
        for index in indexes:
            item = items[index]
            if conditional(item):
                yield [index]
                continue
            length = len(item.key) + len(item.value or b"")
            if batch and (len(batch) >= self.batch or size + length > self.batch_bytes):
                yield batch
                batch, size = [], 0
            batch.append(index)
            size += length
        if batch:
            yield batch


def _rounds(items: Sequence[Item]) -> list[list[int]]:
    """Split into runs of items whose keys differ, so that equal keys are written in order."""
    rounds: list[list[int]] = []
    times: dict[str, int] = {}
    for index, item in enumerate(items):
        turn = times[item.key] = times.get(item.key, -1) + 1
        if turn == len(rounds):
            rounds.append([])
        rounds[turn].append(index)
    return rounds


def must_be_absent(item: Item) -> bool:
    """Tell whether a key must have no value for an item to be written."""
    first = item.concurrency is Concurrency.FIRST_WRITE and item.value is not None
    return item.etag is None and (item.check or first)


def conditional(item: Item) -> bool:
    """Tell whether an item is written under a condition."""
    return item.check or item.etag is not None or must_be_absent(item)


def merged(items: Sequence[Item]) -> dict[str, tuple[list[Item], Item | None]]:
    """Give for each key those items that set conditions, and the one that is written; None = it is only checked."""
    by_key: dict[str, tuple[list[Item], Item | None]] = {}
    for item in items:
        conditions, written = by_key.get(item.key, ([], None))
        if conditional(item):
            conditions = [*conditions, item]
        by_key[item.key] = (conditions, written if item.check else item)
    return by_key


def conflict(items: Sequence[Item]) -> ConflictError:
    """Make the error for conditions of which one does not hold."""
    guarded = [item for item in items if conditional(item)]
    if len(guarded) != 1:
        return ConflictError("a key has not the etag that it must have, or has a value already")
    (item,) = guarded
    if item.etag is None:
        return ConflictError(f"key {item.key!r} has a value already")
    return ConflictError(f"key {item.key!r} has not the etag {item.etag}")


def uncertain(error: StateError, items: Sequence[Item]) -> StateError:
    """Make the error of a write whose answer did not come: with a condition it would conflict with itself."""
    if any(conditional(item) for item in items):
        return OutcomeUnknownError(f"{error}; whether it was written is unknown")
    return error


def parse_hosts(text: str) -> tuple[tuple[str, int | None], ...]:
    """Read hosts with commas between, each with a port or without one.

    Raises:
        ValueError: It is something else; nothing of it is quoted, for it may hold a password.
    """
    found = []
    for each in text.split(","):
        matched = re.fullmatch(r"(?:\[([^\]\s]+)\]|([^\s:/@]+))(?::([0-9]{1,5}))?", each.strip())
        if matched is None or (matched[3] and not 0 < int(matched[3]) < 65536):
            raise ValueError("is host:port, or several with commas between, without credentials")
        found.append((matched[1] or matched[2], int(matched[3]) if matched[3] else None))
    return tuple(found)


def tls_context(ca: str | None, certificate: str | None, key: str | None) -> ssl.SSLContext:
    """Make a context of PEM texts.

    Raises:
        ValueError: One of them cannot be used.
    """
    try:
        made = ssl.create_default_context(cadata=ca)
        if certificate and key:
            with tempfile.NamedTemporaryFile("w") as file:  # The ssl module reads a key from a file only.
                file.write(f"{certificate.strip()}\n{key.strip()}\n")
                file.flush()
                made.load_cert_chain(Path(file.name), password=_no_password)
    except (OSError, ValueError) as error:
        raise ValueError(f"the certificates or the key cannot be used: {error}") from error
    return made


def _no_password() -> str:
    raise ValueError("the key is encrypted")  # Asking at the terminal would block.
