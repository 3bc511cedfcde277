"""What is kept of durable calls: who has what noted signs it, and who reads it asks for that (``mesh/trust/kept.py``).

A call that waits is noted by its caller, what came of it by the callee; with identities nobody else's word counts. That
it has run is noted by the callee once more, for as long as a copy of the call would count.
"""

from __future__ import annotations

import base64
import hashlib
import re
import secrets
from collections.abc import Mapping
from enum import StrEnum
from typing import TYPE_CHECKING

import msgspec
import orjson

from mesh.access import sender
from mesh.address import Address
from mesh.application import Headers
from mesh.blocks.records import LazyRecords
from mesh.broker import Delivery, Message
from mesh.clusters import may_speak
from mesh.delivery import NOT_BEFORE_HEADER
from mesh.errors import UnprovenError
from mesh.operation import Caller
from mesh.packing import pack, readable, unpack
from mesh.store import Concurrency, Item
from mesh.trust.identity import Identity

if TYPE_CHECKING:
    from mesh.trust.kept import Kept

__all__ = [
    "ID_HEADER",
    "KEEP_SECONDS",
    "KEY",
    "RAN",
    "Record",
    "Records",
    "State",
    "calls_of",
    "data_of",
    "id_of",
    "id_towards",
    "new_id",
]

ID_HEADER = "mesh-call-id"
KEEP_SECONDS = 24 * 3600.0
KEY, RAN = "key-", "ran-"  # What else is kept beside the records of calls, by their ids.
_OF_CALLEE = re.compile(r"([0-9a-f]{32})-([0-9a-f]{16})")
UNTOLD_SECONDS = 8 * 24 * 3600.0  # A day more than the broker keeps a call that tries to publish its outcome.


class State(StrEnum):
    """Where a durable call is."""

    PENDING = "pending"
    SUCCEEDED = "succeeded"
    FAILED = "failed"


class Record(msgspec.Struct, frozen=True):
    """What is known of a call.

    Attributes:
        id: The call's id.
        app_id: The callee.
        method: Path and query.
        state: Where it is.
        attempts: How often it was tried.
        reason: Why it failed.
        status: The application's HTTP status.
        headers: The answer's headers.
        body: The answer's body, at most 512 KiB of it.
        truncated: Whether the body was longer.
        caller: Whose call it is; with the callee, who may read this.
        told: Whether the outcome is where the caller wanted it published.
    """

    id: str
    app_id: str
    method: str
    state: State = State.PENDING
    attempts: int = 0
    reason: str = ""
    status: int | None = None
    headers: Headers = ()
    body: bytes = b""
    truncated: bool = False
    caller: str = ""
    told: bool = True

    def described(self) -> dict[str, object]:
        """Give what an application is told: JSON data as JSON, text as text, anything else as base64."""
        told: dict[str, object] = {
            "id": self.id,
            "appId": self.app_id,
            "method": self.method,
            "state": self.state,
            "attempts": self.attempts,
        }
        if self.reason:
            told["reason"] = self.reason
        if self.status is not None:
            told["status"] = self.status
            told["headers"] = {readable(name): readable(value) for name, value in self.headers}
            told |= data_of(self.body)
        if self.truncated:
            told["truncated"] = True
        return told

    def encode(self) -> bytes:
        """Write it for the store: one line of JSON, then the body as it is."""
        head = {
            "id": self.id,
            "app_id": self.app_id,
            "method": self.method,
            "state": self.state,
            "attempts": self.attempts,
            "reason": self.reason,
            "status": self.status,
            "headers": pack(*self.headers),
            "truncated": self.truncated,
            "caller": self.caller,
            "told": self.told,
        }
        return orjson.dumps(head) + b"\n" + self.body

    @classmethod
    def decode(cls, stored: bytes) -> Record:
        """Read it back; a field that only newer gateways know is read over.

        Raises:
            UnprovenError: It is no record; so nobody has said anything of the call.
        """
        line, _, body = stored.partition(b"\n")
        try:
            head = orjson.loads(line)
            return msgspec.convert({**head, "headers": unpack(head["headers"]), "body": body}, cls)
        except (ValueError, TypeError, LookupError, RecursionError) as error:
            raise UnprovenError(f"what is kept of a call is no record of one: {error}") from None


