"""The client of applications, against one that stands still: its queue of connections is full soon."""

from __future__ import annotations

import asyncio
import socket
import threading
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from gateway.http import client as client_module
from gateway.http.client import BusyError, ClientResponse, ConnectError, HTTPClient
from tests.support.eventually import eventually

KEPT = ("TCP_KEEPIDLE", "TCP_KEEPINTVL", "TCP_KEEPCNT")


async def test_no_connection_while_others_are_in_use(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever has calls in hand is there; who has none may be gone."""
    monkeypatch.setattr(client_module, "CONNECT_SECONDS", 0.3)
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen(0)  # One is taken by the kernel, and none by a program.
        async with HTTPClient(*listening.getsockname()) as client, asyncio.TaskGroup() as tasks:

            async def ask() -> None:
                async with client.call("GET", "/", (), b""):
                    raise AssertionError("nobody answers")

            async def hold() -> None:
                with suppress(asyncio.CancelledError):
                    await ask()

            def is_held() -> None:
                assert client._in_use == 1

            held = tasks.create_task(hold())
            await eventually(is_held)
            with pytest.raises(BusyError, match=r"no connection within 0.3 s, while 1 are in use"):
                await ask()
            held.cancel()
            await held
            assert client._in_use == 0
            with pytest.raises(ConnectError) as failed:
                await ask()
            assert not isinstance(failed.value, BusyError)


async def test_a_peer_that_vanishes_is_noticed() -> None:
    """However long an answer may take: the system looks whether the other side is there."""

    async def ends(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.close()

    server = await asyncio.start_server(ends, "127.0.0.1", 0)
    async with server, HTTPClient(*server.sockets[0].getsockname()) as client:
        connection = await client._connect()
        assert connection._transport is not None
        opened = connection._transport.get_extra_info("socket")
        assert opened.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
        kept = [opened.getsockopt(socket.IPPROTO_TCP, getattr(socket, name)) for name in KEPT if hasattr(socket, name)]
        assert all(0 < each <= 60 for each in kept)
        connection.close()


async def test_an_answer_that_fills_the_buffer_with_its_last_byte_leaves_its_connection_usable() -> None:
    """Nothing more is read while the buffer is full; who takes a whole answer from there has emptied it."""
    body, opened = b"x" * (client_module.MAX_BUFFERED_BYTES + 1), 0
    over = asyncio.Event()

    async def answers(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal opened
        opened += 1
        with suppress(asyncio.IncompleteReadError, ConnectionError):
            while await reader.readuntil(b"\r\n\r\n"):
                writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
                await writer.drain()
        writer.transport.abort()
        over.set()

    server = await asyncio.start_server(answers, "127.0.0.1", 0)
    async with server, asyncio.timeout(10):
        async with HTTPClient(*server.sockets[0].getsockname()) as client:
            for _ in range(3):
                async with client.call("GET", "/", (), b"") as response:

                    def is_here(response: ClientResponse = response) -> None:
                        assert response.complete

                    await eventually(is_here)
                    assert await response.read_up_to(len(body)) == body
        await over.wait()
    assert opened == 1


class _Quick(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """Log nothing."""


async def test_a_server_with_room_for_five_gets_a_hundred_calls_at_once() -> None:
    """Opened at the same time, most connections would not be accepted for seconds, and the last for a minute."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Quick)
    assert server.request_queue_size == 5
    serving = threading.Thread(target=server.serve_forever, args=(0.01,))
    serving.start()
    try:
        async with HTTPClient("127.0.0.1", server.server_port) as client, asyncio.timeout(20):

            async def ask() -> None:
                async with client.call("GET", "/", (), b"") as response:
                    assert response.status == 200

            async with asyncio.TaskGroup() as tasks:
                for _ in range(100):
                    tasks.create_task(ask())
    finally:
        server.shutdown()
        serving.join()
        server.server_close()
