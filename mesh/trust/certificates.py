"""Roots and certificates: made, read, checked.

Keys are Ed25519, or ECDSA on P-256 as a SPIRE server issues them. A chain is checked here and not by a verifier for
the web, which admits no Ed25519.

Source: SPIFFE X.509-SVID sections 2 to 5; RFC 5280 sections 4.2 and 6.1.
"""

from __future__ import annotations

import datetime
import secrets
from collections.abc import Iterator, Sequence
from contextvars import ContextVar
from typing import TypeAlias

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from mesh.errors import ConfigError, IdentityAwayError, MeshError, UnprovenError
from mesh.trust.identity import Identity

__all__ = [
    "AS_OF",
    "BEFORE",
    "Key",
    "as_pem",
    "certify",
    "chain_identity",
    "check_chain",
    "fingerprint_of",
    "issue",
    "key_as_pem",
    "make_root",
    "read_certificates",
    "read_der",
    "read_key",
    "sign",
    "trust_domain_of",
    "verify",
]

Key: TypeAlias = ed25519.Ed25519PrivateKey | ec.EllipticCurvePrivateKey
_Chain: TypeAlias = list[x509.Certificate]

MAX_CHAIN = 5
BEFORE = datetime.timedelta(minutes=5)  # Clocks of a mesh are not quite the same.
# When a chain must be valid; None = now.
AS_OF: ContextVar[datetime.datetime | None] = ContextVar("AS_OF", default=None)
_ECDSA = ec.ECDSA(hashes.SHA256())
_UNREADABLE = (
    ValueError,
    TypeError,
    UnsupportedAlgorithm,
    x509.DuplicateExtension,
    x509.ExtensionNotFound,
    x509.InvalidVersion,
    x509.UnsupportedGeneralNameType,
)
_KNOWN = (x509.BasicConstraints, x509.KeyUsage, x509.ExtendedKeyUsage, x509.SubjectAlternativeName)


def make_root(trust_domain: str, ttl: datetime.timedelta) -> tuple[x509.Certificate, Key]:
    """Make a new root for a trust domain."""
    key = ed25519.Ed25519PrivateKey.generate()
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"root of {trust_domain}"[:64])])
    builder = _begun(name, name, key.public_key(), ttl).add_extension(x509.BasicConstraints(True, None), critical=True)
    builder = builder.add_extension(_usage(issuing=True), critical=True)
    uri = x509.UniformResourceIdentifier(f"spiffe://{trust_domain}")
    return builder.add_extension(x509.SubjectAlternativeName([uri]), critical=False).sign(key, None), key


def issue(
    identity: Identity, root: x509.Certificate, root_key: Key, ttl: datetime.timedelta
) -> tuple[x509.Certificate, Key]:
    """Make a certificate and its key; it ends with its root at the latest."""
    key = ed25519.Ed25519PrivateKey.generate()
    return certify(identity, key.public_key(), root, root_key, ttl), key


def certify(
    identity: Identity,
    key: ed25519.Ed25519PublicKey,
    root: x509.Certificate,
    root_key: Key,
    ttl: datetime.timedelta,
) -> x509.Certificate:
    """Make a certificate for a key of somebody else; it ends with its root at the latest."""
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, identity.app_id[:64])])
    ttl = min(ttl, root.not_valid_after_utc - _now())
    if ttl <= datetime.timedelta():
        raise ConfigError("the root has expired; mesh trust rotate makes another one")
    builder = _begun(name, root.subject, key, ttl).add_extension(_usage(issuing=False), critical=True)
    builder = builder.add_extension(x509.BasicConstraints(False, None), critical=True)
    both = x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CLIENT_AUTH, ExtendedKeyUsageOID.SERVER_AUTH])
    builder = builder.add_extension(both, critical=False)
    uri = x509.SubjectAlternativeName([x509.UniformResourceIdentifier(str(identity))])
    made = builder.add_extension(uri, critical=True)
    return made.sign(root_key, None if isinstance(root_key, ed25519.Ed25519PrivateKey) else hashes.SHA256())


