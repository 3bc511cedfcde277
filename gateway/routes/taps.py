"""``GET mesh/tap``: what passes the mesh, told to a client for as long as it reads.

Lines of JSON, or server-sent events for who accepts those; each is a CloudEvent. A client that reads slowly is told how
much was left out meanwhile.

Source: WHATWG HTML, server-sent events.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import suppress
from typing import TypeVar

import orjson

from gateway.errors import answer, bad_request
from gateway.http.response import Answered, StreamedResponse
from gateway.routes.request import every, query_of
from gateway.routes.route import Asked, Route
from mesh.errors import MeshError
from mesh.spelling import did_you_mean
from mesh.tap.sight import Dropped, Rates, Refused, Sight
from mesh.tap.wanted import Wanted
from mesh.tap.wire import as_event
from mesh.tasks import task_group, until_any
from mesh.values import parse_bool, parse_duration, parse_size

__all__ = ["KEEP_ALIVE_SECONDS", "ROUTES"]

KEEP_ALIVE_SECONDS = 10.0
LEAVE_SECONDS = 1.0
EVENTS, LINES = "text/event-stream", "application/x-ndjson"
NAMES: Mapping[type, bytes] = {Sight: b"sight", Dropped: b"dropped", Rates: b"rates", Refused: b"refused"}
PARAMETERS = ("app", "block", "for", "maxBody", "rates", "sample", "sights", "topic", "values", "where")
T = TypeVar("T")


async def tap(asked: Asked) -> Answered:
    """Tell what passes, until the client goes, the time is over that it gives, or the gateway drains."""
    wanted, limit = _wanted(asked.query)
    _check_blocks(wanted.blocks, sorted(asked.api.services))
    form = EVENTS if EVENTS in asked.request.headers.get("Accept", "") else LINES
    stream = StreamedResponse(200, [("Content-Type", form), ("Cache-Control", "no-store")], None)
    try:
        with asked.api.streams.one():
            async with asked.api.tap(wanted) as told:
                await stream.prepare(asked.request)
                await _Writer(asked, stream, events=form == EVENTS).run(told, limit)
    except MeshError as error:
        if stream.prepared:
            raise
        raise answer(error) from error
    await stream.write_eof()
    return stream


class _Writer:
    """Writes to one client."""

    def __init__(self, asked: Asked, stream: StreamedResponse, *, events: bool) -> None:
        self._namespace, self._ending = asked.api.caller.namespace, asked.api.streams.ending
        self._stream, self._events = stream, events
        self._written_at, self._writing = time.monotonic(), False

    async def run(self, told: AsyncIterator[Sight | Dropped | Rates | Refused], limit: float | None) -> None:
        """Write until there is nothing more, it is time, or this node drains."""
        over = asyncio.Event()
        async with task_group() as tasks:
            writing = tasks.create_task(self._write(told, over), name="tap-write")
            keeping = tasks.create_task(self._keep_alive(), name="tap-keep-alive")
            with suppress(TimeoutError):
                async with asyncio.timeout(limit):
                    await until_any(self._ending, over)
            keeping.cancel()
            if self._writing:  # No line is cut in its middle, unless the client does not read.
                await asyncio.wait([writing], timeout=LEAVE_SECONDS)
            writing.cancel()

    async def _write(self, told: AsyncIterator[Sight | Dropped | Rates | Refused], over: asyncio.Event) -> None:
        try:
            async for each in told:
                line = orjson.dumps(as_event(self._namespace, each, time.time()))
                if self._events:
                    line = b"event: %b\ndata: %b\n" % (NAMES[type(each)], line)
                await self._send(line + b"\n")
                if self._ending.is_set():
                    return
        finally:
            over.set()

    async def _send(self, data: bytes) -> None:
        self._writing = True
        try:
            await self._stream.write(data)
        finally:
            self._writing, self._written_at = False, time.monotonic()

    async def _keep_alive(self) -> None:
        """Write a comment, or an empty line, where nothing else was written for a while."""
        while True:
            await asyncio.sleep(max(0.0, self._written_at + KEEP_ALIVE_SECONDS - time.monotonic()))
            if self._writing:  # It waits for the client.
                await asyncio.sleep(KEEP_ALIVE_SECONDS)
            elif time.monotonic() - self._written_at >= KEEP_ALIVE_SECONDS:
                await self._send(b":\n\n" if self._events else b"\n")


def _wanted(query: str) -> tuple[Wanted, float | None]:
    """Read the parameters; gives how long it is to last, too, in seconds."""
    given = query_of(query)
    if unknown := sorted(given.keys() - set(PARAMETERS)):
        raise bad_request(f"there is no parameter {unknown[0]!r} of a tap; there are {', '.join(PARAMETERS)}")

    def read(name: str, how: Callable[[str], T], default: T) -> T:
        if name not in given:
            return default
        try:
            return how(given[name])
        except ValueError as error:
            raise bad_request(f"{name}: {error}") from None

    wanted = Wanted(
        apps=every(query, "app"),
        topics=every(query, "topic"),
        blocks=every(query, "block"),
        where=given.get("where", ""),
        sample=read("sample", _number, 1.0),
        values=read("values", parse_bool, False),
        max_body=read("maxBody", parse_size, 64 * 1024),
        sights=read("sights", parse_bool, True),
        rates=read("rates", _number, 0.0),
    )
    return wanted, read("for", _limit, None)


def _check_blocks(given: Sequence[str], known: Sequence[str]) -> None:
    """Refuse a misspelt building block, which would be waited for without an end."""
    for each in given:
        if "*" not in each and each not in known:
            meant = did_you_mean(each, known)
            hint = f"did you mean {meant!r}?" if meant else f"there are {', '.join(known)}"
            raise bad_request(f"block: there is no building block {each[:100]!r}; {hint}")


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise ValueError(f"{text!r} is no number") from None


def _limit(text: str) -> float | None:
    seconds = parse_duration(text, bare="s")
    if seconds <= 0:
        raise ValueError(f"{text!r} is no time that something lasts, such as 30s")
    return seconds


ROUTES = (Route("mesh/tap", tap, frozenset({"GET"})),)
