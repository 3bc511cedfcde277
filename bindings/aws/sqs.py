"""``bindings.aws.sqs``: messages of an Amazon SQS queue, in and out.

A message that is handled is hidden from others for half a minute, which is renewed until the application has taken
it; then it is deleted. One that was not taken comes again, later each time. What a reader that was killed held comes
when that half a minute is over.

Source: Dapr 1.18, the AWS SQS binding; the Amazon SQS API Reference.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Any

from bindings.aws._binding import AWSBinding, ordered, patiently, sendable
from bindings.aws._session import AWSSettings
from mesh.blocks.binding_contract import BindingEvent, Invoke, Reading
from mesh.errors import MeshError
from mesh.resources.settings import setting
from mesh.tasks import task_group

__all__ = ["SQSBinding"]

logger = logging.getLogger(__name__)

AT_ONCE = 10  # As many as a request gives.
POLL_SECONDS = 20
BUSY_SECONDS = 1
HIDDEN_SECONDS = 30
RENEW_SECONDS = 10.0
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
        url = await self._url()
        async with task_group() as tasks:
            receiving = tasks.create_task(self._receive(reading, url, tasks), name="sqs-receive")
            try:
                yield
            finally:
                receiving.cancel()

    async def _receive(self, reading: Reading, url: str, tasks: asyncio.TaskGroup) -> None:
        fifo = self._queue.endswith(".fifo")
        # Of a fifo queue one: the service keeps a group's others back only until it has given them.
        most = 1 if fifo else AT_ONCE
        taking: set[asyncio.Task[None]] = set()

        async def ask() -> Mapping[str, Any]:
            return await self.call(
                "receive_message",
                QueueUrl=url,
                MaxNumberOfMessages=min(most, AT_ONCE - len(taking)),
                # Not every server sees a group become free within a request.
                WaitTimeSeconds=BUSY_SECONDS if fifo and taking else POLL_SECONDS,
                VisibilityTimeout=HIDDEN_SECONDS,
                MessageSystemAttributeNames=[*_TOLD, _COUNT],
                MessageAttributeNames=["All"],
            )

        while True:
            if len(taking) >= AT_ONCE:
                await asyncio.wait(taking, return_when=asyncio.FIRST_COMPLETED)
            answer = await patiently(ask)
            for message in answer.get("Messages", ()):
                task = tasks.create_task(self._take(reading, url, message), name="sqs-take")
                taking.add(task)
                task.add_done_callback(taking.discard)

    async def _take(self, reading: Reading, url: str, message: Mapping[str, Any]) -> None:
        """Hand a message over, and delete it."""
        held = {"QueueUrl": url, "ReceiptHandle": message["ReceiptHandle"]}
        try:
            async with task_group() as tasks:
                renewing = tasks.create_task(self._renew(held), name="sqs-renew")
                try:
                    await reading.handle(_event(message))
                finally:
                    renewing.cancel()
        except MeshError as error:
            count = int(message.get("Attributes", {}).get(_COUNT, "1"))
            delay = min(HIDDEN_SECONDS, 2 ** min(count - 1, 10))
            logger.info("%s: a message comes again in %d s: %s", self._shown, delay, error)
            with suppress(MeshError):  # Then it comes when it is no longer hidden.
                await self.call("change_message_visibility", VisibilityTimeout=delay, **held)
            return
        try:
            await self.call("delete_message", **held)
        except MeshError as error:
            logger.warning("a message that was taken may come again: %s", error)

    async def _renew(self, held: Mapping[str, str]) -> None:
        while True:
            await asyncio.sleep(RENEW_SECONDS)
            try:
                await self.call("change_message_visibility", VisibilityTimeout=HIDDEN_SECONDS, **held)
            except MeshError as error:
                logger.debug("%s", error)


def _event(message: Mapping[str, Any]) -> BindingEvent:
    """Make the event of a message: its attributes that are texts, and what the service says, are its metadata."""
    attributes = message.get("MessageAttributes", {})
    told = {name: str(each["StringValue"]) for name, each in attributes.items() if "StringValue" in each}
    system = message.get("Attributes", {})
    told |= {ours: str(system[theirs]) for theirs, ours in _TOLD.items() if theirs in system}
    return BindingEvent(str(message["Body"]).encode(), told | {"messageId": str(message["MessageId"])})
