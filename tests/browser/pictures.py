"""``python -m tests.browser.pictures``: makes the pictures of README and docs anew, from a mesh that runs meanwhile."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Literal

from playwright.sync_api import Page, ViewportSize, expect

from tests.support.chromium import chromium, watched
from tests.support.processes import ROOT
from tests.support.shown_mesh import shown

FOLDER = ROOT / "docs" / "pictures"
SIZE: ViewportSize = {"width": 1280, "height": 810}
MOST = 150_000  # Bytes of each: everybody who clones the project gets them.
MINUTE = 45_000.0  # Milliseconds, for curves that have something to show.
THEMES: tuple[Literal["light", "dark"], ...] = ("light", "dark")


def the_map(page: Page) -> None:
    page.wait_for_timeout(MINUTE)


def failure(page: Page) -> None:
    """Open the event that fails, and send it to the application that is mended."""
    page.get_by_role("button", name="orders → packing").click()
    details = page.get_by_role("complementary", name="Details: orders → packing")
    details.get_by_role("button", name="dead letter").first.click()
    details.get_by_label("Send to").select_option("packing-mended")
    details.get_by_role("button", name="Send again").click()
    page.get_by_role("dialog").get_by_role("button", name="Send again").click()
    expect(details.get_by_role("table", name="What differs")).to_be_visible()
    details.get_by_role("region", name="Event").evaluate("each => each.scrollIntoView({block: 'start'})")


def workflow(page: Page) -> None:
    expect(page.get_by_role("main")).to_contain_text("Time line")


PICTURES: dict[str, tuple[str, Callable[[Page], None]]] = {
    "map": ("/", the_map),
    "failure": ("/", failure),
    "workflow": ("/workflows/orders/sent", workflow),
}


def main() -> int:
    """Make all of them; 1 if one is too large to be kept."""
    FOLDER.mkdir(exist_ok=True)
    large = []
    with tempfile.TemporaryDirectory() as folder, shown(Path(folder), broken=False) as mesh, chromium() as browser:
        for name, (route, show) in PICTURES.items():
            with watched(browser, f"{mesh.address}&{route}", viewport=SIZE) as opened:
                show(opened.page)
                for theme in THEMES:
                    opened.page.emulate_media(color_scheme=theme)
                    file = FOLDER / f"{name}-{theme}.png"
                    opened.page.screenshot(path=file)
                    print(f"{file.relative_to(ROOT)}: {file.stat().st_size / 1000:.0f} kB")
                    if file.stat().st_size > MOST:
                        large.append(file)
    return 1 if large else 0


if __name__ == "__main__":
    sys.exit(main())
