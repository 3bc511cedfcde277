"""What a broker may tell beside what a node needs of it: for ``mesh doctor`` and ``mesh dlq``.

Optional protocols beside ``Broker``. None of them makes or changes a topic or a group.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import msgspec

from mesh.address import Address
from mesh.broker import KeyValue, Message, SubscribeOptions

__all__ = ["Inspectable", "Letter", "Letters", "Onlooking", "Pile", "Remembering", "Shelving", "Standing"]


@dataclass(frozen=True, slots=True)
class Standing:
    """What a topic has on its broker, and a group on it.

    Attributes:
        place: What holds the topic, in the broker's own words, such as ``stream orders``.
        exists: Whether that is there; where it is made by the first publish or subscription, it need not be.
        group: Whether the group is there; None = nobody asked, or the broker does not tell.
        differs: What is there in another form than is needed: both sides; empty = nothing.
        refused: What the broker does not let this user do, in the broker's words.
        needed: Whether nothing makes the place when it is needed: somebody has to.
        unknown: What of it cannot be known without changing something; empty = nothing.
        losses: What of it may be lost by the way it is made, such as messages above a number.
        letters: As what topic the group's dead letters are gone through that the broker puts away; empty = it does not.
    """

    place: str
    exists: bool
    group: bool | None = None
    differs: str = ""
    refused: tuple[str, ...] = ()
    needed: bool = False
    unknown: str = ""
    losses: tuple[str, ...] = ()
    letters: str = ""


@runtime_checkable
class Inspectable(Protocol):
    """A broker that can be looked at."""

    async def inspect(self, address: Address, options: SubscribeOptions | None) -> Standing:
        """Tell what is there of a topic, and of a group on it, and what this user may not do with them.

        Raises:
            BrokerError: It cannot be known now.
        """


class Letter(msgspec.Struct, frozen=True):
    """A message of a topic, as it lies there.

    Attributes:
        id: Which one, among those of its topic; as the broker names it, and the same each time.
        message: What it holds.
        stored: Unix time in seconds at which the broker has stored it; None = it does not say.
        altered: Why the message is not all that lies there, so that it cannot go elsewhere as it was; empty = it is.
    """

    id: str
    message: Message
    stored: float | None = None
    altered: str = ""


class Pile(Protocol):
    """The messages of a topic, to be gone through once."""

    async def count(self) -> int:
        """Tell how many there are, as far as the broker knows without reading them."""

    def __aiter__(self) -> AsyncIterator[Letter]:
        """Give those that were there when it began, oldest first; only few of them are in memory.

        Nobody else misses one for it: groups get what they would have got.
        """

    async def remove(self, letters: Sequence[Letter]) -> None:
        """Take some away that were given: they are not given again, and where the broker can, they are no more.

        Raises:
            BrokerError: It is not known whether all of them were; they may be given again.
        """


@runtime_checkable
class Remembering(Protocol):
    """A pile from which not everybody can take away at any time, for want of room, or since somebody else does."""

    async def check(self, letters: Sequence[Letter]) -> Sequence[Letter]:
        """See whether some could be taken away, before they are sent anywhere; gives those that still lie there.

        Raises:
            BrokerError: They could not.
        """


@runtime_checkable
class Letters(Protocol):
    """A broker whose topics can be gone through, and be taken from, without a group's knowledge."""

    def letters(self, address: Address) -> AbstractAsyncContextManager[Pile]:
        """Go through a topic; left, what was not removed is as it was."""


@runtime_checkable
class Onlooking(Protocol):
    """A broker that behaves otherwise for who takes no part: for ``mesh doctor`` and ``mesh dlq``."""

    def as_onlooker(self) -> None:
        """Take nothing from anybody and leave nothing by connecting, and refuse to publish what nobody would get.

        Called before it is entered.
        """


@runtime_checkable
class Shelving(Protocol):
    """A broker whose stores of keys and values can be looked into."""

    async def shelf(self, name: str, *, dotted: bool = False) -> KeyValue | None:
        """Open a store as ``KeyValueProvider.key_value`` does, but make none: None = it is not there.

        Raises:
            BrokerError: It cannot be known now.
        """
