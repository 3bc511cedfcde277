"""Workers of workflows: the stream that hands work out to them, and the calls by which they answer.

Nothing here waits for the store or the application: a worker whose first calls fail may give up for good. What is
missing is logged, and the worker stays.
"""

from __future__ import annotations

import asyncio
import logging
from contextlib import suppress
from typing import Any, cast

from gateway.errors import APIError, answer
from gateway.routes.rpc import RPC, Called, Stream
from gateway.routes.workflow_answers import answer_of, result_of
from gateway.routes.workflow_wire import wire_of
from mesh.blocks.workflows import HOST
from mesh.errors import MeshError, StreamEndedError
from mesh.operation import Operation
from mesh.tasks import task_group
from mesh.workflows.stream import StreamWorker
from mesh.workflows.worker import TurnWork

__all__ = ["RPCS", "SERVICE"]

logger = logging.getLogger(__name__)

SERVICE = "TaskHubSidecarService"
STATEFUL_HISTORY, HEALTH_PING = 2, 3  # Of WorkerCapability.
TURNS, TASKS = 1000, 10_000
# The SDK for Node takes ten at once, keeps a hundred, and throws away what comes then. It gives up for good when the
# first stream that it opens breaks, and tries again after any other one: so its first is ended well, and it comes again
# within two seconds with one that may break.
NODE = "grpc-node-js/"
NODE_TURNS, NODE_TASKS = 50, 50
LEAVE_SECONDS = 5.0
CLOSE_SECONDS = 1.0
RETRY_SECONDS = (0.5, 2.0)  # Asked again that soon, a node that drains says so.


async def hello(called: Called) -> Any:
    """Tell a worker that somebody is here."""
    return called.reply()


async def get_work_items(called: Called) -> None:
    """Hand work out to a worker, for as long as it holds the stream open."""
    stream, title = cast("Stream", called.stream), _title(called.metadata.get("user-agent", ""))
    if title.startswith(NODE) and called.api.handed.greet(stream.connection):
        return
    worker = _worker(called, stream, title)
    problem: APIError | None = None
    async with task_group() as tasks:
        writing = tasks.create_task(_write(stream, worker), name="workflow-stream-write")
        hosting = tasks.create_task(_host(called, worker), name="workflow-stream-host")
        try:
            await asyncio.wait([hosting])
        except asyncio.CancelledError:  # The worker is gone: what it had is given back before this ends.
            worker.end()
            await asyncio.wait([hosting], timeout=LEAVE_SECONDS)
            raise
        worker.end()
        await asyncio.wait([writing], timeout=CLOSE_SECONDS)
        cut = writing.cancel()
        problem = hosting.result()
    if cut:  # A status behind half a message could not be read.
        await stream.break_off()
        raise ConnectionError("the worker did not read to the end")
    if problem is not None:
        raise problem


def _worker(called: Called, stream: Stream, title: str) -> StreamWorker:
    turns, tasks = (NODE_TURNS, NODE_TASKS) if title.startswith(NODE) else (TURNS, TASKS)
    capabilities = called.message.capabilities
    return StreamWorker(
        title,
        stream.connection,
        called.api.handed,
        wire_of(called.message.DESCRIPTOR.file.pool),
        max_turns=turns,
        max_tasks=tasks,
        remembers=STATEFUL_HISTORY in capabilities,
        pinged=HEALTH_PING in capabilities,
    )


def _title(agent: str) -> str:
    words = agent.split()
    return next((word for word in words if word.startswith("grpc-")), words[0] if words else "grpc")[:40]


async def _host(called: Called, worker: StreamWorker) -> APIError | None:
    """Have the worker be given work until its stream ends; give why this node ends that."""
    told, pause = "", RETRY_SECONDS[0]
    while not worker.ended.is_set():
        try:
            await called.api.run(Operation(HOST, called.api.caller.app_id, worker, called.context()))
        except StreamEndedError as error:
            return answer(error, HOST)
        except MeshError as error:
            if told != (told := str(error)):
                logger.warning("a worker of workflows (%s) is given no work: %s", worker.title, error)
            with suppress(TimeoutError):
                async with asyncio.timeout(pause):
                    await worker.ended.wait()
            pause = min(pause * 2, RETRY_SECONDS[1])
    return None


async def _write(stream: Stream, worker: StreamWorker) -> None:
    """Write what is handed out, behind what says that it has begun."""
    with suppress(OSError):
        await stream.send_raw(b"")
        async for messages in worker.outgoing():
            await stream.send_raw(messages)
    worker.end()


async def complete_turn(called: Called) -> Any:
    """Take the answer to a turn.

    It is not stored yet when this is answered, and one that comes late is no mistake.
    """
    said, stream = called.message, cast("Stream", called.stream)
    item = called.api.handed.take(said.completionToken, stream.connection, said.instanceId, None)
    if item is None:
        logger.debug("the answer to a turn of %.100r is late", said.instanceId)
    else:
        item.resolve(answer_of(said, cast("TurnWork", item.work).app))
    return called.reply()


async def complete_task(called: Called) -> Any:
    """Take what came of an activity."""
    said, stream = called.message, cast("Stream", called.stream)
    item = called.api.handed.take(said.completionToken, stream.connection, said.instanceId, said.taskId)
    if item is None:
        logger.debug("the result of the activity %d of %.100r is late", said.taskId, said.instanceId)
    else:
        item.resolve(result_of(said))
    return called.reply()


def _row(name: str, function: Any, *aliases: str) -> RPC:
    return RPC(name, function, "workflows", aliases, SERVICE)


RPCS = (
    _row("Hello", hello),
    _row("GetWorkItems", get_work_items),
    _row("CompleteOrchestratorTask", complete_turn, "CompleteWorkflowTask"),
    _row("CompleteActivityTask", complete_task),
)
