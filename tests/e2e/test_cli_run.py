"""``mesh run`` with real gateways: start, output, every way to end."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import re
import select
import signal
import socket
import subprocess
import sys
import termios
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from gateway.runs import Run, list_runs
from tests.support.eventually import eventually_sync
from tests.support.gateways import MESH, MeshHome
from tests.support.processes import free_port

# Answers every call after the seconds in ?wait=, says what it does, and ends when it is told to.
_APP = """
import os, signal, sys, time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, urlsplit

class Handler(BaseHTTPRequestHandler):
    def do_POST(self):
        print("called", flush=True)
        time.sleep(float(parse_qs(urlsplit(self.path).query).get("wait", ["0"])[0]))
        body = b"answered"
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
    def do_GET(self):
        self.send_error(404)
    def log_message(self, *_):
        pass

def end(*_):
    print("told to end", flush=True)
    os._exit(int(os.environ.get("EXIT", "0")))

signal.signal(signal.SIGTERM, end)
server = ThreadingHTTPServer(("127.0.0.1", int(os.environ["APP_PORT"])), Handler)
print("serving", flush=True)
server.serve_forever()
"""

_FOREVER = "trap 'echo told to end; exit 0' TERM; echo up; while :; do sleep 0.05; done"
_STUBBORN = "trap 'echo no' TERM; echo up; while :; do sleep 0.05; done"


@pytest.fixture
def app(tmp_path: Path) -> str:
    path = tmp_path / "app.py"
    path.write_text(_APP)
    return str(path)


def _only_run(home: MeshHome) -> Run:
    (run,) = list_runs(home.path)
    return run


def _get(run: Run, path: str) -> tuple[int, bytes]:
    with urllib.request.urlopen(f"http://127.0.0.1:{run.http_port}{path}", timeout=60) as answer:
        return answer.status, answer.read()


def test_application_gets_its_environment_and_gives_the_exit_code(home: MeshHome, tmp_path: Path) -> None:
    script = (
        "import json, os; print(json.dumps({k: os.environ.get(k) for k in "
        "('APP_ID', 'APP_PORT', 'APP_PROTOCOL', 'APP_CHANNEL_ADDRESS', 'DAPR_HTTP_PORT', 'DAPR_GRPC_PORT', "
        "'DAPR_GRPC_ENDPOINT', 'MINE')}));"
        "raise SystemExit(7)"
    )
    number, grpc_number = free_port(), free_port()
    with home.run(
        *("--app-id", "orders", "--app-port", "3999", "--port", str(number), "--dapr-grpc-port", str(grpc_number)),
        *("--", sys.executable, "-c", script),
        environ={"MINE": "kept", "DAPR_GRPC_PORT": "1", "DAPR_GRPC_ENDPOINT": "http://elsewhere:1"},
    ) as run:
        assert run.wait() == 7
    line = next(line for line in run.lines if line.startswith("== APP - orders == {"))
    assert json.loads(line.partition("== {")[1][3:] + line.partition("== {")[2]) == {
        "APP_ID": "orders",
        "APP_PORT": "3999",
        "APP_PROTOCOL": "http",
        "APP_CHANNEL_ADDRESS": "127.0.0.1",
        "DAPR_HTTP_PORT": str(number),
        "DAPR_GRPC_PORT": str(grpc_number),
        "DAPR_GRPC_ENDPOINT": f"http://127.0.0.1:{grpc_number}",
        "MINE": "kept",
    }
    assert "error: orders ended with exit code 7" in run.lines


def test_run_is_listed_and_told_to_the_gateway(home: MeshHome, app: str) -> None:
    with home.run("--app-id", "orders", "--app-port", str(free_port()), sys.executable, app) as run:
        run.until("^== APP - orders == serving$")
        entry = _only_run(home)
        extended = json.loads(_get(entry, "/v1.0/metadata")[1])["extended"]
        assert extended["cliPID"] == str(run.process.pid) == str(entry.cli_pid)
        assert extended["appCommand"] == f"{sys.executable} {app}"
        told = run.until(r"^mesh: orders runs \(pid (\d+)\), its gateway is ready at (\S+)$")
        assert int(told[1]) == entry.app_pid
        run.send(signal.SIGUSR1)  # Ends neither of them.
        run.until("the log has lines from debug on")

        def check() -> None:
            assert json.loads(_get(entry, "/v1.0/metadata")[1])["extended"].get("appPID") == told[1]

        eventually_sync(check)
        (listed,) = json.loads(home.mesh("list", "-o", "json").stdout)
        assert (listed["appId"], listed["appPid"], listed["httpPort"]) == ("orders", entry.app_pid, entry.http_port)
        answer = home.mesh("invoke", "--app-id", "orders", "--method", "x", "--payload", "{}")
        assert (answer.returncode, answer.stdout) == (0, "answered")
        assert "orders" in home.mesh("components").stdout
        assert json.loads(home.mesh("status", "-o", "json").stdout)["state"] == "running"
        assert home.mesh("publish", "-i", "orders", "-p", "pubsub", "-t", "t", "-d", '{"a":1}').returncode == 0
        assert home.mesh("stop", "--app-id", "orders").stdout == "orders stopped\n"
        # It has ended when that is said; what is left of it is what nobody has asked for.
        assert run.process.poll() == 0
        assert run.wait() == 0
    assert home.mesh("list", "-o", "json").stdout == "[]\n"


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGTERM, 0), (signal.SIGINT, 130), (signal.SIGHUP, 0), (signal.SIGQUIT, 0)]
)
def test_signal_finishes_what_is_in_flight_before_the_application_ends(
    home: MeshHome, app: str, number: int, code: int
) -> None:
    answers: list[tuple[int, str]] = []

    def call() -> None:
        found = home.mesh("invoke", "-a", "orders", "-m", "slow?wait=1.5")
        answers.append((found.returncode, found.stdout + found.stderr))

    with home.run("--app-id", "orders", "--app-port", str(free_port()), sys.executable, app) as run:
        run.until("serving")

        def ready() -> None:
            try:
                assert _get(_only_run(home), "/v1.0/healthz")[0] == 204
            except urllib.error.URLError as error:
                raise AssertionError(error) from None

        eventually_sync(ready, 40.0)
        calling = threading.Thread(target=call)
        calling.start()
        run.until("^== APP - orders == called$")
        assert run.stop(number) == code
        calling.join()
    assert answers == [(0, "answered")]
    assert "== APP - orders == told to end" in run.lines


def test_second_ctrl_c_kills(home: MeshHome) -> None:
    with home.run("--app-id", "a", "--", "sh", "-c", _STUBBORN) as run:
        run.until("== up$")
        run.send(signal.SIGINT)
        run.until("^== APP - a == no$")
        run.send(signal.SIGINT)
        assert run.wait(4) == 130


def test_application_that_does_not_end_is_killed_after_its_grace(home: MeshHome) -> None:
    with home.run("--app-id", "a", "--", "sh", "-c", _STUBBORN) as run:
        run.until("== up$")
        assert run.stop() == 0


@pytest.mark.parametrize(
    ("script", "code", "how"),
    [
        ("echo last words; kill -9 $$", 137, "signal SIGKILL"),
        ("echo last words; kill -11 $$", 139, "signal SIGSEGV"),
        ("echo last words; exit 1", 1, "exit code 1"),
    ],
)
def test_crash_of_the_application_is_reported_at_once(home: MeshHome, script: str, code: int, how: str) -> None:
    with home.run("--app-id", "a", "--", "sh", "-c", script) as run:
        assert run.wait() == code
    assert "== APP - a == last words" in run.lines
    assert f"error: a ended with {how}" in run.lines


def test_crash_of_the_gateway_ends_the_application(home: MeshHome) -> None:
    with home.run("--app-id", "a", "--", "sh", "-c", _FOREVER) as run:
        run.until("== up$")
        os.kill(_only_run(home).pid, signal.SIGKILL)
        assert run.wait() == 1
    assert "error: the gateway of a ended with signal SIGKILL" in run.lines
    assert "== APP - a == told to end" in run.lines


def test_shutdown_of_the_gateway_ends_the_run(home: MeshHome) -> None:
    with home.run("--app-id", "a", "--", "sh", "-c", _FOREVER) as run:
        run.until("== up$")
        request = urllib.request.Request(f"http://127.0.0.1:{_only_run(home).http_port}/v1.0/shutdown", method="POST")
        with urllib.request.urlopen(request, timeout=60) as answer:
            assert answer.status == 204
        assert run.wait() == 0
    assert "mesh: the gateway of a was shut down" in run.lines


def test_nothing_is_left_when_the_command_line_is_killed(home: MeshHome) -> None:
    with home.run("--app-id", "a", "--", "sh", "-c", _FOREVER) as run:
        run.until("== up$")
        run.process.kill()
        run.process.wait()
        home.until_nothing_runs()
        assert list_runs(home.path) == []


def test_whole_process_group_ends_with_the_application(home: MeshHome) -> None:
    script = "sh -c 'echo child up; while :; do sleep 0.05; done' & sleep 0.5; exit 0"
    with home.run("--app-id", "a", "--", "sh", "-c", script) as run:
        assert run.wait() == 0
    assert "== APP - a == child up" in run.lines


def test_any_output_is_shown_line_by_line(home: MeshHome) -> None:
    script = (
        "import sys; w = sys.stdout.buffer.write;"
        r"w(b'\xff\x00\x1b[2J\n'); w(b'x' * 200_000 + b'\n'); w(b'crlf\r\n'); sys.stdout.flush(); w(b'no end')"
    )
    with home.run("--app-id", "a", "--", sys.executable, "-c", script) as run:
        assert run.wait() == 0
    lines = [line.removeprefix("== APP - a == ") for line in run.lines if line.startswith("== APP")]
    assert lines[0] == "���[2J"
    assert "".join(lines[1:-2]) == "x" * 200_000
    assert lines[-2:] == ["crlf", "no end"]


def test_output_of_python_comes_as_it_is_printed(home: MeshHome) -> None:
    with home.run("--app-id", "a", "--", sys.executable, "-c", "print('now'); import time; time.sleep(60)") as run:
        run.until("== APP - a == now$")


def test_modules_of_the_application_are_not_taken_for_ours(home: MeshHome, tmp_path: Path) -> None:
    for name in ("gateway", "mesh", "queue", "yaml"):
        (tmp_path / f"{name}.py").write_text("raise SystemExit('not ours')")
    # As the installed program: the folder of the call is not where it looks for modules.
    program = str(Path(sys.executable).with_name("mesh"))
    if not Path(program).exists():
        pytest.skip("mesh is not installed here")
    found = subprocess.run(
        [program, "run", "--app-id", "a", "--", "sh", "-c", "exit 5"],
        env=home.environ(),
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert found.returncode == 5, found.stderr


def test_resource_that_is_wrong_is_located(home: MeshHome, tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text(
        "apiVersion: dapr.io/v1alpha1\nkind: Component\nmetadata: {name: x}\nspec: {typ: state.mesh}\n"
    )
    with home.run("--app-id", "a", "--resources-path", str(tmp_path), "--", "sh", "-c", _FOREVER) as run:
        assert run.wait() == 1
    assert "a.yaml:4:8: spec.typ: unknown field; did you mean 'type'?" in run.text
    assert "==" not in run.text


def test_program_that_is_not_there_is_said(home: MeshHome) -> None:
    with home.run("--app-id", "a", "--", "no-such-program") as run:
        assert run.wait() == 1
    assert "error: cannot start a: no-such-program is not found" in run.lines


def test_port_that_is_taken_is_said(home: MeshHome) -> None:
    number = str(free_port())
    with home.run("--app-id", "a", "--dapr-http-port", number, "--", "sh", "-c", _FOREVER) as first:
        first.until("== up$")
        with home.run("--app-id", "b", "--dapr-http-port", number, "--", "sh", "-c", _FOREVER) as second:
            assert second.wait() == 1
        told = f"error: --dapr-http-port: {number} of b is the port of a, which runs already; mesh stop a ends it"
        assert second.lines == [told]
    with socket.create_server(("127.0.0.1", 0)) as foreign:
        number = str(foreign.getsockname()[1])
        with home.run("--app-id", "b", "--dapr-http-port", number, "--", "sh", "-c", _FOREVER) as second:
            assert second.wait() == 1
        assert number in second.text
        assert "error: the gateway of b did not start" in second.text
        assert "Traceback" not in second.text


def test_gateway_alone_serves_an_application_that_runs_already(home: MeshHome) -> None:
    with home.run("--app-id", "a", "--app-port", str(free_port())) as run:
        run.until("^mesh: the gateway of a is ready at http://127.0.0.1:")
        assert run.stop() == 0


def test_reader_that_goes_away_does_not_hang_the_run(home: MeshHome) -> None:
    with home.run("--app-id", "a", "--", "sh", "-c", _FOREVER) as run:
        run.until("== up$")
        assert run.process.stdout is not None
        assert run.stop() == 0


@contextmanager
def _in_a_terminal(home: MeshHome, *words: str) -> Iterator[tuple[int, subprocess.Popen[bytes]]]:
    """Start ``mesh run`` in the foreground of a terminal of its own; give the terminal's other end."""
    ours, its = pty.openpty()
    process = subprocess.Popen(
        [*MESH, "run", *words],
        env=home.environ({"TERM": "dumb"}),
        stdin=its,
        stdout=its,
        stderr=its,
        start_new_session=True,
        preexec_fn=lambda: fcntl.ioctl(its, termios.TIOCSCTTY, 0),
    )
    os.close(its)
    try:
        yield ours, process
    finally:
        process.terminate()
        process.wait(30)
        os.close(ours)


