"""A mesh where there is nothing yet: each page says how there would be something, on a phone as well."""

from __future__ import annotations

from pathlib import Path

from playwright.sync_api import Browser, expect

from tests.support.chromium import PHONE, watched
from tests.support.gateways import MeshHome
from tests.support.shown_mesh import dashboard

PAGES = {
    "actors": "No application hosts actors",
    "jobs": "No jobs are scheduled",
    "workflows": "No workflow was started",
    "traces": "Nothing has passed yet",
}
# What reaches beyond the part of the page that it stands in, which would cut it off.
CUT = """() => [...document.querySelectorAll('.empty > *')]
  .filter(each => each.getBoundingClientRect().right > each.parentElement.getBoundingClientRect().right + 1)
  .map(each => each.textContent)"""


def test_what_is_not_there_is_said(browser: Browser, tmp_path: Path) -> None:
    home = MeshHome(tmp_path / "home")
    with home.run("--app-id", "lonely") as run:
        run.until("^mesh: You're up and running!")
        with dashboard(home, tmp_path) as address, watched(browser, f"{address}&/apps", viewport=PHONE) as opened:
            page = opened.page
            expect(page.get_by_role("main").get_by_text("lonely").first).to_be_visible()
            for name, text in PAGES.items():
                page.evaluate("name => { location.hash = `#/${name}`; }", name)
                expect(page.locator(".empty-title").filter(has_text=text)).to_be_visible()
                assert page.evaluate(CUT) == []
                assert "&quot;" not in page.locator("body").inner_text()
            page.evaluate("() => { location.hash = '#/nothing'; }")
            expect(page.get_by_role("heading", level=1)).to_have_text("No such page")
            expect(page).to_have_title("No such page · brokermesh")
    home.until_nothing_runs()
