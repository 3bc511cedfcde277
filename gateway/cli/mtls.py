"""``mesh mtls``."""

from __future__ import annotations

import argparse
import asyncio
import datetime
from pathlib import Path
from typing import TYPE_CHECKING

from gateway.cli.parsing import Parser, UsageError
from gateway.cli.platform import load_platform
from gateway.cli.terminal import note, show
from mesh.errors import ConfigError, Problem
from mesh.trust.certificates import fingerprint_of, read_certificates, trust_domain_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from cryptography import x509

__all__ = ["parser", "run"]

FILE = "ca.crt"
_UNREAD = ("--private-key", "--ca-root-certificate", "--issuer-private-key", "--issuer-public-certificate", "--timeout")


def parser() -> Parser:
    """Describe the command line."""
    made = Parser(
        "mesh mtls",
        description="Show, export or renew whom the gateways of a cluster trust.",
        epilog="mesh mtls -k                        whether gateways prove who they are, and until when\n"
        "mesh mtls export -k -o DIR          the roots, as a file\n"
        "mesh mtls expiry -k                 when the newest root ends\n"
        "mesh mtls renew-certificate -k      a new root; the former ones are trusted until they end",
    )
    words = ("show", "export", "expiry", "renew-certificate")
    made.add_argument("what", nargs="?", choices=words, default="show", metavar="|".join(words), help="what to do")
    made.add_kubernetes("where it is installed (mesh-system)")
    made.add_argument("-o", "--out", metavar="DIR", default=".", help="export: the folder")
    for name in _UNREAD:
        made.add_argument(name, help=argparse.SUPPRESS)
    made.add_argument("--valid-until", help=argparse.SUPPRESS)
    made.add_argument("--restart", action="store_true", help=argparse.SUPPRESS)
    return made


def run(words: Sequence[str]) -> int:
    """Run the command."""
    found = parser().parse(words)
    if not found.kubernetes:
        raise UsageError("of a cluster: mesh mtls -k; elsewhere mesh trust makes roots and certificates", "mesh mtls")
    platform = load_platform()
    namespace = found.namespace or platform.namespace
    renewing = found.what == "renew-certificate"
    pem = asyncio.run(platform.renew_root(namespace) if renewing else platform.roots(namespace))
    if pem is None:
        if found.what == "show":
            show(f"Identities are off in {namespace}, or nothing is installed there.")
            return 0
        raise ConfigError(Problem(f"there are no roots in {namespace}; see: mesh status -k"))
    roots = read_certificates(pem, f"the roots of {namespace}")
    if found.what == "export":
        folder = Path(found.out).expanduser()
        folder.mkdir(parents=True, exist_ok=True)
        (folder / FILE).write_bytes(pem)
        show(f"{folder / FILE}: {len(roots)} trusted")
    elif found.what == "expiry":
        left = roots[0].not_valid_after_utc - datetime.datetime.now(datetime.UTC)
        show(f"The newest root ends in {left.days} days, on {roots[0].not_valid_after_utc.isoformat()}")
    else:
        show("\n".join(_told(each) for each in roots))
        if renewing:
            note("gateways get certificates of the new root as theirs are renewed; none has to be restarted")
    return 0


def _told(root: x509.Certificate) -> str:
    ends = root.not_valid_after_utc.isoformat()
    return f"{trust_domain_of(root)}  until {ends}  {fingerprint_of(root)}"
