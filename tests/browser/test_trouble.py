"""What goes wrong around a page: slow and late answers, odd addresses, another token; nothing of it does harm."""

from __future__ import annotations

import re
from urllib.parse import urlsplit

from playwright.sync_api import Browser, Page, Route, expect

from tests.support.chromium import watched
from tests.support.shown_mesh import Shown, ask

LONG = 3_000  # Milliseconds of an answer: more than the two seconds after which a page asks again.


def asked_of(page: Page) -> list[str]:
    """Keep the paths that a page asks of the dashboard's own API."""
    paths: list[str] = []
    page.on("request", lambda each: paths.append(urlsplit(each.url).path))
    return paths


def test_an_answer_that_is_slow_still_comes(mesh: Shown, browser: Browser) -> None:
    """It is not asked for again before it is there, which would be without end."""
    with watched(browser, f"{mesh.address}&/") as opened:
        page = opened.page

        def late(route: Route) -> None:
            answer = route.fetch()
            page.wait_for_timeout(LONG)
            route.fulfill(response=answer)

        page.route("**/mesh/workflows/waits", late)
        page.evaluate("location.hash = '#/workflows/orders/waits'")
        expect(page.get_by_role("main")).to_contain_text("approve")
        page.unroute_all(behavior="ignoreErrors")  # It may have asked again meanwhile.


def test_an_address_leads_to_no_other_route(mesh: Shown, browser: Browser) -> None:
    """A browser makes `a/../b` to `b`, also where it is written with percent signs."""
    with watched(browser, f"{mesh.address}&/") as opened:
        page = opened.page
        expect(page.get_by_role("heading", level=1)).to_have_text("Map")
        for name in ("..", ".", "%2e%2e", "%2E."):
            paths = asked_of(page)
            page.evaluate("name => { location.hash = `#/workflows/orders/${name}`; }", name)
            expect(page.get_by_role("main")).to_contain_text(re.compile(r"orders has no workflow \.\.?"))
            assert [each for each in paths if each.startswith("/dashboard/api/")] == []
            page.evaluate("location.hash = '#/'")
            expect(page.get_by_role("heading", level=1)).to_have_text("Map")


def test_a_new_token_is_taken_by_an_open_tab(mesh: Shown, browser: Browser) -> None:
    """As after a restart; a token that is none is said to be none, and none stays in the address."""
    with watched(browser, f"{mesh.address}&/topics") as opened:
        page = opened.page
        expect(page.get_by_role("heading", level=1)).to_have_text("Topics")
        page.evaluate("location.hash = '#token=no-such-token'")
        field = page.get_by_label("Token or address")
        expect(field).to_be_visible()
        assert "token" not in page.url
        field.fill("nor-this-one")
        page.keyboard.press("Enter")
        expect(page.get_by_text("not the token of the dashboard that runs now")).to_be_visible()
        page.evaluate("address => { location.href = address; }", f"{mesh.address}&/apps")
        expect(page.get_by_role("heading", level=1)).to_have_text("Applications")
        assert "token" not in page.url
        opened.wrong = [each for each in opened.wrong if "401" not in each]  # Twice, as it should be.


def test_what_an_event_is_sent_to_again_is_asked_for_each(mesh: Shown, browser: Browser) -> None:
    """Where one was to go, the next one does not."""
    for number in (1, 2):
        ask(f"{mesh.gateways['shop']}/v1.0/publish/pubsub/orders", {"again": number})
    with watched(browser, f"{mesh.address}&/events?topic=pubsub/orders") as opened:
        page = opened.page
        published = page.get_by_role("button").filter(has_text="pubsub.publish")
        expect(published.nth(1)).to_be_visible()
        page.get_by_role("button", name="Pause").click()
        one, other = published.element_handles()[:2]  # As they are now: what came before the pause may still be added.
        one.click()
        page.get_by_label("Send to").select_option("packing")
        other.click()
        expect(page.get_by_label("Send to")).to_have_value("")
