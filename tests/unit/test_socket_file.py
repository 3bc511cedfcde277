"""A socket file: taken only from nobody, and left to whoever has it."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Callable
from contextlib import closing, suppress
from pathlib import Path
from typing import cast

import pytest
import uvloop

from gateway.socket_file import listen_at
from mesh.errors import ConfigError

Put = Callable[[Path], object]


class Greeting(asyncio.Protocol):
    """Says one word and closes."""

    def __init__(self, word: bytes = b"hello") -> None:
        self.word = word

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        transport = cast("asyncio.WriteTransport", transport)  # uvloop's is none by inheritance.
        transport.write(self.word)
        transport.close()


async def greeted(path: Path) -> bytes:
    reader, writer = await asyncio.open_unix_connection(path)
    with closing(writer):
        return await reader.read()


def listening(path: Path, *, full: bool = False) -> list[socket.socket]:
    server = socket.socket(socket.AF_UNIX)
    server.bind(str(path))
    server.listen(0)
    waiting = [server]
    while full:
        client = socket.socket(socket.AF_UNIX)
        client.setblocking(False)
        waiting.append(client)
        try:
            client.connect(str(path))
        except BlockingIOError:
            break
    return waiting


def dead(path: Path) -> None:
    for each in listening(path):
        each.close()


def datagrams(path: Path) -> socket.socket:
    server = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    server.bind(str(path))
    return server


@pytest.mark.parametrize("put", [lambda path: None, dead], ids=["nothing", "a dead socket"])
async def test_a_file_that_is_free(tmp_path: Path, put: Put) -> None:
    """It is gone at the end, and can be had again."""
    path = tmp_path / "s"
    put(path)
    for _ in range(2):
        end = await listen_at(path, Greeting)
        assert await greeted(path) == b"hello"
        end()
        assert not path.exists()


@pytest.mark.parametrize(
    ("put", "told"),
    [
        (listening, "somebody listens there, perhaps another gateway of this app id; end that one, or give another"),
        (lambda path: listening(path, full=True), "somebody listens there"),
        (datagrams, "Protocol wrong type for socket; --unix-domain-socket names a folder"),
        (Path.touch, "there is something that is no socket; remove it"),
        (Path.mkdir, "there is something that is no socket; remove it"),
        (lambda path: path.symlink_to(path.with_name("t")), "there is something that is no socket; remove it"),
    ],
    ids=["listened at", "its queue is full", "of datagrams", "a file", "a folder", "a link"],
)
async def test_a_file_that_is_taken(tmp_path: Path, put: Put, told: str) -> None:
    """Stays as it is, and is named."""
    path = tmp_path / "s"
    holding = put(path)
    before = path.lstat()
    with pytest.raises(ConfigError, match=f"cannot listen at {path}: {told}"):
        await listen_at(path, Greeting)
    assert (path.lstat().st_ino, path.lstat().st_mode) == (before.st_ino, before.st_mode)
    for each in holding if isinstance(holding, list) else [holding]:
        with suppress(AttributeError):
            each.close()


async def test_a_file_that_another_one_has_by_now_stays(tmp_path: Path) -> None:
    """As when somebody has removed it by hand, and another one began."""
    path = tmp_path / "s"
    first = await listen_at(path, Greeting)
    path.unlink()
    second = await listen_at(path, lambda: Greeting(b"second"))
    first()
    assert await greeted(path) == b"second"
    second()
    assert not path.exists()
    third = await listen_at(path, Greeting)
    path.unlink()
    third()


@pytest.mark.parametrize("loop", [asyncio.new_event_loop, uvloop.new_event_loop], ids=["asyncio", "uvloop"])
def test_of_many_at_once_one_has_it(tmp_path: Path, loop: Callable[[], asyncio.AbstractEventLoop]) -> None:
    """Also where all of them find a dead file; the others are told."""
    path = tmp_path / "s"
    dead(path)
    ends: list[Callable[[], None]] = []
    refused: list[ConfigError] = []

    async def one() -> None:
        try:
            ends.append(await listen_at(path, Greeting))
        except ConfigError as error:
            refused.append(error)

    async def many() -> None:
        async with asyncio.TaskGroup() as tasks:
            for _ in range(20):
                tasks.create_task(one())
        assert (len(ends), len(refused)) == (1, 19)
        assert await greeted(path) == b"hello"
        ends[0]()
        assert not path.exists()

    with asyncio.Runner(loop_factory=loop) as runner:
        runner.run(many())


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read every folder")
async def test_a_folder_that_may_not_be_read(tmp_path: Path) -> None:
    """One can make a file in it all the same."""
    tmp_path.chmod(0o300)
    end = await listen_at(tmp_path / "s", Greeting)
    end()
    tmp_path.chmod(0o700)