def _shown(terminal: int, text: str) -> None:
    """Read a terminal until a text was shown."""
    seen = b""
    while text.encode() not in seen:
        ready, _, _ = select.select([terminal], [], [], 60)
        assert ready, f"no {text!r} in {seen.decode()}"
        seen += os.read(terminal, 4096)


def test_keyboard_reaches_the_application(home: MeshHome) -> None:
    script = "print('hello', input('Name? ')); print('more', len(open(0).read()))"
    with _in_a_terminal(home, "--app-id", "i", "--", sys.executable, "-c", script) as (terminal, process):
        # A question has no end of line, and is shown all the same.
        _shown(terminal, "== APP - i == Name? ")
        os.write(terminal, b"Ann\n")
        _shown(terminal, "\n== APP - i == hello Ann\r\n")
        os.write(terminal, b"12345\n\x04")
        _shown(terminal, "== APP - i == more 6\r\n")
        assert process.wait(30) == 0


def test_ctrl_c_in_a_terminal_still_ends_in_order(home: MeshHome) -> None:
    with _in_a_terminal(home, "--app-id", "i", "--", "sh", "-c", _FOREVER) as (terminal, process):
        _shown(terminal, "== APP - i == up")
        os.write(terminal, b"\x03")
        _shown(terminal, "== APP - i == told to end")
        assert process.wait(30) == 130


