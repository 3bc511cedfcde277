"""``mesh logs`` with what really runs: files of ``mesh run -f``, gateways without one, and every way to end."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from pathlib import Path

from gateway.runs import list_runs
from tests.support.eventually import eventually_sync
from tests.support.gateways import MESH, MeshHome

# Writes what comes by a pipe, also what is no whole line.
_WRITES = "cat {pipe}; sleep 600"


def _template(path: Path, **commands: list[str]) -> Path:
    apps = [
        {
            "appID": name,
            "appDirPath": str(path),
            "command": command,
            "appLogDestination": "file",
            "daprdLogDestination": "file",
        }
        for name, command in commands.items()
    ]
    file = path / "mesh.yaml"
    file.write_text(json.dumps({"version": 1, "apps": apps}))
    return file


def _have(file: Path, text: str) -> bool:
    assert text in file.read_text()
    return True


def test_logs_of_a_run_are_followed_in_the_order_of_time(home: MeshHome, tmp_path: Path) -> None:
    """Two applications whose lines say when they were written; one of them is asked for alone at first."""
    pipes = {name: tmp_path / f"{name}.pipe" for name in ("cart", "shop")}
    for each in pipes.values():
        os.mkfifo(each)
    commands = {name: ["sh", "-c", _WRITES.format(pipe=pipe)] for name, pipe in pipes.items()}
    with home.run("-f", str(_template(tmp_path, **commands))) as run:
        opened = {name: pipe.open("w", buffering=1) for name, pipe in pipes.items()}
        with opened["cart"] as cart, opened["shop"] as shop:
            run.until("shop runs")
            run.until("cart runs")
            cart.write("2001-01-01T00:00:03Z third\n2001-01-01T00:00:01Z first\n")
            shop.write("2001-01-01T00:00:02Z second\n")
            files = {each.app_id: Path(each.labels["appLogPath"]) for each in list_runs(home.path)}
            eventually_sync(lambda: _have(files["cart"], "first") and _have(files["shop"], "second"))
            with home.started([*MESH, "logs", "-f"], home.environ(), None) as logs:
                logs.until("third")
                shown = [each for each in logs.lines if "2001-01" in each]
                assert shown == [
                    "== APP - cart == 2001-01-01T00:00:01Z first",
                    "== APP - shop == 2001-01-01T00:00:02Z second",
                    "== APP - cart == 2001-01-01T00:00:03Z third",
                ]
                assert any(each.startswith("== GATEWAY - shop == ") and "listens on" in each for each in logs.lines)
                shop.write("one half, ")
                shop.flush()
                eventually_sync(lambda: _have(files["shop"], "one half"))
                cart.write("level=debug whole\n")
                logs.until("^== APP - cart == level=debug whole$")
                assert "one half" not in logs.text
                shop.write("and the other\n")
                logs.until("^== APP - shop == one half, and the other$")
                os.truncate(files["shop"], 0)
                shop.write("anew\n")
                logs.until("^== APP - shop == anew$")
                logs.send(signal.SIGINT)
                assert logs.wait() == 130
                assert "Traceback" not in logs.text
            alone = home.mesh("logs", "--app", "cart", "-n", "1", "--level", "info")
            assert (alone.returncode, alone.stderr) == (0, "")
            app, gateway = sorted(alone.stdout.splitlines())
            assert app == "== APP - cart == 2001-01-01T00:00:01Z first"
            assert gateway.startswith("== GATEWAY - cart == time=")
            with home.started([*MESH, "logs", "-f", "-n", "1"], home.environ(), None) as logs:
                logs.until("^== APP - shop == anew$")
                shop.write("later\n")
                logs.until("^== APP - shop == later$")
                assert home.mesh("stop", "cart", "shop").returncode == 0
                assert logs.wait() == 0
                assert "has drained" in logs.text
                assert logs.lines[-1] == "all of them have ended"
                assert "2001-01" not in logs.text


def test_a_gateway_without_a_file_is_asked(home: MeshHome) -> None:
    with home.run("--app-id", "alone", "--", "sleep", "600") as run:
        run.until("alone runs")
        shown = home.mesh("logs")
        assert (shown.returncode, shown.stderr) == (0, "")
        assert any(
            each.startswith("== GATEWAY - alone == time=") and "listens on" in each
            for each in shown.stdout.splitlines()
        )
        assert home.mesh("logs", "--level", "error").stdout == ""
        with home.started([*MESH, "logs", "-f", "-n", "1"], home.environ(), None) as logs:
            logs.until("listens on")
            run.send(signal.SIGUSR1)
            logs.until("the log has lines from debug on")
            assert "Component loaded" not in logs.text
            run.stop()
            assert logs.wait() == 0


def test_what_reads_the_logs_may_go(home: MeshHome) -> None:
    with home.run("--app-id", "alone", "--", "sleep", "600") as run:
        run.until("alone runs")
        logs = subprocess.Popen(
            [*MESH, "logs", "-f"], env=home.environ(), stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
        assert logs.stdout is not None
        logs.stdout.readline()
        logs.stdout.close()
        run.send(signal.SIGUSR1)  # There is a line to write.
        _, told = logs.communicate(timeout=40)
        assert (logs.returncode, told) == (1, b"")


def test_nothing_runs(home: MeshHome) -> None:
    told = home.mesh("logs", "-f")
    assert (told.returncode, told.stdout) == (0, "")
    assert "docker compose logs -f" in told.stderr
    told = home.mesh("logs", "--app", "shop")
    assert (told.returncode, told.stderr) == (1, "error: no gateway runs here of shop; see: mesh list\n")
    assert home.mesh("logs", "-n", "1001").returncode == 2
