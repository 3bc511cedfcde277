"""``mesh service`` with a real systemd: what it writes is started, watched, started anew, and removed."""

from __future__ import annotations

import json
import re
import textwrap
from collections.abc import Iterator

import pytest

from tests.support.booted import PYTHON, Booted, booted
from tests.support.eventually import eventually_sync

pytestmark = pytest.mark.slow

_APP = """
import http.server, os, sys

class Hello(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        names = ("DAPR_HTTP_PORT", "GREETING", "NOTIFY_SOCKET", "WATCHDOG_USEC")
        body = "|".join(os.environ.get(name, "-") for name in names).encode()
        self.send_response(200 if self.path == "/hello" else 404)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    do_POST = do_GET

http.server.ThreadingHTTPServer(("127.0.0.1", 3000), Hello).serve_forever()
"""
_GREETING = 'a "b" $c `d` \\e %f'
# A gateway is asked with a deadline, for what it calls may not be there yet.
_CURL = ("curl", "--silent", "--max-time", "5", "--write-out", " %{http_code}")


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Booted]:
    with booted(tmp_path_factory.mktemp("machine") / "root") as machine:
        (machine.root / "opt" / "app.py").write_text(textwrap.dedent(_APP))
        yield machine


def _status(machine: Booted, app_id: str) -> dict[str, object]:
    told = machine.mesh("service", "status", "-o", "json", check=False)
    return next(each for each in json.loads(told) if each["appId"] == app_id)


def _called(machine: Booted) -> str:
    answer = machine.run(*_CURL, "http://127.0.0.1:3500/v1.0/invoke/shop/method/hello", check=False)
    assert answer.endswith(" 200"), answer
    return answer.removesuffix(" 200")


def _started_anew(machine: Booted, app_id: str, before: object) -> None:
    def seen() -> None:
        assert _status(machine, app_id)["pid"] not in (before, None)

    eventually_sync(seen)
    eventually_sync(lambda: _called(machine))


@pytest.fixture(scope="module")
def services(machine: Booted) -> None:
    said = machine.mesh("service", "install", "--app-id", "orders")
    assert said.endswith("mesh-orders.service runs\n")
    command = ("--", PYTHON, "/opt/app.py")
    machine.mesh(
        "service", "install", "--app-id", "shop", "--app-port", "3000", "--env", f"GREETING={_GREETING}", *command
    )


