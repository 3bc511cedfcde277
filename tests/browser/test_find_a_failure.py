"""What a newcomer does with the prepared example: finds the event that fails, sees why, and sends it again, mended."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest
from playwright.sync_api import Browser, Locator, Page, expect

from tests.support.chromium import picture, serious, watched
from tests.support.shown_mesh import Shown, with_failures

WITHIN = 60.0  # Seconds that a newcomer may take; a test reads faster.


@pytest.fixture(scope="module")
def failing(browser: Browser, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shown]:
    with with_failures(tmp_path_factory.mktemp("failing")) as running:
        yield running


def details(page: Page) -> Locator:
    """Give what stands beside the map."""
    return page.get_by_role("complementary", name="Details: orders → packing")


def test_the_failing_event_is_found_and_replayed(failing: Shown, browser: Browser) -> None:
    with watched(browser, failing.address) as opened:
        page, began = opened.page, time.monotonic()
        page.get_by_role("button", name="orders → packing").click()
        details(page).get_by_role("button", name="retry").first.click()
        found = details(page)
        expect(found.get_by_role("region", name="Event")).to_contain_text('"quantity": 0')
        expect(found.get_by_role("region", name="Answer")).to_contain_text("ZeroDivisionError: division by zero")
        expect(found).to_contain_text("the application answered 500")
        picture(page, "failure found")
        found.get_by_label("Send to").select_option("packing-mended")
        found.get_by_role("button", name="Send again").click()
        page.get_by_role("dialog").get_by_role("button", name="Send again").click()
        expect(found.get_by_role("table", name="What differs")).to_contain_text("nothing to pack")
        assert time.monotonic() - began < WITHIN
        found.get_by_role("table", name="What differs").scroll_into_view_if_needed()
        picture(page, "failure replayed")
        assert serious(page) == []
