"""One thing that was seen, done again and compared."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

from gateway.replaying.comparison import Answer, Compared, compare, outcome_of
from gateway.replaying.resending import Resend, Skipped, resend
from mesh.tap.sight import Sight

__all__ = ["Replayed", "Send", "replay"]

Send = Callable[[Resend], Awaitable[Answer]]


@dataclass(frozen=True, slots=True)
class Replayed:
    """What came of it.

    Attributes:
        sent: The request.
        answer: What the gateway answered.
        outcome: ``ok``, the code of a gateway's failure, or of an event that arrived what comes of it.
        seconds: How long it took.
        compared: Where the answer differs.
    """

    sent: Resend
    answer: Answer
    outcome: str
    seconds: float
    compared: Compared

    @property
    def failed(self) -> bool:
        """Whether nothing answered, or took the event."""
        return self.outcome.startswith("ERR_")


async def replay(
    sight: Sight,
    send: Send,
    *,
    to: str = "",
    headers: Sequence[tuple[str, str]] = (),
    ignored: Sequence[tuple[str, ...]] = (),
) -> Replayed | Skipped:
    """Do again what was seen.

    Args:
        sight: A call, a publish, or an event that arrived.
        send: Sends a request to a gateway: that of ``Resend.source``, where there is one.
        to: The app id of whom a call or an event that arrived goes to; "" = a call goes where it went.
        headers: Further ones of a call, instead of those of the same name.
        ignored: Paths of answers that are not compared, see ``path_pattern``.

    Raises:
        MeshError: What ``send`` raises.
    """
    made = resend(sight, to, headers)
    if isinstance(made, Skipped):
        return made
    began = time.monotonic()
    answer = await send(made)
    took = time.monotonic() - began
    return Replayed(made, answer, outcome_of(made.kind, answer), took, compare(made.kind, sight, answer, ignored))
