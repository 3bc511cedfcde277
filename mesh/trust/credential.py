"""Who a node is, as it goes over the wire, and what follows from two of them."""

from __future__ import annotations

import base64
import binascii
import datetime
import hashlib
import itertools
import time
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field

import msgspec
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import x25519
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from mesh.errors import UnprovenError
from mesh.trust.certificates import AS_OF, check_chain, sign, verify
from mesh.trust.folder import Issued
from mesh.trust.identity import Identity

__all__ = ["ID_BYTES", "KEY_BYTES", "NONCE_BYTES", "Box", "Own", "Peer", "Peers", "decoded", "encoded", "id_of"]

MAX_HEADER = 8192
MAX_PEERS = 4096
ID_BYTES = 8
KEY_BYTES = 32
NONCE_BYTES = 12
_KEY = b"mesh key 1\0"
_PAIR = b"mesh pair 1\0"
_SEAL = b"mesh seal 1\0"


class _Wire(msgspec.Struct, array_like=True, forbid_unknown_fields=True):
    chain: list[bytes]
    agreement: bytes
    signature: bytes


_wire = msgspec.msgpack.Decoder(_Wire)


def encoded(data: bytes) -> str:
    """Write bytes for a header."""
    return base64.b64encode(data).decode()


def decoded(text: str) -> bytes:
    """Read bytes of a header; raises ``UnprovenError``."""
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise UnprovenError("a proof is malformed") from None


def id_of(header: str) -> bytes:
    """Give the id of a credential, of which a header holds all, or the id alone."""
    if header.startswith("#"):
        return decoded(header[1:])
    return hashlib.sha256(header.encode()).digest()[:ID_BYTES]


class Own:
    """What this node proves itself by.

    Attributes:
        identity: Who it is.
        header: Its credential.
        id: Of that.
        short: The credential for those who have it.
        since: Unix time from which it counts.
        until: Unix time until which it counts.
    """

    def __init__(self, issued: Issued, identity: Identity) -> None:
        """Make a key for agreement, which only this process ever has."""
        self._agreement = x25519.X25519PrivateKey.generate()
        self._key = issued.key
        self._nonces = itertools.count()
        self.identity = identity
        form = serialization.Encoding.Raw, serialization.PublicFormat.Raw
        public = self._agreement.public_key().public_bytes(*form)
        chain = [each.public_bytes(serialization.Encoding.DER) for each in issued.chain]
        signature = sign(issued.key, _KEY + hashlib.sha256(chain[0]).digest() + public)
        self.header = encoded(msgspec.msgpack.encode(_Wire(chain, public, signature)))
        self.id = id_of(self.header)
        self.short = f"#{encoded(self.id)}"
        self.since, self.until = _life(issued.chain)

    def sign(self, data: bytes) -> bytes:
        """Sign as this node."""
        return sign(self._key, data)

    def agree(self, peer: Peer) -> bytes:
        """Give the secret that this credential and another one have; raises ``UnprovenError``."""
        known = peer.secrets.get(self.id)
        if known is None:
            try:
                shared = self._agreement.exchange(peer.agreement)
            except ValueError:
                raise UnprovenError("a key for agreement is none") from None
            both = b"".join(sorted((self.id, peer.id)))
            known = peer.secrets[self.id] = hashlib.blake2b(_PAIR + both, key=shared, digest_size=32).digest()
        return known

    def box(self, peer: Peer) -> Box:
        """Give the keys for sealing that follow from that secret; raises ``UnprovenError``."""
        known = peer.boxes.get(self.id)
        if known is None:
            known = peer.boxes[self.id] = Box(self.agree(peer), self.id, peer.id)
        return known

    def nonce(self) -> bytes:
        """Give a nonce that no key of this credential was used with: both are gone with the process."""
        return next(self._nonces).to_bytes(NONCE_BYTES, "big")


class Box:
    """What seals between two credentials: a key for each direction.

    Attributes:
        to: Encrypts for the other one.
        by: Decrypts what is by the other one.
    """

    __slots__ = ("by", "to")

    def __init__(self, secret: bytes, own: bytes, peer: bytes) -> None:
        """Derive the keys from the secret of the two; who calls itself has one."""
        info = _SEAL + min(own, peer) + max(own, peer)
        both = HKDF(SHA256(), 2 * KEY_BYTES, None, info).derive(secret)
        keys = both[:KEY_BYTES], both[KEY_BYTES:]
        self.to = ChaCha20Poly1305(keys[own > peer])
        self.by = ChaCha20Poly1305(keys[peer > own])


