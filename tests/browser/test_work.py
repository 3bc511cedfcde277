"""What is done on the pages of workflows, jobs, actors and components: each on a real mesh, as a person does it."""

from __future__ import annotations

import re

from playwright.sync_api import Browser, Locator, Page, expect

from tests.support.chromium import serious, watched
from tests.support.shown_mesh import Shown, ask

BIG = "12345678901234567890"  # JavaScript has no number for it.


def window(page: Page) -> Locator:
    return page.get_by_role("dialog")


def press(place: Page | Locator, name: str) -> None:
    place.get_by_role("button", name=name, exact=True).click()


def is_said(page: Page, text: str) -> None:
    expect(page.locator(".toast").filter(has_text=text)).to_be_visible()


def status(page: Page, text: str) -> None:
    expect(page.locator(".lead .badge")).to_contain_text(text)


def test_a_workflow_is_started_steered_and_deleted(mesh: Shown, browser: Browser) -> None:
    """What cannot be taken back is asked first; numbers stay as they were written."""
    with watched(browser, f"{mesh.address}&/workflows?app=orders") as opened:
        page, asked = opened.page, window(opened.page)
        expect(page.get_by_role("link", name="sent", exact=True)).to_be_visible()
        press(page, "Start one…")
        asked.get_by_label("Workflow", exact=True).fill("order")
        asked.get_by_label("Input (JSON)").fill("{")
        expect(asked.get_by_role("button", name="Start it")).to_be_disabled()
        asked.get_by_label("Input (JSON)").fill(f'{{"total": {BIG}, "items": []}}')
        asked.get_by_text("More", exact=True).click()
        asked.get_by_label("Id", exact=True).fill("mine")
        assert serious(page) == []
        press(asked, "Start it")
        expect(page.get_by_role("heading", level=1)).to_have_text("mine")
        expect(page.get_by_role("region", name="Input", exact=True)).to_contain_text(BIG)
        press(page, "Suspend…")
        asked.get_by_label("Reason").fill("lunch")
        press(asked, "Suspend it")
        status(page, "suspended")
        press(page, "Resume…")
        press(asked, "Resume it")
        status(page, "running")
        press(page, "Raise approve…")
        asked.get_by_label("Data (JSON)").fill("true")
        press(asked, "Raise it")
        status(page, "completed")
        history = page.get_by_role("table", name="History")
        for text in ("lunch", "resumed", "event raised", "COMPLETED"):
            expect(history).to_contain_text(text)
        press(page, "Delete…")
        press(asked, "Cancel")
        assert ask(f"{mesh.gateways['orders']}/v1.0/mesh/workflows/mine")["runtimeStatus"] == "COMPLETED"
        press(page, "Delete…")
        press(asked, "Delete it")
        expect(page.get_by_role("heading", level=1)).to_have_text("Workflows")
        expect(page.get_by_role("link", name="sent", exact=True)).to_be_visible()
        expect(page.get_by_role("link", name="mine", exact=True)).to_have_count(0)


def test_a_time_line_is_a_picture_and_a_table(mesh: Shown, browser: Browser) -> None:
    """The one says what the other does; a step is looked at, and run again from there."""
    with watched(browser, f"{mesh.address}&/workflows/orders/sent") as opened:
        page, asked = opened.page, window(opened.page)
        picture = page.get_by_role("img", name=re.compile("order, completed: 3 steps; took "))
        expect(picture).to_be_visible()
        expect(picture).to_contain_text("charge #1")
        expect(picture).to_contain_text("pack #3")
        history = page.get_by_role("table", name="History")
        expect(history).to_contain_text("attempt 1 failed")
        picture.locator("text", has_text="pack #3").click()
        expect(history.get_by_role("row")).to_have_count(3)
        press(page, "All steps, not only #3")
        history.get_by_role("button", name="scheduled").nth(2).click()
        expect(asked.get_by_role("region", name="Event")).to_contain_text('"activity": "pack"')
        assert serious(page) == []
        press(asked, "Run again from here…")
        expect(asked.get_by_label("From")).to_have_value("3")
        asked.get_by_label("Id of the new instance").fill("again")
        press(asked, "Run it again")
        expect(page.get_by_role("heading", level=1)).to_have_text("again")
        status(page, "completed")


def test_many_workflows_are_found_and_ended_together(mesh: Shown, browser: Browser) -> None:
    """By status and name; those that are chosen are ended at once, after a question."""
    orders = f"{mesh.gateways['orders']}/v1.0/mesh/workflows"
    for name in ("one", "two"):
        given = {"total": 5000, "items": [], "patience": "1h"}
        ask(orders, {"name": "order", "instanceID": name, "input": given})
    with watched(browser, f"{mesh.address}&/workflows") as opened:
        page = opened.page
        page.get_by_label("Status").select_option(label="not ended")
        page.get_by_label("Name of the workflow").fill("order")
        expect(page.get_by_role("link", name="sent", exact=True)).to_have_count(0)
        for name in ("one", "two"):
            page.get_by_label(f"Choose orders/{name}").check()
        press(page, "Terminate… (2)")
        press(window(page), "Terminate them")
        is_said(page, "2 workflows are terminated")
        expect(page.get_by_role("link", name="one", exact=True)).to_have_count(0)
        assert {ask(f"{orders}/{name}")["runtimeStatus"] for name in ("one", "two")} == {"TERMINATED"}
        assert ask(f"{orders}/waits")["runtimeStatus"] == "RUNNING"


