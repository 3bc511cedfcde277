"""A root of a mesh in a folder: ``root.key``, and ``roots.pem`` with all that are trusted, the newest first."""

from __future__ import annotations

import datetime
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ed25519

from mesh.errors import ConfigError, UnprovenError
from mesh.home import write_private
from mesh.trust.certificates import (
    Key,
    as_pem,
    certify,
    check_chain,
    issue,
    key_as_pem,
    make_root,
    read_certificates,
    read_key,
    trust_domain_of,
)
from mesh.trust.identity import Identity
from mesh.values import parse_trust_domain

__all__ = ["LEAF_TTL", "ROOT_TTL", "Folder", "Issued", "Root", "live"]

ROOT_TTL = datetime.timedelta(days=3650)
LEAF_TTL = datetime.timedelta(hours=24)


@dataclass(frozen=True, slots=True)
class Issued:
    """A certificate with its key, and who is trusted.

    Attributes:
        chain: The node's own first.
        key: Its private key.
        roots: Who is trusted.
    """

    chain: Sequence[x509.Certificate]
    key: Key
    roots: Sequence[x509.Certificate]

    def check(self, identity: Identity, where: str, key_where: str = "") -> None:
        """Find at start what others would refuse later.

        Args:
            identity: Whose it must be.
            where: The chain is from.
            key_where: The key is from, if that is elsewhere.

        Raises:
            ConfigError: It is of no use.
        """
        try:
            found = check_chain(self.chain, self.roots, identity.trust_domain)
        except UnprovenError as error:
            raise ConfigError(f"{where}: {error}") from None
        if found != identity:
            raise ConfigError(f"{where} is of {found}; this node is {identity}")
        if self.chain[0].public_key() != self.key.public_key():
            raise ConfigError(f"{key_where or 'the key'} is not the key of the certificate in {where}")

    def half(self) -> datetime.datetime:
        """Give when half of the certificate's life is over."""
        leaf = self.chain[0]
        return leaf.not_valid_before_utc + (leaf.not_valid_after_utc - leaf.not_valid_before_utc) / 2

    def ending(self) -> str:
        """Give when the certificate ends, if three quarters of its life are over; else nothing."""
        ends = [(each.not_valid_after_utc, each.not_valid_before_utc) for each in self.chain]
        end, begin = min(ends)
        over = datetime.datetime.now(datetime.UTC) >= end - (end - begin) / 4
        return end.isoformat(timespec="seconds") if over else ""


@dataclass(frozen=True, slots=True)
class Root:
    """What certificates are issued by.

    Attributes:
        roots: All that are trusted, the newest first.
        key: The private key of one of them.
        where: The roots are from.
        key_where: The key is from.
    """

    roots: Sequence[x509.Certificate]
    key: Key
    where: str
    key_where: str

    def issue(self, identity: Identity, ttl: datetime.timedelta = LEAF_TTL) -> Issued:
        """Make a certificate; raises ``ConfigError``, as where another trust domain is asked for."""
        self._check_domain(identity)
        leaf, key = issue(identity, self.own(), self.key, ttl)
        return Issued((leaf,), key, self.roots)

    def certify(
        self, identity: Identity, key: ed25519.Ed25519PublicKey, ttl: datetime.timedelta = LEAF_TTL
    ) -> x509.Certificate:
        """Make a certificate for a key of somebody else; raises ``ConfigError`` as `issue` does."""
        self._check_domain(identity)
        return certify(identity, key, self.own(), self.key, ttl)

    def _check_domain(self, identity: Identity) -> None:
        trust_domain = trust_domain_of(self.roots[0])
        if identity.trust_domain != trust_domain:
            raise ConfigError(f"the root in {self.where} is of the trust domain {trust_domain}, not of {identity}")

    def own(self) -> x509.Certificate:
        """Find the root that the key is of; raises ``ConfigError``."""
        own = next((each for each in self.roots if each.public_key() == self.key.public_key()), None)
        if own is None:
            raise ConfigError(f"{self.key_where} is not of a root in {self.where}")
        return own

    def rotated(self, ttl: datetime.timedelta = ROOT_TTL) -> Root:
        """Make a new root beside the others but for those that have expired; raises ``ConfigError``."""
        self.own()
        root, key = make_root(trust_domain_of(self.roots[0]), ttl)
        return replace(self, roots=[root, *live(self.roots)], key=key)


