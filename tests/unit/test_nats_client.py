"""What we override of nats-py: that it is still called, and still needed or equal."""

from __future__ import annotations

import asyncio
import inspect
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest
import uvloop
from hypothesis import given
from hypothesis import strategies as st
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.aio.subscription import Subscription

from brokers.nats._client import Connection
from brokers.nats._consumer import parted
from brokers.nats._overrides import NatsClient
from mesh.errors import BrokerUnavailableError
from tests.support.eventually import PATIENCE
from tests.support.nats import NatsServer, find_nats_server
from tests.support.proxy import Proxy

OVERRIDDEN = [
    "_attempt_reconnect",
    "_close",
    "_connect_to_server",
    "_flush_pending",
    "_parse_header_lines",
    "_process_connect_init",
    "_process_headers",
    "_process_info",
    "_process_msg",
    "_process_pong",
    "_send_ping",
    "_send_publish",
    "flush",
]

names = st.text("!#$%&'*+-.^_`|~0123456789abcXYZ", min_size=1, max_size=20)
values = st.text(st.characters(min_codepoint=0x20, max_codepoint=0x7E), max_size=40).map(str.strip)
unicode_values = st.text(st.characters(min_codepoint=0x20, exclude_categories=["Cs", "Cc"]), max_size=20).map(str.strip)


def block(headers: dict[str, str]) -> bytes:
    return b"".join(f"{name}: {value}\r\n".encode() for name, value in headers.items()) + b"\r\n"


@given(st.dictionaries(names, values | unicode_values, max_size=8))
def test_header_parser_does_what_the_client_s_own_does(headers: dict[str, str]) -> None:
    raw = block(headers)
    assert NatsClient._parse_header_lines(raw) == Client._parse_header_lines(raw)


@given(st.dictionaries(names, values, max_size=8))
def test_header_parser_gives_back_what_was_sent(headers: dict[str, str]) -> None:
    assert NatsClient._parse_header_lines(block(headers)) == headers


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"\r\n",
        b"a:b\r\n\r\n",
        b"a:\tb \r\n\r\n",
        b"a: b: c\r\n\r\n",
        b"a:\r\n\r\n",
        b"a: 1\r\na: 2\r\n\r\n",
        b"no colon\r\na: b\r\n\r\n",
        b"a: \xff\xfe\r\n\r\n",
    ],
)
def test_header_parser_on_odd_blocks(raw: bytes) -> None:
    assert NatsClient._parse_header_lines(raw) == Client._parse_header_lines(raw)


@pytest.mark.parametrize("raw", [b"\r\n", b"xx\r\n\r\n", b"NATS/1.0", b"NATS/1.0 \xff\xff\xff\r\n\r\n"])
async def test_a_block_that_is_none_ends_no_reader(raw: bytes) -> None:
    """The client's own raises for it, which ends what reads the connection."""
    with pytest.raises((IndexError, UnicodeDecodeError)):
        await Client()._process_headers(raw)
    assert await NatsClient()._process_headers(raw) is None


def test_headers_of_the_server_are_no_part_of_a_message() -> None:
    """A stream that copies another one adds some; then a signature would not cover what was signed."""
    own = {"ce-id": "1", "mesh-signature": "s"}
    copied = {"Nats-Stream-Source": "orders 1 > > orders", "Nats-Msg-Id": "orders 7 8", "Nats-TTL": "5s"}
    assert parted({**copied, **own}) == (own, "7 8")
    assert parted({}) == ({}, None)


class Recorder(NatsClient):
    """Keeps commands instead of sending them."""

    def __init__(self) -> None:
        super().__init__()
        self.commands: list[bytes] = []

    async def _send_command(self, cmd: bytes, priority: bool = False) -> None:
        self.commands.append(bytes(cmd))


@given(st.dictionaries(names, values | unicode_values | st.just("line\r\nbreak"), max_size=5), st.binary(max_size=20))
async def test_headers_are_written_as_the_client_writes_them(headers: dict[str, str], payload: bytes) -> None:
    ours, theirs = Recorder(), Recorder()
    await ours._send_publish("s", "r", payload, len(payload), headers)
    await Client._send_publish(theirs, "s", "r", payload, len(payload), headers or None)
    assert ours.commands == theirs.commands