def test_what_is_typed_while_it_ends_is_left_to_the_shell(home: MeshHome) -> None:
    with _in_a_terminal(home, "--app-id", "i", "--", "sh", "-c", _STUBBORN) as (terminal, process):
        _shown(terminal, "== APP - i == up")
        shell = os.open(f"/proc/{process.pid}/fd/0", os.O_RDONLY | os.O_NOCTTY)
        try:
            process.terminate()
            _shown(terminal, "mesh: stopping")
            os.write(terminal, b"ls\n")
            assert process.wait(30) == 0
            assert select.select([shell], [], [], 10)[0]
            assert os.read(shell, 100) == b"ls\n"
        finally:
            os.close(shell)


def test_application_that_is_waited_for_is_said_once(home: MeshHome) -> None:
    port = free_port()
    with home.run("--app-id", "a", "--app-port", str(port), "--", "sh", "-c", _FOREVER) as run:
        run.until(f"^mesh: waiting for 127.0.0.1:{port}, where a does not listen yet$")
        assert "up and running" not in run.text
        with socket.create_server(("127.0.0.1", port)) as server:
            # Whoever answers nothing is not waited for by these words.
            server.accept()[0].close()
            assert run.stop() == 0
    assert run.text.count("waiting for 127.0.0.1") == 1


