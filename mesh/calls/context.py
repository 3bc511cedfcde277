"""What the parts of a call need of the exchange that they belong to."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import TYPE_CHECKING, Any, Protocol

from mesh.broker import Broker, Message

if TYPE_CHECKING:
    from mesh.trust.guard import Guard

__all__ = ["Context"]


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
