"""What a TLS connection to a broker is made with, as URLs and components name it."""

from __future__ import annotations

import ssl
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mesh.errors import ConfigError
from mesh.resources.settings import setting

__all__ = ["TLS_OPTIONS", "TLSFiles", "ca_setting", "certificate_setting", "key_setting", "refusal_of"]

# Named as RabbitMQ's URI specification names them; the same in the URLs of all brokers.
TLS_OPTIONS = ("cacertfile", "certfile", "keyfile", "verify")
VERIFY = ("verify_peer", "verify_none")
PEM = "-----BEGIN"


@dataclass(frozen=True, slots=True)
class TLSFiles:
    """Whom to trust, and who we are; PEM texts or paths.

    Attributes:
        ca: Whom to trust; None = whom the system trusts.
        certificate: Ours; it goes with ``key``, unless its file holds both.
        key: Its private key.
        verify: Whether the server must prove who it is.
    """

    ca: str | None = None
    certificate: str | None = None
    key: str | None = field(default=None, repr=False)
    verify: bool = True

    @classmethod
    def from_options(cls, options: Mapping[str, str]) -> TLSFiles:
        """Take them from the options of a URL.

        Raises:
            ConfigError: One of them is wrong.
        """
        verify = options.get("verify", VERIFY[0])
        if verify not in VERIFY:
            raise ConfigError(f"option verify is {' or '.join(VERIFY)}, not {verify!r}")
        if "keyfile" in options and "certfile" not in options:
            raise ConfigError("option keyfile goes with certfile")
        return cls(options.get("cacertfile"), options.get("certfile"), options.get("keyfile"), verify == VERIFY[0])

    def context(self) -> ssl.SSLContext:
        """Make the context; it reads files, so it blocks.

        Raises:
            ConfigError: A file is missing, or is no certificate.
        """
        context = self.trust()
        self.identify(context)
        return context

    def trust(self) -> ssl.SSLContext:
        """Make a context without our own certificate; else as ``context``."""
        try:
            pem = self.ca is not None and PEM in self.ca
            context = ssl.create_default_context(cafile=None if pem else self.ca, cadata=self.ca if pem else None)
        except (OSError, ValueError) as error:
            raise ConfigError(f"the CA certificate{_named(self.ca)} cannot be used: {error}") from error
        if not self.verify:
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE
        return context

    def identify(self, context: ssl.SSLContext) -> None:
        """Add our own certificate, if there is one; else as ``context``."""
        if self.certificate is None:
            return
        try:
            with tempfile.TemporaryDirectory() as directory:  # The ssl module reads a key from a file only.
                certificate = _as_file(self.certificate, Path(directory, "certificate"))
                key = None if self.key is None else _as_file(self.key, Path(directory, "key"))
                # A key with a passphrase is an error; without this, OpenSSL would ask for it at the terminal.
                context.load_cert_chain(certificate, key, password="")
        except (OSError, ValueError) as error:
            raise ConfigError(
                f"the client certificate{_named(self.certificate)} and its key cannot be used: {error}"
            ) from error


def ca_setting() -> Any:
    """Declare the setting that holds whom to trust."""
    told = "Whom to trust, a PEM text or a path; if not set, whom the system trusts."
    return setting("caCert", told, example="ca.pem")


def certificate_setting() -> Any:
    """Declare the setting that holds our certificate."""
    return setting("clientCert", "The client's certificate, a PEM text or a path.", example="client.pem")


def key_setting() -> Any:
    """Declare the setting that holds the key of our certificate."""
    return setting("clientKey", "Its private key, a PEM text or a path.", secret=True)


def refusal_of(error: BaseException | None) -> str | None:
    """Find among an error's causes that one side does not accept the other's certificate: it will not in future."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:  # A client may chain errors in a circle.
        seen.add(id(error))
        if isinstance(error, ssl.SSLEOFError | ssl.SSLZeroReturnError):  # An end without a word: a restart, maybe.
            return None
        if isinstance(error, ssl.SSLError):
            return getattr(error, "verify_message", None) or str(error)
        error = error.__cause__ or error.__context__
    return None


def _as_file(text: str, path: Path) -> str:
    if PEM not in text:
        return text.strip()
    path.touch(0o600)
    path.write_text(text)
    return str(path)


def _named(text: str | None) -> str:
    return "" if text is None or PEM in text else f" {text!r}"
