"""Where a gateway keeps what it was given, as files: it starts from them when the operator is away.

::

    <kind>-<name>.yaml      a resource
    secrets.json            values of what resources refer to, base64
    identity/               tls.crt, tls.key, ca.crt
    operator-<print>.crt    who is trusted to be the operator, as it was said last; by whom it was trusted at first
    state.json              the revision of all that

Files are replaced as a whole, and only where they differ. Secrets come before the resources that refer to them, and the
revision comes last: a gateway that ended in between is given all of it again.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

import msgspec
from cryptography import x509

from mesh.errors import ConfigError
from mesh.home import write_private
from mesh.supply.secrets import SECRETS
from mesh.supply.wire import MAX_DOCUMENTS, Answer, Document
from mesh.trust.certificates import Key, as_pem, key_as_pem, read_certificates, read_key
from mesh.trust.folder import Issued
from mesh.trust.identity import Identity

__all__ = ["Folder", "configuration_file", "file_of"]

_CONFIGURATION = "Configuration"


class _State(msgspec.Struct):
    revision: str = ""
    documents: dict[str, tuple[str, str]] = {}
    configurations: list[str] = []
    identities: bool = False


def configuration_file(folder: Path, name: str) -> Path:
    """Give where the Configuration of a name is."""
    return folder / f"configuration-{name}.yaml"


def file_of(document: Document) -> str:
    """Give the name of a document's file; raises ``ConfigError``."""
    try:
        return document.file
    except ValueError as error:
        raise ConfigError(str(error)) from None


class Folder:
    """The files; all functions block.

    Attributes:
        path: Where they are.
        revision: What is there; empty = nothing.
        documents: Kind and name of each, by the name of its file.
        identities: Whether the operator gives this node a certificate.
    """

    def __init__(self, path: Path, configurations: Collection[str], roots: Sequence[x509.Certificate]) -> None:
        """Read what is there from before.

        Args:
            path: Where it is.
            configurations: Names of those that this gateway is told to use; others are left out.
            roots: Who is trusted as the operator at first.
        """
        self.path = path
        self._configurations = sorted(configurations)
        self._first = roots
        self._roots_file = f"operator-{hashlib.sha256(as_pem(roots)).hexdigest()[:16]}.crt"
        self.revision = ""
        self.documents: Mapping[str, tuple[str, str]] = {}
        self.identities = False
        try:
            state = msgspec.json.decode((path / "state.json").read_bytes(), type=_State)
        except (OSError, msgspec.DecodeError):
            return
        if state.configurations == self._configurations:
            self.revision, self.documents, self.identities = state.revision, state.documents, state.identities

    @property
    def certificate(self) -> tuple[Path, Path, Path]:
        """Where the chain, the key and the roots of this node's identity are."""
        folder = self.path / "identity"
        return folder / "tls.crt", folder / "tls.key", folder / "ca.crt"

    def take(self, answer: Answer) -> bool:
        """Write what is another now; tells whether any resource is, or secret.

        Raises:
            ConfigError: A document cannot be a file; nothing was written.
            OSError: A file cannot be written.
        """
        self.path.mkdir(parents=True, exist_ok=True, mode=0o700)
        if answer.roots:
            self._write(self._roots_file, as_pem(_certificates(answer.roots)))
        if answer.documents is None:
            self._note()
            return False
        wanted = {
            file_of(each): each
            for each in answer.documents[:MAX_DOCUMENTS]
            if each.kind != _CONFIGURATION or each.name in self._configurations
        }
        others = self._write(SECRETS, msgspec.json.encode(answer.secrets, order="deterministic"))
        changed = [name for name, each in wanted.items() if self._write(name, each.text.encode())]
        gone = [each for each in self.path.glob("*.yaml") if each.name not in wanted]
        for each in gone:
            each.unlink(missing_ok=True)
        self.documents = {name: (each.kind, each.name) for name, each in sorted(wanted.items())}
        self.revision = answer.revision
        self._note()
        return others or bool(changed or gone)

    def _note(self) -> None:
        state = _State(self.revision, dict(self.documents), self._configurations, self.identities)
        self._write("state.json", msgspec.json.encode(state))

    def roots(self) -> Sequence[x509.Certificate]:
        """Read who is trusted as the operator: whom it named last, and at first who this node was told."""
        file = self.path / self._roots_file
        try:
            return read_certificates(file.read_bytes(), str(file))
        except (OSError, ConfigError):
            return self._first

    def identify(self, chain: Sequence[bytes], key: Key, roots: Sequence[bytes], identity: Identity) -> None:
        """Write what this node proves itself by; raises ``ConfigError`` when it would not do."""
        certificate, key_file, roots_file = self.certificate
        Issued(_certificates(chain), key, _certificates(roots)).check(identity, "the certificate that is given")
        self.path.mkdir(parents=True, exist_ok=True, mode=0o700)
        certificate.parent.mkdir(exist_ok=True, mode=0o700)
        written = {roots_file: as_pem(_certificates(roots)), key_file: key_as_pem(key)}
        for file, data in (written | {certificate: as_pem(_certificates(chain))}).items():
            write_private(file, data)

    def trust(self, roots: Sequence[bytes]) -> None:
        """Write who is trusted, where that is another one now."""
        if self.certificate[2].exists() and roots:
            self._write("identity/ca.crt", as_pem(_certificates(roots)))

    def identity(self) -> Issued | None:
        """Read what this node proves itself by; None = there is nothing that is of use."""
        chain, key, roots = self.certificate
        try:
            certificates = read_certificates(chain.read_bytes(), str(chain))
            trusted = read_certificates(roots.read_bytes(), str(roots))
            return Issued(certificates, read_key(key.read_bytes(), str(key)), trusted)
        except (OSError, ConfigError):
            return None

    def _write(self, name: str, data: bytes) -> bool:
        file = self.path / name
        try:
            if file.read_bytes() == data:
                return False
        except OSError:
            pass
        write_private(file, data)
        return True


def _certificates(der: Sequence[bytes]) -> list[x509.Certificate]:
    try:
        return [x509.load_der_x509_certificate(each) for each in der]
    except ValueError as error:
        raise ConfigError(f"the operator gives certificates that are none: {error}") from None
