"""``mesh trust``: a root in a folder or a secret store, and certificates that prove who an application is."""

from __future__ import annotations

import asyncio
import datetime
import json
import os
import re
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from gateway.cli.parsing import Parser, UsageError
from gateway.cli.terminal import add_output_option, note, show, show_records
from mesh.home import mesh_home, write_private
from mesh.registry import needs
from mesh.trust.identity import DEFAULT_TRUST_DOMAIN, Identity
from mesh.values import parse_duration

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable, Sequence

    from cryptography import x509

    from mesh.trust.folder import Folder, Root

__all__ = ["parser", "run"]

_DAYS = re.compile(r"([0-9]{1,6})d")
_HEADING = {
    "trustDomain": "TRUST DOMAIN",
    "issues": "ISSUES",
    "notBefore": "NOT BEFORE",
    "notAfter": "NOT AFTER",
    "fingerprint": "FINGERPRINT",
}


def parser() -> Parser:
    """Describe the command line."""
    made = Parser(
        "mesh trust",
        description="Make a root, and certificates that prove who an application is.",
        epilog="mesh trust init          a root in MESH_HOME/trust: gateways with --trust-mode issue their own\n"
        "mesh trust issue shop    shop.pem, shop.key and roots.pem, for a gateway that has no root\n"
        "mesh trust rotate        a new root beside the old one; with --finish only the newest is trusted\n"
        "mesh trust init -o json  and the texts for a secret store, to be named by --trust-secret\n"
        "mesh trust show          who is trusted",
    )
    made.add_argument(
        "what", choices=("init", "issue", "rotate", "show"), metavar="init|issue|rotate|show", help="what to do"
    )
    made.add_argument("app_id", nargs="?", metavar="APP-ID", help="issue: the application")
    made.add_argument("--trust-dir", metavar="DIR", help="folder of the root (MESH_TRUST_DIR; MESH_HOME/trust)")
    made.add_argument(
        "--trust-secret", metavar="STORE/NAME", help="issue, rotate, show: root in a secret store (MESH_TRUST_SECRET)"
    )
    made.add_argument(
        "--resources-path", "-d", action="append", default=[], metavar="PATH", help="where that secret store is"
    )
    made.add_argument("--trust-domain", metavar="NAME", help="init: whose names it proves (MESH_TRUST_DOMAIN; public)")
    add_output_option(made)
    made.add_argument("--namespace", metavar="NAME", help="issue: the namespace (NAMESPACE; default)")
    made.add_argument("--ttl", metavar="DURATION", help="how long it counts, such as 12h or 30d (24h; of a root 3650d)")
    made.add_argument("--out", metavar="DIR", help="issue: where the files are written (.)")
    made.add_argument("--finish", action="store_true", help="rotate: trust the newest root alone, and make none")
    return made


def run(words: Sequence[str]) -> int:
    """Run the command."""
    found = parser().parse(words)
    if (found.app_id is not None) != (found.what == "issue"):
        raise UsageError("issue needs an app id" if found.what == "issue" else f"unexpected '{found.app_id}'")
    try:
        from mesh.trust import folder as folders
    except ImportError as error:
        raise needs("mesh trust", error.name or "") from error
    if found.what in ("init", "rotate") and found.output != "table":
        _check_output(found.output)
    secret = found.trust_secret or ("" if found.trust_dir else os.environ.get("MESH_TRUST_SECRET"))
    ttl = _ttl(found.ttl, folders.LEAF_TTL if found.what == "issue" else folders.ROOT_TTL)
    if secret and found.what != "init":
        _with_secret(found, secret, ttl)
        return 0
    given = found.trust_dir or os.environ.get("MESH_TRUST_DIR")
    folder = folders.Folder(Path(given).expanduser() if given else mesh_home(os.environ) / "trust")
    if found.what == "init":
        folder.init(found.trust_domain or os.environ.get("MESH_TRUST_DOMAIN") or DEFAULT_TRUST_DOMAIN, ttl)
        note(f"{folder.path} has a root of the trust domain {folder.trust_domain()}; keep root.key to yourself")
    elif found.what == "issue":
        _issue(found, folder.root(), ttl)
    elif found.what == "rotate":
        _rotate(folder, ttl, finish=found.finish)
    else:
        _show(found, folder.roots(), folder.issues)
    if found.what in ("init", "rotate") and found.output == "json":
        _show_texts(folder.root())
    return 0


