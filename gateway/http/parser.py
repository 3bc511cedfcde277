"""aiohttp's parser of requests, which also takes those that say once more what should be said once."""

from __future__ import annotations

import re
import sys
from typing import Any

from aiohttp.http_exceptions import BadHttpMessage
from aiohttp.http_parser import HttpRequestParser, RawRequestMessage
from aiohttp.streams import StreamReader

__all__ = ["RequestParser"]

_Read = tuple[list[tuple[RawRequestMessage, StreamReader]], bool, bytes]

HEAD_END = b"\r\n\r\n"
_REPEATED = re.compile(r"Duplicate '([\w-]+)' header found")
# What says where a request goes, and where it ends, stays refused: two servers could read it differently.
_DECIDING = frozenset({"host", "content-length", "transfer-encoding"})


class RequestParser(HttpRequestParser):
    """Takes the first of several fields such as ``Content-Type``, as Dapr's servers do: its Java SDK sends two.

    aiohttp refuses them while it reads the header, and has no setting for it. Such a header is read again without the
    repetition, if it is certain where it began.
    """

    def __init__(self, *arguments: Any, **settings: Any) -> None:
        """Prepare; arguments are aiohttp's."""
        super().__init__(*arguments, **settings)
        self._arguments, self._settings = arguments, settings
        self._head = b""  # What came of a header that is not complete.
        self._body: StreamReader | None = None  # Of the last request.
        self._came = 0  # How much came after the header of that one.
        self._ended = True  # Whether that one was the last that came, as far as it shows.
        self._last = b""  # The bytes that came last.
        self.heads = 0
        """How many headers were complete."""

    def feed_data(self, data: bytes) -> _Read:  # type: ignore[override]  # aiohttp's in C takes nothing else.
        """Read on."""
        try:
            result = super().feed_data(data)
        except BadHttpMessage as error:
            return self._again(data, error)
        messages = result[0]
        before = self._last
        self._last = (before + data[-len(HEAD_END) :])[-len(HEAD_END) :]
        if messages:
            message, self._body = messages[-1]
            # Of more than one request it is too much: where the next one begins is not certain then.
            whole = self._head + data
            at = whole.find(HEAD_END)
            self._came = len(whole) - at - len(HEAD_END) if at >= 0 else sys.maxsize
            self._head = b""
            self.heads += len(messages)
            size = self._body.total_bytes
            if message.chunked:
                self._came = sys.maxsize  # The sizes of chunks are among it.
            elif not self._body.is_eof():
                self._came = size
            end = len(data) - size
            behind = (before + data[max(0, end - len(HEAD_END)) : end])[-len(HEAD_END) :]
            self._ended = HEAD_END in (self._last, behind)
        elif self._between():
            self._head += data
        else:
            self._came += len(data)
            self._ended = self._body is None or self._came == self._body.total_bytes or self._last == HEAD_END
        return result

    @property
    def half(self) -> bool:
        """Whether a header has begun that is not complete."""
        body = self._body
        return bool(self._head) or (body is not None and body.is_eof() and not self._ended)

    @property
    def whole(self) -> bool:
        """Whether all requests that have begun have come, with their bodies."""
        return not self.half and (self._body is None or self._body.is_eof())

    def _between(self) -> bool:
        """Tell whether all that came belongs to requests that are complete, but for ``_head``."""
        body = self._body
        return body is None or (body.is_eof() and body.total_bytes == self._came)

    def _again(self, data: bytes, error: BadHttpMessage) -> _Read:
        found = _REPEATED.match(error.message)
        if found is None or found[1].lower() in _DECIDING or not self._between():
            raise error
        data = self._head + data
        once = _once(data, found[1].lower().encode() + b":")
        if once == data:
            raise error
        heads = self.heads
        self.__init__(*self._arguments, **self._settings)  # type: ignore[misc]  # It begins anew, as aiohttp holds it.
        self.heads = heads
        return self.feed_data(once)


def _once(data: bytes, name: bytes) -> bytes:
    """Leave out the further fields of a name, as far as the header has come."""
    head, end, body = data.partition(HEAD_END)
    lines, kept, seen = head.split(b"\r\n"), [], False
    for number, line in enumerate(lines):
        named = line[: len(name)].lower() == name
        whole = end or number < len(lines) - 1
        if not (named and seen and whole):
            kept.append(line)
        seen = seen or named
    return b"\r\n".join(kept) + end + body
