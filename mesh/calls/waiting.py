"""What a caller has found out about one call that waits."""

from __future__ import annotations

__all__ = ["MAX_ASK_AGAIN", "MAX_MEMBERS", "Waiting"]

MAX_MEMBERS = 1024
MAX_ASK_AGAIN = 10.0


class Waiting:
    """What a caller knows of a call that waits.

    Attributes:
        ask_at: When it is asked about next.
        refused: Who says it did not take it, and will not.
        members: Who could have; None while nobody knows.
    """

    __slots__ = ("ask_again", "ask_at", "members", "refused")

    def __init__(self, ask_after: float) -> None:
        self.ask_at = 0.0
        self.ask_again = ask_after
        self.refused: set[str] = set()
        self.members: set[str] | None = None

    def ask_anew(self, ask_after: float) -> None:
        """Ask at once, and then less and less often from the beginning."""
        self.ask_at, self.ask_again = 0.0, ask_after

    def ask(self, now: float) -> None:
        """Ask less and less often."""
        self.ask_again = min(self.ask_again * 1.5, MAX_ASK_AGAIN)
        self.ask_at = now + self.ask_again

    def take_refusal(self, node: str, members: list[str] | None) -> bool:
        """Note that one did not take it; tell whether nobody did. Beyond a bound that is not known."""
        if len(self.refused) < 2 * MAX_MEMBERS:
            self.refused.add(node)
        if members is not None and len(self.members or ()) <= 2 * MAX_MEMBERS:
            self.members = set(members) | (self.members or set())
        return self.members is not None and self.members <= self.refused