@pytest.mark.parametrize(
    ("host", "waited", "other", "shown"),
    [("127.0.0.1", "127.0.0.1", "::1", "[::1]"), ("::1", "[::1]", "127.0.0.1", "127.0.0.1")],
)
def test_application_that_listens_on_the_other_loopback_address_is_told_of(
    home: MeshHome, host: str, waited: str, other: str, shown: str
) -> None:
    """Whether it listens there when it is first waited for or later, and once."""
    family = socket.AF_INET6 if ":" in other else socket.AF_INET
    port = free_port()
    arguments = ("--app-id", "a", "--app-port", str(port), "--app-channel-address", host)
    with home.run(*arguments, "--", "sh", "-c", _FOREVER) as run:
        waits = f"mesh: waiting for {waited}:{port}, where a does not listen yet"
        run.until(f"^{re.escape(waits)}$")
        with socket.create_server((other, port), family=family):
            hint = f"; somebody listens at {shown}:{port}: if it is a, say --app-channel-address {other}"
            run.until(f"^{re.escape(waits + hint)}$")
            assert run.stop() == 0
    assert run.text.count("waiting for") == 2


def test_port_that_another_program_has_is_said(home: MeshHome, app: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        with home.run("--app-id", "a", "--app-port", str(port), "--", "sh", "-c", "sleep 3") as run:
            assert run.wait() == 0
    where = f"listens at 127.0.0.1:{port}, so a can not, and what is meant for it goes there"
    assert f"mesh: warning: another program {where}" in run.lines
    assert "up and running" not in run.text


def test_application_of_ours_that_has_the_port_is_named(home: MeshHome, app: str) -> None:
    port = str(free_port())
    with home.run("--app-id", "first", "--app-port", port, "--", sys.executable, app) as first:
        first.until("up and running")
        with home.run("--app-id", "a", "--app-port", port, "--", "sh", "-c", "exit 0") as run:
            assert run.wait() == 0
        assert first.stop() == 0
    told = (
        f"the application of first, which runs already, listens at 127.0.0.1:{port}, so a can not, and what is meant "
    )
    assert f"mesh: warning: {told}for it goes there; mesh stop first ends it" in run.lines


def test_backbone_that_is_away_is_said_for_a_template(home: MeshHome, tmp_path: Path) -> None:
    """As for a single application, whose gateway writes to the terminal."""
    path = _template(tmp_path, {"one": _FOREVER}, daprdLogDestination="file")
    with home.run("-f", str(path), environ={"MESH_BACKBONE": f"nats://127.0.0.1:{free_port()}"}) as run:
        run.until(r"^mesh: one: waiting for the backbone, 5 s at most: NATS at .*: .* \(from MESH_BACKBONE\)$")
        assert run.stop() in (0, 1)


def test_ready_line_comes_once_both_are(home: MeshHome, app: str) -> None:
    port = free_port()
    with home.run("--app-id", "a", "--app-port", str(port), "--", sys.executable, app) as run:
        found = run.until(r"^mesh: You're up and running! a: gateway (\S+), application 127.0.0.1:(\d+)$")
        assert int(found[2]) == port
        with urllib.request.urlopen(f"{found[1]}/v1.0/healthz", timeout=60) as answer:
            assert answer.status == 204
        assert run.stop() == 0
    assert run.text.count("You're up and running!") == 1


def _template(directory: Path, apps: dict[str, str], **more: object) -> Path:
    for name in apps:
        (directory / name).mkdir(exist_ok=True)
    entries = [
        {"appID": name, "appDirPath": name, "command": ["sh", "-c", script], **more} for name, script in apps.items()
    ]
    path = directory / "dapr.yaml"
    path.write_text(json.dumps({"version": 1, "name": "shop", "apps": entries}))
    return path


def test_applications_of_a_template_run_side_by_side(home: MeshHome, tmp_path: Path) -> None:
    path = _template(tmp_path, {"one": f"pwd; {_FOREVER}", "two": _FOREVER})
    with home.run("-f", str(path)) as run:
        run.until("^== APP - one == up$")
        run.until("^== APP - two == up$")
        for name in ("one", "two"):
            run.until(rf"^mesh: You're up and running! {name}: gateway http://127.0.0.1:\d+$")
        assert f"== APP - one == {tmp_path / 'one'}" in run.lines
        assert "== GATEWAY" not in run.text
        listed = json.loads(home.mesh("list", "-o", "json").stdout)
        assert {entry["runTemplatePath"] for entry in listed} == {str(path)}
        assert {entry["runTemplateName"] for entry in listed} == {"shop"}
        for entry in listed:
            assert Path(entry["appLogPath"]).parent == tmp_path / entry["appId"] / ".dapr" / "logs"
            assert "up\n" in Path(entry["appLogPath"]).read_text()
            assert "listens on" in Path(entry["daprdLogPath"]).read_text()
        # One of them: the other goes on.
        assert home.mesh("stop", "one").returncode == 0
        run.until("^mesh: the gateway of one was shut down$")
        assert [entry.app_id for entry in list_runs(home.path)] == ["two"]
        assert home.mesh("stop", "-f", str(tmp_path)).returncode == 0
        assert run.wait() == 0


def test_end_of_one_application_leaves_the_others(home: MeshHome, tmp_path: Path) -> None:
    path = _template(tmp_path, {"short": "echo broken; exit 3", "long": _FOREVER}, appLogDestination="file")
    with home.run("-f", str(path)) as run:
        # Nobody saw its lines, so they are quoted.
        run.until("^error: short ended with exit code 3\n    broken$")
        run.until("^mesh: long runs")

        def one_is_left() -> None:
            assert [entry.app_id for entry in list_runs(home.path)] == ["long"]

        eventually_sync(one_is_left)  # The gateway of the other drains for a moment.
        assert run.stop() == 1
    assert "== APP" not in run.text


@pytest.mark.parametrize("style", ["mesh", "dapr"])
@pytest.mark.parametrize("several", [False, True])
def test_log_as_json_is_for_all_but_the_application(home: MeshHome, tmp_path: Path, style: str, several: bool) -> None:
    """Each line of ours and of the gateway is an object; what goes wrong is one too."""
    if several:
        path = _template(tmp_path, {"a": "echo up; exit 3"}, daprdLogDestination="console")
        words = ["-f", str(path)]
    else:
        words = ["--app-id", "a", "--", "sh", "-c", "echo up; exit 3"]
    found = home.mesh("run", "--log-as-json", *words, environ={"MESH_OUTPUT": style})
    lines = [*found.stdout.splitlines(), *found.stderr.splitlines()]
    assert [line for line in lines if line.startswith("== APP")] == [
        "== APP == up" if style == "dapr" and not several else "== APP - a == up"
    ]
    told = [json.loads(line) for line in lines if line and not line.startswith("== APP")]
    assert all({"time", "msg"} <= line.keys() for line in told)
    ours = [(line["status"], line["msg"]) for line in told if "status" in line]
    how = "exit status 3" if style == "dapr" else "exit code 3"
    assert any(status == "success" and "You're up and running!" in text for status, text in ours)
    assert any(status == "failure" and text.endswith(how) for status, text in ours)
    assert any(line.get("app_id") == "a" for line in told), "the gateway's"


def test_application_that_cannot_start_ends_all(home: MeshHome, tmp_path: Path) -> None:
    path = _template(tmp_path, {"good": _FOREVER, "bad": "x"})
    path.write_text(path.read_text().replace('"sh", "-c", "x"', '"no-such-program"'))
    with home.run("-f", str(path)) as run:
        assert run.wait() == 1
    assert "error: cannot start bad: no-such-program is not found" in run.lines


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ("typ: state.mesh", "a.yaml:4:8: spec.typ: unknown field; did you mean 'type'?"),
        ("type: state.couchbase", "a.yaml:4:14: spec.type: there is no component type 'state.couchbase' here"),
        ("type: state.mesh, metadata: [{name: a, secretKeyRef: {name: s}}]", "component x refers to a secret"),
        ("type: state.mesh, metadata: [{name: keyPrefix, value: a||b}]", "keyPrefix can't contain '||'"),
        ("type: state.sqlite, metadata: [{name: conectionString, value: b}]", "did you mean 'connectionString'?"),
    ],
)
def test_wrong_file_of_one_application_starts_none(home: MeshHome, tmp_path: Path, spec: str, said: str) -> None:
    """Whatever is wrong with it, as far as it can be known before."""
    path = _template(tmp_path, {"good": "echo up", "bad": "echo up"})
    (tmp_path / "bad/.dapr/resources").mkdir(parents=True)
    (tmp_path / "bad/.dapr/resources/a.yaml").write_text(
        f"apiVersion: dapr.io/v1alpha1\nkind: Component\nmetadata: {{name: x}}\nspec: {{{spec}}}\n"
    )
    found = home.mesh("run", "-f", str(path))
    assert (found.returncode, found.stdout) == (1, "")
    assert said in found.stderr


