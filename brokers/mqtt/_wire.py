"""One connection to the server: units in, units out. It is not made again when it breaks."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from contextlib import suppress
from typing import cast

from mqtt5 import PingReqPacket

from brokers.mqtt._dialect import Dialect, Unit, speaks_older

__all__ = ["Wire"]

PING = PingReqPacket().write()
QUICK_ACK = getattr(socket, "TCP_QUICKACK", None)  # Linux only.


class Wire(asyncio.Protocol):
    """Reads units, and writes those of one turn of the event loop together.

    Attributes:
        closed: Done with the reason once it is over.
        received_at: When something came last, in the loop's time.
        is_too_new: Whether the server said that it does not know this version of the protocol.
        pings: How often a sign of life was asked for.
    """

    def __init__(self, dialect: Dialect, on_unit: Callable[[Wire, Unit], None]) -> None:
        """Prepare; ``create_connection`` does the rest.

        Args:
            dialect: How units are read and written.
            on_unit: Takes each unit; it must not block.
        """
        self._dialect = dialect
        self.is_too_new = False
        self.pings = 0
        self._loop = asyncio.get_running_loop()
        self._on_unit = on_unit
        self._transport: asyncio.Transport | None = None
        self._socket: socket.socket | None = None
        self._buffer = bytearray()
        self._out: list[bytes] = []
        self._reason = ""
        self.closed: asyncio.Future[str] = self._loop.create_future()
        self.received_at = self._loop.time()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin."""
        self._transport = cast("asyncio.Transport", transport)
        self._socket = transport.get_extra_info("socket")

    def data_received(self, data: bytes) -> None:
        """Cut units from the stream."""
        self.received_at = self._loop.time()
        if QUICK_ACK is not None and self._socket is not None:
            # Else Mosquitto, which uses Nagle's algorithm as it comes, waits 40 ms before it confirms more.
            with suppress(OSError):
                self._socket.setsockopt(socket.IPPROTO_TCP, QUICK_ACK, 1)
        self._buffer += data
        position, end = 0, len(self._buffer)
        with memoryview(self._buffer) as view:
            while position < end and not self.closed.done():
                try:
                    unit, size = self._dialect.read(view[position:])
                except IndexError:  # Not all of it is there yet.
                    break
                except (ValueError, LookupError) as error:
                    self.is_too_new = speaks_older(view[position:])
                    self.abort(f"the server sent what is not MQTT {self._dialect.name}: {error}")
                    break
                position += size
                self._on_unit(self, unit)
        del self._buffer[:position]

    def connection_lost(self, error: Exception | None) -> None:
        """Tell."""
        if not self.closed.done():
            self.closed.set_result(self._reason or (str(error) if error else "the server closed the connection"))

    def say(self, unit: Unit) -> None:
        """Write a unit."""
        self.send(self._dialect.write(unit))

    def send(self, data: bytes) -> None:
        """Write, with all else of this turn."""
        if not self._out:
            self._loop.call_soon(self.flush)
        self._out.append(data)

    def flush(self) -> None:
        """Write what waits."""
        if self._out and self._transport is not None and not self.closed.done():
            self._transport.write(b"".join(self._out))
        self._out.clear()

    async def keep_alive(self, interval: float) -> None:
        """Ask for a sign of life every so often, until it is over; end it when two did not come."""
        while not self.closed.done():
            if self._loop.time() - self.received_at > 2 * interval:
                self.abort("no sign of life")
                return
            self.ping()
            await asyncio.wait([self.closed], timeout=interval)

    def ping(self) -> int:
        """Ask for a sign of life; give the number of its answer, which is of all that was sent before, too."""
        self.send(PING)
        self.pings += 1
        return self.pings

    def close(self) -> None:
        """Close it once everything is written."""
        self.flush()
        self._reason = self._reason or "closed"
        if self._transport is not None:
            self._transport.close()

    def abort(self, reason: str) -> None:
        """End it now."""
        self._reason = self._reason or reason
        if self._transport is not None:
            self._transport.abort()
        if not self.closed.done():
            self.closed.set_result(self._reason)
