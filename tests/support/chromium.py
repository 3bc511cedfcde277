"""The Chromium of this machine, steered; and what no page of ours may do there."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from axe_playwright_python.base import AXE_SCRIPT
from playwright.sync_api import Browser, ConsoleMessage, Page, Request, ViewportSize, expect, sync_playwright

from tests.support.server import NotInstalledError

__all__ = ["DESK", "PHONE", "Watched", "artefacts", "chromium", "picture", "serious", "watched"]

DESK: ViewportSize = {"width": 1280, "height": 800}
PHONE: ViewportSize = {"width": 375, "height": 740}
WITHIN = 60_000.0  # Milliseconds. It bounds a hang: both cores may be busy.
# It is steered by a pipe, and asks nobody else for anything.
QUIET = (
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-dev-shm-usage",
    "--disable-gpu",
    "--disable-quic",
    "--disable-sync",
    "--no-first-run",
)
# Violations of the policy of a page, which a page can only be told of while it loads.
_LISTEN = """
addEventListener('securitypolicyviolation', event => console.error(
  `policy: ${event.violatedDirective} forbids ${event.blockedURI} at ${event.sourceFile}:${event.lineNumber}`));
"""


@contextmanager
def chromium() -> Iterator[Browser]:
    """Start one without a window.

    Raises:
        NotInstalledError: There is none.
    """
    program = shutil.which(os.environ.get("BROKERMESH_CHROMIUM", "chromium"))
    if program is None:
        raise NotInstalledError("Chromium is not installed: tests/provision/chromium.sh")
    expect.set_options(timeout=WITHIN)
    with sync_playwright() as playwright:
        sandbox = hasattr(os, "geteuid") and os.geteuid() != 0  # As root it has none, and says so.
        started = playwright.chromium.launch(executable_path=program, args=QUIET, chromium_sandbox=sandbox)
        with started:
            yield started


class Watched:
    """A page of a context of its own.

    Attributes:
        page: To steer.
        wrong: What must not happen: errors in the console, violations of the policy, requests that leave the server.
    """

    def __init__(self, page: Page, origin: str) -> None:
        self.page = page
        self.wrong: list[str] = []
        self._origin = origin
        page.on("console", self._said)
        page.on("pageerror", lambda error: self.wrong.append(f"{page.url}: {error}"))
        page.on("request", self._asked)
        page.set_default_timeout(WITHIN)
        page.add_init_script(_LISTEN)

    def _said(self, message: ConsoleMessage) -> None:
        if message.type in ("error", "warning", "assert"):
            self.wrong.append(f"{self.page.url}: {message.text} ({message.location.get('url')})")

    def _asked(self, request: Request) -> None:
        if urlsplit(request.url).netloc != self._origin and not request.url.startswith(("data:", "blob:")):
            self.wrong.append(f"{self.page.url}: asks {request.url}")


@contextmanager
def watched(
    browser: Browser, url: str, *, theme: str = "light", viewport: ViewportSize = DESK, origin: str = ""
) -> Iterator[Watched]:
    """Open a page; leaving fails the test when anything went wrong on it.

    Where ``url`` names no server, ``origin`` does.
    """
    context = browser.new_context(color_scheme=theme, viewport=viewport, reduced_motion="reduce")  # type: ignore[arg-type]
    with context:
        made = Watched(context.new_page(), urlsplit(origin or url).netloc)
        made.page.goto(url)
        yield made
        if made.wrong:
            raise AssertionError("\n".join(made.wrong))


def serious(page: Page) -> list[str]:
    """Give what axe-core finds serious or critical, each with the first places."""
    page.evaluate(AXE_SCRIPT)
    found: Mapping[str, Any] = page.evaluate("axe.run(document, {resultTypes: ['violations']})")
    return [
        f"{each['id']}: {each['help']}: {[node['html'][:200] for node in each['nodes'][:3]]}"
        for each in found["violations"]
        if each["impact"] in ("serious", "critical")
    ]


def artefacts() -> Path:
    """Give the folder of what the tests leave for people: $BROKERMESH_ARTEFACTS, or artefacts/ in the clone."""
    folder = Path(os.environ.get("BROKERMESH_ARTEFACTS") or Path(__file__).parents[2] / "artefacts")
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def picture(page: Page, name: str) -> None:
    """Keep what a page looks like."""
    (artefacts() / "pages").mkdir(exist_ok=True)
    page.screenshot(path=artefacts() / "pages" / f"{name}.png")
