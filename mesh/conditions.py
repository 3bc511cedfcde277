"""What became of each target: one log line for each change, and what holds now for ``mesh status``.

A target is what a policy is for: an application that is called, a component, a subscription. It is well until an
attempt failed that is made again, and again once one of those worked:

==========  ===============================================  ==========================================
it is       then                                             the log says
==========  ===============================================  ==========================================
well        an attempt failed and is made again              why, and when
retrying    one that was made again worked                   that it works again, with counts
retrying    the attempts of one are used up, or all have     that it was given up, and why
            left who tried
well        an operation failed that nothing makes again     why
given up    anything worked                                  that it works again, with counts
==========  ===============================================  ==========================================

What happens while nothing changes is only counted. After a target works again, its next lines are held back for
``QUIET_SECONDS`` and told as one with counts: a target that fails now and then under load would fill the log.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import time
from collections.abc import Callable, ItemsView, Iterator, Mapping, ValuesView
from dataclasses import dataclass
from enum import StrEnum
from itertools import count, islice
from typing import Literal, Protocol
from weakref import WeakValueDictionary

from mesh.recent import Recent
from mesh.telemetry import POLICIES_ACTIVATED, POLICIES_APPLIED, Observer

__all__ = ["TURNS", "BreakerStatus", "Condition", "Conditions", "State", "endpoint_name"]

logger = logging.getLogger(__name__)

BreakerStatus = Literal["closed", "open", "half-open"]

MAX_TARGETS = 1000
MAX_ENDPOINTS = 20_000
MAX_TEXT = 200
MAX_SHORT, MAX_LINE = 20, 300
TURNS = count(1)
"""Numbers what is asked for, of all targets."""
QUIET_SECONDS = 5.0
STALE_SECONDS = 60.0


class Breaker(Protocol):
    """A circuit breaker at work.

    Attributes:
        asked: Of `TURNS`, when it was asked for last.
        endpoint: The part of the target that it is for (`endpoint_name`); empty = all of it.
        refused: What it has refused since it opened.
    """

    asked: int
    endpoint: str
    refused: int

    @property
    def name(self) -> str:
        """The policy's name in its resource."""

    @property
    def status(self) -> BreakerStatus:
        """The state now."""


class _Breakers(Protocol):
    """A dict of them, by endpoint."""

    def __len__(self) -> int: ...

    def __iter__(self) -> Iterator[str]: ...

    def values(self) -> ValuesView[Breaker]: ...

    def items(self) -> ItemsView[str, Breaker]: ...

    def __delitem__(self, endpoint: str, /) -> None: ...


def endpoint_name(endpoint: str) -> str:
    """Give what an endpoint is kept by: itself, or a long one's beginning and its hash."""
    if len(endpoint) <= MAX_TEXT:
        return endpoint
    return f"{endpoint[:MAX_TEXT]} {hashlib.sha256(endpoint.encode('utf-8', 'surrogatepass')).hexdigest()}"


class State(StrEnum):
    """How a target is."""

    WELL = "well"
    RETRYING = "retrying"
    GIVEN_UP = "given up"


@dataclass(slots=True)
class _Counts:
    repeated: int = 0
    recovered: int = 0
    given_up: int = 0


