"""What is kept of durable calls: who has what noted signs it, and who reads it asks for that (``mesh/trust/kept.py``).

A call that waits is noted by its caller, what came of it by the callee; with identities nobody else's word counts.
"""

from __future__ import annotations

import base64
import time
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, cast

import orjson

from mesh.access import sender
from mesh.address import Address
from mesh.application import Headers
from mesh.blocks.records import LazyRecords
from mesh.blocks.store import Concurrency, Item
from mesh.broker import Delivery, Message
from mesh.delivery import NOT_BEFORE_HEADER
from mesh.errors import UnprovenError
from mesh.operation import Caller
from mesh.packing import pack, readable, unpack
from mesh.trust.identity import Identity

if TYPE_CHECKING:
    from mesh.trust.kept import Kept

__all__ = ["ID_HEADER", "KEEP_SECONDS", "KEY", "RAN", "Record", "Records", "State", "calls_of", "data_of", "id_of"]

ID_HEADER = "mesh-call-id"
KEEP_SECONDS = 24 * 3600.0
KEY, RAN = "key-", "ran-"  # What else is kept beside the records of calls, by their ids.
MARGIN_SECONDS = 3600.0


class State(StrEnum):
    """Where a durable call is."""

    PENDING = "pending"
    SUCCEEDED = "succeeded"
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class Record:
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
        """Read it back."""
        line, _, body = stored.partition(b"\n")
        head = orjson.loads(line)
        head.pop("proof", None)
        headers = cast("Headers", [tuple(each) for each in unpack(head.pop("headers"))])  # type: ignore[arg-type]
        return cls(**{**head, "state": State(head["state"]), "headers": headers, "body": body})


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
        record, kept = Record.decode(value), self._kept
        if kept is not None:
            sayer = record.caller if record.state is State.PENDING else record.app_id

            def may(identity: Identity) -> bool:
                return record.id == call_id and (identity.namespace, identity.app_id) == (self._own.namespace, sayer)

            line, _, body = value.partition(b"\n")
            head = orjson.loads(line)
            proof = head.pop("proof", {})
            try:
                kept.checked("outcome", _place(call_id), Message(proof, orjson.dumps(head) + b"\n" + body), may)
            except UnprovenError as error:
                raise UnprovenError(f"what is kept of call {call_id[:64]!r} counts for nothing: {error}") from None
        return record

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
        items = [Item(record.id, value, None, concurrency, ttl)]
        if self._kept is not None and record.state is not State.PENDING:
            items.append(Item(RAN + record.id, b"", ttl=self._kept.seconds))
        await self.store.write(items)

    # At the callee

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

        def may(identity: Identity) -> bool:
            return (identity.namespace, identity.app_id) == (claimed.namespace, claimed.app_id)

        where = calls_of(delivery.address)
        found = kept.checked("call", where, message, may, counts=not again)
        return claimed if found is None else Caller.proven_by(found)

    async def known(self, delivery: Delivery, call_id: str, caller: Caller) -> tuple[Record | None, bool]:
        """Give what is known of a call, and whether it has run, of which that may be all that is known.

        Raises:
            UnprovenError: It is another application's call that has this id, and has run.
        """
        try:
            record = await self.get(call_id)
        except UnprovenError:
            record = None  # By nobody who may say it; so it is as if nobody had.
        done = record is not None and record.state is not State.PENDING
        if record is not None and done and caller.proven and record.caller != caller.app_id:
            raise UnprovenError(f"the call {call_id[:64]!r} is by {record.caller}, not by {caller.app_id}")
        if record is None and self._kept is not None and self._age(delivery.message) > KEEP_SECONDS - MARGIN_SECONDS:
            done = await self.store.get(RAN + call_id) is not None  # Somebody may have kept the call until now.
        return record, done

    def _age(self, message: Message) -> float:
        """Give the seconds since it was due; zero when that is not known."""
        assert self._kept is not None
        due = self._kept.due(message)
        return 0.0 if due is None else time.time() - due


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
