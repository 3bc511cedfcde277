"""The shared nats-server with real processes: who starts it, what survives whose death, and that it ends."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import json
import os
import shutil
import signal
import socket
import stat
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import nats
import psutil
import pytest

from brokers.embedded_server import ServerAddress, files, join, joiner, read_status
from mesh.errors import BrokerUnavailableError, ConfigError
from tests.support.eventually import eventually, eventually_sync
from tests.support.processes import free_port

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

    from nats.aio.client import Client

_PROJECT = Path(files.__file__).parents[2]

# Joins, says where, and stays until its standard input ends.
_JOINER = """
import asyncio, json, sys
from dataclasses import asdict
from pathlib import Path
from brokers.embedded_server import join
async def main():
    async with join(Path(sys.argv[1])) as address:
        print(json.dumps(asdict(address)), flush=True)
        await asyncio.to_thread(sys.stdin.read)
asyncio.run(main())
"""


def _processes(home: Path) -> list[psutil.Process]:
    """Return the supervisors and servers of this home, and of no other."""
    mine = str(home.resolve() / "backbone")
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if process.status() != psutil.STATUS_ZOMBIE and any(mine in part for part in process.cmdline()):
                found.append(process)
    return found


def _servers(home: Path) -> list[psutil.Process]:
    # Until it becomes nats-server, it is the small Python that has nats-server among its arguments.
    return [each for each in _processes(home) if "supervise" not in each.cmdline()]


@pytest.fixture
def home(tmp_path: Path) -> Iterator[Path]:
    """An own MESH_HOME; when the test is over nothing runs there any more, however it went."""
    directory = tmp_path / "home"
    yield directory
    try:
        eventually_sync(lambda: _nothing_runs(directory))
    finally:
        for process in sorted(_processes(directory), key=lambda each: "supervise" not in each.cmdline()):
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()


def _nothing_runs(home: Path) -> None:
    assert _processes(home) == []
    assert not (home / "backbone" / "server.json").exists()


def _no_supervisor_runs(home: Path) -> None:
    assert read_status(home) is None, "a process that is killed takes a while to end"


def _no_server_runs(home: Path) -> None:
    assert _servers(home) == [], "the kernel ends it with its supervisor"


class _Joiner:
    """A process that joined."""

    def __init__(self, process: asyncio.subprocess.Process, address: ServerAddress) -> None:
        self.process = process
        self.address = address

    async def kill(self) -> None:
        self.process.kill()
        await self.process.wait()


@contextlib.asynccontextmanager
async def _joiner(home: Path) -> AsyncIterator[_Joiner]:
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-c",
        _JOINER,
        str(home),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        env=os.environ | {"PYTHONPATH": str(_PROJECT)},
    )
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        line = await process.stdout.readline()
        assert line, "the joiner failed; see its standard error"
        yield _Joiner(process, ServerAddress(**json.loads(line)))
        process.stdin.close()
        await process.wait()
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()


@contextlib.asynccontextmanager
async def _client(address: ServerAddress) -> AsyncIterator[Client]:
    client = await nats.connect(
        address.url, token=address.token, reconnect_time_wait=0.02, max_reconnect_attempts=-1, error_cb=_quiet
    )
    try:
        yield client
    finally:
        await client.close()


async def _quiet(_: Exception) -> None:
    """Connections break here on purpose."""


def _where(address: ServerAddress) -> tuple[str, str]:
    return address.url, address.token


async def _publish(client: Client, count: int) -> None:
    jetstream = client.jetstream()
    await jetstream.add_stream(name="KEPT", subjects=["kept.>"])
    for number in range(count):
        await jetstream.publish("kept.number", str(number).encode())


async def _stored(address: ServerAddress) -> int:
    async with _client(address) as client:
        return (await client.jetstream().stream_info("KEPT")).state.messages


async def test_joiners_share_one_server(home: Path) -> None:
    """A second joiner, here or in another process, gets the address of the first."""
    async with join(home) as first, join(home) as second, _joiner(home) as third:
        assert first == second == third.address == read_status(home)
        assert [each.pid for each in _servers(home)] == [first.pid]
    assert first.url.startswith("nats://127.0.0.1:")


async def test_the_last_to_leave_stops_it_and_what_is_stored_stays(home: Path) -> None:
    """The server runs until the last one has left; the next one finds the messages again."""
    async with join(home) as first:
        async with join(home), _client(first) as client:
            await _publish(client, 10)
        assert await _stored(first) == 10, "somebody is still in"
    await eventually(lambda: _nothing_runs(home))
    assert read_status(home) is None
    async with join(home) as again:
        assert again.token != first.token
        assert await _stored(again) == 10


async def test_joining_while_it_stops_starts_it_anew(home: Path) -> None:
    """Whoever comes while the last one goes gets a server that works, always."""
    for _ in range(10):
        async with join(home) as address, _client(address) as client:
            await client.flush()


async def _greeting(address: ServerAddress, options: dict[str, str]) -> bytes:
    """Return what the server answers to a client; by hand, since nats-py leaks the socket of a refused one."""
    reader, writer = await asyncio.open_connection("127.0.0.1", int(address.url.rpartition(":")[2]))
    try:
        assert (await reader.readline()).startswith(b"INFO ")
        writer.write(b"CONNECT " + json.dumps({"verbose": False, **options}).encode() + b"\r\nPING\r\n")
        return await reader.readline()
    finally:
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()


async def test_a_client_needs_the_token(home: Path) -> None:
    """Neither no token nor another one opens the server; the token is in no command line."""
    async with join(home) as address:
        assert await _greeting(address, {}) == b"-ERR 'Authorization Violation'\r\n"
        assert await _greeting(address, {"auth_token": "wrong"}) == b"-ERR 'Authorization Violation'\r\n"
        assert await _greeting(address, {"auth_token": address.token}) == b"PONG\r\n"
        assert not [each for each in _processes(home) if address.token in " ".join(each.cmdline())]
        assert address.token not in (home / "backbone" / "server.log").read_text()


async def test_files_are_private(home: Path, tmp_path: Path) -> None:
    """Other users can open no directory of ours and read no secret; a directory of the user stays as it is."""
    _make(home, home / "backbone")
    async with join(home), join(tmp_path / "new" / "home"):
        modes = {
            str(path.relative_to(tmp_path)): stat.S_IMODE(path.stat().st_mode)
            for path in (home, home / "backbone", home / "backbone/data", tmp_path / "new/home")
        }
        assert list(modes.values()) == [0o755, 0o700, 0o700, 0o700], modes
        for name in ("server.json", "nats.conf", "start.lock", "users.lock", "store.lock"):
            assert stat.S_IMODE((home / "backbone" / name).stat().st_mode) == 0o600, name
    await eventually(lambda: _nothing_runs(tmp_path / "new" / "home"))


async def test_it_listens_on_the_loopback_only(home: Path) -> None:
    """One port on 127.0.0.1; no monitoring, cluster or other listener."""
    async with join(home) as address:
        listening = [
            tuple(each.laddr)
            for process in _processes(home)
            for each in process.net_connections(kind="inet")
            if each.status == psutil.CONN_LISTEN
        ]
        assert listening == [("127.0.0.1", int(address.url.rpartition(":")[2]))]


async def test_eight_at_once_start_one_server(home: Path) -> None:
    """Of eight processes that start at the same moment one starts the server, and all get it."""
    async with contextlib.AsyncExitStack() as stack:
        async with asyncio.TaskGroup() as group:
            entering = [group.create_task(stack.enter_async_context(_joiner(home))) for _ in range(8)]
        addresses = {each.result().address for each in entering}
        assert len(addresses) == 1
        assert [each.pid for each in _servers(home)] == [addresses.pop().pid]


async def test_a_killed_joiner_counts_no_more(home: Path) -> None:
    """After kill -9 of the last joiner the server is stopped as if it had left."""
    async with _joiner(home) as first, _joiner(home) as second:
        await first.kill()
        assert read_status(home) == second.address
        await second.kill()
        await eventually(lambda: _nothing_runs(home))


async def test_a_joiner_killed_while_it_starts_the_server_leaves_none(home: Path) -> None:
    """At whatever point the only joiner dies, no server stays behind, and the next join works."""
    for delay in (0.0, 0.02, 0.04, 0.06, 0.08, 0.1):
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-c", _JOINER, str(home), env=os.environ | {"PYTHONPATH": str(_PROJECT)},
            stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.DEVNULL,
        )  # fmt: skip
        try:
            await eventually(lambda: _exists(home / "backbone" / "start.lock"))
            await asyncio.sleep(delay)  # not to synchronise: to strike at different instructions
        finally:
            process.kill()
            await process.wait()
        await eventually(lambda: _nothing_runs(home))
        async with join(home) as address, _client(address) as client:
            await client.flush()
        await eventually(lambda: _nothing_runs(home))
        shutil.rmtree(home)


def _make(*directories: Path) -> None:
    for directory in directories:
        directory.mkdir(mode=0o755)


def _exists(path: Path) -> None:
    assert path.exists()


async def test_a_killed_server_is_back_on_its_port_with_every_acknowledged_message(home: Path) -> None:
    """After kill -9 of nats-server, time and again: same address, connected clients reconnect, nothing is lost."""
    async with join(home) as address, _client(address) as client:
        await _publish(client, 100)
        for _ in range(3):
            status = read_status(home)
            assert status is not None
            os.kill(status.pid, signal.SIGKILL)

            def restarted(old: int = status.pid) -> None:
                status = read_status(home)
                assert status is not None
                assert status.pid != old
                assert _where(status) == _where(address)
                assert status.supervisor_pid == address.supervisor_pid

            await eventually(restarted)
            async with join(home) as joined:  # returns when it answers
                assert _where(joined) == _where(address)
                assert await _stored(joined) == 100

        def reconnected() -> None:
            assert client.is_connected

        await eventually(reconnected)
        await client.jetstream().publish("kept.number", b"100")
        assert await _stored(address) == 101


async def test_a_killed_supervisor_is_replaced_by_those_who_are_in(home: Path) -> None:
    """After kill -9 of the supervisor a joiner starts another at the same address; the last leaver still ends it."""
    async with join(home) as address, _joiner(home), _client(address) as client:
        await _publish(client, 10)
        os.kill(address.supervisor_pid, signal.SIGKILL)

        def replaced() -> ServerAddress:
            status = read_status(home)
            assert status is not None
            assert status.supervisor_pid != address.supervisor_pid
            return status

        status = await eventually(replaced)
        assert _where(status) == _where(address)
        async with join(home) as joined:
            assert joined.supervisor_pid == status.supervisor_pid
            assert await _stored(joined) == 10
            assert [each.pid for each in _servers(home)] == [joined.pid]

        def reconnected() -> None:
            assert client.is_connected

        await eventually(reconnected)
    await eventually(lambda: _nothing_runs(home))


async def test_stale_state_of_dead_processes_gives_port_and_token_on(home: Path) -> None:
    """Everybody killed at once: the next joiner starts the server on the old port, token and store."""
    async with _joiner(home) as joiner:
        address = joiner.address
        async with _client(address) as client:
            await _publish(client, 10)
        # The joiner first stopped, so that it can not replace the supervisor.
        joiner.process.send_signal(signal.SIGSTOP)
        os.kill(address.supervisor_pid, signal.SIGKILL)
        await joiner.kill()
    await eventually(lambda: _no_supervisor_runs(home))
    assert (home / "backbone" / "server.json").exists()
    if sys.platform == "linux":
        await eventually(lambda: _no_server_runs(home))
    async with join(home) as again:
        assert _where(again) == _where(address)
        assert again.pid != address.pid
        assert await _stored(again) == 10


async def test_a_stale_pid_that_belongs_to_somebody_else_is_left_alone(home: Path) -> None:
    """A reused pid in server.json is neither trusted nor killed; a port that is taken is replaced."""
    other = await asyncio.create_subprocess_exec(sys.executable, "-c", "input()", stdin=asyncio.subprocess.PIPE)
    try:
        with socket.create_server(("127.0.0.1", 0)) as taken:
            stale = files.ServerState(
                supervisor_pid=other.pid, supervisor_born="earlier", server_pid=other.pid, server_born="earlier",
                port=taken.getsockname()[1], token="old", durability="normal",
            )  # fmt: skip
            _make(home, home / "backbone")
            (home / "backbone" / "server.json").write_text(json.dumps(asdict(stale)))
            async with join(home) as address, _client(address) as client:
                await client.flush()
                assert address.token == "old"
                assert not address.url.endswith(f":{stale.port}")
        assert other.returncode is None
    finally:
        other.kill()
        await other.wait()


async def test_an_orphaned_server_is_ended_first(home: Path) -> None:
    """Where the kernel does not end nats-server with its supervisor, the next one does, and takes the store over."""
    root = files.root_of(home)
    joiner.make_directories(root)
    store = files.open_lock(root, "store.lock")
    assert files.try_lock(store, fcntl.LOCK_EX)
    # Deaf to SIGTERM as well.
    code = "import signal; signal.signal(15, signal.SIG_IGN); print('up', flush=True); signal.pause()"
    orphan = await asyncio.create_subprocess_exec(
        sys.executable, "-c", code, stdout=asyncio.subprocess.PIPE, pass_fds=(store,)
    )
    try:
        os.close(store)
        assert orphan.stdout is not None
        await orphan.stdout.readline()
        stale = files.ServerState(
            supervisor_pid=2**22 + 1, supervisor_born="dead", server_pid=orphan.pid,
            server_born=files.born(orphan.pid) or "", port=(port := free_port()), token="old", durability="strict",
        )  # fmt: skip
        (root / "server.json").write_text(json.dumps(asdict(stale)))
        async with join(home) as address:
            assert _where(address) == (f"nats://127.0.0.1:{port}", "old")
            assert await orphan.wait() == -signal.SIGKILL
            assert json.loads((root / "nats.conf").read_text())["jetstream"]["sync_interval"] == "always"
    finally:
        with contextlib.suppress(ProcessLookupError):
            orphan.kill()
        await orphan.wait()


async def test_a_store_in_use_elsewhere_is_not_touched(home: Path) -> None:
    """A holder of the store that is unknown here (another container) makes join fail, not the store."""
    root = files.root_of(home)
    joiner.make_directories(root)
    store = files.open_lock(root, "store.lock")
    try:
        assert files.try_lock(store, fcntl.LOCK_EX)
        with pytest.raises(BrokerUnavailableError, match="perhaps in another container"):
            async with join(home):
                pass
    finally:
        os.close(store)


async def test_strict_is_never_less_than_asked_for(home: Path) -> None:
    """``strict`` refuses a server that runs as ``normal``; ``normal`` takes what it finds."""
    async with join(home, "normal"):
        with pytest.raises(ConfigError, match="MESH_DURABILITY is strict"):
            async with join(home, "strict"):
                pass
    await eventually(lambda: _nothing_runs(home))
    async with join(home, "strict") as strict, join(home, "normal") as normal:
        assert strict == normal
        async with _client(strict) as client:
            await _publish(client, 3)


async def test_a_server_that_fails_is_told_with_its_log(home: Path) -> None:
    """When nats-server itself refuses, the error says so, with the end of its log, and nothing runs on."""
    _make(home, home / "backbone", home / "backbone" / "data")
    (home / "backbone" / "data" / "jetstream").touch()
    try:
        with pytest.raises(BrokerUnavailableError) as caught:
            async with join(home):
                pass
        assert "did not start: it exited with status 1" in str(caught.value)
        assert str(home / "backbone" / "server.log") in str(caught.value)
        assert "storage directory is not a directory" in str(caught.value)
    finally:
        (home / "backbone" / "server.json").unlink()


async def test_a_full_disk_is_a_clear_error(tmp_path: Path, home: Path) -> None:
    """No space for our files: the error names the directory and the reason."""
    if os.geteuid() != 0 or sys.platform != "linux":
        pytest.skip("needs to mount a small file system")
    _make(home)
    mount = await asyncio.create_subprocess_exec("mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(home))
    if await mount.wait() != 0:
        pytest.skip("can not mount here")
    try:
        with contextlib.suppress(OSError), (home / "fill").open("wb", buffering=0) as fill:
            while True:
                fill.write(b"x" * 1024)
        with pytest.raises(BrokerUnavailableError, match="No space left on device"):
            async with join(home):
                pass
    finally:
        await eventually(lambda: _nothing_runs(home))
        assert await (await asyncio.create_subprocess_exec("umount", "-l", str(home))).wait() == 0


async def test_a_terminated_supervisor_stops_its_server_and_is_replaced(home: Path) -> None:
    """A SIGTERM, as a service manager sends to all of a gateway's processes, disturbs the others only shortly."""
    async with join(home) as address, _client(address) as client:
        os.kill(address.supervisor_pid, signal.SIGTERM)

        def replaced() -> None:
            status = read_status(home)
            assert status is not None
            assert status.supervisor_pid != address.supervisor_pid
            assert _where(status) == _where(address)
            assert client.is_connected

        await eventually(replaced)


async def test_cancelling_a_start_leaves(home: Path) -> None:
    """A join cancelled at any point holds nothing: the server that it started ends by itself."""
    for milliseconds in (0, 1, 5, 20, 40, 60, 80):
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(milliseconds / 1000), join(home):
                pass
        await eventually(lambda: _nothing_runs(home))