class Condition:
    """How one target is.

    Attributes:
        names: What is called, and of what.
        label: Names the target in the log.
        resource: The Resiliency whose policies apply; empty = none of a name.
        state: How it is.
        breakers: Its circuit breakers, by endpoint; what was asked for last stands last.
        advice: What to do about an attempt that is made again and again; may be empty.
    """

    __slots__ = (
        "__weakref__",
        "_breaker_begins",
        "_clock",
        "_counts",
        "_failed_at",
        "_guarded",
        "_quiet",
        "_reason",
        "_since",
        "_unclear",
        "_waiting",
        "advice",
        "breakers",
        "label",
        "names",
        "observer",
        "resource",
        "state",
    )

    def __init__(
        self,
        *names: str,
        clock: Callable[[], float] = time.monotonic,
        observer: Observer | None = None,
        breaker_begins: Callable[[], None] | None = None,
    ) -> None:
        """Begin well.

        Args:
            *names: What is called, and of what.
            clock: Monotonic seconds.
            observer: Is told of policies that apply and act; None = nobody.
            breaker_begins: Is told that an endpoint gets a circuit breaker; None = nobody is.
        """
        self.names = names
        self.label = " ".join(names)[:MAX_TEXT]
        self.resource = ""
        self.observer = observer
        self.state = State.WELL
        self._guarded = self._waiting = 0
        self.breakers: _Breakers = {}
        self._breaker_begins = breaker_begins
        self.advice = ""
        self._clock = clock
        self._counts = _Counts()
        self._since = self._failed_at = 0.0
        self._reason = self._unclear = ""
        self._quiet: asyncio.TimerHandle | None = None

    # What happened

    def enter(self, *, waits: bool = False) -> None:
        """Note that an operation begins which may be made again, or that it begins to wait for the target."""
        if waits:
            self._waiting += 1
        else:
            self._guarded += 1

    def leave(self, *, waits: bool = False) -> None:
        """Note the end of what was entered."""
        if waits:
            self._waiting -= 1
        else:
            self._guarded -= 1
        if self.trying == 0 and self.state is State.RETRYING:
            self._counts.given_up += 1
            self._become(State.GIVEN_UP, f"given up, nobody waits any more: {self._reason}")

    @property
    def trying(self) -> int:
        """How many operations on it go on which may be made again, or wait for it: with a policy all that wait may."""
        return self._guarded or self._waiting

    @property
    def in_use(self) -> bool:
        """Whether something goes on, or is not as it should be."""
        refusing = any(each.status != "closed" for each in self.breakers.values())
        return refusing or self.state is not State.WELL or self.trying > 0

    @property
    def reason(self) -> str:
        """Why it is not well; empty when it is."""
        return "" if self.state is State.WELL else self._reason

    def repeats(self, attempt: int, delay: float, reason: str) -> None:
        """Note that an attempt failed, and is made again.

        Args:
            attempt: Which one, from 1.
            delay: Seconds until then.
            reason: Why it failed.
        """
        if attempt == 1:
            self.activates("retry")
        advice = f"; {self.advice}" if self.advice else ""
        self._fails(reason, f"attempt {attempt} failed: {reason}; the next in {delay:.3g} s{advice}")

    def waits(self, reason: str) -> None:
        """Note that an operation waits for the target to be there."""
        self._fails(reason, f"{reason}; it is waited for")

    def _fails(self, reason: str, text: str) -> None:
        self._reason, self._failed_at = reason[:MAX_TEXT], self._clock()
        self._counts.repeated += 1
        if self.state is State.WELL:
            self._since = self._failed_at
            self._become(State.RETRYING, text)

    def gives_up(self, attempts: int, reason: str) -> None:
        """Note that the attempts of an operation are used up."""
        self._reason, self._failed_at = reason[:MAX_TEXT], self._clock()
        self._counts.given_up += 1
        if self.state is State.WELL:
            self._since = self._failed_at
        if self.state is not State.GIVEN_UP:
            self._become(State.GIVEN_UP, f"given up after {attempts} attempts: {reason}")

    def fails(self, reason: str, *, level: int = logging.INFO) -> None:
        """Note that an operation failed which nothing makes again; ``level`` is the log's."""
        self._reason, self._failed_at = reason[:MAX_TEXT], self._clock()
        self._counts.given_up += 1
        if self.state is State.WELL:
            self._since = self._failed_at
            self._become(State.GIVEN_UP, f"fails: {reason}", level)

    def works(self, *, repeated: bool) -> None:
        """Note that an attempt worked.

        Args:
            repeated: Whether others of its operation had failed.
        """
        if self.state is State.WELL:
            return
        if repeated:
            self._counts.recovered += 1
        elif self.state is State.RETRYING and self._clock() - self._failed_at < STALE_SECONDS:
            return  # It is another operation's failure that is made again.
        counts, lasted = self._counts, self._clock() - self._since
        self._become(
            State.WELL,
            f"works again after {lasted:.3g} s: {counts.repeated} attempts failed and were made again, "
            f"{counts.given_up} operations given up",
        )

    def _become(self, state: State, text: str, level: int = logging.INFO) -> None:
        self.state = state
        if self._quiet is not None:
            return
        logger.log(level, "%s: %s", self.label, text)
        if state is State.WELL:
            self._hold_back()

    def _hold_back(self) -> None:
        self._counts = _Counts()
        self._quiet = asyncio.get_running_loop().call_later(QUIET_SECONDS, self._tell_held)

    def _tell_held(self) -> None:
        self._quiet = None
        counts = self._counts
        if counts == _Counts():
            return
        now = "it works" if self.state is State.WELL else f"{self.state}: {self._reason}"
        logger.info(
            "%s: in the last %g s %d attempts failed and were made again, %d operations recovered, %d given up; %s",
            self.label,
            QUIET_SECONDS,
            counts.repeated,
            counts.recovered,
            counts.given_up,
            now,
        )
        if self.state is State.WELL:
            self._hold_back()

    # Policies

    def applies(self, policy: str, status: str = "") -> None:
        """Note that an operation is made under a policy: ``timeout``, ``retry`` or ``circuitbreaker``."""
        if self.observer is not None:
            self.observer(POLICIES_APPLIED, (*self.names, self.resource, policy, status))

    def activates(self, policy: str, status: str = "") -> None:
        """Note that a policy begins to act."""
        if self.observer is not None:
            self.observer(POLICIES_ACTIVATED, (*self.names, self.resource, policy, status))

    # Circuit breakers

    def breaker_begins(self, endpoint: str) -> None:
        """Note that a part of the target gets a breaker; empty = all of it does."""
        if endpoint and self._breaker_begins is not None:
            self._breaker_begins()

    def breaker_became(
        self, breaker: Breaker, status: BreakerStatus, failures: Mapping[str, int], seconds: float
    ) -> None:
        """Note a change of a breaker.

        Args:
            breaker: Which one.
            status: What it is now.
            failures: Its counts until now.
            seconds: How long it stays open.
        """
        if status == "open":
            in_a_row, total = failures["consecutiveFailures"], failures["totalFailures"]
            text = f"open for {seconds:g} s: {in_a_row} failures in a row, {total} in all"
        elif status == "half-open":
            text = f"half open: it refused {breaker.refused}"
        else:
            text = "closed"
        of = f" of {breaker.endpoint[:MAX_TEXT]}" if breaker.endpoint else ""
        logger.info("%s: circuit breaker %s%s is %s", self.label, breaker.name, of, text)
        self.activates("circuitbreaker", status)

    def cannot_tell(self, breaker: str, reason: str) -> None:
        """Note that the condition of a breaker cannot be evaluated, so that the default holds; the same is told once.

        Args:
            breaker: Its name.
            reason: Why it cannot.
        """
        if reason != self._unclear:
            self._unclear = reason
            text = "%s: circuit breaker %s cannot tell by its trip, so more than 5 failures in a row open it: %s"
            logger.warning(text, self.label, breaker, reason)

    # What holds now

    def described(self) -> list[dict[str, object]]:
        """Tell what is not as it should be; one value for each circuit breaker that is open or half open."""
        refusing: list[dict[str, object]] = [
            {"circuitBreaker": each.name, **_of(each), "breaker": each.status, "refused": each.refused}
            for each in list(self.breakers.values())
            if each.status != "closed"
        ]
        told: dict[str, object] = {}
        if self.state is not State.WELL:
            seconds = round(self._clock() - self._since, 3)
            told |= {"state": str(self.state), "seconds": seconds, "trying": self.trying, "reason": self._reason}
            told |= {"repeated": self._counts.repeated, "givenUp": self._counts.given_up}
            if self.advice and self.state is State.RETRYING:
                told["advice"] = self.advice
        first = {**(refusing[0] if refusing else {}), **told}
        return [{"target": self.label, **each} for each in (first, *refusing[1:]) if each]

    def described_breakers(self) -> list[dict[str, object]]:
        """Tell the state of each circuit breaker."""
        return [self.described_breaker(each) for each in list(self.breakers.values())]

    def described_breaker(self, breaker: Breaker) -> dict[str, object]:
        """Tell the state of one of them."""
        return {"name": breaker.name, "target": self.label, **_of(breaker), "state": breaker.status}


