"""History that a workflow hands on, over HTTP: to children and activities of two applications, and over a restart."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import orjson
from aiohttp import web

from tests.http.harness import Backbone, gateway
from tests.http.test_workflows_over_http import Worker, results, started, until_ended

LARGE = orjson.dumps("x" * 600_000)
Turn = dict[str, Any]


def worker(**workflows: Callable[[Turn], object]) -> Worker:
    made = Worker(lambda _: {}, workflows=list(workflows))
    for name, run in workflows.items():
        made.answers[f"/workflow/run/{name}"] = lambda got, _, run=run: web.Response(body=orjson.dumps(run(got.json)))
    return made


def inherited(turn: Turn) -> dict[str, Any]:
    (found,) = [each for each in turn["history"] if each["event"] == "inherited"]
    return dict(found)


def kinds(workflow: dict[str, Any]) -> list[str]:
    return [each["event"] for each in workflow["history"]]


def chain(*asked: dict[str, object], then: Callable[[Turn], object]) -> Callable[[Turn], object]:
    """Give code that asks for one thing after the other."""

    def run(turn: Turn) -> object:
        done = len([each for each in turn["history"] if each["event"] == "completed"])
        return {"actions": asked[: done + 1], **({"complete": then(turn)} if done == len(asked) else {})}

    return run


def order(turn: Turn) -> object:
    """Charge, and have it shipped by the other application."""
    charge = {"activity": "charge", "input": turn["input"]}
    ship = {"workflow": "ship", "id": "s-1", "app": "stock", "input": 1, "propagate": "lineage"}
    return chain(charge, ship, then=lambda turn: results(turn)[2])(turn)


def ship(turn: Turn) -> object:
    """Begin anew once, and tell what is known then; the child and the activities are the other application's."""
    if turn["input"] == 1:
        return {"continueAsNew": 2}
    told = inherited(turn)
    return chain(
        {"activity": "audit", "app": "shop", "input": "a", "propagate": "lineage"},
        {"activity": "audit", "app": "shop", "input": "b", "propagate": "own"},
        {"workflow": "send", "app": "shop", "propagate": "lineage"},
        then=lambda turn: [told["scope"], [kinds(each) for each in told["workflows"]], results(turn)[3]],
    )(turn)


def send(turn: Turn) -> object:
    told = inherited(turn)
    first = told["workflows"][0]["history"]
    inputs = [each["input"] for each in first if each["event"] in ("started", "scheduled", "child")]
    sizes = [len(each["result"]) for each in first if each["event"] == "completed"]
    whose = [[each["app"], each["instance"], each["workflow"]] for each in told["workflows"]]
    return {"complete": [whose, inputs, sizes]}


CHARGED = ["turn", "started", "scheduled", "turn", "completed"]


async def test_a_chain_of_workflows_of_two_applications(nats: Backbone, tmp_path: Path) -> None:
    """The second one is not there yet when the first one's gateway is restarted."""
    shop, stock = worker(order=order, send=send), worker(ship=ship)
    shop.answer("/workflow/activity/charge", 200, LARGE)
    shop.answer("/workflow/activity/audit", 200, b"1")
    async with shop, stock:
        async with gateway(nats, tmp_path, app=shop, app_id="shop") as node:
            instance = await started(node, {"total": 7})
            await shop.until("/workflow/run/order", 2)
        async with (
            gateway(nats, tmp_path, app=shop, app_id="shop") as node,
            gateway(nats, tmp_path, app=stock, app_id="stock") as other,
        ):
            told = orjson.loads((await until_ended(node, instance))["properties"]["dapr.workflow.output"])
            history = (await other.get("/v1.0/mesh/workflows/s-1/history")).json["events"]

    scope, known, (whose, inputs, sizes) = told
    assert (scope, known) == ("lineage", [[*CHARGED, "child"]])
    assert whose == [["shop", instance, "order"], ["stock", "s-1", "ship"]]
    assert (inputs, sizes) == ([{"total": 7}, {"total": 7}, 1], [600_000])
    lineage, own = (got for got in shop.at("/workflow/activity/audit"))
    assert [got.headers["mesh-workflow-inherited"] for got in (lineage, own)] == ["lineage", "own"]
    assert (lineage.json["input"], own.json["input"]) == ("a", "b")
    assert [each["instance"] for each in lineage.json["inherited"]["workflows"]] == [instance, "s-1"]
    (alone,) = own.json["inherited"]["workflows"]
    assert (alone["instance"], kinds(alone)) == ("s-1", [*CHARGED, "scheduled"])

    shown = next(each for each in history if each["event"] == "inherited")
    parent = {"appID": "shop", "instanceID": instance, "workflow": "order", "events": 6}
    assert (shown["scope"], shown["workflows"]) == ("lineage", [parent])
    asked = [each.get("propagate") for each in history if each["event"] in ("scheduled", "child")]
    assert asked == ["lineage", "own", "lineage"]


async def test_more_than_can_go_along(memory: Backbone, tmp_path: Path) -> None:
    """What it was for has failed, and says what to do; the workflow goes on."""

    def run(turn: Turn) -> object:
        failed = [each["error"] for each in turn["history"] if each["event"] == "failed"]
        actions = [
            {"activity": "charge"},
            {"activity": "charge"},
            {"activity": "audit", "propagate": "own"},
            {"workflow": "ship", "propagate": "own"},
        ]
        actions = actions if len(results(turn)) == 2 else actions[:2]
        return {"actions": actions, **({"complete": failed} if len(failed) == 2 else {})}

    app = worker(order=run)
    app.answer("/workflow/activity/charge", 200, LARGE)
    async with app, gateway(memory, tmp_path, app=app) as node:
        ended = await until_ended(node, await started(node))
        told = orjson.loads(ended["properties"]["dapr.workflow.output"])
    assert [(each["type"], each["final"]) for each in told] == [("WorkflowTooLarge", True)] * 2
    assert {each["message"][:55] for each in told} == {
        "propagation: the history for the activity 'audit' has 1",
        "propagation: the history for the child workflow 'ship' ",
    }
    assert not app.at("/workflow/activity/audit")
