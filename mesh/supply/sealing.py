"""What proves an operator, and seals what a gateway and an operator say: the broker carries what it cannot read.

It holds whatever the mesh's own trust is, for a gateway that has no certificate yet asks for its first one so.

*Statements* are signed by the operator's certificate: its key for agreement (X25519), which lives for an hour at most,
and that something has changed. A gateway checks the chain up to the roots that its pod was given, and that the
certificate is that of the operator of its control namespace, before it says anything.

*Asks* are sealed by a key that follows from the operator's and one that the gateway makes for that ask alone (HKDF).
Only who has one of the two private keys reads the ask, and only they can make an answer to it: so an answer of another
time or to somebody else is none, and nothing can be read later on, once the keys are gone. What is asked for a
certificate is signed by its key.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from typing import TypeVar

import msgspec
from cryptography import x509
from cryptography.exceptions import InvalidSignature, InvalidTag
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ed25519, x25519
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from mesh.errors import UnprovenError
from mesh.trust.certificates import check_chain, sign, verify
from mesh.trust.folder import Issued
from mesh.trust.identity import Identity

__all__ = ["Change", "Envelope", "Key", "KeyPair", "Seal", "Stated", "proof_of", "proves", "stated", "statement"]

MAX_STATEMENT = 16 * 1024
MAX_CHAIN = 5
NONCE_BYTES = 12
ID_BYTES = 8
_SEAL, _ASK = b"mesh supply seal 1\0", b"mesh supply ask 1\0"
_RAW = serialization.Encoding.Raw, serialization.PublicFormat.Raw

Stated = TypeVar("Stated", bound=msgspec.Struct)
_pack = msgspec.msgpack.encode


class Key(msgspec.Struct, frozen=True):
    """An operator's key for agreement.

    Attributes:
        control: Its control namespace.
        public: The key (X25519).
        made: Unix time in seconds.
        until: Unix time in seconds at which it is gone.
    """

    control: str
    public: bytes
    made: float
    until: float

    @property
    def id(self) -> bytes:
        """What it is named by."""
        return hashlib.sha256(self.public).digest()[:ID_BYTES]


class Change(msgspec.Struct, frozen=True):
    """That there may be something new for the gateways of a namespace.

    Attributes:
        control: The operator's control namespace.
        namespace: Whose.
        made: Unix time in seconds; rises with each of one namespace.
        within: Seconds over which those who hear it spread their asks.
    """

    control: str
    namespace: str
    made: float
    within: float


class Envelope(msgspec.Struct, frozen=True):
    """A sealed ask.

    Attributes:
        to: The id of the operator's key.
        public: The gateway's key for this ask (X25519).
        sealed: What it says.
    """

    to: bytes
    public: bytes
    sealed: bytes


class _Statement(msgspec.Struct):
    kind: str
    chain: list[bytes]
    body: bytes
    signature: bytes


_statements = msgspec.msgpack.Decoder(_Statement)


def _signed(kind: str, body: bytes) -> bytes:
    return b"mesh supply statement 1\0" + kind.encode() + b"\0" + body


def statement(own: Issued, said: Key | Change) -> bytes:
    """Sign as the operator."""
    kind, body = type(said).__name__, _pack(said)
    chain = [each.public_bytes(serialization.Encoding.DER) for each in own.chain]
    return _pack(_Statement(kind, chain, body, sign(own.key, _signed(kind, body))))


def stated(data: bytes, shape: type[Stated], roots: Sequence[x509.Certificate], operator: Identity) -> Stated:
    """Read what an operator has signed; raises ``UnprovenError`` when another one did, or nobody."""
    if len(data) > MAX_STATEMENT:
        raise UnprovenError("what should be signed by the operator is too large")
    try:
        read = _statements.decode(data)
        if len(read.chain) > MAX_CHAIN:
            raise UnprovenError("the chain of the operator's certificate is too long")
        chain = [x509.load_der_x509_certificate(each) for each in read.chain]
    except UnprovenError:
        raise
    except Exception as error:  # noqa: BLE001 - anybody sends anything: what a library makes of it is a refusal
        raise UnprovenError(f"what should be signed by the operator is malformed: {error!r:.200}") from None
    found = check_chain(chain, roots, operator.trust_domain)
    if found != operator:
        raise UnprovenError(f"{found} speaks in the name of the operator, which is {operator}")
    if read.kind != shape.__name__ or not verify(chain[0], read.signature, _signed(read.kind, read.body)):
        raise UnprovenError(f"it is not signed by the key of {operator}")
    try:
        return msgspec.msgpack.decode(read.body, type=shape)
    except msgspec.DecodeError:
        raise UnprovenError("what the operator has signed is malformed") from None


class Seal:
    """The two keys of one ask."""

    __slots__ = ("_from_gateway", "_from_operator", "bound")

    def __init__(
        self, own: x25519.X25519PrivateKey, peer: bytes, control: str, operator: bytes, gateway: bytes
    ) -> None:
        """Agree.

        Args:
            own: The private key of this side.
            peer: The other side's public one.
            control: The control namespace.
            operator: The operator's public key.
            gateway: The gateway's public key.

        Raises:
            UnprovenError: The other side's key is none.
        """
        try:
            shared = own.exchange(x25519.X25519PublicKey.from_public_bytes(peer))
        except ValueError:
            raise UnprovenError("a key for agreement is none") from None
        self.bound = operator + gateway
        keys = HKDF(SHA256(), 64, None, _SEAL + self.bound + control.encode()).derive(shared)
        self._from_gateway, self._from_operator = ChaCha20Poly1305(keys[:32]), ChaCha20Poly1305(keys[32:])

    def ask(self, plain: bytes) -> bytes:
        """Seal an ask; there is one for a key, so its nonce need not be another one."""
        return self._from_gateway.encrypt(bytes(NONCE_BYTES), plain, None)

    def open_ask(self, sealed: bytes) -> bytes:
        """Open an ask; raises ``UnprovenError``."""
        return _opened(self._from_gateway, bytes(NONCE_BYTES), sealed)

    def answer(self, plain: bytes) -> bytes:
        """Seal an answer; an ask that comes again is refused by another one, so nonces differ."""
        nonce = os.urandom(NONCE_BYTES)
        return nonce + self._from_operator.encrypt(nonce, plain, None)

    def open_answer(self, sealed: bytes) -> bytes:
        """Open an answer; raises ``UnprovenError``."""
        return _opened(self._from_operator, sealed[:NONCE_BYTES], sealed[NONCE_BYTES:])


def _opened(cipher: ChaCha20Poly1305, nonce: bytes, sealed: bytes) -> bytes:
    try:
        return cipher.decrypt(nonce, sealed, None)
    except (InvalidTag, ValueError):
        raise UnprovenError("it cannot be opened: it is not by whom it should be, or not for this node") from None


class KeyPair:
    """A key for agreement.

    Attributes:
        public: Its public half.
    """

    __slots__ = ("_private", "public")

    def __init__(self) -> None:
        """Make one."""
        self._private = x25519.X25519PrivateKey.generate()
        self.public = self._private.public_key().public_bytes(*_RAW)

    def to_operator(self, key: Key) -> Seal:
        """Seal as a gateway; raises ``UnprovenError``."""
        return Seal(self._private, key.public, key.control, key.public, self.public)

    def to_gateway(self, public: bytes, control: str) -> Seal:
        """Seal as an operator; raises ``UnprovenError``."""
        return Seal(self._private, public, control, self.public, public)


def proof_of(key: ed25519.Ed25519PrivateKey, seal: Seal) -> bytes:
    """Prove to have a private key, in one ask alone."""
    return key.sign(_ASK + seal.bound)


def proves(public: bytes, proof: bytes, seal: Seal) -> ed25519.Ed25519PublicKey:
    """Read a public key whose private one the other side has; raises ``UnprovenError``."""
    try:
        key = ed25519.Ed25519PublicKey.from_public_bytes(public)
        key.verify(proof, _ASK + seal.bound)
    except (InvalidSignature, ValueError):
        raise UnprovenError("the key that is to be certified is none, or not that of who asks") from None
    return key