def data_of(body: bytes) -> dict[str, object]:
    """Give a body as an application is told it: JSON as JSON, text as text, anything else as base64."""
    if not body:
        return {}
    try:
        orjson.loads(body)
        return {"data": orjson.Fragment(body)}
    except orjson.JSONDecodeError:
        pass
    try:
        return {"data": body.decode()}
    except UnicodeDecodeError:
        return {"data_base64": base64.b64encode(body).decode()}


class Records:
    """The records of calls."""

    def __init__(self, store: LazyRecords, own: Caller, kept: Kept | None) -> None:
        """Use a store.

        Args:
            store: It; what it holds of a call's id is a record.
            own: This node's application.
            kept: Proves what is written, and checks what is read; None = nobody does.
        """
        self.store = store
        self._own = own
        self._kept = kept

    async def get(self, call_id: str) -> Record | None:
        """Read what is known of a call.

        Raises:
            UnprovenError: It is by nobody who may say it.
        """
        found = await self.store.get(call_id)
        return None if found is None else self.proven(call_id, found.value)

    def proven(self, call_id: str, value: bytes) -> Record:
        """Read a stored record; raises as `get`."""
        return self._read(call_id, value)[0]

    def _read(self, call_id: str, value: bytes) -> tuple[Record, bool]:
        """Read a stored record, and tell whether it is proven; raises as `get`."""
        record, kept, by = Record.decode(value), self._kept, None
        if kept is not None:
            sayer = record.caller if record.state is State.PENDING else record.app_id

            def may(identity: Identity) -> bool:
                if record.id != call_id or not _is_to(call_id, record.app_id):
                    return False
                return identity.namespace == self._own.namespace and may_speak(identity.app_id, sayer)

            line, _, body = value.partition(b"\n")
            head = orjson.loads(line)
            proof = head.pop("proof", {})
            try:
                stored = Message(_texts(proof), orjson.dumps(head) + b"\n" + body)
                by = kept.checked("outcome", _place(call_id), stored, may)
            except UnprovenError as error:
                raise UnprovenError(f"what is kept of call {call_id[:64]!r} counts for nothing: {error}") from None
        return record, by is not None

    async def write(self, record: Record, ttl: float, *, first: bool = False, due: str | None = None) -> None:
        """Note what is known of a call.

        Args:
            record: It.
            ttl: Seconds for which it is kept.
            first: Whether nothing is overwritten.
            due: When the call may run, as its header says.

        Raises:
            ConflictError: Something is there.
        """
        value = record.encode()
        if self._kept is not None:
            headers = {} if due is None else {NOT_BEFORE_HEADER: due}
            proof = self._kept.prove(_place(record.id), Message(headers, value)).headers
            line, _, body = value.partition(b"\n")
            value = line[:-1] + b',"proof":' + orjson.dumps(proof) + b"}\n" + body
        concurrency = Concurrency.FIRST_WRITE if first else Concurrency.LAST_WRITE
        await self.store.write([Item(record.id, value, None, concurrency, ttl)])

    # At the callee

    async def note(self, record: Record) -> None:
        """Note an outcome, unless what is there is, provably, of another application's call under this id.

        With identities, note apart from it that the call has run: in a write of its own, since to write both as one is
        dear, and a cluster may refuse it. Who dies in between finds the outcome, and does the rest (`known`).
        """
        if self._kept is None or (await self._found(record.id, record.caller))[1]:
            await self.write(record, KEEP_SECONDS if record.told else UNTOLD_SECONDS)

    async def mark(self, call_id: str, caller: str) -> None:
        """Note that a call has run, for as long as somebody may store a copy of it that counts."""
        if self._kept is not None:
            proof = self._kept.prove(_run(call_id, caller), Message({}, b"")).headers
            await self.store.write([Item(_ran(call_id, caller), orjson.dumps(proof), ttl=self._kept.seconds)])

    async def _has_run(self, call_id: str, caller: str) -> bool:
        kept, found = self._kept, await self.store.get(_ran(call_id, caller))
        if kept is None or found is None:
            return False

        def may(identity: Identity) -> bool:
            return (identity.namespace, identity.app_id) == (self._own.namespace, self._own.app_id)

        try:
            proof = Message(_texts(orjson.loads(found.value)), b"")
            kept.checked("outcome", _run(call_id, caller), proof, may)
        except (ValueError, UnprovenError):
            return False
        return True

    def caller(self, delivery: Delivery, *, again: bool = False) -> Caller:
        """Find whose a stored call is.

        Args:
            delivery: Of the call.
            again: Whether it was looked at before, so that it is not counted once more.

        Raises:
            UnprovenError: Nobody has proven to be that, and somebody must.
        """
        message, claimed = delivery.message, sender(delivery.message.headers, self._own.namespace)
        kept = self._kept
        if kept is None:
            return claimed
        kept.usable()  # Else it would run, and its outcome could not be noted.

        def may(identity: Identity) -> bool:
            return identity.namespace == claimed.namespace and may_speak(identity.app_id, claimed.app_id)

        where = calls_of(delivery.address)
        found = kept.checked("call", where, message, may, counts=not again)
        return claimed if found is None else Caller.proven_by(found, claimed.app_id)

    async def known(self, call_id: str, caller: Caller) -> tuple[Record | None, bool]:
        """Give the outcome of a call, and whether it has run, of which that may be all that is known."""
        record, _ = await self._found(call_id, caller.app_id, proven=caller.proven)
        if record is not None and record.state is State.PENDING:
            record = None  # Its caller's word, which anybody can bring back.
        if self._kept is None:
            return record, record is not None
        ran = await self._has_run(call_id, caller.app_id)
        if record is not None and not ran:
            await self.mark(call_id, caller.app_id)
        return record, ran or record is not None

    async def _found(self, call_id: str, caller: str, *, proven: bool = False) -> tuple[Record | None, bool]:
        """Give what is kept of a caller's call, and whether its id is free for that caller.

        Under the id may be what is kept of another application's call, or of one to another: that says nothing of this
        one, and stays. What is not proven to be that is not in the way of a caller who is.
        """
        found = await self.store.get(call_id)
        try:
            record, sure = (None, False) if found is None else self._read(call_id, found.value)
        except UnprovenError:
            return None, True  # By nobody who may say it; so it is as if nobody had.
        other = record is not None and (record.caller, record.app_id) != (caller, self._own.app_id)
        return None if other and (sure or proven) else record, not (other and sure)


