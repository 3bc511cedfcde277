"""Proves what this node sends, and checks what comes: frames of calls, and what is told to all (``mesh.trust``)."""

from __future__ import annotations

import hashlib
import hmac
import logging
import time
from collections import Counter, OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from itertools import islice
from typing import Literal, cast

import msgspec
from cryptography import x509

from mesh.address import Address, Kind, decode_token
from mesh.broker import Message
from mesh.clusters import bridge_of
from mesh.errors import UnprovenError
from mesh.telemetry import PROOFS_ASKED, UNPROVEN, Observer, nobody
from mesh.trust.certificates import verify
from mesh.trust.credential import ID_BYTES, Own, Peer, Peers, decoded, encoded, id_of
from mesh.trust.folder import Issued
from mesh.trust.identity import CrowdedError, Identity, ProveAgainError, ReplayedError, TrustSettings
from mesh.trust.kept import Kept, What
from mesh.trust.replays import Replays, place_of
from mesh.trust.sealing import SEALED_HEADER, open_frame, open_request, question, seal_frame, seal_request
from mesh.trust.standing import Standing

__all__ = ["Guard", "Session"]

logger = logging.getLogger(__name__)

IDENTITY_HEADER = "mesh-identity"
MADE_HEADER = "mesh-made"
PROOF_HEADER = "mesh-proof"
ASKED_HEADER = "mesh-asked"
FRAME_HEADER = "mesh-frame"
SEQUENCE_HEADER = "mesh-seq"
PROVE = "prove"
FRESH_SECONDS = 120.0
AHEAD_SECONDS = 30.0
QUIET_SECONDS = 10.0
MAC_BYTES = 16
MOST_KNOWN = 8  # Nodes that answered at one address last, which a request carries a MAC for.
MOST_MET = 32
MAX_ADDRESSES = 1024
MAX_PROOF = 512
_REQUEST, _TOLD = b"mesh request 1", b"mesh told 1"
_TO_CALLEE, _TO_CALLER = "callee", "caller"
_KINDS: Mapping[type[Exception], str] = {
    CrowdedError: "crowded",
    ReplayedError: "replayed",
    UnprovenError: "invalid",
}
_pack = msgspec.msgpack.encode


def _digest(purpose: bytes, to: str, token: str, headers: Mapping[str, str], body: bytes) -> bytes:
    covered = sorted(item for item in headers.items() if item[0] != PROOF_HEADER)
    return hashlib.sha256(_pack((purpose, to, token, covered, hashlib.sha256(body).digest()))).digest()


def _token_of(reply_to: str) -> str:
    """Give what a broker leaves as it is: one may name an inbox otherwise on each connection."""
    return reply_to.rpartition(".")[2]


def _with_proof(digest: bytes, proof: str) -> bytes:
    """Tell a request from one that differs in its proof alone, which is refused."""
    return hashlib.sha256(digest + proof.encode()).digest()


def _mac(secret: bytes, digest: bytes) -> bytes:
    return hashlib.blake2b(digest, key=secret, digest_size=MAC_BYTES).digest()


def _number(headers: Mapping[str, str], name: str) -> float:
    text = headers.get(name, "")
    if not text.isascii() or not text.isdigit() or len(text) > 18:
        raise UnprovenError("it does not say its time")
    return int(text) / 1000