def _of(breaker: Breaker) -> dict[str, object]:
    return {"endpoint": breaker.endpoint[:MAX_TEXT]} if breaker.endpoint else {}


def _in_a_line(told: Mapping[str, object]) -> str:
    how = [f"circuit breaker {told['circuitBreaker']} is {told['breaker']}"] if "circuitBreaker" in told else []
    return "; ".join(how + ([f"{told['state']}: {told['reason']}"] if "state" in told else []))[:MAX_LINE]


class Conditions:
    """The conditions of a node's targets, by name.

    They are the callers' words: of those that nobody holds, as a guard does, the last ``MAX_TARGETS`` are kept. So are
    endpoints: of all that have a circuit breaker of their own, at most ``MAX_ENDPOINTS`` are kept, those that are
    not closed and those that were asked for last.
    """

    def __init__(self, observer: Observer | None = None) -> None:
        """Know of nothing yet.

        Args:
            observer: Is told of policies that apply and act; None = nobody.
        """
        self._observer = observer
        self._kept: Recent[str, Condition] = Recent(MAX_TARGETS, lambda condition: condition.in_use)
        self._known: WeakValueDictionary[str, Condition] = WeakValueDictionary()
        self._begun = 0

    def of(self, *names: str) -> Condition:
        """Give the condition of a target."""
        label = " ".join(names)
        try:
            return self._kept[label]
        except KeyError:
            condition = self._known.get(label) or Condition(
                *names, observer=self._observer, breaker_begins=self._breaker_begins
            )
            self._known[label] = condition
            return self._kept.keep(label, condition)

    def breakers(self) -> list[Condition]:
        """Give those that have a circuit breaker."""
        return [each for each in list(self._known.values()) if each.breakers]

    def described(self) -> list[dict[str, object]]:
        """Tell of the targets that are not well, at most ``MAX_TARGETS`` times."""
        every = (told for each in list(self._known.values()) for told in each.described())
        return list(islice(every, MAX_TARGETS))

    def in_short(self) -> tuple[tuple[str, str], ...]:
        """Tell of the first ``MAX_SHORT`` targets that are not well, and how they are, in a line of each."""
        told = islice((each for known in list(self._known.values()) for each in known.described()), MAX_SHORT)
        return tuple((str(each["target"]), _in_a_line(each)) for each in told)

    def described_breakers(self) -> list[dict[str, object]]:
        """Tell the state of circuit breakers, at most ``MAX_TARGETS`` times; what is not closed comes first."""
        every = [(each, breaker) for each in self.breakers() for breaker in list(each.breakers.values())]
        first = sorted(every, key=lambda each: each[1].status == "closed")[:MAX_TARGETS]
        return [condition.described_breaker(breaker) for condition, breaker in first]

    def _breaker_begins(self) -> None:
        self._begun += 1
        if self._begun < MAX_ENDPOINTS // 2:
            return
        self._begun = 0
        every = [
            (breaker.status != "closed", breaker.asked, name, condition.breakers)
            for condition in self.breakers()
            for name, breaker in condition.breakers.items()
            if name
        ]
        every.sort(key=lambda each: each[:2])
        # As many stay as may begin before the next time.
        for _, _, name, breakers in every[: -MAX_ENDPOINTS // 2]:
            del breakers[name]
