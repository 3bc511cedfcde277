"""Units of systemd as ``mesh service`` writes them, and what a gateway tells systemd."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import re
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from gateway.cli import main
from gateway.cli.service_unit import Service, environment_text, unit_text
from gateway.journal import Journal, is_journal
from gateway.notify import Notify
from mesh.errors import ConfigError
from tests.support.server import missing

_ODD = "a \"b\" $HOME %n \\ 'c' ü"


@pytest.fixture
def listener(tmp_path: Path) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as found:
        found.bind(str(tmp_path / "socket"))
        found.settimeout(10)
        yield found


def _analyzed(tmp_path: Path, service: Service, *words: str) -> str:
    if not shutil.which("systemd-analyze"):
        missing("systemd-analyze")
    unit = tmp_path / service.unit
    unit.write_text(unit_text(service))
    environ = {**os.environ, "XDG_RUNTIME_DIR": str(tmp_path)}
    line = ["systemd-analyze", *words, unit]
    done = subprocess.run(line, capture_output=True, text=True, timeout=60, env=environ, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout + done.stderr


@pytest.mark.parametrize(
    ("service", "most"),
    [
        (Service("orders", ["/bin/true"]), 1.3),
        (Service("orders", ["/bin/true"], runs_application=True, directory=Path("/opt")), 1.7),
        (Service("orders", ["/bin/true"], low_port=True), 1.5),
        (Service("orders", ["/bin/true"], user="daemon", writable=[Path("/srv")]), 1.5),
    ],
)
def test_units_are_sound_and_say_little_of_the_machine(tmp_path: Path, service: Service, most: float) -> None:
    """Systemd finds nothing wrong in them, and scores them low: 10 is a process that may do everything."""
    assert _analyzed(tmp_path, service, "verify") == ""
    score = re.search(r"exposure level for \S+: ([0-9.]+)", _analyzed(tmp_path, service, "security", "--offline=yes"))
    assert score is not None
    assert float(score[1]) <= most


def test_units_of_a_user_ask_for_nothing_that_needs_root(tmp_path: Path) -> None:
    """Nor are they wrong."""
    service = Service("orders", ["/bin/true"], of_user=True)
    assert _analyzed(tmp_path, service, "--user", "verify") == ""
    text = unit_text(service)
    assert "WantedBy=default.target" in text
    assert not re.search(r"^(User|DynamicUser|StateDirectory|PrivateDevices|ProtectSystem)=", text, re.MULTILINE)


def test_words_come_through_as_they_are(tmp_path: Path) -> None:
    """Neither variables nor specifiers are looked for in them."""
    service = Service("orders", ["/bin/echo", _ODD, "--x=1"])
    assert _analyzed(tmp_path, service, "verify") == ""
    (line,) = re.findall(r"^ExecStart=(.*)$", unit_text(service), re.MULTILINE)
    assert line == '/bin/echo "a \\"b\\" $$HOME %%n \\\\ \'c\' ü" --x=1'
    with pytest.raises(ConfigError, match="do not print"):
        unit_text(Service("orders", ["/bin/echo", "a\nExecStart=/bin/sh"]))


def test_variables_take_the_place_of_their_own(tmp_path: Path) -> None:
    """Others stay, comments included; a shell reads them as they are, too."""
    text = environment_text("# mine\nA=1\nB = 2\n", {"B": _ODD})
    assert text.startswith("# mine\nA=1\nB=")
    (tmp_path / "file").write_text(text)
    read = subprocess.run(
        ["sh", "-c", f'. {tmp_path}/file; printf %s "$B"'], capture_output=True, text=True, check=True
    )
    assert read.stdout == _ODD
    for name, value in (("A-B", "x"), ("A", "x\ny")):
        with pytest.raises(ConfigError, match="--env"):
            environment_text("", {name: value})


def test_what_would_be_installed_is_printed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """With all paths whole; what the environment holds is named, and its values are not shown."""
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.setenv("MESH_BACKBONE", "nats://me:secret@broker:4222")
    monkeypatch.chdir(tmp_path)
    Path("resources").mkdir()
    options = ["--app-id", "orders", "-d", "resources", "--env", "A=b", "--", "node", "app.js", "--port", "3"]
    assert main(["service", "install", "--user", "--dry-run", *options]) == 0
    out = capsys.readouterr().out
    assert f"# {tmp_path}/config/systemd/user/mesh-orders.service\n" in out
    assert f"run --app-id=orders --resources-path={tmp_path}/resources -- node app.js --port 3\n" in out
    assert f"WorkingDirectory={tmp_path}\n" in out
    assert out.endswith(f"# {tmp_path}/config/mesh/orders.env\nMESH_BACKBONE=…\nA=…\n")
    assert not (tmp_path / "config").exists()


def test_a_template_gives_a_service_for_each_application(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One without a command is its gateway alone."""
    (tmp_path / "dapr.yaml").write_text(
        "version: 1\napps:\n- {appID: a, appDirPath: ., command: [node, a.js]}\n"
        "- {appID: b, appDirPath: ., appPort: 80}\n"
    )
    assert main(["service", "install", "--user", "--dry-run", "-f", str(tmp_path)]) == 0
    out = capsys.readouterr().out
    assert re.search(r"^ExecStart=\S+ -P -m gateway.cli run --app-id=a .*-- node a\.js$", out, re.MULTILINE)
    assert re.search(r"^ExecStart=\S+ -P -m gateway --app-id=b .*--app-port=80$", out, re.MULTILINE)