class Session:
    """One end of a call: proves what it sends, and knows what the other end must prove.

    Attributes:
        peer: The other end, once that is known.
        seals: Whether what it sends is sealed, once that is known.
        unheard: Whether something came that counts for nothing, as it is not proven.
    """

    __slots__ = (
        "_at",
        "_full",
        "_guard",
        "_known",
        "_own",
        "_refused",
        "_secret",
        "digest",
        "peer",
        "seals",
        "unheard",
    )

    def __init__(
        self,
        guard: Guard,
        own: Own,
        at: Address | None,
        digest: bytes,
        peer: Peer | None = None,
        proof: str | None = None,
        known: Mapping[bytes, Peer] | None = None,
        seals: bool = False,
    ) -> None:
        self._known = known or {}
        self._guard, self._own, self._at = guard, own, at
        self.digest = digest
        self._refused = b"" if proof is None else _with_proof(digest, proof)
        self.peer, self.seals, self.unheard = peer, seals, False
        self._secret = b"" if peer is None else own.agree(peer)
        self._full = True

    @property
    def identity(self) -> Identity | None:
        """Whose the other end is."""
        return None if self.peer is None else self.peer.identity

    @property
    def by(self) -> str:
        """What tells the other end's calls from those of all others."""
        return "" if self.peer is None else f"{self.peer.identity} "

    def answered_short(self) -> None:
        """Leave out the credential: the other end has it."""
        self._full = False

    def seal(self, message: Message) -> Message:
        """Prove a frame to the other end, and seal it where that is asked for; as it is while the other is unknown."""
        if self.peer is None:
            return message
        if self.seals:
            message = seal_frame(self._own, self.peer, message)
        headers = dict(message.headers)
        # The first part says by whom it is as well: the head of its stream may be lost.
        if self._at is None and (headers.get(FRAME_HEADER) != "data" or headers.get(SEQUENCE_HEADER) == "0"):
            headers[IDENTITY_HEADER] = self._own.header if self._full else self._own.short
        towards = _TO_CALLER if self._at is None else _TO_CALLEE
        headers[PROOF_HEADER] = encoded(_mac(self._secret, _digest(self.digest, towards, "", headers, message.body)))
        return Message(headers, message.body)

    def open(self, at: str, message: Message) -> Message | None:
        """Check a frame of the other end, and open it; None = it is as if it had not come."""
        headers = message.headers
        proof = headers.get(PROOF_HEADER)
        if proof is None:
            # Who proves nothing opens nothing: it may say that alone of what is sealed.
            if self.peer is None and not self._guard.strict and (not self.seals or headers.get(FRAME_HEADER) == PROVE):
                if self.seals:  # What was sealed is made in the open then.
                    self._guard.asked("downgrade")
                return message
            self.unheard = True
            self._refuse(at, "missing", "it is not proven")
            return None
        try:
            peer = self._check(message, proof)
            return open_frame(self._own, peer, message) if SEALED_HEADER in headers else message
        except UnprovenError as error:
            self._refuse(at, "invalid", str(error))
            return None

    def _refuse(self, at: str, kind: str, reason: str) -> None:
        """Say whose answer it was to be, which nobody knows by where it came; the call goes on."""
        if self._at is None:
            self._guard.refuse("answer", at, kind, reason)
            return
        self._guard.refuse("answer", self._at.text, kind, f"{reason}; the call waits for another until its deadline")

    def _check(self, message: Message, proof: str) -> Peer:
        peer, secret = self.peer, self._secret
        given = message.headers.get(IDENTITY_HEADER)
        if self._at is not None and given is not None:
            found = self._found(given)
            if found is None or (peer is not None and found.id != peer.id):
                raise UnprovenError("it is by another one than the rest of the answer")
            if peer is None:
                if not self._guard.may_answer(self._at, found.identity):
                    raise UnprovenError(f"{found.identity} may not answer for {self._at}")
                peer, secret = found, self._own.agree(found)
        if peer is None:
            raise UnprovenError("it does not say by whom")
        towards = _TO_CALLEE if self._at is None else _TO_CALLER
        given_proof = decoded(proof[:MAX_PROOF])
        if len(given_proof) == MAC_BYTES:
            digest = _digest(self.digest, towards, "", message.headers, message.body)
            good = hmac.compare_digest(given_proof, _mac(secret, digest))
        else:
            digest = _digest(self._refused, towards, "", message.headers, message.body)
            good = verify(peer.leaf, given_proof, digest)
        if not good:
            raise UnprovenError(f"it is altered, or not by {peer.identity}")
        if self.peer is None:
            self.peer, self._secret = peer, secret
            if self._at is not None:
                self._guard.met(self._at, peer)
                # One that asks for a signature may have lost the credential. The next one that it gets brings it along.
                (peer.has.discard if message.headers.get(FRAME_HEADER) == PROVE else peer.has.add)(self._own.id)
        return peer

    def _found(self, given: str) -> Peer | None:
        """Find whose credential it is, also where it was forgotten since this call began."""
        key = id_of(given)
        peer = self.peer if self.peer is not None and self.peer.id == key else self._known.get(key)
        return self._guard.peers.get(given) if peer is None or peer.until < time.time() else peer

    def may_answer(self, identity: Identity | None) -> bool:
        """Tell whether somebody may speak for whom was asked."""
        if identity is None:
            return not self._guard.strict
        return self._at is None or self._guard.may_answer(self._at, identity)


