"""The client of applications, against one that stands still: its queue of connections is full soon."""

from __future__ import annotations

import asyncio
import socket
from contextlib import suppress

import pytest

from gateway.http import client as client_module
from gateway.http.client import BusyError, ConnectError, HTTPClient
from tests.support.eventually import eventually


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
