"""nats-py, where its own way would cost us the connection, a cancellation, a secret or half our budget.

``tests/unit/test_nats_client.py`` checks that the installed client still calls each of these.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any

import nats.errors
from nats.aio.client import Client, Srv
from nats.aio.subscription import Subscription

from mesh.tasks import heeding_cancellation

__all__ = ["NatsClient"]

FLUSH_WAIT = 10.0
PING = b"PING\r\n"


class NatsClient(Client):
    """nats-py with what is overridden."""

    def __init__(self) -> None:
        super().__init__()
        self.lost_because: Exception = nats.errors.ConnectionClosedError()
        self._answers: dict[int, Callable[[bytes, Mapping[str, str], bytes], None]] = {}

    def take_answers(self, subscription: Subscription, take: Callable[[bytes, Mapping[str, str], bytes], None]) -> None:
        """Give what comes for a subscription to a function at once: subject, headers and body; it must not fail."""
        self._answers[subscription._id] = take

    async def _process_msg(self, sid: int, subject: bytes, reply: bytes, data: bytes, headers: bytes) -> None:
        """Pass on answers, which the client's own would put in a queue, for a task to call for."""
        if (take := self._answers.get(sid)) is None:
            await super()._process_msg(sid, subject, reply, data, headers)
        else:
            take(subject, (await self._process_headers(headers) if headers else None) or {}, data)

    @property
    def clustered(self) -> bool:
        """Whether the server is one of several."""
        return "cluster" in self._server_info

    async def _process_info(self, info: dict[str, Any], initial_connection: bool = False) -> None:
        """Have TLS where it is asked for; the client's own goes by the server, or by who speaks in its place."""
        if initial_connection and self.options.get("tls") is not None:
            if not (info.get("tls_required") or info.get("tls_available")):
                raise nats.errors.SecureConnWantedError
            info["tls_required"] = True
        await super()._process_info(info, initial_connection)

    async def _process_headers(self, headers: bytes) -> dict[str, str] | None:
        """Have no headers in a message that cannot be read: the client's own ends its reader by it, silently."""
        try:
            return await super()._process_headers(headers)
        except (IndexError, ValueError):
            return None

    async def _process_connect_init(self) -> None:
        """Log in, or fail: the client's own takes a server that hangs up for one that agrees."""
        try:
            await super()._process_connect_init()
            if not self.is_connected:
                for task in (self._reading_task, self._ping_interval_task, self._flusher_task):
                    if task is not None:
                        task.cancel()
                raise nats.errors.UnexpectedEOF
        except (nats.errors.Error, OSError):
            self.abort()
            self._transport = None  # After a handshake that failed, the wait for its end has none.
            raise
        except RuntimeError as error:  # uvloop's for a socket that is closed; it would end the reconnecting for ever.
            self.abort()
            self._transport = None
            raise ConnectionResetError(str(error)) from error

    async def _send_ping(self, future: asyncio.Future[bool] | None = None) -> None:
        """Send a PING after what waits to be sent; the client's own overtakes it, so that it flushes nothing."""
        self._pongs.append(future or asyncio.get_running_loop().create_future())
        await self._send_command(PING)
        await self._flush_pending()

    async def _process_pong(self) -> None:
        """Survive a cancelled flush: its answer would otherwise raise, and silently end the read loop."""
        if self._pongs and self._pongs[0].done():
            self._pongs[0] = asyncio.get_running_loop().create_future()
        await super()._process_pong()

    async def _flush_pending(self, force_flush: bool = False) -> None:
        """Pass on a cancellation, which the client's own swallows where it waits; a lost socket is the reader's news.

        The client's own raises for it when its flusher has ended: an OSError, or uvloop's RuntimeError.
        """
        with suppress(OSError, RuntimeError):
            if not force_flush and self._flush_queue is not None and not self._flush_queue.full():
                await super()._flush_pending()
                return
            with heeding_cancellation():
                await super()._flush_pending(force_flush)

    async def flush(self, timeout: float = FLUSH_WAIT) -> None:  # noqa: ASYNC109 - the client's own signature
        """Wait for the server to have had everything; ``wait_for``, in the client's own, loses cancellations."""
        if not self.is_connected:
            raise nats.errors.ConnectionClosedError
        pong: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        try:
            async with asyncio.timeout(timeout):
                await self._send_ping(pong)
                await pong
        except TimeoutError:
            raise nats.errors.FlushTimeoutError from None

    async def _connect_to_server(self, s: Srv) -> None:
        """Pass on a cancellation; ``wait_for`` loses one that comes together with a refused connection."""
        with heeding_cancellation():
            await super()._connect_to_server(s)

    async def _process_op_err(self, e: Exception) -> None:
        """Note what ended the connection, which the client tells nobody."""
        if self.is_connected:
            self.lost_because = e
        await super()._process_op_err(e)

    async def _attempt_reconnect(self) -> None:
        """Drop a dead socket at once: closing it in order waits for a peer that does not read any more."""
        self._pending = [command for command in self._pending if command != PING]  # Nobody waits for their answers.
        self._pending_data_size = sum(map(len, self._pending))
        self.abort()
        await super()._attempt_reconnect()

    def abort(self) -> None:
        """Drop the socket, with what waits in it."""
        writer = getattr(self._transport, "_io_writer", None)  # A WebSocket has none.
        if writer is not None:
            writer.transport.abort()

    async def _close(self, status: int, do_cbs: bool = True) -> None:
        """Flush only what can be: without a connection, uvloop raises where asyncio writes into the void."""
        if not self.is_connected:
            self._pending, self._pending_data_size = [], 0
        await super()._close(status, do_cbs)

    def abandon(self) -> None:
        """Let go of everything, where a close in good order is not to be had."""
        self.abort()
        for subscription in list(self._subs.values()):
            self.forget_subscription(subscription)

    def fail_flushes(self) -> None:
        """End every flush that waits: its answer will not come over a new connection."""
        for pong in self._pongs:
            if not pong.done():
                pong.set_exception(nats.errors.UnexpectedEOF())
                pong.exception()  # Nobody waits for those that the client sends by itself.

    async def drain_subscription(self, subscription: Subscription) -> None:
        """Unsubscribe, and return when the callback has had all that the server sent before."""
        await self._send_unsubscribe(subscription._id)
        if self.is_connected:
            await self.flush()
        await subscription._pending_queue.join()

    def forget_subscription(self, subscription: Subscription) -> None:
        """Leave nothing of it behind."""
        subscription._closed = True
        subscription._stop_processing()
        self._remove_sub(subscription._id)

    async def _send_publish(
        self, subject: str, reply: str, payload: bytes, payload_size: int, headers: dict[str, str] | None
    ) -> None:
        """Write the headers as they are; the client's own looks at each for what ours never hold."""
        if not headers:
            await super()._send_publish(subject, reply, payload, payload_size, None)
            return
        block = "NATS/1.0\r\n" + "".join([f"{name}: {value}\r\n" for name, value in headers.items()]) + "\r\n"
        lines = len(headers) + 2
        if block.count("\r") != lines or block.count("\n") != lines:  # A line break within: the client repairs it.
            await super()._send_publish(subject, reply, payload, payload_size, headers)
            return
        header = block.encode()
        if len(header) + payload_size > self.max_payload:  # The client looks at the body alone; the server hangs up.
            raise nats.errors.MaxPayloadError
        line = f"HPUB {subject} {reply} {len(header)} {len(header) + payload_size}\r\n".encode()
        await self._send_command(b"".join((line, header, payload, b"\r\n")))  # The client's own copies it twice.
        if self._flush_queue is not None and self._flush_queue.empty():
            await self._flush_pending()

    # The client's own spends 2 µs a header on checks that the server has made.
    @staticmethod
    def _parse_header_lines(raw: bytes) -> dict[str, str]:
        headers = {}
        for line in raw.decode("utf-8", "replace").split("\r\n"):
            name, colon, value = line.partition(":")
            if colon:
                headers[name] = value.strip()
        return headers