def _begun(
    subject: x509.Name, issuer: x509.Name, key: ed25519.Ed25519PublicKey, ttl: datetime.timedelta
) -> x509.CertificateBuilder:
    now = _now()
    builder = x509.CertificateBuilder().subject_name(subject).issuer_name(issuer).public_key(key)
    return (
        builder.serial_number(int.from_bytes(secrets.token_bytes(19), "big") | 1)
        .not_valid_before(now - BEFORE)
        .not_valid_after(now + ttl)
    )


def _usage(*, issuing: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not issuing,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=issuing,
        crl_sign=issuing,
        encipher_only=False,
        decipher_only=False,
    )


def _now() -> datetime.datetime:
    return datetime.datetime.now(datetime.UTC)


def as_pem(certificates: Sequence[x509.Certificate]) -> bytes:
    """Write certificates for a file."""
    return b"".join(each.public_bytes(serialization.Encoding.PEM) for each in certificates)


def key_as_pem(key: Key) -> bytes:
    """Write a private key for a file."""
    form = serialization.PrivateFormat.PKCS8
    return key.private_bytes(serialization.Encoding.PEM, form, serialization.NoEncryption())


def read_certificates(pem: bytes, where: str) -> list[x509.Certificate]:
    """Read a file of certificates; raises ``ConfigError``."""
    try:
        return x509.load_pem_x509_certificates(pem)
    except _UNREADABLE as error:
        raise ConfigError(f"{where} holds no certificates (PEM): {error}") from None


def read_key(pem: bytes, where: str) -> Key:
    """Read a private key; raises ``ConfigError`` without telling anything of it."""
    try:
        key = serialization.load_pem_private_key(pem, None)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        raise ConfigError(f"{where} holds no private key (PEM, without a password)") from None
    return _of_kind(key, f"{where} holds")


def _of_kind(key: object, where: str) -> Key:
    if isinstance(key, ed25519.Ed25519PrivateKey) or (
        isinstance(key, ec.EllipticCurvePrivateKey) and isinstance(key.curve, ec.SECP256R1)
    ):
        return key
    raise ConfigError(f"{where} a key of another kind than Ed25519 and ECDSA on P-256")


def read_der(chain: bytes, key: bytes, bundle: bytes, where: str) -> tuple[_Chain, Key, _Chain]:
    """Read certificates one behind the other, a key (PKCS #8), and roots, as of SPIFFE; raises ``ConfigError``."""
    try:
        certificates = [[x509.load_der_x509_certificate(each) for each in _each_der(data)] for data in (chain, bundle)]
    except _UNREADABLE as error:
        raise ConfigError(f"{where} gives no certificates (DER): {error}") from None
    try:
        private = serialization.load_der_private_key(key, None)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        raise ConfigError(f"{where} gives no private key (PKCS #8, DER)") from None
    return certificates[0], _of_kind(private, f"{where} gives"), certificates[1]


def _each_der(data: bytes) -> Iterator[bytes]:
    """Split values in DER that follow each other (X.690 section 8.1.3); raises ``ValueError``."""
    while data:
        size, count = (data[1], 0) if len(data) > 1 else (0, 0)
        if size & 0x80:
            count = size & 0x7F
            size = int.from_bytes(data[2 : 2 + count], "big")
        end = 2 + count + size
        if end > len(data):
            raise ValueError("they are cut off")
        yield data[:end]
        data = data[end:]


def sign(key: Key, data: bytes) -> bytes:
    """Sign."""
    return key.sign(data) if isinstance(key, ed25519.Ed25519PrivateKey) else key.sign(data, _ECDSA)


def verify(certificate: x509.Certificate, signature: bytes, data: bytes) -> bool:
    """Tell whether a signature is by a certificate's key."""
    try:
        key = certificate.public_key()
        if isinstance(key, ed25519.Ed25519PublicKey):
            key.verify(signature, data)
        elif isinstance(key, ec.EllipticCurvePublicKey):
            key.verify(signature, data, _ECDSA)
        else:
            return False
    except (InvalidSignature, *_UNREADABLE):
        return False
    return True


