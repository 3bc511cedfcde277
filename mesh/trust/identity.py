"""Names that can be proven, and where a node's proof comes from."""

from __future__ import annotations

import ipaddress
import re
import stat
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal
from urllib.parse import urlsplit

from mesh.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mesh.resources.component import Component

__all__ = [
    "DEFAULT_TRUST_DOMAIN",
    "MODES",
    "CrowdedError",
    "Identity",
    "ProveAgainError",
    "ReplayedError",
    "RootSecret",
    "TrustSettings",
    "is_open",
    "target_of",
]

DEFAULT_TRUST_DOMAIN = "public"
MODES = ("off", "permissive", "strict")
_SEGMENT = re.compile(r"[A-Za-z0-9._-]{1,128}")
_DOMAIN = re.compile(r"[a-z0-9._-]{1,255}")
_URI = re.compile(
    r"spiffe://(?P<domain>[a-z0-9._-]{1,255})/ns/(?P<ns>[A-Za-z0-9._-]{1,128})/(?P<app>[A-Za-z0-9._-]{1,128})"
)
_DOTS = frozenset((".", ".."))


class ProveAgainError(Exception):
    """A request was proven or sealed by a secret that the callee does not have, or may be one that it has forgotten.

    Nothing was done. Signed, made for who asks, and sealed to it, it is taken.

    Attributes:
        at: Where the callee can be sent it, if that matters.
    """

    def __init__(self, reason: str, at: str = "") -> None:
        self.at = at
        super().__init__(reason)


class ReplayedError(Exception):
    """It came already."""


class CrowdedError(Exception):
    """A request was not taken, since there were too many: whether it came already is forgotten.

    Attributes:
        session: Proves the answer to it.
    """

    def __init__(self, session: Any) -> None:
        self.session = session
        super().__init__("there were too many to remember whether it came already")


@dataclass(frozen=True, slots=True)
class Identity:
    """Who somebody is.

    Attributes:
        trust_domain: Whose roots say so.
        namespace: The mesh's namespace.
        app_id: The app id.
    """

    trust_domain: str
    namespace: str
    app_id: str

    def __post_init__(self) -> None:
        if not _DOMAIN.fullmatch(self.trust_domain):
            raise ConfigError(f"trust domain {self.trust_domain!r} has other than a-z, 0-9, '.', '_' and '-'")
        for what, text in (("namespace", self.namespace), ("app id", self.app_id)):
            if not _SEGMENT.fullmatch(text) or text in _DOTS:
                raise ConfigError(f"{what} {text!r} can be no part of a SPIFFE id: letters, digits, '.', '_' and '-'")

    def __str__(self) -> str:
        return f"spiffe://{self.trust_domain}/ns/{self.namespace}/{self.app_id}"

    @classmethod
    def parse(cls, uri: str) -> Identity | None:
        """Read a SPIFFE id; None when it is none of an application."""
        found = _URI.fullmatch(uri)
        if found is None or found["ns"] in _DOTS or found["app"] in _DOTS:
            return None
        return cls(found["domain"], found["ns"], found["app"])


@dataclass(frozen=True, slots=True)
class RootSecret:
    """A root in a secret store.

    Attributes:
        store: The store's name.
        name: The secret's.
        component: The store; None = it was not looked for yet.
    """

    store: str
    name: str
    component: Component | None = None

    def __str__(self) -> str:
        return f"{self.store}/{self.name}"

    @classmethod
    def parse(cls, text: str) -> RootSecret:
        """Read ``STORE/NAME``, of which the name may have slashes; raises ``ValueError``."""
        store, _, name = text.partition("/")
        if not store or not name:
            raise ValueError(f"'{text}' is not STORE/NAME, a secret store and one of its secrets")
        return cls(store, name)

    def among(self, components: Sequence[Component]) -> RootSecret:
        """Find the store; raises ``ConfigError``."""
        stores = [each for each in components if each.block == "secretstores"]
        found = [each for each in stores if each.name == self.store]
        if len(found) != 1:
            named = ", ".join(sorted({each.name for each in stores})) or "none"
            what = "no secret store" if not found else f"{len(found)} secret stores"
            raise ConfigError(
                f"the root is in {self}, and the resources have {what} {self.store!r}; they have: {named}"
            )
        return replace(self, component=found[0])


@dataclass(frozen=True, slots=True)
class TrustSettings:
    """How a node proves who it is, and what it asks of others.

    Attributes:
        mode: ``permissive`` takes what is not proven as well; ``strict`` refuses it.
        trust_domain: The only one whose names count.
        folder: A root, as ``mesh trust init`` makes it; the node issues its own certificate.
        certificate: A chain, the node's own first (PEM); with ``key`` and ``roots``, in place of a folder.
        key: Its private key (PEM).
        roots: Who is trusted (PEM).
        socket: Where a SPIFFE Workload API is, as ``unix:///path`` or ``tcp://address:port``; in place of all of these.
        secret: A root in a secret store, in place of a folder.
        hosts: App ids that may answer for components; empty = each of the namespace.
        seal: Whether all that is sent in calls is encrypted for whoever has an identity.
    """

    mode: Literal["permissive", "strict"]
    trust_domain: str = DEFAULT_TRUST_DOMAIN
    folder: Path | None = None
    certificate: Path | None = None
    key: Path | None = None
    roots: Path | None = None
    socket: str = ""
    secret: RootSecret | None = None
    hosts: frozenset[str] = frozenset()
    seal: bool = False

    def open_keys(self) -> list[Path]:
        """Find private keys that other users of this machine can read, or replace; blocks."""
        keys = [] if self.folder is None else sorted(self.folder.glob("root.key*"))
        keys += [] if self.key is None else [self.key]
        return [each for each in keys if is_open(each)]


def is_open(file: Path, to: int = stat.S_IRWXG | stat.S_IRWXO) -> bool:
    """Tell whether other users can do with a file what these bits of a mode say; blocks.

    Who may not search a folder on the way reaches nothing in it, whatever the file's own mode is.
    """
    try:
        mode = file.stat().st_mode
        ways = [each.stat().st_mode for each in file.resolve().parents]
    except (OSError, ValueError):
        return False  # It cannot be looked at: whoever uses it finds out.
    return stat.S_ISREG(mode) and mode & to != 0 and all(each & (stat.S_IXGRP | stat.S_IXOTH) for each in ways)


def target_of(address: str) -> str:
    """Give the target of gRPC for the address of a Workload API; raises ``ValueError``."""
    url = urlsplit(address)
    bare = not (url.query or url.fragment)
    if url.scheme == "unix" and bare and not url.netloc and url.path.startswith("/"):
        return f"unix:{url.path}"
    if url.scheme == "tcp" and bare and not url.path and "@" not in url.netloc and url.port:
        host = ipaddress.ip_address(url.hostname or "")
        return f"ipv4:{host}:{url.port}" if host.version == 4 else f"ipv6:[{host}]:{url.port}"
    raise ValueError("it is neither unix:///path nor tcp://address:port")
