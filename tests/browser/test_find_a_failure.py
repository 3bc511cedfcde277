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
        page = opened.page
        expect(page.get_by_role("button", name="orders → packing")).to_be_visible()
        began = time.monotonic()
        page.get_by_role("button", name="orders → packing").click()
        details(page).get_by_role("button", name="dead letter").first.click()
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


def focused(page: Page) -> str:
    """Tell what the keyboard is at, which must be seen to be there."""
    told: dict[str, str] = page.evaluate(
        """() => {
          const at = document.activeElement, style = getComputedStyle(at);
          const around = at.closest('.search, .search-field');  // It shows the focus of what is in it.
          const seen = style.outlineStyle !== 'none' || (around && getComputedStyle(around).borderStyle !== 'none');
          const says = at.getAttribute('aria-label') ?? at.labels?.[0]?.textContent ?? at.textContent;
          return {says: says.trim(), seen: at === document.body || at.matches('h1, main') || seen ? 'yes' : ''};
        }"""
    )
    assert told["seen"], f"{told['says']!r} has the focus, and nothing shows it"
    return told["says"]


def tab_to(page: Page, text: str, most: int = 60) -> None:
    """Go on from where the keyboard is until it is at something that says ``text``."""
    passed = []
    for _ in range(most):
        page.keyboard.press("Tab")
        passed.append(focused(page))
        if text in passed[-1]:
            return
    raise AssertionError(f"no {text!r} among {passed}")


def test_the_keyboard_is_enough(failing: Shown, browser: Browser) -> None:
    with watched(browser, failing.address) as opened:
        page = opened.page
        expect(page.get_by_role("button", name="orders → packing")).to_be_visible()
        tab_to(page, "Skip to the page", most=1)
        page.keyboard.press("Enter")
        tab_to(page, "orders → packing")
        page.keyboard.press("Enter")
        expect(details(page).get_by_role("button", name="dead letter").first).to_be_visible()
        tab_to(page, "Close details")
        tab_to(page, "dead letter")
        page.keyboard.press("Enter")
        tab_to(page, "Send to")
        page.keyboard.type("packing-m")
        expect(details(page).get_by_label("Send to")).to_have_value("packing-mended")
        tab_to(page, "Send again", most=1)
        page.keyboard.press("Enter")
        dialog = page.get_by_role("dialog")
        expect(dialog).to_be_visible()
        if focused(page) != "Send again":
            tab_to(page, "Send again", most=4)
        page.keyboard.press("Enter")
        expect(details(page).get_by_role("table", name="What differs")).to_contain_text("nothing to pack")
        page.keyboard.press("Escape")
        expect(details(page)).to_have_count(0)


def test_keys_go_to_every_page(failing: Shown, browser: Browser) -> None:
    with watched(browser, failing.address) as opened:
        page = opened.page
        expect(page.get_by_role("main").get_by_role("heading", level=1)).to_have_text("Map")
        page.keyboard.press("?")
        dialog = page.get_by_role("dialog", name="Keys")
        pages = dialog.locator("dl > *").all_inner_texts()
        page.keyboard.press("Escape")
        expect(dialog).to_have_count(0)
        keys = {name: key.split()[-1] for key, name in zip(pages[::2], pages[1::2], strict=True) if key.startswith("g")}
        assert len(keys) > 8
        first, *others = keys.items()
        for name, key in (*others, first):  # It is at the first one already.
            page.keyboard.press("g")
            page.keyboard.press(key)
            expect(page.get_by_role("main").get_by_role("heading", level=1)).to_have_text(name)
            expect(page.get_by_role("main").get_by_role("heading", level=1)).to_be_focused()
        page.keyboard.press("/")
        page.keyboard.type("pack")
        page.keyboard.press("ArrowDown")
        page.keyboard.press("Enter")
        expect(page.get_by_role("main").get_by_role("heading", level=1)).to_contain_text("pack")


def test_keys_can_be_switched_off(failing: Shown, browser: Browser) -> None:
    """For whoever speaks to the machine; the list of them is there without a key, too."""
    with watched(browser, failing.address) as opened:
        page = opened.page
        page.get_by_role("button", name="Keys").click()
        switch = page.get_by_role("checkbox", name="Keys do something")
        expect(switch).to_be_checked()
        switch.uncheck()
        page.keyboard.press("Escape")
        expect(page.get_by_role("dialog")).to_have_count(0)
        page.keyboard.press("g")
        page.keyboard.press("t")
        page.keyboard.press("/")
        expect(page.get_by_role("main").get_by_role("heading", level=1)).to_have_text("Map")
        expect(page.get_by_role("combobox", name="Search the mesh")).not_to_be_focused()
        page.reload()
        page.get_by_role("button", name="Keys").click()
        expect(page.get_by_role("checkbox", name="Keys do something")).not_to_be_checked()