_FROM_A_FILE = """\
apiVersion: dapr.io/v1alpha1
kind: Component
metadata: {name: vault}
spec: {type: secretstores.local.file, metadata: [{name: secretsFile, value: secrets.json}]}
---
apiVersion: dapr.io/v1alpha1
kind: Component
metadata: {name: s}
spec: {type: state.mesh, metadata: [{name: keyPrefix, secretKeyRef: {name: prefix}}]}
auth: {secretStore: vault}
---
apiVersion: dapr.io/v1alpha1
kind: HTTPEndpoint
metadata: {name: there}
spec: {baseUrl: "http://localhost", headers: [{name: h, secretKeyRef: {name: header}}]}
auth: {secretStore: vault}
"""


@pytest.mark.parametrize(
    ("secrets", "said"),
    [
        (None, "a.yaml:4:50: spec.metadata[0] (secretsFile): cannot read the secrets file /"),
        ("[]", "/secrets.json must hold a JSON object"),
        ("{}", "refers to the secret 'prefix' (key 'prefix'), which no secret store gives"),
        ('{"prefix": "a||b"}', "keyPrefix can't contain '||'"),
        ('{"prefix": "a"}', "a.yaml:15:47: spec.headers[0] (h): refers to the secret 'header' (key 'header')"),
        ('{"prefix": "a", "header": "b"}', None),
    ],
)
def test_secrets_of_this_machine_are_read_before_anything_starts(
    home: MeshHome, tmp_path: Path, secrets: str | None, said: str | None
) -> None:
    path = _template(tmp_path, {"good": "echo up", "bad": "echo up"})
    (tmp_path / "bad/.dapr/resources").mkdir(parents=True)
    (tmp_path / "bad/.dapr/resources/a.yaml").write_text(_FROM_A_FILE)
    if secrets is not None:
        (tmp_path / "secrets.json").write_text(secrets)
    found = home.mesh("run", "-f", str(path), cwd=tmp_path)
    assert (found.returncode, "== up" in found.stdout) == (int(said is not None), said is None)
    assert (said or "") in found.stderr


