"""Workflows on the official Python SDK: an application's worker, another one's, and a client; prints what it saw."""

from __future__ import annotations

import json
import os
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from typing import Any

import grpc
from dapr.ext.workflow import (
    DaprWorkflowClient,
    DaprWorkflowContext,
    RetryPolicy,
    WorkflowActivityContext,
    WorkflowRuntime,
    when_all,
    when_any,
)

SHOP, BILLING = os.environ["SHOP_GRPC_PORT"], os.environ["BILLING_GRPC_PORT"]
WIDE = 1000
PATIENCE = 120
Steps = Iterator[Any]

shop = WorkflowRuntime(host="127.0.0.1", port=SHOP)
billing = WorkflowRuntime(host="127.0.0.1", port=BILLING)
client = DaprWorkflowClient(host="127.0.0.1", port=SHOP)
tries: Counter[str] = Counter()
QUICKLY = RetryPolicy(
    first_retry_interval=timedelta(milliseconds=1), max_number_of_attempts=3, backoff_coefficient=2, retry_timeout=None
)


@shop.activity
def double(_context: WorkflowActivityContext, number: int) -> int:
    """Say twice as much."""
    return 2 * number


@shop.activity
async def later(_context: WorkflowActivityContext, text: str) -> str:
    """Be asynchronous."""
    return f"{text}!"


@shop.activity
def fail(_context: WorkflowActivityContext, given: list[Any]) -> str:
    """Fail so many times."""
    name, times = given
    tries[name] += 1
    if tries[name] <= times:
        raise ValueError(f"{name} is closed")
    return name


@shop.activity
def nothing(_context: WorkflowActivityContext) -> None:
    """Take nothing, and give nothing."""


@billing.activity
def charge(context: WorkflowActivityContext, amount: int) -> list[Any]:
    """Be called by another application."""
    return [context.workflow_id, amount]


@billing.workflow
def ship(context: DaprWorkflowContext, what: str) -> Steps:
    """Be another application's child, which calls its own activity."""
    charged = yield context.call_activity(charge, input=1)
    return [context.instance_id, what, charged[1]]


@shop.workflow
def sequence(context: DaprWorkflowContext, number: int) -> Steps:
    """Call one activity after the other."""
    for _ in range(3):
        number = yield context.call_activity(double, input=number)
        context.set_custom_status(f"at {number}")
    text = yield context.call_activity(later, input="ü")
    none = yield context.call_activity(nothing)
    return [number, text, none]


@shop.workflow
def fan(context: DaprWorkflowContext, count: int) -> Steps:
    """Call many at once."""
    found = yield when_all([context.call_activity(double, input=number) for number in range(count)])
    return sum(found)


@shop.workflow
def race(context: DaprWorkflowContext, seconds: float) -> Steps:
    """See what is first, an event or a time."""
    event = context.wait_for_external_event("go")
    timer = context.create_timer(timedelta(seconds=seconds))
    won = yield when_any([event, timer])
    return event.get_result() if won == event else "late"


@shop.workflow
def timers(context: DaprWorkflowContext) -> Steps:
    """Wait a millisecond, until a time that has passed, a hundredth of a second, and not for years or for ever."""
    begun = context.current_utc_datetime
    yield context.create_timer(timedelta(milliseconds=1))
    yield context.create_timer(datetime(2001, 1, 1))  # The SDK's times have no zone.
    short = context.create_timer(timedelta(milliseconds=10))
    won = yield when_any([context.create_timer(timedelta(days=3650)), context.wait_for_external_event("never"), short])
    return [won == short, (context.current_utc_datetime - begun).total_seconds() >= 0.011]


@shop.workflow
def late(context: DaprWorkflowContext) -> Steps:
    """Wait for an event that does not come in time."""
    try:
        yield context.wait_for_external_event("never", timeout=timedelta(milliseconds=5))
    except TimeoutError:
        return "timed out"
    return "?"


@shop.workflow
def parent(context: DaprWorkflowContext, text: str) -> Steps:
    """Have children: one of this application, with an id and without, one that fails, one of another application."""
    named = yield context.call_child_workflow(sequence, input=1, instance_id=f"{context.instance_id}-named")
    unnamed = yield context.call_child_workflow(sequence, input=2)
    try:
        yield context.call_child_workflow(failing, input="child")
    except Exception as error:  # noqa: BLE001  # Whatever the SDK makes of it.
        failed = str(error)
    shipped = yield context.call_child_workflow("ship", input=text, app_id="billing", instance_id="shipped")
    charged = yield context.call_activity("charge", input=7, app_id="billing")
    return [named[0], unnamed[0], failed, shipped, charged]


@shop.workflow
def nowhere(context: DaprWorkflowContext) -> Steps:
    """Have a child that no store can keep."""
    try:
        yield context.call_child_workflow(sequence, input=1, instance_id="x" * 2000)
    except Exception as error:  # noqa: BLE001
        return str(error)