def new_id(app_id: str) -> str:
    """Make the id of a call to an application: whoever asks by it is told of that one's word alone, with identities."""
    number = secrets.token_hex(16)
    return f"{number}-{_callee(number, app_id)}"


def id_towards(call_id: str, app_id: str) -> str:
    """Give the id of the same call, as it is to an application by another name; raises ``ValueError``."""
    found = _OF_CALLEE.fullmatch(call_id)
    if found is None:
        raise ValueError(call_id)
    return f"{found[1]}-{_callee(found[1], app_id)}"


def _callee(number: str, app_id: str) -> str:
    return hashlib.blake2s(f"{number} {app_id}".encode(), digest_size=8).hexdigest()


def _is_to(call_id: str, app_id: str) -> bool:
    """Tell whether a call may be to an application; of ids of others it is not known."""
    found = _OF_CALLEE.fullmatch(call_id)
    return found is None or found[2] == _callee(found[1], app_id)


def id_of(headers: Mapping[str, str]) -> str:
    """Read the id of a stored call; raises ``KeyError`` and ``ValueError``."""
    call_id = headers[ID_HEADER]
    if call_id.startswith((KEY, RAN)):
        raise ValueError(call_id)  # What is kept under that is no record of a call.
    return call_id


def calls_of(address: Address) -> str:
    """Say where a call is stored, for its proof."""
    return f"{address.space} {address.label}"


def _place(call_id: str) -> str:
    return f"call {call_id}"


def _run(call_id: str, caller: str) -> str:
    return f"run {caller!a} {call_id!a}"


def _ran(call_id: str, caller: str) -> str:
    return RAN + hashlib.blake2s(_run(call_id, caller).encode(), digest_size=16).hexdigest()


def _texts(value: object) -> Mapping[str, str]:
    """Take headers as they were stored; raises ``UnprovenError`` if they are none."""
    try:
        return msgspec.convert(value, dict[str, str])
    except msgspec.ValidationError as error:
        raise UnprovenError(f"its proof is none: {error}") from None