class Guard:
    """What a node proves and asks others to prove.

    Attributes:
        strict: Whether what is not proven is refused.
        seals: Whether all that is sent to somebody who is proven is sealed.
        peers: Whose credentials were checked.
        own: What this node proves itself by.
        kept: Proves and checks what is stored.
        standing: Whether this node can prove who it is now.
    """

    def __init__(self, settings: TrustSettings, observer: Observer = nobody, began: float | None = None) -> None:
        """Prepare; `take` makes it work.

        Args:
            settings: What is proven and asked for.
            observer: Is told of what is refused.
            began: Unix time since when all that came is remembered; now.
        """
        self.strict = settings.mode == "strict"
        self.seals = settings.seal
        self.peers = Peers(settings.trust_domain)
        self.own: Own
        self.kept = Kept(self)
        self.standing = Standing()
        self._hosts = settings.hosts
        self._owns: dict[bytes, Own] = {}
        self._met: OrderedDict[str, OrderedDict[bytes, Peer]] = OrderedDict()
        self._replays = Replays(FRESH_SECONDS + AHEAD_SECONDS)
        self._began = time.time() if began is None else began
        self._observer = observer
        self._refused: Counter[str] = Counter()
        self._quiet_until: dict[str, float] = {}

    def take(self, issued: Issued, identity: Identity) -> None:
        """Prove by another certificate from here on; what is proven to the former one is still taken."""
        former = self.own if self._owns else None
        self.own = own = Own(issued, identity)
        self._owns = {own.id: own} if former is None else {own.id: own, former.id: former}
        self.trust(issued.roots)

    def trust(self, roots: Sequence[x509.Certificate]) -> None:
        """Trust other roots from here on."""
        self.peers.trust(roots)
        self._met.clear()

    # Requests

    def ask(
        self, to: Address, message: Message, reply_to: str, *, signed: bool = False, again: Session | None = None
    ) -> tuple[Message, Session]:
        """Prove a request, and seal it where that is asked for.

        Args:
            to: Whom to ask.
            message: What to ask.
            reply_to: Where the answer goes.
            signed: Whether it is to be signed.
            again: What checked the answer of somebody who could not take it as it was; it is sealed to that one.

        Returns:
            What is sent, and what checks its answers. Where it is not known to whom to seal, that is a question which
            is answered by ``prove`` alone.
        """
        own, now = self.own, time.time()
        met = self._met.get(to.text)
        known = None if signed or not met else dict(islice(reversed(met.items()), MOST_KNOWN))
        # Who answers without a proof, and is heard, opens nothing.
        seals = self.seals and (again is None or again.peer is not None)
        readers: Iterable[Peer] = ()
        if seals:
            readers = (known or {}).values() if again is None else (cast("Peer", again.peer),)
            readers = [each for each in readers if each.until > now]
            message = seal_request(own, readers, message) if readers else question(message)
        headers = dict(message.headers)
        if signed and met:
            headers[ASKED_HEADER] = encoded(b"".join(met))
        headers[MADE_HEADER] = str(int(now * 1000))
        full = not known or not all(own.id in each.has for each in known.values())
        headers[IDENTITY_HEADER] = own.header if full else own.short
        digest = _digest(_REQUEST, to.text, _token_of(reply_to), headers, message.body)
        if known or (seals and not readers):
            macs = [each.id + _mac(own.agree(each), digest) for each in (known or {}).values() if each.until > now]
            headers[PROOF_HEADER] = "m" + encoded(b"".join(macs))
        else:
            headers[PROOF_HEADER] = "s" + encoded(own.sign(digest))
        session = Session(self, own, to, digest, None, headers[PROOF_HEADER], known, seals)
        return Message(headers, message.body), session

    def met(self, at: Address, peer: Peer) -> None:
        """Note who has answered at an address."""
        known = self._met.get(at.text)
        if known is None:
            known = self._met[at.text] = OrderedDict()
            if len(self._met) > MAX_ADDRESSES:
                self._met.popitem(last=False)
        known[peer.id] = peer
        known.move_to_end(peer.id)
        if len(known) > MOST_MET:
            known.popitem(last=False)

    def taken(self, at: str, message: Message, reply_to: str) -> tuple[Message, Session | None]:
        """Check a request, and open it; None = it is not proven and need not be.

        Raises:
            CrowdedError: It may be sent again, as another one.
            ProveAgainError: It is to be signed, or sealed to this node.
            ReplayedError: It came already, and is not answered.
            UnprovenError: It is refused.
        """
        proof = message.headers.get(PROOF_HEADER)
        if proof is None:
            if self.strict:
                self.refuse("request", at, "missing", "it is not proven")
                raise UnprovenError("the caller does not prove who it is")
            return message, None
        try:
            return self._taken(at, message, reply_to, proof)
        except ProveAgainError:
            self.asked("asked")
            raise
        except (CrowdedError, ReplayedError, UnprovenError) as error:
            self.refuse("request", at, _KINDS.get(type(error), "invalid"), str(error))
            raise

    def _taken(self, at: str, message: Message, reply_to: str, proof: str) -> tuple[Message, Session]:
        now = time.time()
        made = self._fresh(message.headers, now)
        token, given = _token_of(reply_to), message.headers.get(IDENTITY_HEADER, "-")
        digest = _digest(_REQUEST, at, token, message.headers, message.body)
        place = place_of(id_of(given), token, digest)
        if self._replays.seen(place):
            raise ReplayedError("it came already")
        peer = self.peers.get(given)
        own = self.own
        if proof[:1] == "m":
            own = self._by_mac(peer, digest, decoded(proof[1:MAX_PROOF]))
        elif peer is None or not verify(peer.leaf, decoded(proof[1:MAX_PROOF]), digest):
            raise UnprovenError("it is altered, or not by who it says")
        elif made <= self._began + AHEAD_SECONDS and not self._has_asked(message.headers):
            raise ProveAgainError("it may have come before this process began")
        assert peer is not None
        sealed = SEALED_HEADER in message.headers
        if sealed:
            message, own = self._opened(own, peer, message)
        session = Session(self, own, None, digest, peer, seals=self.seals or sealed)
        if not self._replays.add(place, str(peer.identity), made, time.monotonic()):
            raise CrowdedError(session)
        if proof[:1] == "m":
            session.answered_short()
        return message, session

    def _opened(self, own: Own, peer: Peer, message: Message) -> tuple[Message, Own]:
        """Open a request by the credential that it is proven to, or by any, if it is signed."""
        for each in dict.fromkeys((own, *self._owns.values())):
            if (opened := open_request(each, peer, message)) is not None:
                return opened, each
        raise ProveAgainError("it is sealed to others")

    def _has_asked(self, headers: Mapping[str, str]) -> bool:
        """Tell whether a request was made for this process, since it asked for that."""
        asked = decoded(headers.get(ASKED_HEADER, "")[:MAX_PROOF])
        return any(asked[start : start + ID_BYTES] in self._owns for start in range(0, len(asked), ID_BYTES))

    def _by_mac(self, peer: Peer | None, digest: bytes, macs: bytes) -> Own:
        """Find the MAC for this node, and check it; give what it was made for."""
        size = ID_BYTES + MAC_BYTES
        for start in range(0, len(macs), size):
            own = self._owns.get(macs[start : start + ID_BYTES])
            if own is None:
                continue
            if peer is None:
                break
            if hmac.compare_digest(macs[start + ID_BYTES : start + size], _mac(own.agree(peer), digest)):
                return own
            raise UnprovenError("it is altered, or not by who it says")
        raise ProveAgainError("it is proven to others")

    def _fresh(self, headers: Mapping[str, str], now: float) -> float:
        """Give when it was made, and refuse what was made too long ago."""
        made = _number(headers, MADE_HEADER)
        if not made - AHEAD_SECONDS <= now <= made + FRESH_SECONDS:
            raise UnprovenError("it was made too long ago, or the clocks differ")
        return made

    def refusal(self, at: str, request: Message, reply_to: str, headers: Mapping[str, str]) -> Message:
        """Make the answer to a request that is refused: it is about what came, and no other request."""
        digest = _digest(_REQUEST, at, _token_of(reply_to), request.headers, request.body)
        digest = _with_proof(digest, request.headers.get(PROOF_HEADER, ""))
        told = {**headers, IDENTITY_HEADER: self.own.header}
        told[PROOF_HEADER] = encoded(self.own.sign(_digest(digest, _TO_CALLER, "", told, b"")))
        return Message(told, b"")

    # What is told to all who listen

    def tell(self, to: str, message: Message, reader: Peer | None = None) -> Message:
        """Prove what is told to many, or to one who has not asked this node; seal it to a reader if that is one."""
        own = self.own
        if reader is not None and self.seals:
            message = seal_frame(own, reader, message)
        headers = {**message.headers, MADE_HEADER: str(int(time.time() * 1000)), IDENTITY_HEADER: own.header}
        headers[PROOF_HEADER] = encoded(own.sign(_digest(_TOLD, to, "", headers, message.body)))
        return Message(headers, message.body)

    def told(self, at: str, message: Message) -> Identity | None:
        """Check what is told; None = by somebody who need not say who it is.

        Raises:
            UnprovenError: It is as if it had not come.
        """
        peer = self.teller(at, message)
        return None if peer is None else peer.identity

    def opened(self, teller: Peer, message: Message) -> Message:
        """Open what somebody has told this node alone; raises ``UnprovenError``."""
        if SEALED_HEADER not in message.headers:
            return message
        for own in self._owns.values():
            with suppress(UnprovenError):
                return open_frame(own, teller, message)
        raise UnprovenError("it is sealed to others")

    def teller(self, at: str, message: Message) -> Peer | None:
        """Check what is told as `told` does, and give whose credential it is."""
        headers = message.headers
        proof = headers.get(PROOF_HEADER)
        if proof is None and not self.strict:
            return None
        try:
            if proof is None:
                raise UnprovenError("it is not proven")
            self._fresh(headers, time.time())
            peer = self.peers.get(headers.get(IDENTITY_HEADER, "-"))
            digest = _digest(_TOLD, at, "", headers, message.body)
            if peer is None or not verify(peer.leaf, decoded(proof[:MAX_PROOF]), digest):
                raise UnprovenError("it is altered, or not by who it says")
        except UnprovenError as error:
            self.refuse("told", at, "missing" if proof is None else "invalid", str(error))
            raise
        return peer

    def may_answer(self, to: Address, identity: Identity) -> bool:
        """Tell whether somebody may answer for an address."""
        _, namespace, what, *rest = to.space.split(".")
        if decode_token(namespace) != identity.namespace:
            return False
        if to.kind in (Kind.APP, Kind.OWNER):
            return decode_token(rest[0]) == identity.app_id
        if to.kind is Kind.BRIDGE:
            return identity.app_id == bridge_of(to.label)
        if what == "bindings":
            return to.label == identity.app_id
        return to.kind is not Kind.COMPONENT or not self._hosts or identity.app_id in self._hosts

    def asked(self, what: Literal["asked", "downgrade"]) -> None:
        """Count that a request is to be proven anew: one that came, or one of this node's that is no longer sealed."""
        self._observer(PROOFS_ASKED, (what,))

    def refuse(self, what: Literal["request", "answer", "told"] | What, at: str, kind: str, reason: str) -> None:
        """Count it, and say so now and then, of each kind: so none is hidden by what comes all the time."""
        self._observer(UNPROVEN, (what, kind))
        self._refused[what] += 1
        now = time.monotonic()
        if now >= self._quiet_until.get(what, 0.0):
            self._quiet_until[what] = now + QUIET_SECONDS
            count = self._refused.pop(what)
            logger.warning("%d refused, of late: %s at %s: %s", count, what, at[:300], reason[:400])
