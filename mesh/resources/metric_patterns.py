"""What ``spec.metrics`` of a Configuration says about labels: patterns of paths, and rules by regular expressions.

Source: Go, ``net/http`` patterns, and ``regexp`` expansion of templates, as Dapr 1.18 uses them.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import pairwise

from mesh.regular import Regular
from mesh.resources.configuration import Metrics

__all__ = ["PathPatterns", "metric_problems", "metric_warnings", "substitution"]

_PARAMETER = re.compile(r"\{[A-Za-z_][A-Za-z0-9_]*(?P<rest>\.\.\.)?\}\Z")
_TEMPLATE = re.compile(r"\$(?:\$|(?P<bare>[A-Za-z0-9_]+)|\{(?P<braced>[A-Za-z0-9_]+)\})")
_END = "{$}"


_Place = tuple[str | int, ...]


def metric_problems(metrics: Metrics | None, at: _Place) -> Iterator[tuple[str, _Place]]:
    """Find what cannot be meant, and say where it stands.

    Args:
        metrics: The section; None when there is none.
        at: Where it stands.
    """
    if metrics is None:
        return
    for index, pattern in enumerate(metrics.http.path_matching):
        try:
            _check_pattern(pattern)
            if pattern in metrics.http.path_matching[:index]:
                raise ValueError(f"the path '{pattern}' stands there before")
        except ValueError as error:
            yield str(error), (*at, "http", "pathMatching", index)
    bounds = metrics.latency_distribution_buckets
    if any(bound <= 0 for bound in bounds) or any(low >= high for low, high in pairwise(bounds)):
        yield "buckets are milliseconds above 0, each more than the one before", (*at, "latencyDistributionBuckets")
    for number, rule in enumerate(metrics.rules):
        for place, label in enumerate(rule.labels):
            for template, pattern in label.regex.items():
                try:
                    _compiled(pattern, template)
                except ValueError as error:
                    yield str(error), (*at, "rules", number, "labels", place, "regex", template)


def metric_warnings(metrics: Metrics | None, at: _Place) -> Iterator[tuple[str, _Place]]:
    """Find groups that a rule names and its expression has not: nothing takes their place, as in Go.

    Args:
        metrics: The section, without problems; None when there is none.
        at: Where it stands.
    """
    for number, rule in enumerate(() if metrics is None else metrics.rules):
        for place, label in enumerate(rule.labels):
            for template, pattern in label.regex.items():
                compiled = Regular(pattern)
                for found in _TEMPLATE.finditer(template):
                    name = found["bare"] or found["braced"]
                    if name is None or _group(compiled, name) is not None:
                        continue
                    number_of = re.match(r"\d+(?=\D)", name)
                    hint = f"; did you mean ${{{number_of[0]}}}{name[number_of.end() :]}?" if number_of else ""
                    text = f"'{pattern}' has no group '{name}', so that nothing takes the place of {found[0]}{hint}"
                    yield text, (*at, "rules", number, "labels", place, "regex", template)


def _check_pattern(pattern: str) -> None:
    """Refuse what is no pattern of paths.

    Raises:
        ValueError: Says why.
    """
    if not pattern.startswith("/"):
        raise ValueError(f"the path '{pattern}' does not begin with '/'")
    segments = pattern.split("/")[1:]
    for place, segment in enumerate(segments):
        last = place == len(segments) - 1
        if segment == _END and last:
            continue
        found = _PARAMETER.match(segment)
        if found is None and ("{" in segment or "}" in segment):
            raise ValueError(f"'{segment}' is no parameter; it is a whole segment such as {{id}}, in '{pattern}'")
        if found is not None and found["rest"] and not last:
            raise ValueError(f"'{segment}' takes the rest of a path and stands at its end, not within '{pattern}'")


class PathPatterns:
    """Finds the pattern of a path: segments as they are go before parameters, and those before the rest of a path."""

    def __init__(self, patterns: Sequence[str] = ()) -> None:
        """Use patterns that were checked."""
        self._patterns = sorted(((_ranks(each), each.split("/")[1:], each) for each in patterns), key=lambda it: it[0])

    def __bool__(self) -> bool:
        """Tell whether there are any."""
        return bool(self._patterns)

    def match(self, path: str) -> str | None:
        """Give the pattern of a path; None when there is none."""
        segments = path.split("/")[1:]
        return next((pattern for _, wanted, pattern in self._patterns if _matches(wanted, segments)), None)


def _ranks(pattern: str) -> list[int]:
    """Say where it is more exact than others: a segment, a parameter, the rest."""
    return [
        2 if segment == "" or segment.endswith("...}") else 1 if segment[0] == "{" and segment != _END else 0
        for segment in pattern.split("/")[1:]
    ]


def _matches(wanted: Sequence[str], segments: Sequence[str]) -> bool:
    for place, segment in enumerate(wanted):
        if (segment == "" and place == len(wanted) - 1) or segment.endswith("...}"):
            return len(segments) > place  # A pattern that ends with a slash takes what is below.
        if place >= len(segments):
            return False
        given = segments[place]
        if segment == _END:
            return given == "" and len(segments) == len(wanted)
        if segment[:1] == "{" and given:
            continue
        if segment != given:
            return False
    return len(segments) == len(wanted)


def _compiled(pattern: str, template: str) -> tuple[Regular, list[str | int]]:
    """Compile what replaces parts of a label; the template has ``$1`` and ``${name}``, as in Go.

    Raises:
        ValueError: It is no regular expression.
    """
    compiled = Regular(pattern)
    parts: list[str | int] = []
    at = 0
    for found in _TEMPLATE.finditer(template):
        parts.append(template[at : found.start()])
        at = found.end()
        name = found["bare"] or found["braced"]
        if name is None:
            parts.append("$")
        elif (number := _group(compiled, name)) is not None:  # One that is not there is nothing, as in Go.
            parts.append(number)
    return compiled, [*parts, template[at:]]


def _group(compiled: Regular, name: str) -> int | None:
    """Give the number of a group; None when there is no such group."""
    number = int(name) if name.isdecimal() else compiled.names.get(name, -1)
    return number if 0 <= number <= compiled.groups else None


def substitution(rules: Mapping[str, str]) -> Callable[[str], str]:
    """Make of patterns, by what takes the place of their matches, what changes a label."""
    compiled = [_compiled(pattern, template) for template, pattern in rules.items()]

    def change(value: str) -> str:
        for pattern, template in compiled:
            value = pattern.replaced(value, template)
        return value

    return change
