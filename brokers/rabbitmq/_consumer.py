"""A member of a group: takes what the broker hands out and runs handlers.

An unordered group has one queue, whose members compete. An ordered one has a queue more for each
lane of keyed events, with a single active consumer that gets one delivery at a time; each is on a
channel of its own, since only closing it hands back what is unsettled before another consumer
gets what follows.

RabbitMQ knows no deadline of ours (its own is 30 minutes), so the member keeps it: what gets no
sign of life for ``ack_wait`` is stored anew, for others, while the original stays unsettled until
its handler ends, so that the member never has more than it may.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from contextlib import suppress
from functools import lru_cache

from aiormq import spec

from brokers.rabbitmq._balance import balance
from brokers.rabbitmq._channel import Delivered
from brokers.rabbitmq._connection import Connection
from brokers.rabbitmq._lane import Lane, RabbitMQSettler
from brokers.rabbitmq._message import ATTEMPT, TOPIC, decode, encode
from brokers.rabbitmq._names import address_of, retry_step
from brokers.rabbitmq._publisher import Publisher
from brokers.rabbitmq._session import Session
from brokers.rabbitmq._topology import Space, count, declare_group, exchange, exists, group_queues, retry_queue, seal
from brokers.rabbitmq._unclaimed import claim, topic_of
from brokers.shared.handling import run_handler
from mesh.address import Address, matches
from mesh.broker import Delivery, Handler, SubscribeOptions
from mesh.errors import BrokerError, BrokerUnavailableError
from mesh.tasks import task_group

__all__ = ["Subscription"]

logger = logging.getLogger("brokers.rabbitmq")

STORE_WAIT = 30.0
MAX_RETRY_QUEUES = 256
CLAIM_AGAIN = 2.0
JOIN_AGAIN = 0.1
MAX_PREFETCH = 65535
REMOVE_WAIT = 2.0


class Subscription:
    """One member's part in a group."""

    def __init__(
        self,
        session: Session,
        publisher: Publisher,
        space: Space,
        address: Address,
        options: SubscribeOptions,
        handler: Handler,
    ) -> None:
        self._session = session
        self._publisher = publisher
        self._space = space
        self._address = address
        self._options = options
        self._handler = handler
        self._queues = group_queues(space, address, options)
        prefetch = min(options.max_in_flight, MAX_PREFETCH)
        self._lanes = [Lane(self, session, queue, 1 if queue.keyed else prefetch) for queue in self._queues]
        self._pattern = address.name if address.is_pattern else None
        self._running = 0
        self._waiting: deque[tuple[Delivery, RabbitMQSettler]] = deque()
        self._unsettled: set[RabbitMQSettler] = set()
        self._alive: dict[RabbitMQSettler, None] = {}  # In the order of their last signs of life.
        self._timer: asyncio.TimerHandle | None = None
        self._retry_queues: set[str] = set()  # Those that are known to be there.
        self._stopping = False
        self._claims = False
        self._claiming: asyncio.Task[None] | None = None
        self._balancing: asyncio.Task[None] | None = None
        self._not_ours = 0  # Unclaimed events that were seen to be no business of this group.
        self._tasks: asyncio.TaskGroup

    async def start(self, tasks: asyncio.TaskGroup) -> None:
        """Join the group; handlers run in ``tasks``.

        Raises:
            TopologyMismatchError: The group exists and differs.
            BrokerError: The server refused.
        """
        self._tasks = tasks
        while True:
            connection = await self._session.live()
            try:
                await self._join(connection)
                break
            except BrokerUnavailableError:
                await asyncio.sleep(JOIN_AGAIN)  # It may be another connection that is refused.
        async with task_group() as starting:
            for lane in self._lanes:
                starting.create_task(lane.start(tasks), name="rabbitmq-lane")
        if self._options.ordered:
            self._balancing = tasks.create_task(balance(self._session, self._lanes), name="rabbitmq-balance")
        if self._claims:
            self._claiming = tasks.create_task(self._claim_again(), name="rabbitmq-claim")

    async def _join(self, connection: Connection) -> None:
        """Declare and bind; a new group gets what is unclaimed before that, so that older events come first."""
        is_new = await declare_group(connection, self._queues, self._address, self._options)
        if not self._options.ephemeral:
            claimed = spec.Exchange.Declare(exchange=self._queues[0].claimed, passive=True)
            self._claims = is_new or not await exists(connection, claimed)
        if self._claims:
            await self._claim(connection)
        async with connection.channel(*[method for queue in self._queues for method in queue.bound]):
            pass
        if self._claims:
            await self._claim(connection)

    async def _claim(self, connection: Connection) -> None:
        if (await count(connection, self._space.unclaimed))[0] > self._not_ours:
            claiming = claim(self._session, self._publisher, self._space, self._address.name, self._queues)
            self._not_ours = await claiming

    async def _claim_again(self) -> None:
        """Look once more, for what was on its way to nobody while the group was bound, and note that it was done."""
        await asyncio.sleep(CLAIM_AGAIN)
        try:
            connection = await self._session.live()
            await self._claim(connection)
            async with connection.channel(exchange(self._queues[0].claimed)):
                return
        except BrokerError as error:
            logger.warning("cannot look for events of %s that no group has: %s", self._address, error)

    def claim_soon(self) -> None:
        """Look for events that came while a queue of the group was not there."""
        if not self._stopping and not self._options.ephemeral:
            self._not_ours = 0
            self._claiming = self._tasks.create_task(self._claim_again(), name="rabbitmq-claim")

    async def stop(self) -> None:
        """Take nothing more, and release what no handler has begun."""
        self._stopping = True
        for task in (self._claiming, self._balancing):
            if task is not None:
                task.cancel()
        for lane in self._lanes:
            lane.stop_at_once()
        for lane in self._lanes:
            await lane.cancel()
        while self._waiting:
            self._waiting.popleft()[1].release_now()

    def close(self) -> None:
        """Leave; whatever is still unsettled goes back."""
        if self._timer is not None:
            self._timer.cancel()
        for settler in list(self._unsettled):
            settler.release_now()
        for lane in self._lanes:
            lane.close()

    async def remove(self) -> None:
        """Remove the queues of a group that lasts as long as this member."""
        connection = self._session.connection
        if connection is None:
            return  # They expire.
        with suppress(BrokerError, TimeoutError):
            async with asyncio.timeout(REMOVE_WAIT), connection.channel() as channel:
                await channel.call(*[spec.Queue.Delete(queue=queue.name) for queue in self._queues])

    # Deliveries

    def note_settled(self, settler: RabbitMQSettler) -> None:
        """Forget a delivery."""
        self._unsettled.discard(settler)

    def take(self, lane: Lane, delivered: Delivered) -> None:
        """Begin with a delivery, or keep it until there is room."""
        channel = delivered.channel
        if self._stopping:
            channel.release(delivered.tag)
            return
        topic = topic_of(delivered)
        if self._pattern is not None and not _fits(self._pattern, topic):
            channel.ack_soon(delivered.tag)
            return
        message, attempts = decode(delivered.properties, delivered.body)
        settler = RabbitMQSettler(self, lane, delivered, message, topic, attempts + 1)
        self._unsettled.add(settler)
        lane.hold()
        delivery = Delivery(message, address_of(self._address.space, topic), attempts + 1, settler)
        if self._running < self._options.max_in_flight:
            self._begin(delivery, settler)
        else:
            self._waiting.append((delivery, settler))

    def _begin(self, delivery: Delivery, settler: RabbitMQSettler) -> None:
        self._running += 1
        settler.lane.begin()
        self._tasks.create_task(self._handle(delivery, settler), name="rabbitmq-delivery")

    async def _handle(self, delivery: Delivery, settler: RabbitMQSettler) -> None:
        self.note_alive(settler)
        try:
            await run_handler(self._handler, delivery, settler.release)
        finally:
            self._alive.pop(settler, None)
            if not settler.open:
                self._unsettled.discard(settler)
            self._running -= 1
            settler.lane.end()
            self._begin_next()

    def _begin_next(self) -> None:
        while self._waiting and self._running < self._options.max_in_flight and not self._stopping:
            delivery, settler = self._waiting.popleft()
            if settler.open:
                self._begin(delivery, settler)
            else:  # The connection broke, and it comes again.
                self._unsettled.discard(settler)

    # Signs of life

    def note_alive(self, settler: RabbitMQSettler) -> None:
        """Begin its time anew."""
        loop = asyncio.get_running_loop()
        self._alive.pop(settler, None)
        settler.deadline = loop.time() + self._options.ack_wait
        self._alive[settler] = None
        if self._timer is None:
            self._timer = loop.call_at(settler.deadline, self._expire)

    def _expire(self) -> None:
        """Give up what got no sign of life."""
        self._timer = None
        loop = asyncio.get_running_loop()
        while self._alive:
            settler = next(iter(self._alive))
            if settler.deadline > loop.time():
                self._timer = loop.call_at(settler.deadline, self._expire)
                return
            del self._alive[settler]
            if settler.open:
                logger.warning("no sign of life for an event of %s", self._address)
                settler.give_up(self._tasks)

    # Later attempts

    async def store_anew(self, settler: RabbitMQSettler, delay: float) -> bool:
        """Store a delivery's message once more, for later or for others; tell whether it is stored."""
        queue, message = settler.lane.queue.name, settler.message
        extra = {TOPIC: settler.topic, ATTEMPT: str(settler.attempt)}
        try:
            async with asyncio.timeout(STORE_WAIT):
                target = await self._retry_queue(queue, delay) if delay > 0 else queue
                await self._publisher.store("", target, encode(message, stored=True, extra=extra), message.body)
        except (BrokerError, TimeoutError) as error:
            logger.warning("cannot store an event of %s for another attempt: %s", self._address, error)
            self._retry_queues.clear()
            return False
        return True

    async def _retry_queue(self, queue: str, delay: float) -> str:
        """Give a queue that holds messages for a while; made when it is missing."""
        ephemeral, step = self._options.ephemeral, retry_step(delay)
        name, declared = retry_queue(self._space, queue, step, ephemeral=ephemeral, now=time.time())
        if name not in self._retry_queues:
            if len(self._retry_queues) >= MAX_RETRY_QUEUES:
                self._retry_queues.clear()
            connection = await self._publisher.session.live()
            is_new = not await exists(connection, spec.Queue.Declare(queue=name, passive=True))
            async with connection.channel(declared):
                self._retry_queues.add(name)
            if is_new:
                await seal(connection)
        return name


@lru_cache(maxsize=4096)
def _fits(pattern: str, topic: str) -> bool:
    return matches(pattern, topic)
