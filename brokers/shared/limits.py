"""How large a message is, and how many are under way at once."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence

from mesh.address import Address
from mesh.broker import Message
from mesh.errors import BrokerError, MeshError, MessageTooLargeError

__all__ = ["AT_ONCE", "check_size", "measure", "publish_each", "refusal"]

AT_ONCE = 500  # Publishes of one call that are under way at the same time.
HEADER_BYTES = 4  # What a header takes beside its name and its value, as NATS and HTTP write it.


def measure(body: bytes, headers: Mapping[str, str]) -> int:
    """Give what counts towards a broker's limit: the body, and the headers with what separates them."""
    return len(body) + sum([len(name) + len(value) + HEADER_BYTES for name, value in headers.items()])


def check_size(body: bytes, headers: Mapping[str, str], limit_bytes: int) -> None:
    """Refuse a message that is too large.

    Raises:
        MessageTooLargeError: It is.
    """
    size = measure(body, headers)
    if size > limit_bytes:
        raise MessageTooLargeError(size, limit_bytes)


def refusal(error: MeshError) -> BrokerError:
    """Give what is wrong with one message as ``publish_many`` gives it."""
    return error if isinstance(error, BrokerError) else BrokerError(str(error))


async def publish_each(
    publish: Callable[[Address, Message], Awaitable[None]],
    address: Address,
    messages: Sequence[Message],
    at_once: int = AT_ONCE,
) -> list[BrokerError | None]:
    """Do ``publish_many`` where a client writes in the order of its callers, and confirms as the server gets to it."""
    results: list[BrokerError | None] = [None] * len(messages)
    permits = asyncio.Semaphore(at_once)

    async def one(index: int, message: Message) -> None:
        try:
            await publish(address, message)
        except MeshError as error:
            results[index] = refusal(error)
        finally:
            permits.release()

    async with asyncio.TaskGroup() as tasks:
        for index, message in enumerate(messages):
            await permits.acquire()
            tasks.create_task(one(index, message), name="publish")
    return results
