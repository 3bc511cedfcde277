"""URLs of backbones, as they may be shown, and hosts in URLs."""

from __future__ import annotations

import re
from urllib.parse import urlsplit

__all__ = ["HIDDEN", "in_url", "is_local", "names_a_host", "port_of", "without_credentials"]

HIDDEN = "***"  # Stands in the place of a secret.


def in_url(host: str) -> str:
    """Write a host as it stands in a URL: an address of IPv6 in brackets."""
    return f"[{host}]" if ":" in host and not host.startswith("[") else host


def is_local(host: str) -> bool:
    """Tell whether a name or an address is this machine's own."""
    if host.casefold() == "localhost" or host.casefold().endswith(".localhost"):
        return True
    import ipaddress  # Most processes do without.

    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def names_a_host(place: str) -> bool:
    """Tell whether a URL, or a ``host:port``, says where something is."""
    try:
        parts = urlsplit(place if "://" in place else f"//{place}")
        return bool(parts.hostname) and parts.port != 0
    except ValueError:
        return False


def port_of(place: str) -> int | None:
    """Give the port of what `names_a_host`; None if it says none."""
    return urlsplit(place if "://" in place else f"//{place}").port


def without_credentials(url: str) -> str:
    """Show where a backbone's URL points: no login, and no options, which may hold another one.

    It need not be a URL that an adapter takes; where it is not clear what is a secret, nothing is shown.
    """
    scheme, mark, rest = url.partition("://")
    if not mark:
        return url
    servers, _, options = rest.partition("?")
    if "@" in options:  # A login with a question mark that should have been escaped.
        return f"{scheme}://{HIDDEN}"
    parts = (part.rpartition("@") for part in re.split(rf",\s*{re.escape(scheme)}://", servers))
    return f"{scheme}://" + ",".join(f"{HIDDEN}@{place}" if at else place for _, at, place in parts)