@shop.workflow
def failing(context: DaprWorkflowContext, name: str) -> Steps:
    """Fail by itself."""
    yield context.call_activity(double, input=1)
    raise LookupError(f"{name} is lost")


@shop.workflow
def retried(context: DaprWorkflowContext, name: str) -> Steps:
    """Succeed at the third attempt, and give up another; a child's first attempt fails."""
    good = yield context.call_activity(fail, input=[f"{name}-twice", 2], retry_policy=QUICKLY)
    child = yield context.call_child_workflow(fails_once, input=f"{name}-child", retry_policy=QUICKLY)
    try:
        yield context.call_activity(fail, input=[f"{name}-ever", 9], retry_policy=QUICKLY)
    except Exception as error:  # noqa: BLE001
        return [good, child, "is closed" in str(error)]
    return "?"


@shop.workflow
def fails_once(context: DaprWorkflowContext, name: str) -> Steps:
    """Fail at the first attempt."""
    return (yield context.call_activity(fail, input=[name, 1]))


@shop.workflow
def again(context: DaprWorkflowContext, given: dict[str, Any]) -> Steps:
    """Begin anew with each event, and keep those that nobody has waited for yet."""
    got = yield context.wait_for_external_event("item")
    kept = [*given["kept"], got]
    if len(kept) == given["until"]:
        return kept
    context.continue_as_new({"until": given["until"], "kept": kept}, save_events=True)
    return None


@shop.workflow
def counts(context: DaprWorkflowContext, number: int) -> Steps:
    """Begin anew by itself."""
    yield context.call_activity(nothing)
    if number == 0:
        return context.instance_id
    context.continue_as_new(number - 1)
    return None


@shop.workflow
def waits(context: DaprWorkflowContext, _given: object) -> Steps:
    """Wait for two events."""
    first = yield context.wait_for_external_event("one")
    return [first, (yield context.wait_for_external_event("two"))]


@shop.workflow
def waits_for_child(context: DaprWorkflowContext, name: str) -> Steps:
    """Wait for a child that waits, here and in another application."""
    yield when_all([context.call_child_workflow(waits, input=None, instance_id=f"{name}-child")])


@shop.versioned_workflow(name="versions", version_name="one", is_latest=False)
def version_one(context: DaprWorkflowContext) -> Steps:
    """Be an older version."""
    yield context.call_activity(nothing)
    return "one"


@shop.versioned_workflow(name="versions", version_name="two", is_latest=True)
def version_two(context: DaprWorkflowContext) -> Steps:
    """Be the latest version, which is run to its end by whoever began it."""
    yield context.call_activity(nothing)
    return "two"


@shop.workflow
def patched(context: DaprWorkflowContext) -> Steps:
    """Ask whether a change of the code counts for this instance; an answer lasts."""
    first = context.is_patched("change")
    yield context.call_activity(nothing)
    return [first, context.is_patched("change")]


def start(workflow: Callable[..., Any] | str, given: object = None, name: str | None = None, **more: Any) -> str:
    """Start an instance."""
    name = name or (workflow if isinstance(workflow, str) else workflow.__name__)
    return client.schedule_new_workflow(workflow, input=given, instance_id=name, **more)


def told(name: str, **more: Any) -> list[Any]:
    """Wait for its end; give its status, and its output."""
    state = client.wait_for_workflow_completion(name, timeout_in_seconds=PATIENCE, **more)
    assert state is not None
    output = json.loads(state.serialized_output) if state.serialized_output else None
    return [state.runtime_status.name, output]


def status(name: str) -> str | None:
    """Give its status; None = there is none."""
    state = client.get_workflow_state(name)
    return state.runtime_status.name if state else None


def refused(do: Callable[[], object]) -> str:
    """Give the code of a failure."""
    try:
        do()
    except grpc.RpcError as error:
        return error.code().name
    return "?"


def until(check: Callable[[], bool]) -> bool:
    """Wait until something has come about."""
    end = time.monotonic() + PATIENCE
    while not check():
        assert time.monotonic() < end
        time.sleep(0.01)
    return True


