"""A certificate authority of a test's own."""

from __future__ import annotations

import subprocess
from dataclasses import dataclass
from pathlib import Path

__all__ = ["Authority", "Certificate"]


@dataclass(frozen=True)
class Certificate:
    """Paths of PEM files."""

    certificate: Path
    key: Path


class Authority:
    """Signs certificates; those of servers are for localhost and 127.0.0.1."""

    def __init__(self, directory: Path, name: str = "Test CA") -> None:
        self._directory = directory
        directory.mkdir(parents=True, exist_ok=True)
        self._own = Certificate(directory / "ca.pem", directory / "ca.key")
        usage = ("-addext", "keyUsage=critical,keyCertSign,cRLSign")  # Python 3.13 asks for it.
        _openssl("req", "-x509", *_NEW, "-days", "2", "-subj", f"/CN={name}", *usage, *_out(self._own))
        self.path = self._own.certificate

    @property
    def text(self) -> str:
        """Its own certificate."""
        return self.path.read_text()

    def issue(self, name: str, names: str = "DNS:localhost,IP:127.0.0.1") -> Certificate:
        """Sign a certificate.

        Args:
            name: Its common name.
            names: The names it is valid for.
        """
        made = Certificate(self._directory / f"{name}.pem", self._directory / f"{name}.key")
        authority = ("-CA", str(self._own.certificate), "-CAkey", str(self._own.key))
        extensions = ("-addext", f"subjectAltName={names}", "-addext", "basicConstraints=critical,CA:FALSE")
        _openssl("req", "-x509", *_NEW, "-days", "2", "-subj", f"/CN={name}", *authority, *extensions, *_out(made))
        return made


_NEW = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes")


def _out(made: Certificate) -> tuple[str, ...]:
    return ("-keyout", str(made.key), "-out", str(made.certificate))


def _openssl(*arguments: str) -> None:
    subprocess.run(["openssl", *arguments], check=True, capture_output=True, timeout=30)
