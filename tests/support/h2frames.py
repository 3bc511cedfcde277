"""Frames of HTTP/2 by hand, for what no client sends."""

from __future__ import annotations

import asyncio

from tests.support.eventually import PATIENCE

__all__ = [
    "CONTINUATION",
    "DATA",
    "END_HEADERS",
    "END_STREAM",
    "GOAWAY",
    "HEADERS",
    "OPENING",
    "PREFACE",
    "RESET",
    "SETTINGS",
    "WINDOW_UPDATE",
    "asking",
    "frame",
    "section",
    "spoken",
]

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DATA, HEADERS, RESET, SETTINGS, GOAWAY, WINDOW_UPDATE, CONTINUATION = 0, 1, 3, 4, 7, 8, 9
END_STREAM, ACK, END_HEADERS = 1, 1, 4


def frame(kind: int, flags: int = 0, stream: int = 0, payload: bytes = b"") -> bytes:
    return len(payload).to_bytes(3, "big") + bytes([kind, flags]) + stream.to_bytes(4, "big") + payload


def _text(text: bytes) -> bytes:
    """Write a string as HPACK has it, without Huffman's code. RFC 7541 section 5."""
    if len(text) < 127:
        return bytes([len(text)]) + text
    more, written = len(text) - 127, b"\x7f"
    while more >= 128:
        written, more = written + bytes([more % 128 + 128]), more // 128
    return written + bytes([more]) + text


def section(*further: tuple[bytes, bytes], **pseudo: bytes) -> bytes:
    given = {"method": b"GET", "scheme": b"http", "path": b"/v1.0/healthz", "authority": b"x", **pseudo}
    fields = [(b":" + name.encode(), value) for name, value in given.items()]
    return b"".join(b"\0" + _text(name) + _text(value) for name, value in [*fields, *further])


def asking(block: bytes, stream: int = 1) -> bytes:
    """Write a request without body, in as many frames as it takes."""
    pieces = [block[at : at + 16000] for at in range(0, len(block), 16000)]
    frames = [
        frame(CONTINUATION if at else HEADERS, END_HEADERS if at == len(pieces) - 1 else 0, stream, piece)
        for at, piece in enumerate(pieces)
    ]
    return frames[0][:4] + bytes([frames[0][4] | END_STREAM]) + frames[0][5:] + b"".join(frames[1:])


OPENING = PREFACE + frame(SETTINGS) + frame(SETTINGS, ACK)


async def spoken(port: int, data: bytes, until: int | None = None) -> bytes:
    """Send bytes; give what comes until there is a frame of a kind, or the end."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    got = b""
    try:
        writer.write(data)
        async with asyncio.timeout(PATIENCE):
            while True:
                head = await reader.readexactly(9)
                got += head + await reader.readexactly(int.from_bytes(head[:3], "big"))
                if head[3] == until:
                    return got
    except (asyncio.IncompleteReadError, ConnectionError):
        return got
    finally:
        writer.close()