def _check_output(output: str) -> None:
    """Refuse what would show a key by accident, before anything is done."""
    if output != "json":
        raise UsageError(f"init and rotate write json, not {output}")
    if sys.stdout.isatty():
        raise UsageError("--output json has the root's key, which a terminal would show: write to a file or a pipe")


def _with_secret(found: argparse.Namespace, secret: str, ttl: datetime.timedelta) -> None:
    """Do what is to be done with a root in a secret store, which is only read."""
    from gateway.settings import find_store
    from mesh.registry import Registry
    from mesh.trust.identity import RootSecret
    from mesh.trust.secret import read_root

    if found.trust_dir:
        raise UsageError("--trust-secret goes without --trust-dir")
    if found.what == "rotate" and found.output != "json":
        raise UsageError("secret stores are only read here: rotate --output json writes what the secret is to hold")
    try:
        named = RootSecret.parse(secret)
    except ValueError as error:
        raise UsageError(f"--trust-secret: {error}") from None
    namespace = found.namespace or os.environ.get("NAMESPACE")
    paths = [Path(path).expanduser() for path in found.resources_path]
    named = find_store(named, paths, namespace)
    root = asyncio.run(read_root(named, Registry(), namespace or "default", found.app_id or "mesh-trust"))
    if found.what == "issue":
        _issue(found, root, ttl)
    elif found.what == "show":
        _show(found, root.roots, lambda each: each == root.own())
    else:
        _show_texts(replace(root, roots=[root.own()]) if found.finish else root.rotated(ttl))


def _show_texts(root: Root) -> None:
    from mesh.trust.secret import texts_of

    show(json.dumps(texts_of(root)))
    note("a secret of these two names and texts is what --trust-secret STORE/NAME reads; see docs/trust.md")


def _ttl(text: str | None, default: datetime.timedelta) -> datetime.timedelta:
    if text is None:
        return default
    try:
        # Certificates last for days, which durations elsewhere do not have.
        days = _DAYS.fullmatch(text)
        seconds = 86400.0 * int(days[1]) if days else parse_duration(text, bare="s")
        if seconds <= 0:
            raise ValueError("must be above 0")
        return datetime.timedelta(seconds=seconds)
    except (ValueError, OverflowError) as error:
        raise UsageError(f"--ttl: {error}") from None


def _issue(found: argparse.Namespace, root: Root, ttl: datetime.timedelta) -> None:
    from mesh.trust.certificates import as_pem, key_as_pem, trust_domain_of

    namespace = found.namespace or os.environ.get("NAMESPACE") or "default"
    identity = Identity(trust_domain_of(root.roots[0]), namespace, found.app_id)
    issued = root.issue(identity, ttl)
    out = Path(found.out or ".")
    out.mkdir(parents=True, exist_ok=True)
    write_private(out / f"{identity.app_id}.key", key_as_pem(issued.key))
    write_private(out / f"{identity.app_id}.pem", as_pem(issued.chain))
    write_private(out / "roots.pem", as_pem(issued.roots))
    until = issued.chain[0].not_valid_after_utc
    note(f"{out / identity.app_id}.pem and .key prove to be {identity} until {until:%Y-%m-%d %H:%M} UTC")


def _rotate(folder: Folder, ttl: datetime.timedelta, *, finish: bool) -> None:
    if finish:
        note(f"{folder.finish()} roots are trusted no more")
        return
    folder.rotate(ttl)
    note(f"{folder.path} has a new root; the former one is trusted until it expires, or: mesh trust rotate --finish")


def _show(
    found: argparse.Namespace, roots: Sequence[x509.Certificate], issues: Callable[[x509.Certificate], bool]
) -> None:
    from mesh.trust.certificates import fingerprint_of, trust_domain_of

    records: list[dict[str, object]] = [
        {
            "trustDomain": trust_domain_of(root),
            "issues": issues(root),
            "notBefore": f"{root.not_valid_before_utc:%Y-%m-%dT%H:%M:%SZ}",
            "notAfter": f"{root.not_valid_after_utc:%Y-%m-%dT%H:%M:%SZ}",
            "fingerprint": fingerprint_of(root),
        }
        for root in roots
    ]
    show_records(records, found.output, _HEADING)