def ends() -> dict[str, Any]:
    """What needs nothing from outside; all at once."""
    start(sequence, 1)
    start(fan, WIDE)
    start(race, 0.005, "race-timer")
    start(race, 3600, "race-event")
    for workflow in (timers, late, patched, nowhere):
        start(workflow)
    start(parent, "book")
    start(failing, "it")
    start(retried, "r")
    start(again, {"until": 3, "kept": []})
    for item in ("a", "b", "c"):
        client.raise_workflow_event("again", "item", data=item)
    start(counts, 5)
    start("versions")
    later = datetime.now(UTC).replace(tzinfo=None) + timedelta(seconds=3)
    start(sequence, 5, "scheduled", start_at=later)
    pending = status("scheduled")
    client.raise_workflow_event("race-event", "GO", data={"by": "ü"})
    start("ship", "remote", "started-there", app_id="billing")
    names = "sequence fan race-timer race-event timers late patched nowhere parent retried again counts versions"
    names += " scheduled"
    with ThreadPoolExecutor(16) as pool:
        found: dict[str, Any] = dict(zip(names.split(), pool.map(told, names.split()), strict=True))
    found["pending"] = pending
    state = client.wait_for_workflow_completion("scheduled", timeout_in_seconds=PATIENCE)
    found["not early"] = state.last_updated_at >= later
    failed = client.wait_for_workflow_completion("failing", timeout_in_seconds=PATIENCE)
    found["failing"] = [failed.runtime_status.name, failed.failure_details.error_type, failed.failure_details.message]
    state = client.get_workflow_state("sequence")
    found["state"] = [state.name, state.serialized_input, state.serialized_custom_status]
    found["without texts"] = client.get_workflow_state("sequence", fetch_payloads=False).serialized_output
    found["started there"] = told("started-there", app_id="billing")
    found["tries"] = [tries["r-twice"], tries["r-child"], tries["r-ever"]]
    return found


def managed() -> dict[str, Any]:
    """Suspend, resume, terminate, purge; ids that are taken, and those that are not there."""
    start(waits, None, "held")
    client.wait_for_workflow_start("held", timeout_in_seconds=PATIENCE)
    client.pause_workflow("held")
    found: dict[str, Any] = {"paused": status("held")}
    client.raise_workflow_event("held", "one", data=1)
    client.raise_workflow_event("held", "two", data=2)
    found["still"] = status("held")
    client.resume_workflow("held")
    found["held"] = told("held")

    for name in ("tree", "single"):
        start(waits_for_child, name, name)
        until(lambda name=name: status(f"{name}-child") == "RUNNING")
    found["long"] = refused(lambda: start(waits, None, "x" * 2000))
    found["taken"] = refused(lambda: start(waits, None, "tree"))
    found["not ended"] = refused(lambda: client.purge_workflow("tree"))
    client.terminate_workflow("tree", output={"why": "late"})
    found["terminated"] = [told("tree"), told("tree-child")[0]]
    client.terminate_workflow("single", recursive=False)
    found["alone"] = [told("single")[0], status("single-child")]
    client.purge_workflow("tree")
    found["purged"] = [status("tree"), status("tree-child")]
    client.purge_workflow("single", recursive=False)
    found["purged alone"] = [status("single"), status("single-child")]
    client.raise_workflow_event("single-child", "one")
    client.raise_workflow_event("single-child", "two")
    found["orphan"] = told("single-child")

    found["again"] = [start(sequence, 3, "held"), told("held")]
    found["nobody"] = [
        status("nobody"),
        refused(lambda: client.raise_workflow_event("nobody", "one")),
        refused(lambda: client.terminate_workflow("nobody")),
        refused(lambda: client.purge_workflow("nobody")),
    ]
    return found


def looked_at() -> dict[str, Any]:
    """History, a listing by pages, and runs from one of the events of another."""
    start(sequence, 10, "first")
    told("first")
    history = client.get_workflow_history("first")
    events = [event for event in history if event.name == "double" and event.is_rerunnable]
    second = events[1].event_id
    run = client.rerun_workflow_from_event("first", second, new_instance_id="second")
    other = client.rerun_workflow_from_event("first", second, input=100)
    page = client.list_workflow_instance_ids(page_size=2)
    return {
        "history": [event.event_type.name for event in history],
        "rerun": [run, told(run), told(other)],
        "rerun again": refused(lambda: client.rerun_workflow_from_event("first", second, new_instance_id="second")),
        "rerun nothing": refused(lambda: client.rerun_workflow_from_event("first", 999)),
        "page": [len(page.instance_ids), bool(page.continuation_token)],
        "listed": sorted(set(client.iter_workflow_instance_ids(page_size=3)) & {"first", "second", "fan", "tree"}),
        "no history": refused(lambda: client.get_workflow_history("nobody")),
    }


def purged() -> list[str]:
    """Forget all; give what is left."""
    until(lambda: all(status(name) != "RUNNING" for name in client.iter_workflow_instance_ids()))
    for name in list(client.iter_workflow_instance_ids()):
        if status(name):
            client.purge_workflow(name)
    return list(client.iter_workflow_instance_ids())


shop.start()
billing.start()
try:
    seen = {"ends": ends(), "managed": managed(), "looked at": looked_at(), "left": purged()}
finally:
    shop.shutdown()
    billing.shutdown()
print(json.dumps(seen))