@pytest.mark.parametrize("name", OVERRIDDEN)
def test_overridden_member_exists_with_the_same_parameters(name: str) -> None:
    ours, theirs = getattr(NatsClient, name), getattr(Client, name)
    assert ours is not theirs
    assert list(inspect.signature(ours).parameters) == list(inspect.signature(theirs).parameters)
    assert inspect.iscoroutinefunction(ours) == inspect.iscoroutinefunction(theirs)


def test_private_members_that_we_use_exist() -> None:
    client = Client()
    for name in (
        "_pongs",
        "_pending",
        "_pending_data_size",
        "_server_info",
        "_flush_queue",
        "_flusher_task",
        "_ping_interval_task",
        "_reading_task",
        "_transport",
    ):
        assert hasattr(client, name), name
    for name in ("_send_command", "_send_unsubscribe", "_remove_sub"):
        assert hasattr(client, name), name
    subscription = Subscription(client)
    for name in ("_id", "_closed", "_pending_queue", "_stop_processing"):
        assert hasattr(subscription, name), name


needs_server = pytest.mark.skipif(find_nats_server() is None, reason="nats-server is not installed")


@pytest.fixture
async def server(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[NatsServer]:
    async with NatsServer(tmp_path_factory.mktemp("nats")) as server:
        yield server


async def connect(port: int, ping_interval: float = 10.0) -> Connection:
    connection = Connection([f"nats://127.0.0.1:{port}"], {})
    await connection.open(5.0, ping_interval)
    return connection


@needs_server
async def test_overridden_members_are_called(server: NatsServer, monkeypatch: pytest.MonkeyPatch) -> None:
    called: set[str] = set()
    for name in OVERRIDDEN:
        original = inspect.getattr_static(NatsClient, name)
        function = getattr(original, "__func__", original)

        def note(*args: object, _name: str = name, _was: Callable[..., object] = function, **named: object) -> object:
            called.add(_name)
            return _was(*args, **named)

        monkeypatch.setattr(NatsClient, name, staticmethod(note) if isinstance(original, staticmethod) else note)
    connection = await connect(server.port)
    received = asyncio.Event()

    async def receive(message: object) -> None:
        received.set()

    subscription = await connection.subscribe("s", receive)
    await connection.send("s", b"", {"a": "b"})
    await received.wait()
    await connection.leave(subscription)
    await server.restart()
    async with asyncio.timeout(PATIENCE):
        while connection.reconnects == 0:
            await asyncio.sleep(0.01)
    await connection.close()
    assert called == set(OVERRIDDEN)


@needs_server
async def test_flush_comes_after_what_was_sent_before(server: NatsServer) -> None:
    """The client's own PING overtakes what waits to be sent: subscriptions were not active after a flush."""
    one, two = await connect(server.port), await connect(server.port)
    try:
        for number in range(200):
            heard = asyncio.Event()

            async def receive(message: object, heard: asyncio.Event = heard) -> None:
                heard.set()

            subscription = await one.subscribe(f"s{number}", receive)
            await two.send(f"s{number}", b"")
            async with asyncio.timeout(PATIENCE):
                await heard.wait()
            await one.leave(subscription)
    finally:
        await one.close()
        await two.close()


@needs_server
async def test_cancelled_flush_does_not_end_the_connection(server: NatsServer) -> None:
    connection = await connect(server.port)
    try:
        for _ in range(3):
            flushing = asyncio.ensure_future(connection.flush())
            await asyncio.sleep(0)
            flushing.cancel()
            await asyncio.wait([flushing])
        async with asyncio.timeout(PATIENCE):
            await connection.flush()
        assert connection.client._reading_task is not None
        assert not connection.client._reading_task.done()
    finally:
        await connection.close()


@needs_server
async def test_dead_socket_is_dropped_although_bytes_wait_in_it(server: NatsServer) -> None:
    async with Proxy(server.port) as proxy:
        connection = await connect(proxy.port, ping_interval=0.2)
        proxy.stall()
        for _ in range(100):
            await connection.client.publish("s", bytes(100_000))
        async with asyncio.timeout(PATIENCE):
            while connection.reconnects == 0:
                await asyncio.sleep(0.01)
            await connection.flush()
        await connection.close()


@needs_server
async def test_close_ends_on_a_stalled_connection(server: NatsServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("brokers.nats._client.CLOSE_WAIT", 0.3)
    async with Proxy(server.port) as proxy:
        connection = await connect(proxy.port)
        proxy.stall()
        for _ in range(100):
            await connection.client.publish("s", bytes(100_000))
        began = time.monotonic()
        await connection.close()
        assert time.monotonic() - began < 10


@needs_server
async def test_cancelled_call_on_a_stalled_connection_ends_at_once(server: NatsServer) -> None:
    async with Proxy(server.port) as proxy:
        connection = await connect(proxy.port)
        proxy.stall()
        calls = [asyncio.ensure_future(connection.call("s", bytes(500_000))) for _ in range(100)]
        await asyncio.sleep(0.2)
        for call in calls:
            call.cancel()
        _, pending = await asyncio.wait(calls, timeout=PATIENCE)
        assert not pending
        proxy.cut()
        await connection.close()


@needs_server
async def test_flush_ends_with_its_connection(server: NatsServer) -> None:
    async with Proxy(server.port) as proxy:
        connection = await connect(proxy.port)
        proxy.stall()
        flushing = asyncio.ensure_future(connection.flush())
        await asyncio.sleep(0.1)
        proxy.cut()
        async with asyncio.timeout(PATIENCE):
            with pytest.raises(BrokerUnavailableError):
                await flushing
        await connection.close()


@needs_server
async def test_call_waits_out_a_full_buffer(server: NatsServer) -> None:
    """More than may be buffered is asked for while the connection is away: it waits, and then goes through."""
    connection = await connect(server.port)
    received: list[object] = []

    async def answer(message: Msg) -> None:
        received.append(message)
        await connection.send(message.reply, b"")

    subscription = await connection.subscribe("s", answer)
    await server.kill()
    calls = [asyncio.ensure_future(connection.call("s", bytes(500_000))) for _ in range(100)]
    await asyncio.sleep(0)
    await server.start()
    async with asyncio.timeout(PATIENCE):
        await asyncio.wait(calls)
    assert [call.result().body for call in calls] == [b""] * 100
    await connection.leave(subscription)
    await connection.close()


@needs_server
def test_call_on_a_socket_that_just_died_is_made_on_the_next(tmp_path: Path) -> None:
    """The client writes by itself once its flusher has ended, and uvloop raises where asyncio writes into the void."""

    async def run() -> None:
        async with NatsServer(tmp_path) as server:
            callee, caller = await connect(server.port), await connect(server.port)

            async def answer(message: Msg) -> None:
                await callee.send(message.reply, message.data)

            await callee.subscribe("s", answer)
            assert caller.client._flusher_task is not None
            caller.client._flusher_task.cancel()
            await asyncio.sleep(0)
            caller.client.abort()
            async with asyncio.timeout(30):
                assert (await caller.call("s", b"x")).body == b"x"
            await caller.close()
            await callee.close()

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(run())


@needs_server
def test_a_new_socket_that_died_at_once_is_followed_by_another(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """uvloop raises what the client does not expect of a socket: its reconnecting would end there, for ever."""
    informed = NatsClient._process_info
    attempts: list[object] = []

    async def dies_at_first(client: NatsClient, info: dict[str, object], initial_connection: bool = False) -> None:
        await informed(client, info, initial_connection)
        if initial_connection:
            attempts.append(info)
        if attempts == [info]:
            client.abort()
            await asyncio.sleep(0.01)

    async def run() -> None:
        async with NatsServer(tmp_path) as server:
            connection = await connect(server.port)
            monkeypatch.setattr(NatsClient, "_process_info", dies_at_first)
            connection.client.abort()
            async with asyncio.timeout(PATIENCE):
                while connection.reconnects == 0:
                    await asyncio.sleep(0.01)
            assert len(attempts) >= 2
            await connection.close()

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(run())
