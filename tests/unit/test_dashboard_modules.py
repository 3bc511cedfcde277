"""What the dashboard's pages compute, in Node: rates, the map's layout, addresses, numbers as text."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

import gateway.dashboard

ASSETS = Path(gateway.dashboard.__file__).parent / "assets"


def test_modules(tmp_path: Path) -> None:
    """The tests beside this one pass."""
    node = shutil.which("node")
    if node is None and "CI" not in os.environ:
        pytest.skip("there is no node")
    assert node is not None, "there is no node"
    # Browsers are told by the page that these are modules, Node by a file.
    shutil.copytree(ASSETS, tmp_path / "assets")
    (tmp_path / "package.json").write_text('{"type": "module"}', encoding="utf-8")
    command = [node, "--test", str(Path(__file__).with_name("dashboard_modules.mjs"))]
    environ = {**os.environ, "APP": str(tmp_path / "assets" / "app")}
    done = subprocess.run(command, env=environ, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "# fail 0" in done.stdout


def test_the_page_is_small_and_needs_nothing_from_elsewhere() -> None:
    """All that is served is below 400 kB, names no other host, and has neither inline scripts nor styles."""
    files = [each for each in ASSETS.rglob("*") if each.is_file()]
    assert sum(each.stat().st_size for each in files) < 400_000
    own = [each for each in files if "vendor" not in each.parts and each.suffix in {".js", ".css", ".html"}]
    assert len(own) > 20
    for each in own:
        text = each.read_text(encoding="utf-8")
        assert "innerHTML" not in text and "document.write" not in text, each
        assert not [part for part in text.split("://")[1:] if not part.startswith(("127.0.0.1", "localhost"))], each
    page = (ASSETS / "index.html").read_text(encoding="utf-8")
    assert page.count("<script") == page.count('src="assets/') - page.count("<img")
    assert "<style" not in page and "style=" not in page