def chain_identity(leaf: x509.Certificate) -> Identity:
    """Read whose certificate it is; raises ``UnprovenError``."""
    try:
        names = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        uris = names.get_values_for_type(x509.UniformResourceIdentifier)
    except _UNREADABLE:
        uris = []
    identity = Identity.parse(uris[0]) if len(uris) == 1 else None
    if identity is None:
        raise UnprovenError("the certificate has not one SPIFFE id of an application")
    return identity


def trust_domain_of(root: x509.Certificate) -> str:
    """Read whose root it is; empty when it does not say, as one of an existing PKI."""
    try:
        names = root.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        uris = names.get_values_for_type(x509.UniformResourceIdentifier)
    except _UNREADABLE:
        return ""
    return uris[0].removeprefix("spiffe://") if len(uris) == 1 else ""


def fingerprint_of(certificate: x509.Certificate) -> str:
    """Give what tells one from all others: SHA-256, in hexadecimal digits."""
    return certificate.fingerprint(hashes.SHA256()).hex()


def check_chain(chain: Sequence[x509.Certificate], roots: Sequence[x509.Certificate], trust_domain: str) -> Identity:
    """Check a chain up to a root, the leaf first; give whose it is.

    Raises:
        IdentityAwayError: No root that is trusted here has issued it, and it is looked at as of another time.
        UnprovenError: It says why.
    """
    try:
        return _checked(chain, roots, trust_domain)
    except (IdentityAwayError, UnprovenError):
        raise
    except Exception as error:  # noqa: BLE001 - anybody sends anything: whatever the library makes of it is a refusal
        raise UnprovenError(f"the certificate cannot be read: {error}") from None


def _checked(chain: Sequence[x509.Certificate], roots: Sequence[x509.Certificate], trust_domain: str) -> Identity:
    if not 0 < len(chain) <= MAX_CHAIN:
        raise UnprovenError("there is no certificate, or its chain is too long")
    leaf = chain[0]
    identity = chain_identity(leaf)
    if identity.trust_domain != trust_domain:
        raise UnprovenError(f"{identity} is not of the trust domain {trust_domain}")
    between = [each for each in chain[1:] if each not in roots]
    _check_one(leaf, depth=-1)
    below = leaf
    for depth, above in enumerate(between):
        _check_one(above, depth=depth)
        if not _issued(below, above):
            raise UnprovenError("the chain of the certificate does not hold together")
        below = above
    text = f"no root that is trusted here has issued the certificate of {identity}"
    refusal: MeshError = UnprovenError(text) if AS_OF.get() is None else IdentityAwayError(text)
    for root in roots:  # Several may have one name, and one key.
        if root.subject == below.issuer and _issued(below, root):
            try:
                _check_one(root, depth=len(between))
            except UnprovenError as error:
                refusal = error
            else:
                return identity
    raise refusal


def _issued(below: x509.Certificate, above: x509.Certificate) -> bool:
    try:
        below.verify_directly_issued_by(above)
    except (InvalidSignature, *_UNREADABLE):
        return False
    return True


def _check_one(certificate: x509.Certificate, *, depth: int) -> None:
    """Check one by itself: ``depth`` counts issuers below it, and is -1 for the leaf."""
    now = AS_OF.get() or _now()
    if not certificate.not_valid_before_utc <= now <= certificate.not_valid_after_utc:
        raise UnprovenError("a certificate has expired, or is not valid yet")
    issuing = signing = False
    for extension in certificate.extensions:
        value = extension.value
        if extension.critical and not isinstance(value, _KNOWN):
            raise UnprovenError("a certificate has a critical extension that is not known here")
        if isinstance(value, x509.BasicConstraints):
            issuing = value.ca and (value.path_length is None or value.path_length >= max(depth, 0))
            if value.ca and not issuing:
                raise UnprovenError("the chain of the certificate is longer than one of its issuers admits")
        elif isinstance(value, x509.KeyUsage):
            signing = value.key_cert_sign if depth >= 0 else value.digital_signature
    if issuing != (depth >= 0) or not signing:
        raise UnprovenError("a certificate is used for what it is not for")
