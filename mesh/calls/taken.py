"""What a node remembers of the calls that it took, so that an answer which got lost can be given again."""

from __future__ import annotations

import math
from collections import deque
from typing import Protocol

from mesh.broker import Message

__all__ = ["TOKEN_PREFIX", "Call", "Shared", "Taken"]

TOKEN_PREFIX = "mesh-"
GENERATION = 8192
MAX_ENDED = 4096  # Apart from what is refused: it would push that out, and costs no more than work for nobody.
GENERATION_SECONDS = 120.0
MAX_REFUSED = 65_536
MAX_KEPT_BYTES = 8 * 1024 * 1024
ANSWER_OVERHEAD_BYTES = 1024  # What an answer's headers and objects take, roughly.


class Call(Protocol):
    """A call that was taken.

    Attributes:
        answered: Whether an answer was begun.
        answer: The answer while it is kept.
    """

    answered: bool
    answer: Message | None

    def stop(self, reason: str) -> None:
        """End its handler: nobody waits for what it does."""

    def tell_taken(self) -> None:
        """Let its caller know that it was taken."""

    def last_word(self) -> Message:
        """Give the answer again, or say that it is lost."""

    @property
    def end_address(self) -> str:
        """Where the callee's end of its stream listens, if there is one."""


class Shared:
    """Tokens, up to so many: who has more than its share makes room by its earliest ones, so no other loses any."""

    def __init__(self, most: int) -> None:
        """Hold at most so many."""
        self._most = most
        self._count = 0
        self._of: dict[str, dict[str, None]] = {}

    def add(self, by: str, token: str) -> None:
        """Hold one more."""
        mine = self._of.setdefault(by, {})
        if token in mine:
            return
        if self._count >= self._most:
            self._let_go(by if len(mine) * len(self._of) > self._most else max(self._of, key=self._size))
            mine = self._of.setdefault(by, {})
        mine[token] = None
        self._count += 1

    def has(self, by: str, token: str) -> bool:
        """Tell whether one is held."""
        return token in self._of.get(by, ())

    def _size(self, by: str) -> int:
        return len(self._of[by])

    def _let_go(self, by: str) -> None:
        tokens = self._of[by]
        del tokens[next(iter(tokens))]
        self._count -= 1
        if not tokens:
            del self._of[by]


class Taken:
    """The calls of a node by their tokens, and those refused, since their callers were told that they never run.

    Calls are remembered by generations: the last but one is forgotten when the next one begins, except for calls that
    still run. What is refused is rare, and remembered for longer: the broker may hold it for as long as it likes.
    """

    def __init__(self) -> None:
        self._calls: dict[str, Call] = {}
        self._earlier: dict[str, Call] = {}
        self._refused = Shared(MAX_REFUSED)
        self._ended = Shared(MAX_ENDED)
        self._began_at = self._forgotten_at = -math.inf
        self._kept: dict[str, deque[Call]] = {}
        self._kept_of: dict[str, int] = {}
        self._kept_bytes = 0

    def add(self, token: str, request: Call | None, by: str = "") -> bool:
        """Remember a call, or refuse it for good; tell whether it is new.

        Args:
            token: Its name at its caller.
            request: It; None refuses it.
            by: Whose it is, as far as that is proven: nobody can use up another's tokens.
        """
        if self.knows(token, by) or self._ended.has(by, token):
            return False
        if request is not None:
            self._calls[by + token] = request
        else:
            self._refused.add(by, token)
        return True

    def end(self, token: str, by: str = "") -> None:
        """End a call that nobody waits for any more; one that is on its way here still is not run when it comes."""
        request = self.get(token, by)
        if request is not None and not request.answered:
            request.stop("the caller is gone")
        elif not self.knows(token, by):
            self._ended.add(by, token)

    def knows(self, token: str, by: str = "") -> bool:
        """Tell whether a call came, or was refused."""
        return self.get(token, by) is not None or self._refused.has(by, token)

    def get(self, token: str, by: str = "") -> Call | None:
        """Give a call that was not refused."""
        return self._calls.get(by + token) or self._earlier.get(by + token)

    def age(self, now: float) -> None:
        """Begin a new generation if it is time, on the monotonic clock; called now and then."""
        if len(self._calls) < GENERATION and now - self._began_at < GENERATION_SECONDS:
            return
        for token, request in self._earlier.items():
            if not request.answered:
                self._calls[token] = request
        self._forgotten_at, self._began_at = self._began_at, now
        self._earlier, self._calls = self._calls, {}

    def knows_all_since(self, monotonic: float) -> bool:
        """Whether every call that was taken since then is still known."""
        return self._forgotten_at < monotonic

    def keep(self, request: Call, answer: Message, by: str = "") -> None:
        """Keep a whole answer, which stays what it is; the oldest ones of who has more than its share make room."""
        request.answer = answer
        if by not in self._kept:
            self._kept[by], self._kept_of[by] = deque(), 0
        self._kept[by].append(request)
        self._count(by, len(answer.body) + ANSWER_OVERHEAD_BYTES)
        while self._kept_bytes > MAX_KEPT_BYTES:
            if self._kept_of.get(by, 0) * len(self._kept) < MAX_KEPT_BYTES:
                by = max(self._kept_of, key=self._kept_of.__getitem__)
            oldest = self._kept[by].popleft()
            assert oldest.answer is not None
            self._count(by, -len(oldest.answer.body) - ANSWER_OVERHEAD_BYTES)
            oldest.answer = None
            if not self._kept[by]:
                del self._kept[by], self._kept_of[by]

    def _count(self, by: str, size_bytes: int) -> None:
        self._kept_of[by] += size_bytes
        self._kept_bytes += size_bytes
