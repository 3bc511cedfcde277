"""A gateway's side: asks the operator of its cluster, and nobody else."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

import msgspec
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ed25519

from mesh import address
from mesh.broker import Message
from mesh.calls.exchange import Exchange
from mesh.errors import DeadlineExceededError, MeshError, UnprovenError
from mesh.supply.names import OPERATOR
from mesh.supply.sealing import Change, Envelope, Key, KeyPair, Seal, proof_of, stated
from mesh.supply.wire import (
    MAX_ANSWER_BYTES,
    MAX_TEXT,
    SUPPLY_HEADER,
    Answer,
    Ask,
    Report,
)
from mesh.trust.identity import Identity

__all__ = ["Operator", "Who"]

FRESH_SECONDS = 120.0
MAX_WITHIN = 60.0
_answers = msgspec.msgpack.Decoder(Answer)
_pack = msgspec.msgpack.encode
_SAYS = {
    "malformed": "the operator cannot read what this gateway says; they may be of versions that do not go together",
    "unknown": "the operator does not know what it is asked; it may be older than this gateway",
}


@dataclass(frozen=True, slots=True)
class Who:
    """Who asks.

    Attributes:
        namespace: The mesh's, which is the pod's.
        app_id: The application's.
        pod: The pod's name.
        token: Of its service account.
    """

    namespace: str
    app_id: str
    pod: str
    token: str = field(repr=False)


class Operator:
    """The operator of a cluster, as a gateway sees it.

    Attributes:
        roots: Who is trusted to say who it is.
    """

    def __init__(self, control: str, trust_domain: str, roots: Sequence[x509.Certificate]) -> None:
        """Know no key yet; raises ``ConfigError`` for a name that is none."""
        self.roots = roots
        self._control = control
        self._identity = Identity(trust_domain, control, OPERATOR)
        self._key: Key | None = None
        self._made = 0.0
        self._heard: set[float] = set()  # When those were made that were heard lately.

    async def ask(
        self,
        exchange: Exchange,
        who: Who,
        seconds: float,
        *,
        have: str = "",
        key: ed25519.Ed25519PrivateKey | None = None,
        report: Report | None = None,
    ) -> Answer:
        """Ask once.

        Args:
            exchange: Over the backbone; what it proves plays no part.
            who: Asks.
            seconds: How long it may take.
            have: The revision of what is there.
            key: A certificate is asked for it; None = none is.
            report: What was made of that.

        Raises:
            NoResponderError: There is no operator now.
            DeadlineExceededError: It did not answer in time.
            UnprovenError: Somebody else did, or it takes another one for the operator.
            BrokerError: It could not be asked.
        """
        deadline = time.time() + seconds
        try:
            for _ in range(2):  # Its key may be another one by now.
                if self._key is None or time.time() >= self._key.until:
                    self._learn(*await self._request(exchange, "key", b"", deadline))
                if (answer := await self._answered(exchange, who, deadline, have, key, report)) is not None:
                    return answer
        except UnprovenError:
            self._key = None
            raise
        raise UnprovenError("the operator takes another key for its own each time it is asked")

    async def _answered(
        self,
        exchange: Exchange,
        who: Who,
        deadline: float,
        have: str,
        key: ed25519.Ed25519PrivateKey | None,
        report: Report | None,
    ) -> Answer | None:
        """Ask by the key that is known; None = it is to be asked by another one, which is known now."""
        pair, operator = KeyPair(), self._key
        if operator is None:
            return None
        seal = pair.to_operator(operator)
        self._made = max(time.time(), self._made + 0.001)
        ask = Ask(
            token=who.token,
            app_id=who.app_id,
            namespace=who.namespace,
            pod=who.pod,
            made=self._made,
            key=b"" if key is None else key.public_key().public_bytes_raw(),
            proof=b"" if key is None else proof_of(key, seal),
            have=have,
            report=report or Report(),
        )
        sent = _pack(Envelope(operator.id, pair.public, seal.ask(_pack(ask))))
        kind, body = await self._request(exchange, "ask", sent, deadline)
        if kind == "answer":
            return self._opened(seal, body)
        self._learn(kind, body)
        return None

    def _learn(self, kind: str, body: bytes) -> None:
        """Take the operator's key; raises ``UnprovenError``."""
        if kind != "key":
            raise UnprovenError(_SAYS.get(kind, f"what answers as the operator says {kind[:MAX_TEXT]!r}"))
        key, now = stated(body, Key, self.roots, self._identity), time.time()
        if key.control != self._control or not key.made - FRESH_SECONDS <= now < key.until:
            raise UnprovenError(
                "the operator's key is of another time or operator: somebody repeats it, or clocks differ by minutes"
            )
        self._key = key

    def _opened(self, seal: Seal, body: bytes) -> Answer:
        try:
            return _answers.decode(seal.open_answer(body))
        except msgspec.DecodeError as error:
            raise UnprovenError(f"the operator's answer is malformed: {error}") from None

    async def _request(self, exchange: Exchange, kind: str, body: bytes, deadline: float) -> tuple[str, bytes]:
        message = Message({SUPPLY_HEADER: kind}, body)
        reply = await exchange.request(address.supply(self._control), message, deadline)
        parts, size = list[bytes](), 0
        try:
            async with asyncio.timeout(deadline - time.time()):
                async for part in reply.parts():
                    parts.append(part)
                    size += len(part)
                    if size > MAX_ANSWER_BYTES + MAX_TEXT:
                        raise UnprovenError(f"more than {MAX_ANSWER_BYTES} bytes came as the operator's answer")
        except TimeoutError:
            raise DeadlineExceededError("the operator's answer did not come to its end in time") from None
        finally:
            await reply.aclose()
        return reply.headers.get(SUPPLY_HEADER, ""), b"".join(parts)

    def heard(self, body: bytes, namespace: str) -> float | None:
        """Read what was told to all; give the seconds over which to spread an ask, None = it is nothing to go by."""
        try:
            change, now = stated(body, Change, self.roots, self._identity), time.time()
        except MeshError:
            return None
        if (change.control, change.namespace) != (self._control, namespace):
            return None
        if abs(now - change.made) > FRESH_SECONDS or change.made in self._heard:
            return None
        self._heard = {made for made in self._heard if now - made <= FRESH_SECONDS} | {change.made}
        return min(max(change.within, 0.0), MAX_WITHIN)