@pytest.mark.usefixtures("services")
class TestServices:
    """One after the other, on the same machine."""

    def test_they_run_as_nobody_in_particular(self, machine: Booted) -> None:
        """They start, see each other over the broker that one of them started, and have no right they do not need."""
        port, greeting, *told = eventually_sync(lambda: _called(machine)).split("|")
        assert port.isdecimal()
        assert greeting == _GREETING
        assert told == ["-", "-"], "what systemd is told is not for the application"
        orders = _status(machine, "orders")
        assert (orders["state"], orders["enabled"], orders["status"]) == ("active (running)", True, "answers on 3500")
        proc = machine.run("cat", f"/proc/{orders['pid']}/status")
        assert re.search(r"^CapBnd:\s+0+$", proc, re.MULTILINE)
        assert re.search(r"^NoNewPrivs:\s+1$", proc, re.MULTILINE)
        assert re.search(r"^Seccomp:\s+2$", proc, re.MULTILINE)
        assert not re.search(r"^Uid:\s+0\b", proc, re.MULTILINE)
        listed = machine.run("env", "MESH_HOME=/var/lib/mesh", PYTHON, "-P", "-m", "gateway.cli", "list", "-o", "json")
        assert {each["appId"] for each in json.loads(listed)} == {"orders", "shop"}

    @pytest.mark.parametrize(("unit", "most"), [("mesh-orders.service", 1.2), ("mesh-shop.service", 1.7)])
    def test_how_exposed_they_are(self, machine: Booted, unit: str, most: float) -> None:
        """The score is that of docs/service.md."""
        found = re.search(r"exposure level for \S+: ([0-9.]+)", machine.run("systemd-analyze", "security", unit))
        assert found is not None
        assert float(found[1]) <= most

    def test_the_journal_has_fields(self, machine: Booted) -> None:
        """A line has its level, application and logger in fields of their own."""
        out = machine.run("journalctl", "-o", "json", "-u", "mesh-orders", "MESH_APP_ID=orders")
        lines = [json.loads(line) for line in out.splitlines()]
        line = next(each for each in lines if each["MESSAGE"].startswith("orders listens on 3500"))
        assert (line["PRIORITY"], line["MESH_SCOPE"], line["SYSLOG_IDENTIFIER"]) == ("6", "gateway.app", "mesh")
        assert line["CODE_FILE"].endswith("app.py")

    def test_one_that_hangs_is_started_anew(self, machine: Booted) -> None:
        """The watchdog hears nothing of a process that is stopped."""
        folder = machine.root / "etc" / "systemd" / "system" / "mesh-orders.service.d"
        folder.mkdir()
        (folder / "fast.conf").write_text("[Service]\nWatchdogSec=2\n")
        machine.run("systemctl", "daemon-reload")
        machine.run("systemctl", "restart", "mesh-orders")
        hung = _status(machine, "orders")["pid"]
        machine.run("kill", "-STOP", str(hung))
        _started_anew(machine, "orders", hung)
        assert "Watchdog timeout" in machine.run("journalctl", "-u", "mesh-orders")

    def test_one_that_is_killed_is_started_anew(self, machine: Booted) -> None:
        """Gateway and application come back together."""
        killed = _status(machine, "shop")["pid"]
        machine.run("systemctl", "kill", "--signal=KILL", "mesh-shop")
        _started_anew(machine, "shop", killed)

    def test_what_is_installed_again_is_changed(self, machine: Booted) -> None:
        """A new command line is used at once; of variables, those that are given."""
        machine.mesh(
            "service", "install", "--app-id", "orders", "--dapr-http-port", "3600", "--env", "NAMESPACE=default"
        )
        assert _status(machine, "orders")["status"] == "answers on 3600"
        machine.mesh("service", "install", "--app-id", "orders", "--env", "OTHER=1")
        environment = (machine.root / "etc" / "mesh" / "orders.env").read_text()
        assert environment == 'NAMESPACE="default"\nOTHER="1"\n'

    def test_one_may_have_workers(self, machine: Booted) -> None:
        """It is ready with them, and replaces them without an end of its own."""
        machine.mesh("service", "install", "--app-id", "orders", "--dapr-http-port", "3600", "--workers", "2")
        before = _status(machine, "orders")
        assert (before["state"], before["status"]) == ("active (running)", "2 workers")
        machine.run("systemctl", "kill", "--signal=HUP", "--kill-whom=main", "mesh-orders")
        replaced = ("journalctl", "-u", "mesh-orders", "--grep", "all workers are new ones")
        eventually_sync(lambda: machine.run(*replaced))
        assert {**_status(machine, "orders"), "memory": 0} == {**before, "memory": 0}

    def test_they_are_removed(self, machine: Booted) -> None:
        """What was running drains, what was written is gone, what others wrote stays."""
        units = machine.root / "etc" / "systemd" / "system"
        (units / "mesh-other.service").write_text("[Service]\nExecStart=/bin/true\n")
        assert "was not written by mesh service" in machine.mesh("service", "remove", "other", check=False)
        machine.mesh("service", "remove", "orders", "shop", "--purge")
        assert "shop has drained" in machine.run("journalctl", "-u", "mesh-shop")
        assert not [each.name for each in units.glob("mesh-*.service") if each.name != "mesh-other.service"]
        assert not list((units / "multi-user.target.wants").glob("mesh-*"))
        assert not list((machine.root / "etc" / "mesh").iterdir())
        assert "no service" in machine.mesh("service", "status")
