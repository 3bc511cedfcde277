"""Regular expressions of who configures, for texts of who calls: RE2, as in Dapr.

The time it takes grows with the text alone, whatever the expression: nobody can choose a text that it never ends with.

Source: RE2's syntax, which is that of Go.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

__all__ = ["Regular"]


class Regular:
    """One expression; bytes that are no text count as question marks.

    Attributes:
        groups: How many there are.
        names: Those that have a name, and their numbers.
    """

    def __init__(self, text: str) -> None:
        """Compile it.

        Raises:
            ValueError: It is none; or RE2 is not installed.
        """
        try:
            import re2  # Loaded where there is an expression.
        except ImportError as error:
            from mesh.registry import needs

            raise ValueError(str(needs("a regular expression", error.name or ""))) from error
        options = re2.Options()
        options.log_errors = False
        try:
            self._compiled: Any = re2.compile(text, options)
        except (re2.error, UnicodeEncodeError) as error:
            why = error.args[0]
            told = why.decode("utf-8", "replace") if isinstance(why, bytes) else "it is no text"
            raise ValueError(f"'{text}' is no regular expression: {told}") from None
        self.groups: int = self._compiled.groups
        self.names: dict[str, int] = dict(self._compiled.groupindex)

    def found_in(self, text: str) -> bool:
        """Tell whether it matches somewhere."""
        return self._compiled.search(_text(text)) is not None

    def whole(self, text: str) -> tuple[str | None, ...] | None:
        """Match all of a text; gives that and what each group has, or None."""
        found = self._compiled.fullmatch(_text(text))
        return None if found is None else (found.group(), *found.groups())

    def replaced(self, text: str, template: list[str | int]) -> str:
        """Put a template in the place of each match, as Go does.

        Args:
            text: In which.
            template: Texts, and numbers of groups.
        """
        text = _text(text)
        made: list[str] = []
        at = 0
        for start, end, groups in self._matches(text):
            made.append(text[at:start])
            made += [each if isinstance(each, str) else groups[each] or "" for each in template]
            at = end
        return "".join((*made, text[at:]))

    def _matches(self, text: str) -> Iterator[tuple[int, int, tuple[str | None, ...]]]:
        last = -1
        for found in self._compiled.finditer(text):
            start, end = found.span()
            if not start == end == last:  # An empty one behind another is none.
                yield start, end, (found.group(), *found.groups())
            last = end


def _text(given: str) -> str:
    return given if given.isascii() else given.encode("utf-8", "replace").decode()
