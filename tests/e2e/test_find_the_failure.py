"""The prepared example on the command line, as its page says."""

from __future__ import annotations

import json
import re
from pathlib import Path

from tests.support.gateways import MeshHome
from tests.support.processes import free_port
from tests.support.shown_mesh import EXAMPLE, copied

LINES = (Path(__file__).parents[2] / "examples" / EXAMPLE / "README.md").read_text()


def words(command: str) -> list[str]:
    """Give the words of a line of the page."""
    import shlex

    found = re.search(rf"^mesh ({command} .*)$", LINES, re.MULTILINE)
    assert found is not None, command
    return shlex.split(found[1])


def test_the_failing_order_is_found_and_replayed(home: MeshHome, tmp_path: Path) -> None:
    directory = copied(EXAMPLE, tmp_path / EXAMPLE)
    assert home.mesh("check", ".", cwd=directory).stdout == "3 resources and 1 template are fine\n"
    with home.run("-f", str(directory)) as run:
        run.until("^== APP - packing == Order 5 failed: ZeroDivisionError: division by zero$")
        seen = home.mesh(*words("tap"), cwd=directory)
        assert seen.returncode == 0, seen.stderr
        assert "dead letter" in seen.stdout
        assert "ZeroDivisionError" in seen.stdout
        recorded = home.mesh(*words("record"), cwd=directory)
        assert recorded.returncode == 0, recorded.stderr
        kept = [json.loads(line)["data"] for line in (directory / "orders.jsonl").read_text().splitlines()]
        failed = [each for each in kept if each.get("outcome") == "retry"]
        assert failed
        assert all("ZeroDivisionError" in json.dumps(each["reply"]) for each in failed)
        replayed = home.mesh(*words("replay"), cwd=directory)
        assert replayed.returncode == 1, replayed.stderr
        assert "nothing to pack" in replayed.stdout
        # What did not fail then is answered as it was.
        same = home.mesh(*words("replay"), "--where", 'event.data.outcome == "success"', cwd=directory)
        assert same.returncode == 0, same.stdout
        # Mended, it takes what was put aside.
        assert home.mesh("stop", "packing").returncode == 0
        line = ("--app-id", "packing", "--app-port", str(free_port()), "--resources-path", "../resources")
        mended = {"MENDED": "true"}
        with home.run(*line, "python3", "app.py", cwd=directory / "packing", environ=mended) as again:
            again.until("^== APP - packing == ")
            back = home.mesh(*words("dlq"), cwd=directory)
            assert back.returncode == 0, back.stderr
            again.until("^== APP - packing == Order 5: nothing to pack$")