@dataclass(slots=True, eq=False)
class Peer:
    """Another node, whose credential was checked.

    Attributes:
        identity: Who it is.
        id: Of its credential.
        leaf: Its certificate.
        agreement: Its key.
        since: Unix time from which it counts.
        until: Unix time until which it counts.
        secrets: By credential of this node.
        boxes: Likewise.
        has: Credentials of this node that it has.
    """

    identity: Identity
    id: bytes
    leaf: x509.Certificate
    agreement: x25519.X25519PublicKey
    since: float
    until: float
    secrets: dict[bytes, bytes] = field(default_factory=dict, repr=False)
    boxes: dict[bytes, Box] = field(default_factory=dict, repr=False)
    has: set[bytes] = field(default_factory=set)


class _Checked:
    """Peers by credential. When there are too many, one goes of who has most: nobody has others forgotten."""

    def __init__(self) -> None:
        self._found: dict[bytes, tuple[Peer, OrderedDict[bytes, None]]] = {}
        self._of: dict[Identity, OrderedDict[bytes, None]] = {}

    def get(self, key: bytes) -> Peer | None:
        found = self._found.get(key)
        if found is None:
            return None
        found[1].move_to_end(key)
        return found[0]

    def add(self, key: bytes, peer: Peer) -> None:
        if len(self._found) >= MAX_PEERS:
            most = max(self._of.values(), key=len)
            self.remove(next(iter(most)))
        of = self._of.setdefault(peer.identity, OrderedDict())
        of[key] = None
        self._found[key] = peer, of

    def remove(self, key: bytes) -> None:
        peer, of = self._found.pop(key)
        del of[key]
        if not of:
            del self._of[peer.identity]

    def clear(self) -> None:
        self._found.clear()
        self._of.clear()


class Peers:
    """Credentials that were checked; only what is valid takes room here."""

    def __init__(self, trust_domain: str) -> None:
        """Trust nobody yet."""
        self._trust_domain = trust_domain
        self._roots: Sequence[x509.Certificate] = ()
        self._known = _Checked()
        self._signers = _Checked()  # Apart, as they need not be valid now.

    def trust(self, roots: Sequence[x509.Certificate]) -> None:
        """Trust these roots; whoever is known already is looked at again."""
        self._roots = roots
        self._known.clear()
        self._signers.clear()

    def signer(self, header: str, at: float) -> Peer:
        """Find whose credential it was at a time; raises ``UnprovenError``, and ``IdentityAwayError`` by its root."""
        key = id_of(header)
        peer = self._signers.get(key)
        if peer is None:
            try:
                as_of = AS_OF.set(datetime.datetime.fromtimestamp(at, datetime.UTC))
            except (ValueError, OverflowError, OSError):
                raise UnprovenError("it does not say its time") from None
            try:
                peer = self._checked(header, key)
            finally:
                AS_OF.reset(as_of)
            self._signers.add(key, peer)
        if not peer.since <= at <= peer.until:
            raise UnprovenError(f"the certificate of {peer.identity} was not valid then")
        return peer

    def get(self, header: str) -> Peer | None:
        """Find whose credential it is; None when only its id is given, and that is not known.

        Raises:
            UnprovenError: It is none of somebody who is trusted.
        """
        key = id_of(header)
        peer = self._known.get(key)
        if peer is None:
            if header.startswith("#"):
                return None
            peer = self._checked(header, key)
            self._known.add(key, peer)
        elif peer.until < time.time():
            self._known.remove(key)
            raise UnprovenError(f"the certificate of {peer.identity} has expired")
        return peer

    def _checked(self, header: str, key: bytes) -> Peer:
        if len(header) > MAX_HEADER:
            raise UnprovenError("a credential is too large")
        try:
            wire = _wire.decode(decoded(header))
            chain = [x509.load_der_x509_certificate(each) for each in wire.chain]
            agreement = x25519.X25519PublicKey.from_public_bytes(wire.agreement)
        except UnprovenError:
            raise
        except Exception as error:  # noqa: BLE001 - anybody sends anything: what a library makes of it is a refusal
            raise UnprovenError(f"a credential is malformed: {error!r:.200}") from None
        identity = check_chain(chain, self._roots, self._trust_domain)
        signed = _KEY + hashlib.sha256(wire.chain[0]).digest() + wire.agreement
        if not verify(chain[0], wire.signature, signed):
            raise UnprovenError(f"a credential is not by who has the key of {identity}")
        return Peer(identity, key, chain[0], agreement, *_life(chain))


def _life(chain: Sequence[x509.Certificate]) -> tuple[float, float]:
    """Give from when on and until when a chain counts."""
    since = max(each.not_valid_before_utc for each in chain).timestamp()
    return since, min(each.not_valid_after_utc for each in chain).timestamp()
