"""``mesh workflow``, against the API of a gateway."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest

from gateway.cli.dispatch import main
from gateway.runs import Run, registered
from mesh.blocks.workflows import (
    HistoryPage,
    List,
    Page,
    Purge,
    PurgeMany,
    RaiseEvent,
    Rerun,
    Resume,
    Show,
    Shown,
    Start,
    Suspend,
    Terminate,
)
from mesh.workflows import events
from mesh.workflows.errors import WorkflowNotFoundError
from mesh.workflows.messages import Told
from mesh.workflows.state import Awaited, State, Status, View
from mesh.workflows.waiting import Child, Raised, Task, Timer, Waiting
from tests.support.workflow_api import Served, serving

Mesh = Callable[..., Awaitable[tuple[int, str, str]]]

AT = 1_800_000_000.0
VIEW = View("o-1", State(1, "e", "order", Status.RUNNING, AT, AT + 1, open_tasks=2), '{"total": 7}')
HISTORY = (
    events.Started(AT, "order", "e", "shop", input='{"total": 7}'),
    events.TurnStarted(AT + 0.001),
    events.TaskScheduled(AT + 0.003, 0, "charge", "x", '"' + "y" * 80 + '"'),
    events.TimerCreated(AT + 0.003, 1, (1_800_000_060, 0)),
    events.Retrying(AT + 0.020, 0, 2, AT + 0.040, events.Failure("Refused", "not yet")),
    events.TaskFailed(AT + 0.051, 0, "x", events.Failure("Refused", "no\x1b[31m")),
    events.EventRaised(AT + 2, "approved", "true"),
    events.TimerFired(AT + 60, 1, (1_800_000_060, 0)),
    events.Completed(AT + 60.5, 2, Status.FAILED, failure=events.Failure("Refused", "no")),
)


TIMELINE = f"""\
order  o-1  RUNNING
+0.000   order      started           {{"total": 7}}
+0.001              turn
+0.003   charge #0  scheduled         {"y" * 59}…
+0.003   timer #1   timer set         2027-01-15T08:01:00Z
+0.020   charge #0  attempt 1 failed  Refused: not yet
+0.051   charge #0  failed in 48 ms   Refused: no�[31m
+2.000   approved   event raised      true
+60.000  timer #1   fired in 60.0 s   2027-01-15T08:01:00Z
+60.500             FAILED            Refused: no""".splitlines()


@pytest.fixture
async def served(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Served]:
    """Serve it as what ``mesh list`` lists."""
    monkeypatch.setenv("MESH_HOME", str(tmp_path))
    async with serving(tmp_path) as served:
        with registered(tmp_path, Run("shop", served.http_port)):
            yield served


@pytest.fixture
def mesh(served: Served, capsys: pytest.CaptureFixture[str]) -> Mesh:
    async def mesh(*words: str) -> tuple[int, str, str]:
        served.block.asked.clear()
        code = await asyncio.to_thread(main, ["workflow", *words])
        return code, *capsys.readouterr()

    return mesh


async def test_what_it_shows(served: Served, mesh: Mesh) -> None:
    served.block.answers |= {"list": Page([VIEW]), "show": Shown(VIEW, 3, "node")}
    code, out, _ = await mesh("list", "-s", "running,failed", "-w", "order", "--limit", "5")
    assert code == 0
    assert out.splitlines() == [
        "INSTANCE ID  WORKFLOW  STATUS   CREATED               UPDATED               WAITING FOR",
        "o-1          order     RUNNING  2027-01-15T08:00:00Z  2027-01-15T08:00:01Z  2 activities",
    ]
    assert served.block.asked == [("shop", List((0, 3), "order", None, "", 6))]
    code, out, _ = await mesh("list", "-o", "json")
    assert (code, [each["instanceID"] for each in json.loads(out)]) == (0, ["o-1"])
    code, out, _ = await mesh("show", "-a", "shop", "o-1", "-o", "json")
    assert (code, json.loads(out)["owner"], json.loads(out)["input"]) == (0, "node", {"total": 7})
    assert served.block.asked == [("shop", Show("o-1"))]


async def test_what_it_waits_for(served: Served, mesh: Mesh) -> None:
    """In a list its events by name; of one each thing has a line of its own."""
    state = State(1, "e", "order", Status.RUNNING, AT, AT, open_tasks=5, awaited=(Awaited("go", 1, AT),))
    waiting = Waiting(
        (
            Task(1, "charge", "till", AT, 2, running=True, node="n2"),
            Task(2, "pack", "shop", AT, 1, running=True, worker="http"),
            Task(3, "bill", "shop", AT, 2, running=False, due=AT + 60),
            Task(4, "ship", "shop", AT, 1, running=False),
        ),
        (Timer(7, AT, AT + 60), Timer(8, AT, AT + 60, "go"), Timer(9, AT, AT + 60, "", "x")),
        (Awaited("go", 1, AT), Awaited("stop", 2, AT)),
        (Child(10, "ship", "depot", "c-1", AT),),
        (Raised("other", AT),),
        3,
        2,
    )
    view = View("o-1", state)
    served.block.answers |= {"list": Page([view]), "show": Shown(view, 3, "n1", waiting)}
    code, out, _ = await mesh("list")
    assert (code, out.splitlines()[1].split("Z  ")[-1]) == (0, "5 activities, event go")
    code, out, _ = await mesh("show", "o-1")
    assert code == 0
    since = "since 2027-01-15T08:00:00Z"
    lines = [line.split("  ")[-1].strip() for line in out.splitlines()]
    assert lines[lines.index(f"activity charge #1 of till, attempt 2, {since}: runs at n2") + 1 :] == [
        f"activity pack #2, {since}: runs at n1 (http)",
        f"activity bill #3, attempt 2, {since}: is tried again at 2027-01-15T08:01:00Z",
        f"activity ship #4, {since}: waits for a worker",
        "… and 1 more activities",
        f"event go, {since}",
        f"event stop, 2 times, {since}",
        "timer #7, due 2027-01-15T08:01:00Z",
        "timer #8, due 2027-01-15T08:01:00Z: the limit of event go",
        "timer #9, due 2027-01-15T08:01:00Z: a retry",
        f"child c-1 #10 of depot: ship, {since}",
        "other, at 2027-01-15T08:00:00Z",
        "… and 1 more",
    ]
    assert [line.split()[0] for line in out.splitlines() if line[0] != " "][-2:] == ["waitsFor", "notTaken"]


async def test_more_than_are_shown(served: Served, mesh: Mesh) -> None:
    """It is said, and the next page is asked for only where it is wanted."""
    served.block.answers["list"] = Page([VIEW, VIEW], "place")
    code, out, told = await mesh("list", "--limit", "1")
    assert (code, len(out.splitlines()), told) == (0, 2, "there are more than 1; --limit shows more\n")
    assert served.block.asked == [("shop", List(limit=2))]


async def test_history(served: Served, mesh: Mesh, monkeypatch: pytest.MonkeyPatch) -> None:
    """When, what, and what came of it; nothing of a text acts on the terminal, and long ones are cut."""
    served.block.answers["history"] = HistoryPage(VIEW, HISTORY, len(HISTORY))
    code, out, _ = await mesh("history", "o-1")
    assert (code, out.splitlines()) == (0, TIMELINE)
    code, out, _ = await mesh("history", "o-1", "--values")
    assert "y" * 80 in out
    code, out, _ = await mesh("history", "o-1", "-o", "json")
    assert [each["event"] for each in json.loads(out)["events"]][:3] == ["started", "turn", "scheduled"]
    monkeypatch.setenv("FORCE_COLOR", "1")
    code, out, _ = await mesh("history", "o-1")
    assert [line[:5] for line in out.splitlines() if "\x1b[31m" in line] == ["\x1b[31m"] * 2  # What has failed.
    assert "�[31m" in out


CHANGES: list[tuple[tuple[str, ...], object, object, str, str]] = [
    (("start", "order"), "made", Start("order"), "made\n", ""),
    (
        ("run", "order", "-x", '{"a": 1.10}', "-i", "i", "-s", "2027-01-15T08:00:00Z"),
        "made",
        Start("order", "i", '{"a": 1.10}', scheduled=AT),
        "made\n",
        "",
    ),
    (("raise", "o-1", "yes", "-x", "1.10"), None, RaiseEvent("o-1", "yes", "1.10"), "", "event yes is raised"),
    (("raise-event", "o-1/yes"), None, RaiseEvent("o-1", "yes"), "", "event yes is raised of workflow o-1\n"),
    (("terminate", "o-1", "-o", "[1]"), None, Terminate("o-1", "[1]", recursive=True), "", "o-1 is terminated\n"),
    (("suspend", "o-1", "-r", "why"), None, Suspend("o-1", "why"), "", "workflow o-1 is suspended\n"),
    (("resume", "o-1"), None, Resume("o-1"), "", "workflow o-1 is resumed\n"),
    (("purge", "o-1", "--force"), Told(2), Purge("o-1", recursive=True, force=True), "", "2 workflows purged\n"),
    (
        ("purge", "--all-filter-status", "failed,completed"),
        Told(1),
        PurgeMany((3, 1), limit=1000),
        "",
        "1 workflow purged\n",
    ),
    (("purge", "--all-older-than", "2027-01-15T08:00:00Z"), Told(0), PurgeMany(ended_before=AT), "", "0 workflows"),
    (("rerun", "o-1", "-e", "3", "-x", "1"), "n", Rerun("o-1", 3, "", "1", overwrite=True), "n\n", ""),
    (("rerun", "o-1", "--new-instance-id", "n"), "n", Rerun("o-1", None, "n"), "n\n", ""),
]


@pytest.mark.parametrize(("words", "answer", "asked", "out", "told"), CHANGES, ids=[" ".join(a[0]) for a in CHANGES])
async def test_what_it_changes(
    served: Served, mesh: Mesh, words: tuple[str, ...], answer: object, asked: object, out: str, told: str
) -> None:
    served.block.answers |= {
        **dict.fromkeys(("start", "rerun", "purge", "purge_many"), answer),
        "show": Shown(VIEW, 3, "node"),
    }
    code, got, said = await mesh(*words)
    changes = [each for each in served.block.asked if not isinstance(each[1], Show)]
    assert (code, got, told in said, changes) == (0, out, True, [("shop", asked)])


@pytest.mark.parametrize("what", ["terminate", "suspend", "resume"])
async def test_what_has_ended(served: Served, mesh: Mesh, what: str) -> None:
    """It is not told to have changed; one that was terminated may be terminated twice."""
    for status in (Status.COMPLETED, Status.TERMINATED):
        served.block.answers["show"] = Shown(
            View("o-1", State(1, "e", "order", status, AT, AT + 1, ended=AT + 1)), 3, "node"
        )
        code, _, said = await mesh(what, "o-1")
        if what == "terminate" and status is Status.TERMINATED:
            assert (code, said) == (0, "workflow o-1 is terminated\n")
        else:
            assert (code, said) == (1, f"error: workflow o-1 of shop has ended: {status.name}\n")
            assert served.block.asked == [("shop", Show("o-1"))]


async def test_purging_what_has_not_ended(served: Served, mesh: Mesh) -> None:
    """It needs to be forced, which is said in place of that nothing goes."""
    served.block.answers["purge_many"] = Told(1)
    code, _, said = await mesh("purge", "--all-filter-status", "completed,running")
    assert (code, served.block.asked) == (1, [])
    assert "statuses: one that is RUNNING has not ended; with force it is forgotten all the same" in said
    assert (await mesh("purge", "--all-filter-status", "running", "--force"))[0] == 0


async def test_purging_goes_on(served: Served, mesh: Mesh) -> None:
    """Until it is done; where nothing goes any more, it says so."""
    served.block.answers["purge_many"] = Told(0, complete=False)
    code, _, said = await mesh("purge", "--all")
    text = "error: 0 purged; the others do not go now, try again"
    assert (code, said) == (1, f"{text}, or have not ended: --force\n")
    code, _, said = await mesh("purge", "--all", "--force")
    assert (code, said) == (1, f"{text}\n")


WRONG: list[tuple[tuple[str, ...], str]] = [
    (("show",), "show needs an id"),
    (("list", "o-1"), "unexpected 'o-1'"),
    (("raise", "o-1"), "raise needs an event"),
    (("start",), "start needs a workflow"),
    (("start", "w", "-x", "hello"), "--input is JSON, which 'hello' is not"),
    (("terminate", "o-1", "--output", "json"), "--output is JSON, which 'json' is not"),
    (("show", "o-1", "--reason", "r"), "--reason belongs to: suspend, resume"),
    (("start", "w", "--filter-status", "x"), "--filter-status belongs to: list"),
    (("purge",), "purge takes ids, or one of --all"),
    (("purge", "o-1", "--all"), "purge takes ids, or one of --all"),
    (("show", ".."), "no instance is named '..'"),
    (("list", "--limit", "0"), "--limit is at least 1"),
]


@pytest.mark.parametrize(("words", "told"), WRONG, ids=[" ".join(words) for words, _ in WRONG])
async def test_what_is_wrong(served: Served, mesh: Mesh, words: tuple[str, ...], told: str) -> None:
    """It is said before anything is asked."""
    code, out, said = await mesh(*words)
    assert (code, out, served.block.asked) == (2, "", [])
    assert told in said


@pytest.mark.parametrize("what", ["show", "history", "raise", "terminate", "suspend", "resume", "purge"])
async def test_what_is_not_there(served: Served, mesh: Mesh, what: str) -> None:
    served.block.answers |= dict.fromkeys(
        ("show", "history", "terminate", "suspend", "resume"), WorkflowNotFoundError()
    )
    served.block.answers["purge"] = WorkflowNotFoundError()
    missing = "error: shop has no workflow o-1; see: mesh workflow list --app-id shop\n"
    words = ("o-1", "yes") if what == "raise" else ("o-1",)
    assert await mesh(what, *words) == (1, "", missing)