def test_metrics_of_a_run(home: MeshHome, app: str) -> None:
    """On a port of its own that the application and the list know; any client of Prometheus reads them."""
    script = "import os, runpy; print('metrics', os.environ['DAPR_METRICS_PORT'], flush=True); "
    script += f"runpy.run_path({app!r}, run_name='__main__')"
    number = free_port()
    with home.run(
        *("--app-id", "orders", "--app-port", str(free_port()), "--metrics-port", str(number)),
        *("--", sys.executable, "-c", script),
        environ={"DAPR_METRICS_PORT": "1"},
    ) as run:
        run.until("^== APP - orders == serving$")
        assert f"== APP - orders == metrics {number}" in run.lines
        assert _get(_only_run(home), "/v1.0/healthz/outbound")[0] == 204
        with urllib.request.urlopen(f"http://127.0.0.1:{number}/metrics", timeout=60) as answer:
            families = {each.name: each for each in text_string_to_metric_families(answer.read().decode())}
        (listed,) = json.loads(home.mesh("list", "-o", "json").stdout)
    assert (listed["metricsEnabled"], listed["metricsPort"]) == (True, number)
    labels = {"app_id": "orders", "method": "GET", "path": "/v1.0/healthz/outbound", "status": "204"}
    assert labels in [sample.labels for sample in families["dapr_http_server_request_count"].samples]


