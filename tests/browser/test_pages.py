"""Every page against a running mesh: it shows what there is, breaks no rule of the browser, and keeps nobody out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import pytest
from playwright.sync_api import Browser, Page, ViewportSize, expect

from tests.support.chromium import DESK, PHONE, picture, serious, watched
from tests.support.shown_mesh import Shown


@dataclass(frozen=True)
class Place:
    """A page.

    Attributes:
        route: Behind the ``#``.
        heading: Its own.
        shows: What must stand there once it has asked.
    """

    route: str
    heading: str
    shows: tuple[str, ...]


PLACES = {
    "map": Place("/", "Map", ("shop", "packing", "orders", "bank", "% fail")),
    "apps": Place("/apps", "Applications", ("shop", "packing", "bank", "payer")),
    "app": Place("/apps/packing", "packing", ("orders", "unpacked")),
    "topics": Place("/topics", "Topics", ("orders", "unpacked")),
    "topic": Place("/topics/pubsub/orders", "orders", ("shop", "packing", " failed")),
    "dead letters": Place("/topics/pubsub/unpacked", "unpacked", ()),
    "components": Place("/components", "Components", ("pubsub", "statestore", "archive", "absent")),
    "component": Place("/components/statestore", "statestore", ("state.mesh",)),
    "actors": Place("/actors", "Actors", ("account", "bank")),
    "jobs": Place("/jobs", "Jobs", ("nightly", "tick")),
    "workflows": Place("/workflows", "Workflows", ("waits", "fails", "sent")),
    "workflow that waits": Place("/workflows/orders/waits", "waits", ("approve",)),
    "workflow that failed": Place("/workflows/orders/fails", "fails", ("KeyError",)),
    "traces": Place("/traces", "Traces", ()),
    "resources": Place("/resources", "Resources", ("archive", "packing-orders", "1 resource has a problem")),
    "events": Place("/events", "Live", ("pubsub/orders",)),
    "try": Place("/try", "Try it out", ()),
}
LOOKS: Sequence[tuple[str, Literal["light", "dark"], ViewportSize]] = (
    ("light", "light", DESK),
    ("dark", "dark", DESK),
    ("phone", "light", PHONE),
)


def asked(page: Page, place: Place) -> None:
    """Wait until a page shows what it asks for."""
    main = page.get_by_role("main")
    expect(main.get_by_role("heading", level=1)).to_have_text(place.heading)
    for text in place.shows:
        expect(main.get_by_text(text).first).to_be_attached()
    expect(main.locator(".loading")).to_have_count(0)


@pytest.mark.parametrize("name", PLACES)
def test_a_page_shows_its_part_of_the_mesh(mesh: Shown, browser: Browser, name: str) -> None:
    """In both themes, and on a phone; nothing of it keeps anybody out."""
    place = PLACES[name]
    with watched(browser, f"{mesh.address}&{place.route}") as opened:
        page = opened.page
        asked(page, place)
        wrong = {}
        for look, theme, viewport in LOOKS:
            page.emulate_media(color_scheme=theme)
            page.set_viewport_size(viewport)
            picture(page, f"{name} {look}")
            wrong[look] = [*serious(page), *beside(page)]
        assert {look: found for look, found in wrong.items() if found} == {}


def beside(page: Page) -> list[str]:
    """Give what stands beside the screen: a page is never scrolled sideways, though what is in it may be."""
    found: list[str] = page.evaluate(
        """() => {
          const wide = innerWidth, scrolled = each => {
            for (let at = each.parentElement; at && at !== document.body; at = at.parentElement)
              if (/auto|scroll|hidden|clip/.test(getComputedStyle(at).overflowX) && at.id !== 'main') return true;
            return false;
          };
          return [...document.querySelectorAll('body *')]
            .filter(each => each.getBoundingClientRect().right > wide + 1 && each.checkVisibility() && !scrolled(each))
            .map(each => each.outerHTML.slice(0, 160));
        }"""
    )
    return found
