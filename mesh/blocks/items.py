"""Items of state as applications write them: their options, and when they expire."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from msgspec.structs import replace

from mesh.errors import StateError
from mesh.store import Concurrency, Item
from mesh.values import parse_whole

__all__ = ["CONSISTENCIES", "completed", "named", "named_options", "options_of"]

# As gRPC numbers them.
CONSISTENCIES = ("", "eventual", "strong")
CONCURRENCIES = ("", "first-write", "last-write")


def named(names: Sequence[str], number: int) -> str:
    """Give the name of a number; one that has none is its own."""
    return names[number] if 0 <= number < len(names) else str(number)


def named_options(concurrency: int, consistency: int) -> Mapping[str, object]:
    """Give the options of a message the names that they have in JSON."""
    return {"concurrency": named(CONCURRENCIES, concurrency), "consistency": named(CONSISTENCIES, consistency)}


def options_of(options: Mapping[str, object]) -> tuple[Concurrency | None, bool]:
    """Read concurrency, and whether consistency is strong; raises ``StateError``."""
    consistency = options.get("consistency") or ""
    if not isinstance(consistency, str) or consistency not in CONSISTENCIES:
        raise StateError(f"unrecognized consistency {consistency!r}")
    concurrency = options.get("concurrency") or ""
    try:
        return Concurrency(str(concurrency)) if concurrency else None, consistency == "strong"
    except ValueError:
        raise StateError(f"unrecognized concurrency {concurrency!r}") from None


def completed(item: Item, options: Mapping[str, object]) -> Item:
    """Read an item's options, and of its metadata when it expires; raises ``StateError``."""
    text = next((value for name, value in item.metadata.items() if name.lower() == "ttlinseconds"), None)
    try:
        concurrency, strong = options_of(options)
        ttl = None if text is None else _ttl(text)
    except StateError as error:
        raise StateError(f"key {item.key}: {error}") from None
    return replace(item, concurrency=concurrency, ttl=ttl, strong=strong)


def _ttl(text: str) -> float | None:
    try:
        seconds = parse_whole(text, least=-1, most=2**31 - 1)
    except ValueError as error:
        raise StateError(f"ttlInSeconds is {error}") from None
    return None if seconds <= 0 else float(seconds)
