"""Writing for people and for scripts: results on standard output, everything else on standard error."""

from __future__ import annotations

import json
import os
import sys
from typing import TYPE_CHECKING, Literal

from gateway.cli.reference import as_typed, failed_for_dapr

if TYPE_CHECKING:
    import argparse
    from collections.abc import Mapping, Sequence

__all__ = [
    "Format",
    "Progress",
    "add_output_option",
    "age",
    "byte_size",
    "colours_wanted",
    "complain",
    "members",
    "note",
    "on_one_line",
    "show",
    "show_document",
    "show_members",
    "show_records",
    "table",
]

_KIBI = 1024
Format = Literal["table", "json", "yaml"]


def colours_wanted(environ: Mapping[str, str], *, terminal: bool) -> bool:
    """Tell whether to write colours. Source: no-color.org, force-color.org."""
    if environ.get("NO_COLOR"):
        return False
    return bool(environ.get("FORCE_COLOR")) or (terminal and environ.get("TERM") != "dumb")


def show(text: str) -> None:
    """Write a line of the result."""
    sys.stdout.write(f"{text}\n")


def note(text: str) -> None:
    """Write a line beside the result."""
    sys.stderr.write(f"{as_typed(text)}\n")


def complain(text: str) -> None:
    """Write what went wrong, and what to do next."""
    text = as_typed(text)
    if failed_for_dapr(text):
        return
    label = "\x1b[31merror:\x1b[0m" if colours_wanted(os.environ, terminal=sys.stderr.isatty()) else "error:"
    sys.stderr.write(f"{label} {text}\n")


class Progress:
    """Tells people beside the result how far something is; gone when left, and silent where nobody watches."""

    def __init__(self, *, wanted: bool = True) -> None:
        """Tell on a terminal, if that is wanted."""
        self._tells, self._last = wanted and sys.stderr.isatty(), ""

    def __enter__(self) -> Progress:
        """Begin."""
        return self

    def __exit__(self, kind: type[BaseException] | None, *exc_info: object) -> None:
        """Take away what was told; who interrupts it learns how far it was."""
        last = self._last
        self("")
        if last and kind is not None and not issubclass(kind, Exception):
            note(f"interrupted: {last}")

    def __call__(self, text: str) -> None:
        """Tell this in place of what was told before."""
        self._last = text
        if self._tells:
            sys.stderr.write(f"\r\x1b[K{text}")
            sys.stderr.flush()


def table(rows: Sequence[Sequence[str]]) -> str:
    """Align columns; the first row is the heading. What would act on the terminal is shown as a sign for it."""
    rows = [[on_one_line(cell) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in rows)
    return "\n".join(line.rstrip() for line in lines)


def on_one_line(text: str) -> str:
    """Give a text of others, which may hold anything, as it does nothing to a terminal."""
    return text if text.isprintable() else "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text)


def age(seconds: float) -> str:
    """Give a span in its largest unit: ``5m``."""
    for size, unit in ((86400, "d"), (3600, "h"), (60, "m")):
        if seconds >= size:
            return f"{int(seconds // size)}{unit}"
    return f"{int(max(seconds, 0))}s"


def byte_size(number: int) -> str:
    """Write a number of bytes in its largest unit."""
    size = float(number)
    for unit in ("B", "KiB", "MiB"):
        if size < _KIBI:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= _KIBI
    return f"{size:.1f} GiB"


def add_output_option(parser: argparse.ArgumentParser) -> None:
    """Add ``-o/--output``, and what dapr takes with it that changes nothing here."""
    from argparse import SUPPRESS  # Imported here: help of all commands does without.

    parser.add_argument("-o", "--output", choices=("table", "json", "yaml"), default="table", help="how it is written")
    if not getattr(parser, "for_clusters", False):
        parser.add_argument("-k", "--kubernetes", action="store_true", help="not supported")
        parser.add_argument("--namespace", help=SUPPRESS)


def show_document(value: object, output: Format) -> bool:
    """Write a value, if that is wanted as JSON or YAML; tells whether it was."""
    if output == "json":
        show(json.dumps(value, indent=2))
    elif output == "yaml":
        import yaml

        show(yaml.safe_dump(value, sort_keys=False).rstrip())
    return output != "table"


def members(record: Mapping[str, object]) -> Sequence[tuple[str, str]]:
    """Give the rows of a table of one record: a row for each member."""
    return [(key, value if isinstance(value, str) else json.dumps(value)) for key, value in record.items()]


def show_members(record: Mapping[str, object], output: Format) -> None:
    """Write one record: as a table, a line for each member."""
    if not show_document(record, output):
        show(table(members(record)))


def show_records(records: Sequence[Mapping[str, object]], output: Format, heading: Mapping[str, str]) -> None:
    """Write records as a table, JSON or YAML.

    Args:
        records: What to write.
        output: As JSON and YAML, all of it.
        heading: Columns of the table by the key that they show.
    """
    if not show_document(list(records), output):
        rows = [["" if record.get(key) is None else str(record[key]) for key in heading] for record in records]
        show(table([list(heading.values()), *rows]))
