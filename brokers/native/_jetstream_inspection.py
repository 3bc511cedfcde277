"""What is on JetStream for a topic in the native layout, and the messages of its subject one after the other."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import cast

from brokers.native._jetstream import JetStreamSettings, check_consumer, wanted_consumer
from brokers.nats._client import Connection
from brokers.nats._errors import JSON, NoStreamError, RightMissingError, check_api
from brokers.nats._inspection import Subject, known
from mesh.address import Address
from mesh.broker import SubscribeOptions
from mesh.errors import BrokerError, FeatureNotSupportedError, TopologyMismatchError
from mesh.inspection import Letter, Pile, Standing

__all__ = ["OWN_STREAMS", "Inspection"]

# Other programs' subjects are in none of these: the mesh's streams, key/value and object stores.
OWN_STREAMS = ("mesh_", "KV_", "OBJ_")


class _SeveralError(BrokerError):
    """A subject is in several streams."""


class Inspection:
    """The part of the adapter that looks on."""

    _connection: Connection
    _settings: JetStreamSettings

    @abstractmethod
    def _subject(self, address: Address, *, pattern: bool = False) -> str: ...

    async def _found(self, subject: str, named: str = "") -> str | None:
        """Find the stream that has a subject; makes none.

        Raises:
            BrokerError: There are several.
        """
        if named:
            answer = await self._connection.api(f"STREAM.INFO.{named}", refusable=True)
            return None if known(answer, f"stream {named}") is None else named
        found = await self._connection.api("STREAM.NAMES", {"subject": subject}, refusable=True)
        check_api(found, f"cannot look for the stream of {subject}")
        names = [each for each in cast("list[str]", found.get("streams") or []) if not each.startswith(OWN_STREAMS)]
        if len(names) > 1:
            several = ", ".join(sorted(names)[:5])
            raise _SeveralError(f"{subject} is in several streams ({several}…): name one of them as streamName")
        return names[0] if names else None

    async def inspect(self, address: Address, options: SubscribeOptions | None) -> Standing:
        """Look at the stream that has a subject, and at a group's consumer; see ``Inspectable``."""
        subject = self._subject(address, pattern=True)
        named = self._settings.stream if options is not None else ""
        place = f"stream {named}" if named else f"a stream with the subject {subject}"
        try:
            stream = await self._found(subject, named)
            if stream is None:
                return Standing(place, exists=False, needed=not self._settings.creates)
            place, there, differs = f"stream {stream}", None, ""
            if options is not None:
                there, differs = await self._group(stream, subject, options)
        except RightMissingError as error:
            return Standing(place, exists=False, refused=(str(error),))
        except (_SeveralError, FeatureNotSupportedError) as error:
            return Standing(place, exists=True, differs=str(error))
        # Whatever is sent there to ask for the right reaches who listens to the subject, before any stream refuses it.
        unknown = "" if options is not None else "whether this user may publish there is not known"
        return Standing(place, exists=True, group=there, differs=differs, unknown=unknown)

    async def _group(self, stream: str, subject: str, options: SubscribeOptions) -> tuple[bool, str]:
        wanted = wanted_consumer(self._settings, subject, options, "")
        name = wanted["name"]
        found = await self._connection.api(f"CONSUMER.INFO.{stream}.{name}", refusable=True)
        if known(found, f"consumer {name} of stream {stream}") is None:
            # A request that says nothing of a consumer makes none.
            await self._connection.api(f"CONSUMER.CREATE.{stream}.{name}.{subject}", cast("JSON", {}), refusable=True)
            return False, ""
        try:
            check_consumer(stream, found, wanted)
        except TopologyMismatchError as error:
            return True, str(error)
        return True, ""

    @asynccontextmanager
    async def letters(self, address: Address) -> AsyncIterator[Pile]:
        """Go through a subject's messages; what is removed is deleted from the stream, for every group."""
        subject = self._subject(address)
        stream = await self._found(subject)
        if stream is not None:
            yield Subject(self._connection, stream, subject)
        elif self._settings.creates:
            yield _Nothing()
        else:
            raise NoStreamError(f"no stream on NATS at {self._connection.shown} has the subject {subject!r}")


class _Nothing:
    """What lies in a topic whose stream is made when it is needed."""

    async def count(self) -> int:
        return 0

    async def __aiter__(self) -> AsyncIterator[Letter]:
        for each in list[Letter]():
            yield each

    async def remove(self, letters: object) -> None:
        raise BrokerError("there is no such letter")
