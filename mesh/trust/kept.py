"""Proves what is stored, and checks it when it is read: events, durable calls, and what came of those.

It is read hours later, by many, and more than once; so there is no secret of two, and no memory of what came: whoever
sends it again has it delivered again, which a broker may do as well. Each message is signed, and brings the credential
along. What is covered: where it was stored, all headers, and the body; not the key that orders it.

A certificate lives for a day, and what is stored for longer. So it counts at the time of signing, which is covered too,
and which may be eight days ago at the most, counted from when the message was due. A root must be trusted still.

What was signed a moment ago may be proven a moment later: a reader looks for new roots every two seconds, and clocks
differ. So it is tried again for some minutes, and refused then.

A dead letter is signed once more, by the node that has moved it, and taken only where letters are looked for: else any
node could bring an event from one topic to another. What it holds is by its publisher, or not proven.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Mapping
from typing import Literal, Protocol

import msgspec
from msgspec.structs import replace

from mesh.broker import OF_LETTERS, Message
from mesh.errors import BadArgumentError, IdentityAwayError, UnprovenError
from mesh.event import decode_header_value, encode_header_value
from mesh.trust.certificates import verify
from mesh.trust.credential import Own, Peers, decoded, encoded
from mesh.trust.identity import Identity

__all__ = ["KEPT_SECONDS", "MAX_DELAY_SECONDS", "UNSETTLED_SECONDS", "Kept", "What"]

KEPT_SECONDS = 8 * 24 * 3600.0  # A day more than topics keep events by default.
AHEAD_SECONDS = 30.0
UNSETTLED_SECONDS = 300.0
MAX_DELAY_SECONDS = 366 * 24 * 3600.0
MAX_SIGNATURE = 512
FOR_HEADER = "mesh-signed-for"
_DUE_HEADER = "mesh-not-before"  # Of what is held until then.
_PASSED = "mesh-passed-"
_KEPT, _MOVED = b"mesh kept 1", b"mesh moved 1"
_NAMES = {
    _KEPT: ("mesh-signer", "mesh-signed", "mesh-signature"),
    _MOVED: (f"{_PASSED}signer", f"{_PASSED}signed", f"{_PASSED}signature"),
}

What = Literal["event", "call", "outcome"]
Scope = Callable[[Identity, str], bool]


def _digest(purpose: bytes, where: str, headers: Mapping[str, str], body: bytes) -> bytes:
    covered = sorted(item for item in headers.items() if item[0] != _NAMES[purpose][2])
    return hashlib.sha256(msgspec.msgpack.encode((purpose, where, covered, hashlib.sha256(body).digest()))).digest()


def _seconds(headers: Mapping[str, str], name: str) -> float:
    text = headers.get(name, "")
    if not text.isascii() or not text.isdigit() or len(text) > 18:
        raise UnprovenError("it does not say its time")
    return int(text) / 1000


class _OutOfScopeError(Exception):
    """It is proven, and by somebody who may not store that there."""


class _Guard(Protocol):
    strict: bool
    own: Own
    peers: Peers

    def refuse(self, what: What, at: str, kind: str, reason: str) -> None: ...


class Kept:
    """Signs in a node's name, and asks for what its guard asks for."""

    def __init__(self, guard: _Guard) -> None:
        """Use what a guard has."""
        self._guard = guard

    @property
    def strict(self) -> bool:
        """Whether what is not proven is refused."""
        return self._guard.strict

    @property
    def seconds(self) -> float:
        """For how long what was signed can be taken, once it is due, with clocks that differ."""
        return KEPT_SECONDS + AHEAD_SECONDS

    def usable(self) -> None:
        """Refuse to begin what could not be signed, where that matters; raises ``IdentityAwayError``."""
        own = self._guard.own
        if self.strict and not own.since <= time.time() <= own.until:
            raise IdentityAwayError(f"the certificate of {own.identity} has expired, or is not valid yet")

    def prove(self, where: str, message: Message) -> Message:
        """Sign what is about to be stored.

        Raises:
            BadArgumentError: It is due so late that nobody would take it.
            IdentityAwayError: As by `usable`; `move` raises that as well.
        """
        if int(message.headers.get(_DUE_HEADER, "0")) > (time.time() + MAX_DELAY_SECONDS) * 1000:
            raise BadArgumentError("with identities, what is stored is due 366 days later at the most")
        headers = {**message.headers, FOR_HEADER: encode_header_value(where)}
        return self._signed(_KEPT, where, replace(message, headers=headers))

    def move(self, where: str, message: Message) -> Message:
        """Sign that a message is stored elsewhere now, as a dead letter."""
        headers = {name: value for name, value in message.headers.items() if not name.startswith(_PASSED)}
        return self._signed(_MOVED, where, replace(message, headers=headers))

    def _signed(self, purpose: bytes, where: str, message: Message) -> Message:
        self.usable()
        own, (signer, signed, signature) = self._guard.own, _NAMES[purpose]
        headers = {**message.headers, signer: own.header, signed: str(int(time.time() * 1000))}
        headers[signature] = encoded(own.sign(_digest(purpose, where, headers, message.body)))
        return replace(message, headers=headers)

    def checked(
        self,
        what: What,
        where: str,
        message: Message,
        may: Callable[[Identity], bool],
        *,
        lenient: bool = False,
        letters: Callable[[Identity], bool] | None = None,
        counts: bool = True,
        scope: Scope | None = None,
    ) -> Identity | None:
        """Give who has signed it; None = nobody has proven it who may store it, and it is taken all the same.

        Args:
            what: It is.
            where: It was stored.
            message: As it was read.
            may: Tells whether somebody may store that there.
            lenient: Whether it is taken in any case.
            letters: Tells whether somebody may move a dead letter there; None = there are none.
            counts: Whether a refusal is counted.
            scope: Tells who of those may store something where; what is out of it is counted also when it is taken.

        Raises:
            IdentityAwayError: Whether it is proven cannot be told yet.
            UnprovenError: It is refused.
        """
        try:
            if _NAMES[_MOVED][2] in message.headers:
                if letters is None:
                    raise UnprovenError("it was moved there as a dead letter, and the topic is not known to hold any")
                return self._moved(where, message, may, letters, scope)
            return self._verified(_KEPT, where, message.headers, message.body, may, scope)
        except _OutOfScopeError as error:
            taken = lenient or not self.strict
            self._guard.refuse(what, where, "scope", f"{error}{'; it is taken as not proven' if taken else ''}")
            if taken:
                return None
            raise UnprovenError(str(error)) from None
        except (IdentityAwayError, UnprovenError) as error:
            if lenient or not self.strict:
                return None
            if counts:
                missing = not any(names[2] in message.headers for names in _NAMES.values())
                self._guard.refuse(what, where, "missing" if missing else "invalid", str(error))
            raise

    def due(self, message: Message) -> float | None:
        """Give since when (Unix time) a message could be taken; None = it does not say."""
        made, due = (message.headers.get(name, "0") for name in (_NAMES[_KEPT][1], _DUE_HEADER))
        return max(int(made), int(due)) / 1000 if made.isdecimal() and due.isdecimal() and made != "0" else None

    def _moved(
        self,
        where: str,
        message: Message,
        may: Callable[[Identity], bool],
        letters: Callable[[Identity], bool],
        scope: Scope | None,
    ) -> Identity | None:
        """Check a dead letter; None = nobody who may has proven to publish it before it was moved."""
        self._verified(_MOVED, where, message.headers, message.body, letters, scope)
        inner = {name: value for name, value in message.headers.items() if not name.startswith((_PASSED, OF_LETTERS))}
        try:
            return self._verified(
                _KEPT, decode_header_value(inner.get(FOR_HEADER, "")), inner, message.body, may, scope
            )
        except (UnprovenError, _OutOfScopeError):
            return None

    def _verified(
        self,
        purpose: bytes,
        where: str,
        headers: Mapping[str, str],
        body: bytes,
        may: Callable[[Identity], bool],
        scope: Scope | None,
    ) -> Identity:
        signer, signed, signature = _NAMES[purpose]
        if signature not in headers:
            raise UnprovenError("it is not proven")
        now, made = time.time(), _seconds(headers, signed)
        due = max(made, _seconds(headers, _DUE_HEADER)) if _DUE_HEADER in headers else made
        if made > now + UNSETTLED_SECONDS or due > made + MAX_DELAY_SECONDS or due + KEPT_SECONDS < now:
            raise UnprovenError("it was signed too long ago, or the clocks differ")
        try:
            peer = self._guard.peers.signer(headers.get(signer, ""), made)
        except IdentityAwayError as error:
            if now - made < UNSETTLED_SECONDS:
                raise
            raise UnprovenError(str(error)) from None
        proof = decoded(headers[signature][:MAX_SIGNATURE])
        if not verify(peer.leaf, proof, _digest(purpose, where, headers, body)):
            raise UnprovenError("it is altered, or stored elsewhere, or not by who it says")
        if made > now + AHEAD_SECONDS:
            raise IdentityAwayError("it was signed by a clock that is ahead of this one")
        if not may(peer.identity):
            raise UnprovenError(f"it is not for {peer.identity} to say")
        if scope is not None and not scope(peer.identity, where):
            raise _OutOfScopeError(f"the scopes of its topic do not let {peer.identity} publish it")
        return peer.identity
