"""Workflows as clients of the worker protocol ask for them: the SDKs' workflow clients.

Source: Dapr 1.18 and 1.19, the service TaskHubSidecarService.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

from gateway.errors import APIError, answer
from gateway.routes.rpc import RPC, Called
from gateway.routes.workflow_answers import seconds_of, text_of, trace_of
from gateway.routes.workflow_stream import SERVICE
from gateway.routes.workflow_wire import at, failure, text, wire_of
from gateway.routes.workflows import of_app
from mesh.blocks import workflows
from mesh.errors import DeadlineExceededError, MeshError, RecordsMissingError
from mesh.operation import Method, Operation
from mesh.ownership.errors import NobodyHostsError, NotOwnerError, OwnerLostError
from mesh.workflows import errors
from mesh.workflows.state import View

__all__ = ["RPCS"]

# What SDKs go by; other failures have the status of any operation.
STATUSES: dict[type[MeshError], str] = {
    errors.WorkflowNotFoundError: "NOT_FOUND",
    errors.WorkflowEventNotFoundError: "NOT_FOUND",
    errors.WorkflowExistsError: "ALREADY_EXISTS",
    errors.WorkflowEndedError: "FAILED_PRECONDITION",
    errors.WorkflowNotEndedError: "FAILED_PRECONDITION",
    errors.WorkflowStalledError: "FAILED_PRECONDITION",
    errors.WorkflowTooLargeError: "RESOURCE_EXHAUSTED",
    errors.WorkflowUnreadableError: "DATA_LOSS",
    errors.WorkflowForbiddenError: "PERMISSION_DENIED",
    errors.WorkflowError: "INTERNAL",
    DeadlineExceededError: "DEADLINE_EXCEEDED",
    RecordsMissingError: "FAILED_PRECONDITION",
    NobodyHostsError: "UNAVAILABLE",
    NotOwnerError: "UNAVAILABLE",
    OwnerLostError: "UNAVAILABLE",
}


async def _ask(called: Called, method: Method, arguments: object) -> Any:
    """Ask the application that the message names, or else this one.

    Raises:
        APIError: It failed.
    """
    said = called.message
    router = said.router if "router" in said.DESCRIPTOR.fields_by_name else None
    target = of_app(called, router.targetAppID if router is not None else None)
    try:
        return await called.api.run(Operation(method, target, arguments, called.context()))
    except MeshError as error:
        status = next((STATUSES[kind] for kind in type(error).__mro__ if kind in STATUSES), None)
        if status is None:
            raise answer(error) from error
        raise APIError(500, error.code, str(error), grpc=status) from error


async def start(called: Called) -> Any:
    """Start an instance."""
    said = called.message
    id_ = await _ask(
        called,
        workflows.START,
        workflows.Start(
            said.name,
            said.instanceId,
            text_of(said, "input"),
            text_of(said, "version") or None,
            _time(said, "scheduledStartTimestamp"),
            text_of(said, "executionId") or "",
            trace_of(said),
            dict(said.tags),
        ),
    )
    return called.reply(instanceId=id_)


async def get(called: Called) -> Any:
    """Look at an instance."""
    said = called.message
    view = await _ask(called, workflows.GET, workflows.Get(said.instanceId, said.getInputsAndOutputs))
    return called.reply() if view is None else _shown(called, view)


async def wait_for_start(called: Called) -> Any:
    """Look at an instance once it has begun."""
    return await _wait(called, ended=False)


async def wait_for_end(called: Called) -> Any:
    """Look at an instance once it has ended."""
    return await _wait(called, ended=True)


async def _wait(called: Called, *, ended: bool) -> Any:
    said = called.message
    arguments = workflows.Wait(said.instanceId, ended, said.getInputsAndOutputs)
    return _shown(called, await _ask(called, workflows.WAIT, arguments))


def _shown(called: Called, view: View) -> Any:
    state, parent = view.state, view.state.parent
    members = {
        "instanceId": view.id,
        "name": state.name,
        "version": text(state.version),
        "workflowStatus": state.status,
        "scheduledStartTimestamp": None if view.scheduled is None else at(view.scheduled),
        "createdTimestamp": at(state.created),
        "lastUpdatedTimestamp": at(state.updated),
        "input": text(view.input),
        "output": text(view.output),
        "customStatus": text(state.custom_status),
        "failureDetails": failure(view.failure),
        "executionId": text(state.execution),
        "completedTimestamp": None if state.ended is None else at(state.ended),
        "parentInstanceId": None if parent is None else text(parent.instance),
        "tags": view.tags or {},
        "parentAppId": None if parent is None else text(parent.app),
        "startedAt": None if state.started is None else at(state.started),
    }
    return called.reply(exists=True, workflowState=members)


async def raise_event(called: Called) -> Any:
    """Raise an event of an instance."""
    said = called.message
    await _ask(called, workflows.RAISE_EVENT, workflows.RaiseEvent(said.instanceId, said.name, text_of(said, "input")))
    return called.reply()


async def terminate(called: Called) -> Any:
    """End an instance."""
    said = called.message
    await _ask(
        called, workflows.TERMINATE, workflows.Terminate(said.instanceId, text_of(said, "output"), said.recursive)
    )
    return called.reply()


async def suspend(called: Called) -> Any:
    """Have an instance begin no turn."""
    said = called.message
    await _ask(called, workflows.SUSPEND, workflows.Suspend(said.instanceId, text_of(said, "reason")))
    return called.reply()


async def resume(called: Called) -> Any:
    """Have an instance go on."""
    said = called.message
    await _ask(called, workflows.RESUME, workflows.Resume(said.instanceId, text_of(said, "reason")))
    return called.reply()


async def purge(called: Called) -> Any:
    """Forget an instance, or those that a filter finds."""
    said = called.message
    if said.WhichOneof("request") == "purgeInstanceFilter":
        wanted = said.purgeInstanceFilter
        told = await _ask(
            called,
            workflows.PURGE_MANY,
            workflows.PurgeMany(
                tuple(wanted.runtimeStatus),
                _time(wanted, "createdTimeFrom"),
                _time(wanted, "createdTimeTo"),
                recursive=said.recursive,
                force=said.force,
            ),
        )
    else:
        told = await _ask(called, workflows.PURGE, workflows.Purge(said.instanceId, said.recursive, said.force))
    return called.reply(deletedInstanceCount=told.count, isComplete={"value": told.complete})


async def rerun(called: Called) -> Any:
    """Run an instance again, from one of its events."""
    said = called.message
    child = said.newChildWorkflowInstanceID if said.HasField("newChildWorkflowInstanceID") else None
    arguments = workflows.Rerun(
        said.sourceInstanceID, said.eventID, said.newInstanceID, text_of(said, "input"), said.overwriteInput, child
    )
    return called.reply(newInstanceID=await _ask(called, workflows.RERUN, arguments))


async def list_ids(called: Called) -> Any:
    """Tell the ids of instances, a page of them."""
    said = called.message
    limit = min(said.pageSize or workflows.MAX_PAGE, workflows.MAX_PAGE)
    page = await _ask(called, workflows.LIST, workflows.List(after=said.continuationToken, limit=limit))
    return called.reply(instanceIds=[view.id for view in page.views], continuationToken=page.after or None)


async def history(called: Called) -> Any:
    """Tell the history of an instance, as it is committed."""
    id_ = called.message.instanceId
    page = await _ask(called, workflows.HISTORY, workflows.History(id_))
    wire, reply = wire_of(called.message.DESCRIPTOR.file.pool), called.reply()
    for event in page.events:
        if written := wire.event(event, id_, called.api.caller.app_id):
            reply.events.add().ParseFromString(written)
    return reply


def _time(said: Any, name: str) -> float | None:
    return seconds_of(getattr(said, name)) if said.HasField(name) else None


def _row(name: str, function: Callable[[Called], Awaitable[Any]]) -> RPC:
    return RPC(name, function, "workflows", service=SERVICE)


RPCS = (
    _row("StartInstance", start),
    _row("GetInstance", get),
    _row("WaitForInstanceStart", wait_for_start),
    _row("WaitForInstanceCompletion", wait_for_end),
    _row("RaiseEvent", raise_event),
    _row("TerminateInstance", terminate),
    _row("SuspendInstance", suspend),
    _row("ResumeInstance", resume),
    _row("PurgeInstances", purge),
    _row("RerunWorkflowFromEvent", rerun),
    _row("ListInstanceIDs", list_ids),
    _row("GetInstanceHistory", history),
)
