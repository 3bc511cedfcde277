"""What a node remembers of the calls that it took, so that an answer which got lost can be given again."""

from __future__ import annotations

import math
from collections import deque
from typing import Protocol

from mesh.broker import Message

__all__ = ["TOKEN_PREFIX", "Call", "Taken"]

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

    def last_word(self) -> Message:
        """Give the answer again, or say that it is lost."""

    @property
    def end_address(self) -> str:
        """Where the callee's end of its stream listens, if there is one."""


class Taken:
    """The calls of a node by their tokens, and those refused, since their callers were told that they never run.

    Calls are remembered by generations: the last but one is forgotten when the next one begins, except for calls that
    still run. What is refused is rare, and remembered for longer: the broker may hold it for as long as it likes.
    """

    def __init__(self) -> None:
        self._calls: dict[str, Call] = {}
        self._earlier: dict[str, Call] = {}
        self._refused: dict[str, None] = {}
        self._ended: dict[str, None] = {}
        self._began_at = self._forgotten_at = -math.inf
        self._kept: deque[Call] = deque()
        self._kept_bytes = 0

    def add(self, token: str, request: Call | None, by: str = "") -> bool:
        """Remember a call, or refuse it for good; tell whether it is new.

        Args:
            token: Its name at its caller.
            request: It; None refuses it.
            by: Whose it is, as far as that is proven: nobody can use up another's tokens.
        """
        token = by + token
        if token in self or token in self._ended:
            return False
        if request is not None:
            self._calls[token] = request
            return True
        if len(self._refused) >= MAX_REFUSED:
            del self._refused[next(iter(self._refused))]
        self._refused[token] = None
        return True

    def end(self, token: str, by: str = "") -> None:
        """End a call that nobody waits for any more; one that is on its way here still is not run when it comes."""
        token = by + token
        request = self.get(token)
        if request is not None and not request.answered:
            request.stop("the caller is gone")
        elif token not in self:
            if len(self._ended) >= MAX_ENDED:
                del self._ended[next(iter(self._ended))]
            self._ended[token] = None

    def __contains__(self, token: str) -> bool:
        return token in self._calls or token in self._earlier or token in self._refused

    def get(self, token: str) -> Call | None:
        """Give a call that was not refused."""
        return self._calls.get(token) or self._earlier.get(token)

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

    def keep(self, request: Call, answer: Message) -> None:
        """Keep a whole answer, which stays what it is; the oldest ones make room."""
        request.answer = answer
        self._kept.append(request)
        self._kept_bytes += len(answer.body) + ANSWER_OVERHEAD_BYTES
        while self._kept_bytes > MAX_KEPT_BYTES:
            oldest = self._kept.popleft()
            assert oldest.answer is not None
            self._kept_bytes -= len(oldest.answer.body) + ANSWER_OVERHEAD_BYTES
            oldest.answer = None
