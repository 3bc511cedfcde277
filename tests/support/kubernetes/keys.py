"""The certificates of a cluster of a test's own, and who may speak to it."""

from __future__ import annotations

import datetime
import ipaddress
import json
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

__all__ = ["Keys"]


class Keys:
    """An authority, and what it has signed; all are files in one folder.

    Attributes:
        folder: Where they are.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "cluster of tests")])
        usage = x509.KeyUsage(True, False, False, False, False, True, True, False, False)
        self._own = (
            self._begun(self._name, self._key)
            .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
            .add_extension(usage, critical=True)
            .sign(self._key, hashes.SHA256())
        )
        (folder / "ca.crt").write_bytes(self._own.public_bytes(serialization.Encoding.PEM))
        self.key("accounts")

    def key(self, name: str) -> ec.EllipticCurvePrivateKey:
        """Make a key, as NAME.key."""
        made = ec.generate_private_key(ec.SECP256R1())
        form = serialization.PrivateFormat.TraditionalOpenSSL
        text = made.private_bytes(serialization.Encoding.PEM, form, serialization.NoEncryption())
        path = self.folder / f"{name}.key"
        path.touch(0o600)
        path.write_bytes(text)
        return made

    def issue(self, file: str, user: str, group: str | None = None, names: tuple[str, ...] = ()) -> None:
        """Sign a certificate, as FILE.crt with FILE.key.

        Args:
            file: The name of the files.
            user: As whom the cluster knows its owner.
            group: Which it is in.
            names: Addresses and host names that a server has.
        """
        key = self.key(file)
        attributes = [x509.NameAttribute(NameOID.COMMON_NAME, user)]
        if group:
            attributes.append(x509.NameAttribute(NameOID.ORGANIZATION_NAME, group))
        usages = x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH])
        made = self._begun(x509.Name(attributes), key).add_extension(usages, critical=False)
        if names:
            made = made.add_extension(x509.SubjectAlternativeName([_name(each) for each in names]), critical=False)
        signed = made.sign(self._key, hashes.SHA256())
        (self.folder / f"{file}.crt").write_bytes(signed.public_bytes(serialization.Encoding.PEM))

    def kubeconfig(self, file: str, server: str) -> Path:
        """Write how the owner of a certificate reaches the API server, as FILE.kubeconfig."""
        cluster = {"server": server, "certificate-authority": str(self.folder / "ca.crt")}
        user = {"client-certificate": str(self.folder / f"{file}.crt"), "client-key": str(self.folder / f"{file}.key")}
        written = {
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{"name": "tests", "cluster": cluster}],
            "users": [{"name": file, "user": user}],
            "contexts": [{"name": "tests", "context": {"cluster": "tests", "user": file}}],
            "current-context": "tests",
        }
        path = self.folder / f"{file}.kubeconfig"
        path.write_text(json.dumps(written))
        return path

    def _begun(self, subject: x509.Name, key: ec.EllipticCurvePrivateKey) -> x509.CertificateBuilder:
        now = datetime.datetime.now(datetime.UTC)
        return (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(self._name)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - datetime.timedelta(minutes=5))
            .not_valid_after(now + datetime.timedelta(days=1))
        )


def _name(text: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(text))
    except ValueError:
        return x509.DNSName(text)
