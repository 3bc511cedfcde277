"""The orders of the demo on the map, at the address that it prints."""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path

import pytest
from playwright.sync_api import Browser, expect

from tests.support.chromium import picture, watched
from tests.support.gateways import MeshHome
from tests.support.shown_mesh import copied


@pytest.mark.skipif(shutil.which("node") is None and "CI" not in os.environ, reason="node is not installed")
def test_orders_of_the_demo_flow_on_the_map(browser: Browser, tmp_path: Path) -> None:
    home, directory = MeshHome(tmp_path / "home"), copied("hello-world", tmp_path / "hello-world")
    with home.run("-f", str(directory), "--dashboard") as run:
        address = run.until(r"Dashboard: (http\S+)")[1]
        run.until(r"^== APP - pythonapp == Order \d+ was taken$")
        with watched(browser, address) as opened:
            row = opened.page.get_by_role("table").get_by_role("row").filter(has_text="pythonapp")
            expect(row.filter(has_text="nodeapp")).to_contain_text(re.compile(r"(0\.|[1-9])[\d.]*/s"))
            picture(opened.page, "demo")
            assert run.stop() == 0
            expect(opened.page.get_by_role("banner")).not_to_contain_text("Live")
            opened.wrong.clear()  # The browser says that nobody is there any more, and so does the page.
    home.until_nothing_runs()
