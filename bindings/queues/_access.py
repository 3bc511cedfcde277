"""What these bindings have in common in how they reach a server."""

from __future__ import annotations

import ssl
from pathlib import Path
from urllib.parse import urlsplit

from bindings.remote import tls_context

__all__ = ["hosts_of", "tls_of"]

PEM = "-----BEGIN"


def tls_of(ca: str, certificate: str, key: str, *, verify: bool = True) -> ssl.SSLContext:
    """Make a context of PEM texts or paths; it reads files, so it blocks.

    Raises:
        ValueError: One of them cannot be used, or one of certificate and key is missing.
    """
    if bool(certificate) != bool(key):
        raise ValueError("clientCert and clientKey go together")
    try:
        context = tls_context(*(_pem(each) if each else None for each in (ca, certificate, key)))
    except OSError as error:
        raise ValueError(f"the certificates cannot be used: {error}") from error
    if not verify:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return context


def _pem(given: str) -> str:
    return given if PEM in given else Path(given.strip()).read_text(encoding="utf-8")


def hosts_of(text: str, default_port: int) -> tuple[str, ...]:
    """Read ``host[:port][,host[:port]]…``; raises ValueError."""
    found = []
    for each in text.split(","):
        parts = urlsplit(f"//{each.strip()}")
        if parts.netloc != each.strip() or parts.username is not None or not parts.hostname or parts.port == 0:
            raise ValueError("is host:port[,host:port]…")
        host = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
        found.append(f"{host}:{parts.port or default_port}")
    return tuple(found)
