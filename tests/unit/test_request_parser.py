"""Requests with a field twice that should stand once, in whatever pieces they come."""

from __future__ import annotations

import asyncio
import tracemalloc

import pytest
from aiohttp.base_protocol import BaseProtocol
from aiohttp.http_exceptions import BadHttpMessage

from gateway.http.parser import RequestParser

POST = (
    b"POST /one HTTP/1.1\r\nHost: x\r\nContent-Type: a/b\r\nContent-Length: 29\r\ncontent-type: c/d\r\n"
    b"CONTENT-TYPE: e/f\r\nUser-Agent: one\r\nUser-Agent: two\r\n\r\nContent-Type:\r\n\r\nContent-Type"
)
CHUNKED = b"PUT /three HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n"
GET = b"GET /two HTTP/1.1\r\nHost: x\r\nContent-Type: a/b\r\nContent-Type: c/d\r\n\r\n"
PLAIN = b"GET /four HTTP/1.1\r\nHost: x\r\nAccept: a\r\nAccept: b\r\n\r\n"
Seen = list[tuple[str, str, list[str], list[str], bytes]]


async def read(*pieces: bytes) -> Seen:
    """Feed a new parser; give path, verb, types, agents and body of each request."""
    loop = asyncio.get_running_loop()
    parser = RequestParser(BaseProtocol(loop), loop, 2**16, max_line_size=8190, max_field_size=8190, max_headers=128)
    found = [each for piece in pieces for each in parser.feed_data(piece)[0]]
    return [
        (
            message.path,
            message.method,
            message.headers.getall("Content-Type", []),
            message.headers.getall("User-Agent", []),
            b"" if body.is_eof() and not body.total_bytes else await body.read(),
        )
        for message, body in found
    ]


ONE = ("/one", "POST", ["a/b"], ["one"], b"Content-Type:\r\n\r\nContent-Type")
TWO = ("/two", "GET", ["a/b"], [], b"")
THREE = ("/three", "PUT", [], [], b"abc")


async def test_in_two_pieces() -> None:
    """Wherever the network cuts it, the first is taken, also by a connection that was used before."""
    assert await read(POST) == [ONE]
    for cut in range(1, len(POST)):
        assert await read(POST[:cut], POST[cut:], GET) == [ONE, TWO], cut
    for cut in range(1, len(GET)):
        assert await read(POST, GET[:cut], GET[cut:], POST) == [ONE, TWO, ONE], cut
    for cut in range(1, len(PLAIN)):
        assert (await read(PLAIN[:cut], PLAIN[cut:], GET[:2], GET[2:]))[1:] == [TWO], cut


async def test_byte_by_byte() -> None:
    assert await read(*(bytes([each]) for each in POST + GET + POST)) == [ONE, TWO, ONE]


async def test_where_the_header_begins_is_not_certain() -> None:
    """It is read right, or refused as before."""
    for before, seen in ((POST, ONE), (CHUNKED, THREE)):
        both = before + GET
        for cut in range(1, len(both)):
            try:
                assert await read(both[:cut], both[cut:]) == [seen, TWO], cut
            except BadHttpMessage as error:
                assert "Duplicate 'Content-Type'" in error.message
    assert (await read(CHUNKED, PLAIN, GET))[-1] == TWO  # After one without a body it is certain again.


@pytest.mark.parametrize(
    "field", [b"Host: y", b"Content-Length: 3", b"Transfer-Encoding: chunked", b"Content-Length: 4"]
)
async def test_what_decides_is_refused(field: bytes) -> None:
    """Where a request goes, and where it ends."""
    request = b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\n" + field + b"\r\n\r\nabc"
    with pytest.raises(BadHttpMessage):
        await read(request)


BODY = b"PUT /five HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\na\r\n\r\nbody"


@pytest.mark.parametrize(
    "whole", [PLAIN, GET, POST, CHUNKED, PLAIN + BODY, BODY + PLAIN, CHUNKED + BODY, BODY + CHUNKED]
)
async def test_half_a_header_is_known(whole: bytes) -> None:
    """However it comes; a request that is complete leaves none, and neither does one whose body is on its way."""
    loop = asyncio.get_running_loop()
    for cut in range(len(whole)):
        parser = RequestParser(
            BaseProtocol(loop), loop, 2**16, max_line_size=8190, max_field_size=8190, max_headers=128
        )
        parser.feed_data(whole[:cut])
        parser.feed_data(whole[cut:])
        assert not parser.half, cut
        parser.feed_data(PLAIN[:9])
        assert parser.half, cut
        parser.feed_data(PLAIN[9:])
        assert not parser.half, cut


async def test_parts_of_a_body_are_not_copied_once_more() -> None:
    """What aiohttp keeps of them is all."""
    loop, part = asyncio.get_running_loop(), bytes(2**22)
    head = b"PUT / HTTP/1.1\r\nHost: x\r\nContent-Length: 99999999\r\n\r\n"
    for pieces in ((head + part,), (head, part)):
        parser = RequestParser(BaseProtocol(loop), loop, 2**30, max_line_size=8190, max_field_size=8190)
        tracemalloc.start()
        try:
            read = [parser.feed_data(piece) for piece in pieces]
            assert tracemalloc.get_traced_memory()[1] < 1.5 * len(part)
        finally:
            tracemalloc.stop()
        assert read[0][0][0][1].total_bytes == len(part)
