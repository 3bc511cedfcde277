"""The prepared example on the command line, as its page says."""

from __future__ import annotations

import json
import re
from pathlib import Path

from tests.support.gateways import MeshHome
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
        assert "drop" in seen.stdout
        recorded = home.mesh(*words("record"), cwd=directory)
        assert recorded.returncode == 0, recorded.stderr
        events = [json.loads(line) for line in (directory / "orders.jsonl").read_text().splitlines()]
        failed = [each for each in events if each["data"].get("outcome") in ("retry", "drop")]
        assert failed
        assert all(each["data"]["reply"]["json"]["error"].startswith("ZeroDivisionError") for each in failed)
        replayed = home.mesh(*words("replay"), cwd=directory)
        assert replayed.returncode == 1, replayed.stderr
        assert "nothing to pack" in replayed.stdout
        again = home.mesh(*words("replay")[:-1], "--where", 'event.data.outcome == "success"', "--diff", cwd=directory)
        assert again.returncode == 0, again.stdout
        # Mended, it takes what was put aside.
        assert home.mesh("stop", "packing").returncode == 0
        run.until("packing .*stopped|packing-mended")
