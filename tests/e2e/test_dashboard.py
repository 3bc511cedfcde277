"""The dashboard as people start it: by itself, and beside the applications of a run."""

from __future__ import annotations

import json
import os
import re
import signal
import sys
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import pytest

from tests.support.eventually import eventually_sync
from tests.support.gateways import MESH, MeshHome, MeshRun
from tests.support.processes import free_port

_CALLER = """
import os, time, urllib.request
url = "http://127.0.0.1:" + os.environ["DAPR_HTTP_PORT"] + "/v1.0/publish/pubsub/orders"
while True:
    urllib.request.urlopen(urllib.request.Request(url, b'{"id": 1}', {"Content-Type": "application/json"})).close()
    time.sleep(0.05)
"""
_ADDRESS = r"^Dashboard: (http://127\.0\.0\.1:(\d+)/dashboard/)#token=(\S+)$"


class Page:
    """What its address gives who knows the token."""

    def __init__(self, run: MeshRun) -> None:
        found = run.until(_ADDRESS)
        self.url, self.port, self.token = found[1], int(found[2]), found[3]

    def get(self, path: str) -> Any:
        with urllib.request.urlopen(self.asked(path), timeout=30) as answer:
            return json.load(answer)

    def asked(self, path: str) -> urllib.request.Request:
        return urllib.request.Request(self.url + path, headers={"dashboard-token": self.token})


def _template(directory: Path, *apps: str, port: int = 0) -> None:
    (directory / "app.py").write_text(_CALLER)
    lines = ["version: 1", "apps:"]
    for app in apps:
        lines += [f"  - appID: {app}", "    appDirPath: .", f"    command: ['{sys.executable}', 'app.py']"]
        lines += [f"    appPort: {port}"] if port else []
    (directory / "dapr.yaml").write_text("\n".join(lines))


def test_beside_a_run(home: MeshHome, tmp_path: Path) -> None:
    """Its address is printed, what flows is seen there, and it ends as the applications do."""
    _template(tmp_path, "shop")
    with home.run("-f", str(tmp_path), "--dashboard") as run:
        page = Page(run)
        with urllib.request.urlopen(page.url, timeout=30) as answer:
            assert answer.read().lower().startswith(b"<!doctype html>")

        def seen() -> None:
            assert [each["id"] for each in page.get("api/mesh")["apps"]] == ["shop"]

        eventually_sync(seen)
        with urllib.request.urlopen(page.asked("api/live"), timeout=30) as live:
            while not re.search(rb'"block":"pubsub","from":"shop","target":"pubsub/orders"', live.readline()):
                pass
        assert page.get("api/apps/shop/v1.0/mesh/node")["app"] == "shop"
        assert {"shop", "mesh-dashboard"} == {
            each["appId"] for each in json.loads(home.mesh("list", "-o", "json").stdout)
        }
        assert run.stop(signal.SIGINT) == 130
    assert json.loads(home.mesh("list", "-o", "json").stdout) == []


def test_the_end_of_the_applications_is_its_end(home: MeshHome, tmp_path: Path) -> None:
    """A run is over once its application is, and has its exit code."""
    over = tmp_path / "over"
    (tmp_path / "app.py").write_text(
        f"import pathlib, time\nwhile not pathlib.Path({str(over)!r}).exists():\n    time.sleep(0.05)\nexit(3)\n"
    )
    with home.run("--dashboard", "--app-id", "short", "--", sys.executable, str(tmp_path / "app.py")) as run:
        Page(run)
        over.touch()
        assert run.wait() == 3


def test_its_end_is_none_of_the_applications(home: MeshHome, tmp_path: Path) -> None:
    """When it is killed, that is said, and all else goes on."""
    _template(tmp_path, "shop")
    with home.run("-f", str(tmp_path), "--dashboard") as run:
        Page(run)
        run.until("^mesh: You're up and running! shop")
        [pid] = [
            each["daprdPid"]
            for each in json.loads(home.mesh("list", "-o", "json").stdout)
            if each["appId"] == "mesh-dashboard"
        ]
        os.kill(pid, signal.SIGKILL)
        run.until("warning: the dashboard ended")
        assert [each["appId"] for each in json.loads(home.mesh("list", "-o", "json").stdout)] == ["shop"]
        assert run.process.poll() is None


def test_a_command_may_have_such_an_option_itself(home: MeshHome, tmp_path: Path) -> None:
    """Behind the command's beginning it is the command's."""
    (tmp_path / "app.py").write_text("import sys; print(sys.argv[1:])")
    with home.run("--app-id", "a", sys.executable, str(tmp_path / "app.py"), "--dashboard") as run:
        run.until(re.escape("== APP - a == ['--dashboard']"))
        assert run.wait() == 0
        assert "Dashboard:" not in run.text


def test_by_itself(home: MeshHome) -> None:
    """It shows what runs already, is stopped as any gateway, and a second one has another port."""
    port = free_port()
    with home.started([*MESH, "dashboard", "--port", str(port)], home.environ(), None) as run:
        page = Page(run)
        assert page.port == port
        with pytest.raises(urllib.error.HTTPError, match="401"):
            urllib.request.urlopen(page.url + "api/mesh", timeout=30)
        with home.started([*MESH, "dashboard", "--no-token"], home.environ(), None) as other:
            where = other.until(r"^Dashboard: (http://127\.0\.0\.1:\d+/dashboard/)$")[1]
            with urllib.request.urlopen(f"{where}api/mesh", timeout=30) as answer:
                assert json.load(answer)["apps"] == []
        assert home.mesh("stop", "mesh-dashboard").returncode == 0
        assert run.wait() == 0


def test_what_is_wrong_is_said(home: MeshHome) -> None:
    """Before anything is started."""
    refused = home.mesh("dashboard", "--no-token", "--listen-address", "0.0.0.0")
    assert (refused.returncode, refused.stdout) == (1, "")
    assert refused.stderr.startswith("error: --no-token: 0.0.0.0 is not this machine's alone")
    assert home.mesh("dashboard", "--version").stdout == home.mesh("gateway", "--version").stdout
