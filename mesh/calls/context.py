"""What the parts of a call need of the exchange that they belong to, and what is told to everybody who listens."""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Protocol

from mesh.address import Address
from mesh.broker import Broker, Frame, Message
from mesh.errors import UnprovenError

if TYPE_CHECKING:
    from mesh.trust.guard import Guard

__all__ = ["Context", "counts", "tell"]


class Context(Protocol):
    """An exchange, as its parts see it.

    Attributes:
        broker: Carries the frames.
        inbox: This node's address.
        monotonic: The clock.
        part_bytes: The largest body that goes in one frame.
        stall_limit: Seconds until a stream whose receiver takes nothing is given up.
        ask_after: Seconds until it is asked what became of a call.
        guard: Proves and checks who tells what; None = nobody asks for that.
    """

    broker: Broker
    inbox: str
    monotonic: Callable[[], float]
    part_bytes: int
    stall_limit: float
    ask_after: float
    guard: Guard | None

    def tell(self, to: str, message: Message, reply_to: str = "") -> None:
        """Send a frame without waiting for it; what cannot be sent soon is not."""

    def soon(self, work: Coroutine[Any, Any, None]) -> None:
        """Do something small on the side, if it can be done soon."""


async def tell(
    exchange: Context, to: Address, body: bytes = b"", headers: Mapping[str, str] = MappingProxyType({})
) -> None:
    """Tell everybody who listens; raises ``BrokerError``."""
    message = Message(headers, body)
    await exchange.broker.broadcast(to, message if exchange.guard is None else exchange.guard.tell(to.text, message))


def counts(exchange: Context, at: Address, frame: Frame, namespace: str, app_id: str | None = None) -> bool:
    """Tell whether something that was told is taken: a node of the namespace told it, and that of an application.

    Args:
        exchange: Knows who must prove who it is.
        at: Where it was told.
        frame: What came.
        namespace: The teller's.
        app_id: Whose word alone counts; None = that of any node.
    """
    guard = exchange.guard
    if guard is None or frame.message is None:
        return frame.message is not None
    try:
        teller = guard.told(at.text, frame.message)
    except UnprovenError:
        return False
    if teller is None or (teller.namespace == namespace and app_id in (None, teller.app_id)):
        return True
    guard.refuse("told", at.text, "invalid", f"{teller} may not say that of {app_id or 'others'}")
    return False
