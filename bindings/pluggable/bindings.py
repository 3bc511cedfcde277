"""``bindings.<name>``: calls and events of the pluggable component whose socket has the name."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import grpc.aio

from bindings.pluggable._adapter import PluggableAdapter, Plugged
from bindings.pluggable._connection import Connection, Failed, is_leaving
from bindings.pluggable._messages import Message, message
from bindings.pluggable._stream import Stream
from mesh.blocks.binding_contract import BindingError, BindingEvent, Invoke, Invoked, Reading
from mesh.errors import MeshError
from mesh.tasks import task_group

__all__ = ["PluggableBinding"]

SERVICES = {"input": "InputBinding", "output": "OutputBinding"}
INVOKE_SECONDS = 60.0
AT_ONCE = 100
LEAVE_WAIT = 2.0


class PluggableBinding(PluggableAdapter):
    """A component that is an input, an output, or both, by the services that it has.

    Attributes:
        directions: What it is used as.
        operations: What it can be asked, as it said last.
    """

    service = SERVICES["output"]

    def __init__(self, plugged: Plugged) -> None:
        """Prepare; entering connects."""
        super().__init__(plugged)
        self.directions: Sequence[str] = ()
        self.operations: Sequence[str] = ()

    def _see(self, path: Path) -> None:
        given = next((text for name, text in self._settings.properties.items() if name.lower() == "direction"), "")
        wanted = [each.strip().lower() for each in given.split(",") if each.strip()] or [*SERVICES]
        self.directions = [each for each in SERVICES if each in wanted and SERVICES[each] in self._services]
        if not self.directions:
            there = ", ".join(sorted(name for name in self._services if not name.startswith("grpc."))) or "none"
            sought = " or ".join(SERVICES[each] for each in wanted)
            raise self._problem(f"the pluggable component at {path} has no service {sought}; it has: {there}")
        self.service = SERVICES[self.directions[0]]

    async def _initialise(self, connection: Connection, **more: str) -> None:
        for each in self.directions:
            await self._init(connection, SERVICES[each], **more)
        if "output" in self.directions:
            request = message("ListOperationsRequest")()
            told = await connection.call(SERVICES["output"], "ListOperations", request, first=True)
            self.operations = tuple(told.operations)

    def _error(self, failed: Failed) -> BindingError:
        # Without a status of its own a component says so of what it refuses, as of a failure.
        passes = failed.away or not (failed.final or failed.code.name == "UNKNOWN")
        return BindingError(str(failed), retryable=passes)

    async def invoke(self, asked: Invoke) -> Invoked | None:
        """Make a call."""
        request = message("InvokeRequest")(data=asked.data, metadata=asked.metadata, operation=asked.operation)
        try:
            answer = await self._connection.call(SERVICES["output"], "Invoke", request, seconds=INVOKE_SECONDS)
        except Failed as failed:
            raise self._error(failed) from None
        if not answer.data and not answer.metadata:
            return None
        return Invoked(answer.data or None, dict(answer.metadata))

    @asynccontextmanager
    async def reading(self, reading: Reading) -> AsyncIterator[None]:
        """Take what comes on a stream; the component is told by an event's id that it was taken, or why not."""
        try:
            stream = Stream(await self._connection.stream(SERVICES["input"], "Read"), "ReadRequest")
        except Failed as failed:
            raise self._error(failed) from None
        try:
            # Nothing says that it has begun. What is asked behind it has mostly to wait for it.
            await self._ask("Ping", message("PingRequest")(), SERVICES["input"])
            stopping = asyncio.Event()
            async with task_group() as keepers:
                async with task_group() as tasks:
                    pull = self._pull(stream, stopping, tasks, reading)
                    pulling = keepers.create_task(pull, name="pluggable-read")
                    try:
                        yield
                    finally:
                        stopping.set()
                await stream.finish(pulling, LEAVE_WAIT)
        finally:
            stream.call.cancel()

    async def _pull(self, stream: Stream, stopping: asyncio.Event, tasks: asyncio.TaskGroup, reading: Reading) -> None:
        slots, why = asyncio.Semaphore(AT_ONCE), "the component has ended it"

        async def handle(event: Message) -> None:
            try:
                answer = await reading.handle(BindingEvent(event.data, dict(event.metadata)))
            except MeshError as error:
                await stream.write(message_id=event.message_id, response_error={"message": str(error)})
            else:
                await stream.write(message_id=event.message_id, response_data=answer)
            finally:
                slots.release()

        try:
            while (found := await stream.call.read()) is not grpc.aio.EOF and found is not None:
                await slots.acquire()
                if stopping.is_set():  # It stays with the component.
                    slots.release()
                else:
                    tasks.create_task(handle(found), name="pluggable-event")
        except grpc.aio.AioRpcError as error:
            why = f"{self._connection.shown(error.details() or 'failed')} ({error.code().name})"
        except asyncio.CancelledError:
            if is_leaving():
                raise
            why = "the connection was closed"
        if not stopping.is_set():
            raise BindingError(f"the events of {self._settings.path} broke off: {why}", retryable=True)
