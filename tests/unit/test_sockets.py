"""Which types pluggable components' sockets have."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from mesh.errors import ConfigError
from mesh.registry import Registry
from mesh.sockets import FOLDER
from tests.support.pluggable_server import folder


@pytest.fixture
def place() -> Iterator[Path]:
    """A folder with sockets, and with what is none."""
    with folder() as made, ExitStack() as stack:
        for name in ("mine.sock", "Loud.sock", "my.store.sock", "plain", "one.sock", "one.socket"):
            made_socket = stack.enter_context(socket.socket(socket.AF_UNIX))
            made_socket.bind(str(made / name))
        (made / "file.sock").touch()
        (made / "folder.sock").mkdir()
        yield made


@pytest.mark.parametrize(
    ("kind", "there"),
    [
        ("state.mine", True),
        ("secretstores.mine", True),
        ("state.loud", True),
        ("state.my.store", True),
        ("state.plain", True),
        ("state.my", False),
        ("state.file", False),
        ("state.folder", False),
        ("state.", False),
        ("lock.mine", False),
        ("state.in-memory", True),
    ],
)
def test_types(place: Path, kind: str, there: bool) -> None:
    """A file's name without its last ending, in lower case; of kinds that components can be of."""
    found = Registry().find(kind)
    assert (found is not None) is there
    if found is not None:
        assert ("pluggable" in found.value) is (kind != "state.in-memory")


def test_two_sockets_of_a_name(place: Path) -> None:
    """Nobody knows which is meant."""
    with pytest.raises(ConfigError, match=r"provided twice: by the sockets one.sock and one.socket in /"):
        Registry().find("state.one")


def test_a_type_that_is_not_there(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is there is named, and the folder."""
    registry = Registry()
    for kind in ("state.nobody", "secretstores.nobody"):
        told = f"; pluggable components with a socket in {place}: loud, mine, my.store, one, plain"
        assert registry.not_installed(kind).endswith(told)
    assert registry.not_installed("state.my.stor").endswith("did you mean 'state.my.store'?")
    assert str(place) not in registry.not_installed("lock.other")
    monkeypatch.setenv(FOLDER, str(place / "none"))
    assert registry.not_installed("state.nobody").endswith(
        f"; there is no folder {place / 'none'} for pluggable components ({FOLDER})"
    )
    monkeypatch.setenv(FOLDER, str(place / "folder.sock"))
    assert registry.not_installed("state.nobody").endswith(f"{place / 'folder.sock'}: none")


def test_a_package_goes_before_a_socket(place: Path) -> None:
    """As it did before there was one of that name."""
    with socket.socket(socket.AF_UNIX) as made:
        made.bind(str(place / "redis.sock"))
        found = Registry().find("state.redis")
    assert found is not None
    assert found.value.startswith("bindings.redis")