def test_a_job_is_run_and_deleted(mesh: Shown, browser: Browser) -> None:
    """Its next run stands there, and what came of the last one."""
    bank = mesh.gateways["bank"]
    ask(f"{bank}/v1.0/jobs/weekly", {"schedule": "@weekly", "data": {"week": 7}})
    with watched(browser, f"{mesh.address}&/jobs") as opened:
        page, asked = opened.page, window(opened.page)
        row = page.get_by_role("row").filter(has_text="weekly")
        expect(row).to_contain_text("in ")
        expect(page.get_by_role("row").filter(has_text="tick").locator(".badge")).to_be_visible()
        press(page, "weekly")
        expect(asked.get_by_role("region", name="Data")).to_contain_text('"week": 7')
        press(asked, "Run now")
        is_said(page, "bank took job weekly")
        press(asked, "Delete")
        press(asked, "Delete it")
        is_said(page, "Job weekly of bank is deleted")
        expect(row).to_have_count(0)
        assert "weekly" not in [each["name"] for each in ask(f"{bank}/v1.0/mesh/jobs")["jobs"]]


def test_an_actor_is_looked_at_and_deactivated(mesh: Shown, browser: Browser) -> None:
    """Its owner, its reminders and its state; from the reminders of its type there is a way to it."""
    with watched(browser, f"{mesh.address}&/actors") as opened:
        page = opened.page
        press(page.get_by_role("table", name="Reminders of account"), "0")
        looked = page.get_by_role("region", name="Actor account/0")
        expect(looked).to_contain_text("interest")
        expect(looked).to_contain_text("bank, node")
        page.get_by_label("Values of its state too").check()
        press(page, "Look at it")
        expect(looked.get_by_role("region", name="State")).to_contain_text("balance")
        assert serious(page) == []
        press(looked, "Deactivate…")
        press(window(page), "Deactivate it")
        is_said(page, "account/0")


def test_keys_of_a_store_are_found_by_their_beginning(mesh: Shown, browser: Browser) -> None:
    """And shown with their values."""
    state = [{"key": f"cup/{number}", "value": {"number": number}} for number in range(3)]
    ask(f"{mesh.gateways['orders']}/v1.0/state/statestore", [*state, {"key": "pan", "value": 1}])
    with watched(browser, f"{mesh.address}&/components/statestore") as opened:
        page, asked = opened.page, window(opened.page)
        page.get_by_label("Application").select_option("orders")
        keys = page.get_by_role("table", name="Keys of orders in statestore")
        expect(keys).to_contain_text("pan")
        page.get_by_label("Begin with").fill("cup")
        expect(keys.get_by_role("row")).to_have_count(4)
        press(keys, "cup/2")
        expect(asked.get_by_role("region", name="Value")).to_contain_text('"number": 2')
        page.keyboard.press("Escape")
        expect(asked).to_have_count(0)


def test_traces_are_put_together_from_what_passes(mesh: Shown, browser: Browser) -> None:
    """A call with what it led to is one, at more than one application."""
    with watched(browser, f"{mesh.address}&/traces") as opened:
        page = opened.page
        row = page.get_by_role("row").filter(has_text="shop, packing").first
        expect(row).to_be_visible()
        row.get_by_role("button").click()
        shown = window(page)
        expect(shown.get_by_role("img", name=re.compile(r"\d steps in "))).to_contain_text(
            "pubsub.publish pubsub/orders"
        )
        expect(shown.get_by_role("table")).to_contain_text("pubsub.deliver pubsub/orders")
        assert serious(page) == []


def test_a_problem_of_a_resource_stands_below_its_line(mesh: Shown, browser: Browser) -> None:
    """Also of a file that was written while all runs."""
    bad = mesh.directory / "resources" / "wrong.yaml"
    bad.write_text(
        "apiVersion: dapr.io/v1alpha1\nkind: Subscription\nmetadata:\n  name: wrong\n"
        "spec:\n  pubsubname: pubsub\n  topic: [1]\n  route: /x\n"
    )
    try:
        with watched(browser, f"{mesh.address}&/resources?kind=Subscription&name=wrong") as opened:
            page = opened.page
            line = page.get_by_role("list", name="Subscription wrong, 1 problem").get_by_role("listitem")
            expect(line.filter(has_text="topic:")).to_contain_text("expected text, got a list")
            assert serious(page) == []
    finally:
        bad.unlink()
