"""The socket beneath paho-mqtt: many of its calls share one of the kernel's."""

from __future__ import annotations

import socket
from collections.abc import Iterator

import pytest

from brokers.native._paho_socket import CHUNK_BYTES, BufferedSocket


@pytest.fixture
def pair() -> Iterator[tuple[BufferedSocket, socket.socket]]:
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    with ours, theirs:
        yield BufferedSocket(ours), theirs


def test_what_came_together_is_read_in_pieces(pair: tuple[BufferedSocket, socket.socket]) -> None:
    ours, theirs = pair
    theirs.sendall(b"abcdef")
    assert ours.recv(1) == b"a"
    assert ours.pending() == 5
    assert ours.recv(3) == b"bcd"
    assert ours.recv(100) == b"ef"
    assert ours.pending() == 0
    with pytest.raises(BlockingIOError):
        ours.recv(1)
    theirs.close()
    assert ours.recv(1) == b""


def test_what_is_kept_goes_before_what_is_large(pair: tuple[BufferedSocket, socket.socket]) -> None:
    ours, theirs = pair
    assert ours.send(b"ab") == 2
    assert ours.send(b"cd") == 2
    assert ours.waits
    large = b"e" * (CHUNK_BYTES + 1)
    sent = ours.send(large)
    assert 0 < sent <= len(large)
    assert not ours.waits
    ours.close()
    with theirs.makefile("rb") as file:
        assert file.read() == b"abcd" + large[:sent]


def test_what_the_socket_does_not_take_is_kept(pair: tuple[BufferedSocket, socket.socket]) -> None:
    ours, theirs = pair
    piece, taken = b"x" * 10_000, 0
    with pytest.raises(BlockingIOError):
        while True:
            taken += ours.send(piece)
    assert ours.waits
    theirs.setblocking(False)
    got = 0
    while ours.waits:
        got += len(theirs.recv(CHUNK_BYTES))
        try:
            ours.flush()
        except BlockingIOError:
            continue
    theirs.setblocking(True)
    ours.close()
    while more := theirs.recv(CHUNK_BYTES):
        got += len(more)
    assert got == taken


def test_closing_sends_what_is_kept(pair: tuple[BufferedSocket, socket.socket]) -> None:
    ours, theirs = pair
    ours.send(b"goodbye")
    ours.close()
    assert theirs.recv(100) == b"goodbye"
