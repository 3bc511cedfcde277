"""The certificate that an injector serves with, by the root of the mesh.

It has the names of a Service and no SPIFFE id, so that nobody on the mesh takes it for an application.
"""

from __future__ import annotations

import datetime
import ipaddress
import ssl
import tempfile
from collections.abc import Sequence
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from mesh.trust.certificates import as_pem, key_as_pem
from mesh.trust.folder import Root

__all__ = ["SERVED_FOR", "Certificate", "server_certificate"]

SERVED_FOR = datetime.timedelta(days=7)
_BEFORE = datetime.timedelta(minutes=5)


class Certificate:
    """What an injector serves with, renewed at half of its life, or when there is another root."""

    def __init__(self, names: Sequence[str]) -> None:
        """Begin without one.

        Args:
            names: Of the Service, or addresses.
        """
        self._names = names
        self._by: bytes | None = None
        self._renew_at = datetime.datetime.min.replace(tzinfo=datetime.UTC)
        self.context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        self.context.minimum_version = ssl.TLSVersion.TLSv1_2

    def renew(self, root: Root) -> bool:
        """Take a new one if that is due; tell whether it was. Blocks; connections that are open keep theirs."""
        own = root.own()
        by = own.fingerprint(hashes.SHA256())
        now = datetime.datetime.now(datetime.UTC)
        if by == self._by and now < self._renew_at:
            return False
        leaf, key = server_certificate(root, self._names)
        with tempfile.TemporaryDirectory() as directory:  # Only files can be loaded.
            chain, private = (Path(directory) / name for name in ("chain", "key"))
            private.touch(mode=0o600)
            chain.write_bytes(as_pem([leaf]))
            private.write_bytes(key_as_pem(key))
            self.context.load_cert_chain(chain, private)
        self._by, self._renew_at = by, now + (leaf.not_valid_after_utc - now) / 2
        return True


def server_certificate(root: Root, names: Sequence[str]) -> tuple[x509.Certificate, ec.EllipticCurvePrivateKey]:
    """Make a certificate for names and addresses, and its key; raises ``ConfigError`` where the key is of no root."""
    own, now = root.own(), datetime.datetime.now(datetime.UTC)
    key = ec.generate_private_key(ec.SECP256R1())
    builder = (
        x509.CertificateBuilder()
        .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, names[0][:64])]))
        .issuer_name(own.subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _BEFORE)
        .not_valid_after(min(now + SERVED_FOR, own.not_valid_after_utc))
        .add_extension(x509.BasicConstraints(False, None), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(x509.SubjectAlternativeName([_name(each) for each in names]), critical=False)
    )
    ed = isinstance(root.key, ed25519.Ed25519PrivateKey)
    return builder.sign(root.key, None if ed else hashes.SHA256()), key


def _name(text: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(text))
    except ValueError:
        return x509.DNSName(text)