@pytest.mark.parametrize(
    ("line", "code", "message"),
    [
        ("install", 2, "install needs --app-id"),
        ("install --app-id a --as no-such-user-here --dry-run", 1, "there is no user 'no-such-user-here'"),
        ("install --app-id a/b --user --dry-run", 1, "must not contain"),
        ("install --app-id a%b --user --dry-run", 1, "can be no part of a unit's name"),
        ("install --app-id a --env A --user --dry-run", 2, "'A' is not NAME=VALUE"),
        ("install --app-id a --env A-B=1 --user --dry-run", 1, "--env"),
        ("install --app-id a --user --write-path /srv --dry-run", 2, "not with --user"),
        ("install --app-id a --workers 0 --user --dry-run", 2, "--workers: expected a number from 1 to 64"),
        ("install --app-id a --workers 2 --user --dry-run -- node", 2, "for a gateway alone"),
        ("install orders", 2, "unexpected 'orders'"),
        ("install -f x.yaml -- node", 2, "unexpected 'node'"),
        ("remove", 2, "remove needs an app id"),
        ("remove a -- b", 2, "unexpected 'b'"),
        ("remove a --user", 1, "there is no such service"),
        ("status a --user", 1, "there is no such service"),
        ("status --app-port 1", 2, "unknown option --app-port"),
        ("status --user", 0, "there is no service in"),
    ],
)
def test_what_makes_no_sense_is_refused(
    line: str,
    code: int,
    message: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    assert main(["service", *line.split()]) == code
    assert message in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_no_services_are_an_empty_list(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    assert main(["service", "status", "--user", "-o", "json"]) == 0
    assert json.loads(capsys.readouterr().out) == []


def test_what_a_service_could_not_read_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A service of the machine sees no home and no /tmp."""
    resources = tmp_path / "resources"
    resources.mkdir()
    assert main(["service", "install", "--app-id", "a", "-d", str(resources), "--dry-run"]) == 1
    assert f"error: {resources}: a service cannot read it" in capsys.readouterr().err


# What a gateway tells


async def test_systemd_is_told_while_the_loop_turns(listener: socket.socket) -> None:
    notify = Notify.by(
        {"NOTIFY_SOCKET": listener.getsockname(), "WATCHDOG_USEC": "30000", "WATCHDOG_PID": str(os.getpid())}
    )
    notify.tell("READY=1", "STATUS=answers on 3500")
    assert listener.recv(100) == b"READY=1\nSTATUS=answers on 3500"
    async with asyncio.TaskGroup() as tasks:
        alive = tasks.create_task(notify.alive())
        for _ in range(3):
            assert await asyncio.to_thread(listener.recv, 100) == b"WATCHDOG=1"
        alive.cancel()


@pytest.mark.parametrize("environ", [{}, {"NOTIFY_SOCKET": "/nowhere"}, {"WATCHDOG_USEC": "10"}])
async def test_nobody_is_told_where_nobody_asks(environ: dict[str, str]) -> None:
    """Nor is a listener that has gone an error."""
    notify = Notify.by(environ)
    notify.tell("READY=1")
    await asyncio.wait_for(notify.alive(), 5)  # noqa: TID251 - it returns at once


async def test_the_watchdog_of_another_process_is_not_fed(listener: socket.socket) -> None:
    notify = Notify.by({"NOTIFY_SOCKET": listener.getsockname(), "WATCHDOG_USEC": "10", "WATCHDOG_PID": "1"})
    await notify.alive()
    listener.setblocking(False)
    with pytest.raises(BlockingIOError):
        listener.recv(100)


def test_lines_are_entries_of_the_journal(listener: socket.socket, capsys: pytest.CaptureFixture[str]) -> None:
    """A text of several lines has its length; what the journal does not take is printed."""
    record = logging.LogRecord("gateway.app", logging.WARNING, "/x/app.py", 7, "away", (), None, "look")
    handler = Journal(
        logging.StreamHandler(sys.stderr),
        lambda _: {"app_id": "a", "trace-id": 5},
        lambda _: "one\ntwo",
        listener.getsockname(),
    )
    handler.handle(record)
    assert listener.recv(1000) == (
        b"MESH_APP_ID=a\nMESH_TRACE_ID=5\nMESSAGE\n\x07\0\0\0\0\0\0\0one\ntwo\nPRIORITY=4\nSYSLOG_IDENTIFIER=mesh\n"
        b"CODE_FILE=/x/app.py\nCODE_LINE=7\nCODE_FUNC=look\n"
    )
    listener.close()
    handler.handle(record)
    handler.close()
    assert capsys.readouterr().err == "away\n"


def test_the_journal_is_known_by_its_file(tmp_path: Path) -> None:
    with (tmp_path / "out").open("w") as out:
        found = os.fstat(out.fileno())
        assert is_journal(out, {"JOURNAL_STREAM": f"{found.st_dev}:{found.st_ino}"})
        assert not is_journal(out, {"JOURNAL_STREAM": f"{found.st_dev}:{found.st_ino + 1}"})
        assert not is_journal(out, {})
