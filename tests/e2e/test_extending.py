"""A package that adds a type of component, as it is installed and used."""

from __future__ import annotations

import shlex
from pathlib import Path

from tests.meta.sources import ROOT, blocks
from tests.support.extension import install
from tests.support.gateways import MeshHome

_APP = """
import os, urllib.request
def ask(path, body=None):
    url = f"http://127.0.0.1:{os.environ['DAPR_HTTP_PORT']}/v1.0/{path}"
    headers = {"Content-Type": "application/json"}
    return urllib.request.urlopen(urllib.request.Request(url, body, headers), timeout=60).read()
ask("state/statestore", b'[{"key": "k", "value": {"n": 1}}]')
print("found", ask("state/statestore/k"), flush=True)
"""


def test_an_installed_type_is_like_any_other(tmp_path: Path) -> None:
    home = MeshHome(tmp_path / "home")
    environ = {"PYTHONPATH": str(install(tmp_path))}
    (tmp_path / "app.py").write_text(_APP, encoding="utf-8")

    def mesh(*words: str) -> str:
        done = home.mesh(*words, environ=environ, cwd=tmp_path, within=90.0)  # The first one loads every adapter.
        assert done.returncode == 0, done.stderr
        return done.stdout

    assert "state.folder" in mesh("component", "types")
    page = next(each for each in blocks() if each.page == ROOT / "docs" / "extending.md" and each.language == "bash")
    (pip, *_), *commands = [shlex.split(line) for line in page.text.splitlines()]
    assert pip == "pip"  # That is done above, without a network.
    told, _ = [mesh(*words) for _, *words in commands]
    assert "made if it is missing" in told
    assert mesh("check", "resources") == "1 resource is fine\n"
    words = ("--app-id", "keeper", "--resources-path", "resources", "--", "python3", "app.py")
    with home.run(*words, environ=environ, cwd=tmp_path) as run:
        run.until("found b'{\"n\": ?1}'")
    home.until_nothing_runs()
    assert len(list((tmp_path / "state").iterdir())) == 2  # The value, and the lock.