def live(roots: Sequence[x509.Certificate]) -> list[x509.Certificate]:
    """Leave out roots that have expired."""
    now = datetime.datetime.now(datetime.UTC)
    return [each for each in roots if each.not_valid_after_utc > now]


@dataclass(frozen=True, slots=True)
class Folder:
    """Where the root is; all functions block."""

    path: Path

    @property
    def key_file(self) -> Path:
        """Where the newest root's private key is."""
        return self.path / "root.key"

    @property
    def roots_file(self) -> Path:
        """Where all trusted roots are."""
        return self.path / "roots.pem"

    def roots(self) -> list[x509.Certificate]:
        """Read who is trusted, the newest first; raises ``ConfigError``."""
        try:
            return read_certificates(self.roots_file.read_bytes(), str(self.roots_file))
        except FileNotFoundError:
            raise ConfigError(f"there is no root in {self.path}; mesh trust init makes one") from None

    def trust_domain(self) -> str:
        """Read whose root it is; raises ``ConfigError``."""
        return trust_domain_of(self.roots()[0])

    def issues(self, root: x509.Certificate) -> bool:
        """Tell whether certificates are issued by a root: whether its key is here."""
        if not self.key_file.exists():
            return False
        return read_key(self.key_file.read_bytes(), str(self.key_file)).public_key() == root.public_key()

    def init(self, trust_domain: str, ttl: datetime.timedelta = ROOT_TTL) -> None:
        """Make a root of a trust domain, in lower case; raises ``ConfigError`` when there is one, or no such domain."""
        try:
            trust_domain = parse_trust_domain(trust_domain)
        except ValueError as error:
            raise ConfigError(str(error)) from None
        self._complete()
        if self.roots_file.exists() or self.key_file.exists():
            raise ConfigError(f"{self.path} holds a root already; mesh trust rotate makes another one beside it")
        self.path.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._begin(*make_root(trust_domain, ttl), [])

    def rotate(self, ttl: datetime.timedelta = ROOT_TTL) -> None:
        """Make a new root beside the others, which stay trusted until they expire or `finish` is called.

        One that was begun, and broke off, is completed instead.

        Raises:
            ConfigError: There is none, or none that the key is of.
        """
        if self._complete():
            return
        if not self.key_file.exists() and self.roots_file.exists():
            raise ConfigError(f"{self.path} has no key of its root; what issues for it is to make the next one")
        new = self.root().rotated(ttl)
        self._begin(new.roots[0], new.key, new.roots[1:])

    def _begin(self, root: x509.Certificate, key: Key, others: Sequence[x509.Certificate]) -> None:
        """First all trust it, then it is used: in between the old one still issues, and nothing is lost."""
        write_private(self._next_key_file, key_as_pem(key))
        write_private(self.roots_file, as_pem([root, *others]))
        self._next_key_file.replace(self.key_file)

    def _complete(self) -> bool:
        """Use the key of a root that is trusted already; tell whether there was one."""
        if not self._next_key_file.exists() or not self.roots_file.exists():
            return False
        try:
            key = read_key(self._next_key_file.read_bytes(), str(self._next_key_file))
        except ConfigError:
            return False
        if all(each.public_key() != key.public_key() for each in self.roots()):
            return False  # It broke off before anybody trusted it.
        self._next_key_file.replace(self.key_file)
        return True

    @property
    def _next_key_file(self) -> Path:
        return self.path / "root.key.next"

    def finish(self) -> int:
        """Trust the newest root alone, that which issues if one does; give how many are trusted no more.

        Raises:
            ConfigError: There is none, or the key is of none of them.
        """
        self._complete()
        roots = self.roots()
        kept = self.root().own() if self.key_file.exists() else roots[0]
        write_private(self.roots_file, as_pem([kept]))
        return len(roots) - 1

    def root(self) -> Root:
        """Read what certificates are issued by; raises ``ConfigError``."""
        roots = self.roots()
        try:
            key = read_key(self.key_file.read_bytes(), str(self.key_file))
        except FileNotFoundError:
            raise ConfigError(f"{self.path} has no key of its root, so it issues nothing") from None
        return Root(roots, key, str(self.roots_file), str(self.key_file))

    def issue(self, identity: Identity, ttl: datetime.timedelta = LEAF_TTL) -> Issued:
        """Make a certificate; raises ``ConfigError``, as where another trust domain is asked for."""
        return self.root().issue(identity, ttl)
