"""``bindings.aws.sqs``: messages of an Amazon SQS queue, in and out.

A message that is handled is hidden from others for 20 seconds, which are renewed until the application has taken it;
then it is deleted. One that was not taken comes again, later each time. What a reader that was killed held comes when
those seconds are over.

Source: Dapr 1.18, the AWS SQS binding; the Amazon SQS API Reference.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

from bindings._data import sendable
from bindings._in_order import patiently
from bindings.aws._binding import AWSBinding, ordered
from brokers.clients.aws import AWSSettings
from mesh.blocks.binding_contract import BindingEvent, Invoke, Reading
from mesh.errors import MeshError
from mesh.resources.settings import setting
from mesh.tasks import task_group

__all__ = ["SQSBinding"]

logger = logging.getLogger(__name__)

AT_ONCE = 10  # As many as a request gives.
POLL_SECONDS = 20
FIFO_POLL_SECONDS = 5
LOOK_SECONDS = 1.0
HIDDEN_SECONDS = 20
RENEW_SECONDS = 5.0
_TOLD = {"SentTimestamp": "sentTimestamp", "MessageGroupId": "messageGroupId"}
_COUNT = "ApproximateReceiveCount"


@dataclass(frozen=True, slots=True, kw_only=True)
class SQSSettings(AWSSettings):
    """Settings of ``bindings.aws.sqs``."""

    queue: str = setting("queueName", "The name of the queue, which must be there.", required=True, example="orders")


class SQSBinding(AWSBinding):
    """A queue."""

    title = "Sends messages to a queue of Amazon SQS, and takes them from there."
    settings = SQSSettings
    service = "sqs"
    connections = 128  # Each reading holds one, waiting.
    answer_seconds = POLL_SECONDS + 10.0

    def __init__(self, settings: SQSSettings) -> None:
        """Prepare; entering connects."""
        super().__init__(settings)
        self._queue = settings.queue
        self._found: str | None = None

    async def check(self) -> None:
        """Ask whether the queue is there."""
        self._found = None
        await self._url()

    async def _url(self) -> str:
        if self._found is None:
            answer = await self.call("get_queue_url", QueueName=self._queue)
            self._found = str(answer["QueueUrl"])
        return self._found

    @property
    def _shown(self) -> str:
        return f"the SQS queue {self._queue!r}"

    async def invoke(self, asked: Invoke) -> None:
        """Send the data as they are."""
        body = sendable(asked.data, "the data for SQS")
        more = ordered(self._queue, asked.metadata)
        await self.call("send_message", QueueUrl=await self._url(), MessageBody=body, **more)

    @asynccontextmanager
    async def reading(self, reading: Reading) -> AsyncIterator[None]:
        """Take messages while it is entered."""
        await self.check()  # It may have been deleted and made again.
        reader = _Reader(self, reading, await self._url(), fifo=self._queue.endswith(".fifo"))
        async with task_group() as tasks:
            receiving = tasks.create_task(reader.receive(tasks), name="sqs-receive")
            try:
                yield
            finally:
                receiving.cancel()
                reader.leaving = True


class _Reader:
    """Takes messages for one application.

    Attributes:
        leaving: Whether none is to be handed over any more.
    """

    def __init__(self, queue: SQSBinding, reading: Reading, url: str, *, fifo: bool) -> None:
        self._queue, self._reading, self._url, self._fifo = queue, reading, url, fifo
        self._taking: set[asyncio.Task[None]] = set()
        self.leaving = False

    async def receive(self, tasks: asyncio.TaskGroup) -> None:
        """Take messages as they come; those of one group are handed over in their order."""
        while True:
            if len(self._taking) >= AT_ONCE:
                await asyncio.wait(self._taking, return_when=asyncio.FIRST_COMPLETED)
            elif self._fifo and self._taking:  # Their groups are free when they are done.
                await asyncio.wait(self._taking, return_when=asyncio.FIRST_COMPLETED, timeout=LOOK_SECONDS)
            answer = await patiently(self._ask)
            groups: dict[str, deque[Mapping[str, Any]]] = {}
            for message in answer.get("Messages", ()):
                group = message["Attributes"]["MessageGroupId"] if self._fifo else message["ReceiptHandle"]
                groups.setdefault(group, deque()).append(message)
            for messages in groups.values():
                task = tasks.create_task(self._take(messages), name="sqs-take")
                self._taking.add(task)
                task.add_done_callback(self._taking.discard)

    async def _ask(self) -> Mapping[str, Any]:
        # Not every server sees within a request that a group has become free.
        fifo_wait = 0 if self._taking else FIFO_POLL_SECONDS
        return await self._queue.call(
            "receive_message",
            QueueUrl=self._url,
            MaxNumberOfMessages=max(1, AT_ONCE - len(self._taking)),
            WaitTimeSeconds=fifo_wait if self._fifo else POLL_SECONDS,
            VisibilityTimeout=HIDDEN_SECONDS,
            MessageSystemAttributeNames=[*_TOLD, _COUNT],
            MessageAttributeNames=["All"],
        )

    async def _take(self, left: deque[Mapping[str, Any]]) -> None:
        """Hand messages over, one after the other; those behind one that is not taken come again as well."""
        delay = 0
        async with task_group() as tasks:
            renewing = tasks.create_task(self._renew(left), name="sqs-renew")
            try:
                while left and not self.leaving:
                    await self._reading.handle(_event(left[0]))
                    await self._delete(left.popleft())
            except MeshError as error:
                count = int(left[0]["Attributes"].get(_COUNT, "1"))
                delay = min(HIDDEN_SECONDS, 2 ** min(count - 1, 10))
                logger.info("a message of %s comes again in %d s: %s", self._reading.component, delay, error)
            finally:
                renewing.cancel()
        for message in left:
            await self._hide(message, delay)
            delay = 0  # While the first one is hidden, those of its group are held back.

    async def _renew(self, left: deque[Mapping[str, Any]]) -> None:
        while True:
            await asyncio.sleep(RENEW_SECONDS)
            for message in tuple(left):
                await self._hide(message, HIDDEN_SECONDS)

    async def _hide(self, message: Mapping[str, Any], seconds: int) -> None:
        held = {"QueueUrl": self._url, "ReceiptHandle": message["ReceiptHandle"]}
        try:
            await self._queue.call("change_message_visibility", VisibilityTimeout=seconds, **held)
        except MeshError as error:  # Then it comes when it is no longer hidden.
            logger.debug("%s", error)

    async def _delete(self, message: Mapping[str, Any]) -> None:
        try:
            await self._queue.call("delete_message", QueueUrl=self._url, ReceiptHandle=message["ReceiptHandle"])
        except MeshError as error:
            logger.warning("a message that was taken may come again: %s", error)


def _event(message: Mapping[str, Any]) -> BindingEvent:
    """Make the event of a message: its attributes that are texts, and what the service says, are its metadata."""
    attributes = message.get("MessageAttributes", {})
    told = {name: str(each["StringValue"]) for name, each in attributes.items() if "StringValue" in each}
    system = message.get("Attributes", {})
    told |= {ours: str(system[theirs]) for theirs, ours in _TOLD.items() if theirs in system}
    return BindingEvent(str(message["Body"]).encode(), told | {"messageId": str(message["MessageId"])})
