"""What of a component's settings must not be shown, and texts of others without it.

A component declares no settings, and may tell of a failure in a library's words, which quote what it was given. A
setting counts as secret when its text came from a secret store or the environment, or when its name says so; in any
setting the password of a URL and the secret parts of a connection string do.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from urllib.parse import quote, quote_plus, unquote

from mesh.resources.component import MetadataEntry, Secret
from mesh.urls import HIDDEN

__all__ = ["hiding"]

_NAME = re.compile(
    r"auth|(access|account|api|private|shared|encryption|master).?key|certificate|connection.?(string|url)|cred|dsn"
    r"|passphrase|passw|pwd|secret|signature|token",
    re.IGNORECASE,
)
_PARTS = re.compile(
    r"://[^/@\s]*?:([^/@\s]+)@|(?:passw\w*|pwd|\w*key|\w*secret|\w*token|\w*signature|sig)\s*=\s*([^;&\s]+)",
    re.IGNORECASE,
)
LEAST = 4  # Characters: "1" or "on" under a telling name is a switch, and would be found in every word.
SWITCHES = frozenset({"true", "false", "none", "null"})


def hiding(entries: Iterable[MetadataEntry]) -> Callable[[str], str]:
    """Give what blots a component's secrets out of a text, also where they are escaped."""
    secrets: set[str] = set()
    for entry in entries:
        text = entry.text() or ""
        if isinstance(entry.value, Secret) or (_NAME.search(entry.name) and _tells(text)):
            secrets.add(text)
        secrets.update(part for found in _PARTS.findall(text) for part in found if _tells(part))
    forms = {form for text in secrets for form in _forms(text) if form.strip()}
    if not forms:
        return str
    found = re.compile("|".join(re.escape(form) for form in sorted(forms, key=len, reverse=True)))
    return lambda text: found.sub(HIDDEN, text)


def _tells(text: str) -> bool:
    return len(text) >= LEAST and text.lower() not in SWITCHES


def _forms(text: str) -> set[str]:
    """Give a text as a program may show it."""
    escaped = text.encode("unicode_escape").decode()
    plain = {text, text.strip(), unquote(text), escaped, escaped.replace('"', '\\"'), escaped.replace("'", "\\'")}
    return plain | {quote(text), quote(text, safe=""), quote_plus(text)}
