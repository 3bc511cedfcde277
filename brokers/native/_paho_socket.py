"""paho-mqtt reads a message in about four calls of its socket, and writes each by itself: here many share one call."""

from __future__ import annotations

import ssl
from contextlib import suppress
from typing import Any

import paho.mqtt.client as mqtt

__all__ = ["WAITS", "BufferedClient", "BufferedSocket"]

CHUNK_BYTES = 64 * 1024
# What says that a socket cannot now.
WAITS = (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError)


class BufferedSocket:
    """A socket that does not block, with room before it for a chunk in either direction."""

    def __init__(self, inner: Any) -> None:
        """Take over a socket that is connected."""
        self._inner = inner
        self._come, self._at = b"", 0
        self._going = bytearray()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    def recv(self, size: int) -> bytes:
        """Receive at most so many bytes."""
        if self._at >= len(self._come):
            if size >= CHUNK_BYTES:
                received: bytes = self._inner.recv(size)
                return received
            self._come, self._at = self._inner.recv(CHUNK_BYTES), 0
        found = self._come[self._at : self._at + size]
        self._at += len(found)
        return found

    def pending(self) -> int:
        """Count what `recv` gives without asking the kernel, which does not wake up whoever watches the socket."""
        inner = self._inner.pending() if isinstance(self._inner, ssl.SSLSocket) else 0
        return len(self._come) - self._at + inner

    def send(self, data: bytes | bytearray) -> int:
        """Keep what goes with the next `flush`; what is large is sent at once, behind what is kept."""
        if len(self._going) + len(data) > CHUNK_BYTES:
            self.flush()
            if len(data) > CHUNK_BYTES:
                sent: int = self._inner.send(data)
                return sent
        self._going += data
        return len(data)

    def flush(self) -> None:
        """Send what is kept.

        Raises:
            OSError: The socket takes no more now, as its kind says that, or is broken; the rest is kept.
        """
        while self._going:
            del self._going[: self._inner.send(self._going)]

    @property
    def waits(self) -> bool:
        """Whether something is kept."""
        return bool(self._going)

    def close(self) -> None:
        """Send what can be sent at once, as a goodbye, and close."""
        with suppress(OSError):
            self.flush()
        self._inner.close()


class BufferedClient(mqtt.Client):
    """paho's client over such a socket; a WebSocket is one by itself."""

    def _create_socket(self) -> Any:
        made = super()._create_socket()
        return made if self._transport == "websockets" else BufferedSocket(made)
