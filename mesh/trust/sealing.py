"""Encrypts what two nodes say to each other, so that the broker carries what it cannot read.

From the secret of two nodes (``credential.py``) follow two keys, one for each direction (HKDF). A frame to a node that
is known is encrypted by that key. A request may be taken by any of several nodes, so it is encrypted by a key of its
own, which goes along once for each of them, encrypted by the key of the two. The cipher is ChaCha20-Poly1305. Nonces
are counted by each credential, whose key for agreement lives as long as the process: none comes twice under one key.

What is proven is what was encrypted (``guard.py``): the signature or MAC covers all headers and the ciphertext, the
call and the place in its stream. So nothing is decrypted that is not proven, and the cipher need not bind it once more.

In the open stays what is needed before a frame can be opened. All else goes inside, with the body.
"""

from __future__ import annotations

from collections.abc import Iterable

import msgspec
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305

from mesh.broker import Message
from mesh.errors import UnprovenError
from mesh.trust.credential import ID_BYTES, KEY_BYTES, NONCE_BYTES, Own, Peer, decoded, encoded

__all__ = ["SEALED_HEADER", "open_frame", "open_request", "question", "seal_frame", "seal_request"]

SEALED_HEADER = "mesh-sealed"
MAX_HEADER = 1024  # A nonce, and a key for each of eight nodes.
_WRAPPED_BYTES = ID_BYTES + KEY_BYTES + 16
_OF_PROOFS = frozenset({"mesh-asked", "mesh-identity", "mesh-made", "mesh-proof", SEALED_HEADER})
_OF_FRAMES = frozenset({"mesh-credit", "mesh-deadline", "mesh-frame", "mesh-granted", "mesh-seq"})
_OPEN = _OF_PROOFS | _OF_FRAMES
_QUESTION = "0"
_pack = msgspec.msgpack.encode
_inside = msgspec.msgpack.Decoder(tuple[dict[str, str], bytes])


def question(message: Message) -> Message:
    """Make what is sent before it is known to whom a request can be sealed; nobody acts on it."""
    headers = {name: value for name, value in message.headers.items() if name in _OPEN}
    return Message({**headers, SEALED_HEADER: _QUESTION}, b"")


def seal_request(own: Own, readers: Iterable[Peer], message: Message) -> Message:
    """Seal a request to each of those who may take it."""
    nonce, key = own.nonce(), ChaCha20Poly1305.generate_key()
    headers, inside = _split(message)
    wrapped = (each.id + own.box(each).to.encrypt(nonce, key, None) for each in readers)
    headers[SEALED_HEADER] = encoded(nonce + b"".join(wrapped))
    return Message(headers, ChaCha20Poly1305(key).encrypt(nonce, inside, None))


def open_request(own: Own, peer: Peer, message: Message) -> Message | None:
    """Open what a peer has proven to ask; None = it is sealed to others.

    Raises:
        UnprovenError: It is malformed.
    """
    sealed = decoded(message.headers[SEALED_HEADER][:MAX_HEADER])
    nonce, keys = sealed[:NONCE_BYTES], sealed[NONCE_BYTES:]
    for start in range(0, len(keys), _WRAPPED_BYTES):
        if keys[start : start + ID_BYTES] == own.id:
            key = _decrypted(own.box(peer).by, nonce, keys[start + ID_BYTES : start + _WRAPPED_BYTES])
            if len(key) != KEY_BYTES:  # The peer may have sealed anything as one.
                raise UnprovenError("the key that is sealed in it is malformed")
            return _joined(message, _decrypted(ChaCha20Poly1305(key), nonce, message.body))
    return None


def seal_frame(own: Own, peer: Peer, message: Message) -> Message:
    """Seal a frame to whom it goes; as it is where there is nothing to hide."""
    if not message.body and message.headers.keys() <= _OPEN:
        return message
    nonce = own.nonce()
    headers, inside = _split(message)
    headers[SEALED_HEADER] = encoded(nonce)
    return Message(headers, own.box(peer).to.encrypt(nonce, inside, None))


def open_frame(own: Own, peer: Peer, message: Message) -> Message:
    """Open a proven frame; raises ``UnprovenError`` when it is malformed."""
    nonce = decoded(message.headers[SEALED_HEADER][:MAX_HEADER])
    return _joined(message, _decrypted(own.box(peer).by, nonce, message.body))


def _split(message: Message) -> tuple[dict[str, str], bytes]:
    """Give what stays in the open, and what goes inside."""
    hidden = dict(message.headers)
    seen = {name: hidden.pop(name) for name in _OPEN & hidden.keys()}
    return seen, _pack((hidden, message.body))


def _joined(message: Message, inside: bytes) -> Message:
    try:
        hidden, body = _inside.decode(inside)
    except msgspec.DecodeError:
        raise UnprovenError("what is sealed in it is malformed") from None
    headers = {**hidden, **message.headers}
    del headers[SEALED_HEADER]
    return Message(headers, body)


def _decrypted(cipher: ChaCha20Poly1305, nonce: bytes, data: bytes) -> bytes:
    try:
        return cipher.decrypt(nonce, data, None)
    except (InvalidTag, ValueError):
        raise UnprovenError("it cannot be opened") from None
