"""What is told to everybody who listens: who told it is proven as for calls, and without identities nobody is."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mesh.address import Address
from mesh.broker import Frame, Message
from mesh.errors import UnprovenError

if TYPE_CHECKING:
    from mesh.calls.exchange import Exchange

__all__ = ["counts", "tell"]


async def tell(exchange: Exchange, to: Address, body: bytes = b"") -> None:
    """Tell everybody who listens; raises ``BrokerError``."""
    message = Message({}, body)
    await exchange.broker.broadcast(to, message if exchange.guard is None else exchange.guard.tell(to.text, message))


def counts(exchange: Exchange, at: Address, frame: Frame, namespace: str, app_id: str | None = None) -> bool:
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