def test_what_has_no_effect_is_said_by_a_run(home: MeshHome, tmp_path: Path) -> None:
    """Of a template and of its files, once each; and what is there and is not read."""
    path = _template(tmp_path, {"one": "true", "two": "true"}, profilePort=9090)
    (tmp_path / "one/.dapr").mkdir()
    (tmp_path / "one/.dapr/config.yaml").write_text(
        "apiVersion: dapr.io/v1alpha1\nkind: Configuration\nmetadata: {name: c}\nspec: {wasm: {strictSandbox: true}}\n"
    )
    (tmp_path / ".dapr/components").mkdir(parents=True)
    (tmp_path / ".dapr/config.yaml").write_text("")
    found = home.mesh("run", "-f", str(path), environ={"HOME": str(tmp_path)})
    assert found.returncode == 0, found.stderr
    warned = [line for line in found.stderr.splitlines() if line.startswith("warning: ")]
    assert len(warned) == 3, found.stderr
    assert sum("profilePort: it has no effect" in line for line in warned) == 2
    assert f"{tmp_path}/one/.dapr/config.yaml:4:8: spec.wasm: it has no effect yet" in found.stderr
    assert found.stderr.count(f"{tmp_path}/.dapr/components is there and is not read") == 1
    assert found.stderr.count(f"{tmp_path}/.dapr/config.yaml is there and is not read") == 1


