"""A recording: a file of CloudEvents, one JSON object a line, as the tap's HTTP route gives them.

The first line says what was recorded, where ``mesh record`` wrote it. A file of other lines alone is one, too, and so
are several of them one after the other.
"""

from __future__ import annotations

import datetime
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Self

import orjson

from mesh.errors import ConfigError, EventError, Problem
from mesh.event import new_id
from mesh.tap.sight import Sight
from mesh.tap.wire import DROPPED, RECORDING, sight_of

__all__ = ["MAX_LINE_BYTES", "Recorded", "Recording", "beginning"]

MAX_LINE_BYTES = 16 * 1024 * 1024


def beginning(namespace: str, since: float, asked: Mapping[str, object]) -> dict[str, Any]:
    """Make the first line of a recording.

    Args:
        namespace: Of the mesh.
        since: When it began, Unix time in seconds.
        asked: The filter by the names of the tap's parameters.
    """
    at = datetime.datetime.fromtimestamp(since, datetime.UTC).isoformat().replace("+00:00", "Z")
    return {
        "specversion": "1.0",
        "id": new_id(),
        "source": f"/{namespace}",
        "type": RECORDING,
        "time": at,
        "datacontenttype": "application/json",
        "data": {"namespace": namespace, "since": at, "filter": dict(asked)},
    }


@dataclass(frozen=True, slots=True)
class Recorded:
    """A line of a recording that is a sight.

    Attributes:
        line: Its number, from 1.
        at: Where it begins in the file, in bytes.
        event: It, as the CloudEvent that it is.
        sight: It, read.
    """

    line: int
    at: int
    event: Mapping[str, Any]
    sight: Sight

    @property
    def began(self) -> float:
        """When what was seen began, Unix time in seconds."""
        return self.sight.time - self.sight.seconds


class Recording:
    """A recording's file, open to be read; close it, or use it as a context manager.

    Attributes:
        dropped: How many sights its lines say are not in it, of those that were read.
        cut: Whether its last line has no end, as of a recording that was broken off; it is left out.
    """

    def __init__(self, path: Path) -> None:
        """Open it.

        Raises:
            ConfigError: It cannot be read.
        """
        self._name = str(path)
        self.dropped, self.cut = 0, False
        try:
            self._file: BinaryIO = path.open("rb")
        except OSError as error:
            raise ConfigError(f"{path}: {error.strerror}") from error

    def __enter__(self) -> Self:
        """Give it."""
        return self

    def __exit__(self, *exc_info: object) -> None:
        """Close it."""
        self._file.close()

    def __iter__(self) -> Iterator[Recorded]:
        """Iterate over its sights from the beginning, in the order of their ends.

        Raises:
            ConfigError: A line is none of a recording; names file, line and field.
        """
        self._file.seek(0)
        self.dropped, at, number = 0, 0, 0
        while line := self._file.readline(MAX_LINE_BYTES):
            number += 1
            if not line.endswith(b"\n"):
                if len(line) == MAX_LINE_BYTES:
                    raise self._problem(
                        number, f"is longer than {MAX_LINE_BYTES // 2**20} MiB, so it is no recording's"
                    )
                self.cut = not _is_whole(line)
                if self.cut:
                    return
            if line.strip():  # An empty one keeps the connection of a tap alive.
                found = self._read(number, at, line)
                if found is not None:
                    yield found
            at += len(line)

    def again(self, line: int, at: int) -> Recorded:
        """Read a line again that was read before.

        Args:
            line: Its number.
            at: Where it begins.

        Raises:
            ConfigError: The file has changed in between.
        """
        self._file.seek(at)
        found = self._read(line, at, self._file.readline(MAX_LINE_BYTES))
        if found is None:
            raise self._problem(line, "has changed since it was read")
        return found

    def _read(self, number: int, at: int, line: bytes) -> Recorded | None:
        try:
            event = orjson.loads(line)
        except orjson.JSONDecodeError as error:
            raise self._problem(number, f"is no JSON: {error}") from None
        if not isinstance(event, dict):
            raise self._problem(number, "a JSON object is wanted")
        try:
            sight = sight_of(event)
        except EventError as error:
            raise self._problem(number, str(error)) from None
        if sight is not None:
            return Recorded(number, at, event, sight)
        if event["type"] == DROPPED and isinstance(data := event.get("data"), dict):
            count = data.get("count")
            self.dropped += count if isinstance(count, int) else 0
        return None

    def _problem(self, line: int, message: str) -> ConfigError:
        return ConfigError(Problem(message, file=self._name, line=line))


def _is_whole(line: bytes) -> bool:
    try:
        orjson.loads(line)
    except orjson.JSONDecodeError:
        return False
    return True
