"""The registry of what runs."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from gateway.cli.client import grpc_endpoint
from gateway.runs import Run, find_run, list_runs, registered, set_app_pid
from tests.support.eventually import eventually_sync
from tests.support.processes import ROOT

_HOLDER = """
import sys, time
from pathlib import Path
from gateway.runs import Run, registered
with registered(Path(sys.argv[1]), Run(sys.argv[2], 3500, labels={"cliPID": "7"})):
    print("in", flush=True)
    sys.stdin.read()
"""


def _holder(home: Path, app_id: str) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, "-c", _HOLDER, str(home), app_id],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "in\n"
    return process


def _close(process: subprocess.Popen[str]) -> None:
    process.communicate()


def test_entry_lasts_as_long_as_it_is_entered(tmp_path: Path) -> None:
    assert list_runs(tmp_path) == []
    run = Run("orders", 3500, app_port=80, socket="/s", labels={"cliPID": "12"})
    with registered(tmp_path, run):
        assert list_runs(tmp_path) == [run]
        assert find_run(tmp_path, run.pid) == run
        assert run.cli_pid == 12
    assert list_runs(tmp_path) == []
    assert list((tmp_path / "run").iterdir()) == []


def test_two_of_one_process(tmp_path: Path) -> None:
    """Neither waits for the other: the one that would let go may run in the same thread."""
    first, second = Run("a", 1), Run("b", 2)
    with registered(tmp_path, first):
        with registered(tmp_path, second):
            assert list_runs(tmp_path) == [first, second]
        assert find_run(tmp_path, first.pid) == first
    assert list((tmp_path / "run").iterdir()) == []


def test_entry_of_an_earlier_version(tmp_path: Path) -> None:
    """It is named by the pid alone, and that of another process may begin with the same digits."""
    with registered(tmp_path, Run("a", 1, pid=12)), registered(tmp_path, Run("b", 2, pid=123)):
        for suffix in (".json", ".lock"):
            [path] = (tmp_path / "run").glob(f"12-*{suffix}")
            path.rename(path.with_name(f"12{suffix}"))
        assert [run and run.app_id for run in (find_run(tmp_path, pid) for pid in (12, 123, 1))] == ["a", "b", None]


def test_entry_of_a_killed_process_is_removed(tmp_path: Path) -> None:
    first, second = _holder(tmp_path, "a"), _holder(tmp_path, "b")
    try:
        assert [run.app_id for run in list_runs(tmp_path)] == ["a", "b"]
        first.send_signal(signal.SIGKILL)
        first.wait()
        assert [run.app_id for run in list_runs(tmp_path)] == ["b"]
        left = {(file.name.partition("-")[0], file.suffix) for file in (tmp_path / "run").iterdir()}
        assert left == {(str(second.pid), ".json"), (str(second.pid), ".lock")}
    finally:
        _close(first)
        _close(second)
    eventually_sync(lambda: _empty(tmp_path))


def _empty(home: Path) -> None:
    assert list_runs(home) == []


def test_pid_of_another_process_does_not_keep_an_entry_alive(tmp_path: Path) -> None:
    """The lock decides, so that a number which the kernel gave away again is no trap."""
    directory = tmp_path / "run"
    directory.mkdir()
    (directory / f"{os.getpid()}.json").write_text(json.dumps({"app_id": "old", "http_port": 1, "pid": os.getpid()}))
    (directory / f"{os.getpid()}.lock").touch()
    assert list_runs(tmp_path) == []
    assert list(directory.iterdir()) == []


def test_entry_without_lock_is_stale(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "5.json").write_text("{}")
    assert list_runs(tmp_path) == []
    assert list((tmp_path / "run").iterdir()) == []


def test_whoever_looks_while_a_gateway_begins_does_not_remove_its_entry(tmp_path: Path) -> None:
    """Nobody would find it then, for as long as it runs."""
    run, over = Run("a", 1), threading.Event()

    def look() -> None:
        while not over.is_set():
            find_run(tmp_path, run.pid)

    with ThreadPoolExecutor() as threads:
        looking = [threads.submit(look) for _ in range(3)]
        try:
            for _ in range(300):
                with registered(tmp_path, run):
                    assert find_run(tmp_path, run.pid) == run
        finally:
            over.set()
    assert [each.exception() for each in looking] == [None] * 3
    assert list((tmp_path / "run").iterdir()) == []


def test_entry_that_nobody_understands_is_left_alone(tmp_path: Path) -> None:
    with registered(tmp_path, Run("a", 1)):
        [path] = (tmp_path / "run").glob(f"{os.getpid()}-*.json")
        for text in ("{", "[]", '{"unknown": 1}'):
            path.write_text(text)
            assert list_runs(tmp_path) == []
            assert path.exists()


def test_application_is_noted_while_the_gateway_runs(tmp_path: Path) -> None:
    run = Run("a", 1)
    set_app_pid(tmp_path, run.pid, 99)
    assert list_runs(tmp_path) == []
    with registered(tmp_path, run):
        set_app_pid(tmp_path, run.pid, 99)
        assert [each.app_pid for each in list_runs(tmp_path)] == [99]
    assert list((tmp_path / "run").iterdir()) == []


def test_only_this_user_reads_an_entry(tmp_path: Path) -> None:
    with registered(tmp_path, Run("a", 1)):
        assert {file.stat().st_mode & 0o777 for file in (tmp_path / "run").iterdir()} == {0o600}


@pytest.mark.parametrize(
    ("run", "endpoint"),
    [
        (Run("a", 1, grpc_port=50001), "http://127.0.0.1:50001"),
        (Run("a", 1, grpc_port=50001, host="0.0.0.0"), "http://127.0.0.1:50001"),
        (Run("a", 1, grpc_port=50001, host="::"), "http://[::1]:50001"),
        (Run("a", 1, grpc_port=50001, host="10.0.0.7"), "http://10.0.0.7:50001"),
        (Run("a", 0, socket="/tmp/d/dapr-a-http.socket"), "unix:///tmp/d/dapr-a-grpc.socket"),
    ],
)
def test_where_clients_of_grpc_connect(run: Run, endpoint: str) -> None:
    assert grpc_endpoint(run) == endpoint
