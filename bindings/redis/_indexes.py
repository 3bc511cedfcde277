"""Indexes of the server's search module, and queries of state in its language: what may match, decided without it."""

from __future__ import annotations

import re
from dataclasses import dataclass

import orjson

from mesh.query import All, Any, Compare, Filter

__all__ = ["Index", "Path", "narrowed", "parse_indexes"]

KINDS = ("TEXT", "NUMERIC", "TAG")
_WORD = re.compile(r"\b[A-Za-z0-9]{3,64}\b")  # The module has limits to the length of words.
_ONLY_WORDS = re.compile(r"[A-Za-z0-9 ]*")
MAX_TAG = 256
# What the module does not index, of three letters and more.
_STOP_WORDS = frozenset(
    {
        "and",
        "are",
        "but",
        "for",
        "into",
        "not",
        "such",
        "that",
        "the",
        "their",
        "then",
        "there",
        "these",
        "they",
        "this",
    }
    | {"was", "will", "with"}
)
# The module compares floating-point numbers, where an integer may be equal to one that is less.
_RANGES = {"GT": "[{0} +inf]", "GTE": "[{0} +inf]", "LT": "[-inf {0}]", "LTE": "[-inf {0}]", "EQ": "[{0} {0}]"}
MAX_EXACT = 2**53

Path = tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Index:
    """An index.

    Attributes:
        name: Its name.
        kinds: What each of its members is, by path.
    """

    name: str
    kinds: dict[Path, str]

    def schema(self) -> list[str]:
        """Give the words that declare its members."""
        words: list[str] = []
        for number, (path, kind) in enumerate(self.kinds.items()):
            words += [f"$.data.{'.'.join(path)}", "AS", f"var{number}", kind, "SORTABLE"]
        return words


def parse_indexes(text: str) -> tuple[Index, ...]:
    """Read ``queryIndexes``: ``[{"name":"…","indexes":[{"key":"person.org","type":"TEXT"}]}]``.

    Raises:
        ValueError: It is something else; the text says what.
    """
    shape = 'is JSON like [{"name":"orgs","indexes":[{"key":"person.org","type":"TEXT"}]}]'
    try:
        read = orjson.loads(text)
        if not isinstance(read, list):
            raise TypeError(text)
        found = [
            Index(str(each["name"]), {tuple(part["key"].split(".")): part["type"].upper() for part in each["indexes"]})
            for each in read
        ]
    except (orjson.JSONDecodeError, KeyError, TypeError, AttributeError):
        raise ValueError(shape) from None
    for each in found:
        if not each.name or not each.kinds:
            raise ValueError(shape)
        for path, kind in each.kinds.items():
            if kind not in KINDS:
                raise ValueError(f"has a type {kind!r}; there are {', '.join(KINDS)}")
            if not all(re.fullmatch(r"\w+", part) for part in path):
                raise ValueError(f"has a key {'.'.join(path)!r}, which is no path of names with dots between")
    return tuple(found)


def narrowed(condition: Filter | None, fields: dict[Path, tuple[str, str]]) -> str | None:
    """Translate a filter to a query of the module that finds all that match, and perhaps more.

    Args:
        condition: The filter.
        fields: Name and type of each member of the index, by path.

    Returns:
        The query; None finds everything.
    """
    match condition:
        case All(filters):
            parts = [part for each in filters if (part := narrowed(each, fields)) is not None]
            return " ".join(f"({part})" for part in parts) or None
        case Any(filters):
            found = [narrowed(each, fields) for each in filters]
            return None if None in found else " | ".join(f"({part})" for part in found)
        case Compare(operator, path, wanted) if path in fields and operator != "NEQ" and wanted:
            name, kind = fields[path]
            each_wanted = [_compared("EQ" if operator == "IN" else operator, kind, value) for value in wanted]
            return None if None in each_wanted else " | ".join(f"(@{name}:{part})" for part in each_wanted)
    return None


def _compared(operator: str, kind: str, wanted: object) -> str | None:
    if kind == "NUMERIC" and isinstance(wanted, (int, float)) and not isinstance(wanted, bool):
        return _RANGES[operator].format(wanted) if abs(wanted) <= MAX_EXACT else None
    if operator != "EQ" or not isinstance(wanted, str) or not _ONLY_WORDS.fullmatch(wanted):
        return None
    if kind == "TAG":
        tag = wanted.strip()
        return "{" + tag.replace(" ", "\\ ") + "}" if 0 < len(tag) <= MAX_TAG else None
    words = [word for word in _WORD.findall(wanted) if word.lower() not in _STOP_WORDS]
    return f"({' '.join(words)})" if kind == "TEXT" and words else None