def test_instances_of_one_application_share_its_work(home: MeshHome, tmp_path: Path, app: str) -> None:
    path = _template(tmp_path, {"one": "", "two": "", "caller": _FOREVER})
    template = json.loads(path.read_text())
    template["apps"][:2] = [
        {"appID": "shared", "appDirPath": each, "appPort": free_port(), "command": [sys.executable, app]}
        for each in ("one", "two")
    ]
    path.write_text(json.dumps(template))
    with home.run("-f", str(path)) as run:
        run.until("^mesh: caller runs")

        def each_was_called() -> None:
            runs = {entry.app_id: entry for entry in list_runs(home.path)}
            url = f"http://127.0.0.1:{runs['caller'].http_port}/v1.0/invoke/shared/method/x"
            for _ in range(8):
                try:
                    with urllib.request.urlopen(urllib.request.Request(url, method="POST"), timeout=30) as answer:
                        assert answer.read() == b"answered"
                except urllib.error.HTTPError as error:
                    raise AssertionError(error.read()) from error  # Neither is there yet.
            logs = [next(tmp_path.glob(f"{each}/.dapr/logs/shared_app_*.log")) for each in ("one", "two")]
            assert all("called" in log.read_text() for log in logs)

        eventually_sync(each_was_called)
        assert [entry.app_id for entry in list_runs(home.path)].count("shared") == 2
        assert run.stop() == 0


def test_template_may_come_by_standard_input(home: MeshHome, tmp_path: Path) -> None:
    path = _template(tmp_path, {"one": "echo up; exit 0"})
    found = home.mesh("run", "-f", "-", cwd=tmp_path, text=path.read_text())
    assert found.returncode == 0
    assert "== APP - one == up\n" in found.stdout


def test_closed_pipe_ends_nothing_but_the_output(home: MeshHome) -> None:
    """As in ``mesh run ... | head -1``: it must still stop when it is told to."""
    process = subprocess.Popen(
        [*MESH, "run", "--app-id", "a", "--", "sh", "-c", "echo up; while :; do echo more; sleep 0.01; done"],
        env=home.environ(),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    assert process.stdout is not None
    while b"more" not in process.stdout.readline():
        pass
    process.stdout.close()
    try:
        assert process.wait(30) in (0, 1)
    finally:
        process.kill()


def test_files_may_change_while_it_runs(home: MeshHome, tmp_path: Path) -> None:
    """Of one application and of several; a folder of theirs need not be read again by anybody."""
    folder = tmp_path / "resources"
    folder.mkdir()
    component = (
        "apiVersion: dapr.io/v1alpha1\nkind: Component\nmetadata: {{name: {0}}}\nspec: {{type: {1}, version: v1}}\n"
    )
    (folder / "a.yaml").write_text(component.format("a", "state.in-memory"))
    shared = f"version: 1\ncommon: {{resourcesPath: {folder}}}\napps:\n"
    template = tmp_path / "dapr.yaml"
    template.write_text(
        shared
        + "".join(
            f"  - {{appID: {each}, appDirPath: {tmp_path}, command: [sleep, '600'], daprdLogDestination: console}}\n"
            for each in ("one", "two")
        )
    )
    with home.run("-f", str(template)) as running:
        eventually_sync(lambda: _are(home, "one", "two"), 60.0)
        (folder / "b.yaml").write_text(component.format("b", "state.in-memory"))
        for app_id in ("one", "two"):
            running.until(rf"{app_id}.*resources reloaded: Component b added \({folder}/b.yaml:1\)")
        (folder / "b.yaml").write_text(component.format("b", "state.in-memori"))
        for app_id in ("one", "two"):
            running.until(rf"{app_id}.*resources are kept as they were: {folder}/b.yaml:4:\d+: .*did you mean")


def _are(home: MeshHome, *app_ids: str) -> None:
    assert {each.app_id for each in list_runs(home.path)} == set(app_ids)
