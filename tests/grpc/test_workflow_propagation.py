"""History that is handed on, as workers of the protocol ask for it and are given it."""

from __future__ import annotations

import asyncio
from typing import Any

import msgspec

from gateway.grpc.messages import message
from mesh.workflows import events
from mesh.workflows.actions import Answer, CreateChild, ScheduleTask
from mesh.workflows.events import Ancestor, Event, Inherited
from mesh.workflows.propagation import LINEAGE, OWN
from mesh.workflows.worker import TaskResult
from tests.grpc.harness import Client
from tests.grpc.test_workflow_hub import NOW, client, engine, port, task, turn, working
from tests.support.workflow_engine import Engine

__all__ = ["client", "engine", "port"]

PARENT = msgspec.msgpack.encode((events.TurnStarted(NOW), events.TaskScheduled(NOW, 1, "charge", "key", "7")))
HANDED = Inherited(NOW, LINEAGE, (Ancestor("up", "p", "parent", (PARENT,)),))


KNOWN = [("up", "p", "parent", ["workflowStarted", "taskScheduled"])]


def told(request: Any) -> list[tuple[str, str, str, list[str]]]:
    """Give whose history went along, and what happened in it."""
    parse = message("HistoryEvent", "").FromString
    assert request.propagatedHistory.scope == LINEAGE
    return [
        (each.appId, each.instanceId, each.workflowName, [parse(raw).WhichOneof("eventType") for raw in each.rawEvents])
        for each in request.propagatedHistory.chunks
    ]


async def test_what_a_child_has_inherited_comes_with_each_of_its_turns(engine: Engine, client: Client) -> None:
    """Also to a worker that remembers the history: it does not remember that."""
    past: tuple[Event, ...] = (events.TurnStarted(NOW), HANDED, events.EventRaised(NOW, "go"))
    async with working(engine, client, 2) as worker:
        for number in (1, 2, 3):
            given = turn(number, past * (number - 1))
            given.inherited = HANDED
            async with asyncio.TaskGroup() as tasks:
                turned = tasks.create_task(worker.turn(given))
                request = (await worker.item()).workflowRequest
                await client.message("CompleteOrchestratorTask", instanceId="i")
            assert told(request) == KNOWN
            assert turned.result() == Answer()
        assert (request.cachedHistory.eventCount, len(request.pastEvents)) == (2, 2)


async def test_what_goes_along_with_an_activity(engine: Engine, client: Client) -> None:
    given = task()
    given.inherited = HANDED
    async with working(engine, client) as worker, asyncio.TaskGroup() as tasks:
        resulted = tasks.create_task(worker.task(given))
        request = (await worker.item()).activityRequest
        await client.message("CompleteActivityTask", instanceId="i", taskId=3, result={"value": "1"})
    assert (told(request), request.input.value) == (KNOWN, "1")
    assert resulted.result() == TaskResult("1")


async def test_what_a_worker_asks_for(engine: Engine, client: Client) -> None:
    actions = [
        {"id": 1, "scheduleTask": {"name": "charge", "historyPropagationScope": OWN}},
        {"id": 2, "createChildWorkflow": {"name": "ship", "historyPropagationScope": LINEAGE}},
        {"id": 3, "scheduleTask": {"name": "charge"}},
    ]
    async with working(engine, client) as worker, asyncio.TaskGroup() as tasks:
        turned = tasks.create_task(worker.turn(turn()))
        assert not (await worker.item()).workflowRequest.HasField("propagatedHistory")
        await client.message("CompleteOrchestratorTask", instanceId="i", actions=actions)
    assert turned.result() == Answer(
        (
            ScheduleTask(1, "charge", propagation=OWN),
            CreateChild(2, "", "ship", propagation=LINEAGE),
            ScheduleTask(3, "charge"),
        )
    )
