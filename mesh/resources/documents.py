"""YAML documents with positions, and their validation into strict models.

Every problem is a `Problem` with file, line and column, added to the caller's list, so that all of
them are seen at once. This is for any YAML file the project reads, not only for resources: a model
is a `FileModel`; what it contains may be plain frozen dataclasses.

YAML is read as Go's libraries read it for Dapr: no sexagesimal numbers, no dates, keys without
regard to case, and a key without a value is as good as no key.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TYPE_CHECKING, ClassVar, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from mesh.errors import Problem
from mesh.resources.fields import described
from mesh.resources.shapes import Decimal, fitted, keys, owners, wire_name
from mesh.spelling import did_you_mean, protects

if TYPE_CHECKING:
    from pathlib import Path

    from pydantic_core import ErrorDetails

__all__ = ["Document", "Effect", "FileModel", "is_empty", "parse_documents", "read_documents", "validate"]

Location = Sequence[str | int]
_MAX_NODES = 100_000  # Far above any real file; aliases of aliases would otherwise fill the memory.
_SEXAGESIMAL = re.compile(r"[-+0-9_.]+:")
_MERGE = "tag:yaml.org,2002:merge"
_MISSING = "missing"
_PARENT = re.compile(r"(\w+\..+)[.\[][^.\[]*")  # Not the top and its sections: not all of them follows from one field.
_PRIVATE = "x-"  # Keys that begin so are the user's own, as in other files that people write; anchors stand there.
_EXPECTED = {
    "bool_type": "true or false",
    "dataclass_type": "a mapping",
    "dict_type": "a mapping",
    "float_type": "a number",
    "int_from_float": "a whole number",
    "int_type": "a whole number",
    "list_type": "a list",
    "mapping_type": "a mapping",
    "model_attributes_type": "a mapping",
    "model_type": "a mapping",
    "string_type": "text",
    "tuple_type": "a list",
}


def is_empty(value: object) -> bool:
    """Tell whether a value asks for nothing: false, zero, no text, or made of such."""
    if isinstance(value, dict | list):
        return all(map(is_empty, value.values() if isinstance(value, dict) else value))
    return not value


@dataclass(frozen=True, slots=True)
class Effect:
    """What a field does not do here although a file may ask for it.

    Attributes:
        reason: Why it has no effect.
        unsafe: Whether it protects something, so that it is refused.
        harmless: Tells of a value that it asks for nothing; then nothing is said.
    """

    reason: str
    unsafe: bool = False
    harmless: Callable[[object], bool] = is_empty


class FileModel(BaseModel):
    """A strict, frozen model of what may stand in a file; keys are the names in lower camel case.

    ``effects`` has fields without effect by their path, in which list indexes are left out. They may be fields that
    the model does not have. Below the paths of ``exact``, any other unknown field is a problem.
    """

    effects: ClassVar[Mapping[str, Effect]] = MappingProxyType({})
    exact: ClassVar[tuple[tuple[str, ...], ...]] = ()

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid", alias_generator=wire_name)


_M = TypeVar("_M", bound=FileModel)


@dataclass(frozen=True, slots=True, eq=False)
class Document:
    """One document of a YAML file.

    Attributes:
        file: As the user named it.
        data: What it holds, as JSON values.
        malformed: What `validate` found.
    """

    file: str
    data: object
    _node: yaml.Node = field(repr=False)
    malformed: list[Problem] = field(default_factory=list, repr=False)

    @property
    def line(self) -> int:
        """Where it begins, from 1."""
        return int(self._node.start_mark.line) + 1

    def get(self, *keys: str) -> object:
        """Give a value by the keys that lead to it, without regard to case; None if there is none."""
        found = self.data
        for key in keys:
            if not isinstance(found, dict):
                return None
            folded = key.casefold()
            found = found.get(key, next((found[name] for name in found if name.casefold() == folded), None))
        return found

    def position(self, location: Location, *, key: bool = False) -> tuple[int, int]:
        """Find line and column, from 1.

        Args:
            location: Keys and list indexes from the top; where it ends too early, the last part found.
            key: Whether to give the position of the key rather than of its value.
        """
        node, key_node = self._node, self._node
        for part in location:
            found = _child(node, part)
            if found is None:
                # Point at what lacks it, by its name, which stands above a block mapping.
                return _position(key_node)
            key_node, node = found
        return _position(key_node if key else node)

    def written(self, location: Location) -> str | None:
        """Give a scalar as it stands in the file, where YAML reads ``1.10`` as a number; None if there is none."""
        node: yaml.Node = self._node
        for part in location:
            found = _child(node, part)
            if found is None:
                return None
            node = found[1]
        return str(node.value) if isinstance(node, yaml.ScalarNode) else None

    def items(self) -> list[Document]:
        """Give what a list of resources holds as documents of their own (``kind: List``, as kubectl writes it)."""
        found = _child(self._node, "items")
        items = self.get("items")
        if found is None or not isinstance(found[1], yaml.SequenceNode) or not isinstance(items, list):
            return []
        return [Document(self.file, data, node) for data, node in zip(items, found[1].value, strict=True) if data]

    def problem(self, message: str, location: Location = (), *, key: bool = False) -> Problem:
        """Make a problem at a location of this document."""
        line, column = self.position(location, key=key)
        return Problem(message, _path(location), self.file, line, column)

    def causes(self, problems: Sequence[Problem]) -> list[Problem]:
        """Leave out what follows from a malformed field: what is said of the mapping that it stands in."""
        found = [_PARENT.fullmatch(each.path) for each in self.malformed]
        above = {match[1] for match in found if match is not None}
        return [
            each for each in problems if each in self.malformed or not any(_is_in(each.path, place) for place in above)
        ]


def read_documents(path: Path, problems: list[Problem]) -> list[Document]:
    """Read every document of a file; a file that cannot be read is one problem."""
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        problems.append(Problem(f"is not UTF-8 text: byte {error.start} is wrong", file=str(path)))
        return []
    except OSError as error:
        problems.append(Problem(f"cannot be read: {error.strerror}", file=str(path)))
        return []
    return parse_documents(text, str(path), problems)


def parse_documents(text: str, file: str, problems: list[Problem]) -> list[Document]:
    """Read every document of a text; empty ones are left out.

    Args:
        text: YAML.
        file: The name for positions.
        problems: Gets syntax errors and duplicate keys. After a syntax error the rest is not read.
    """
    documents: list[Document] = []
    try:
        for node in yaml.compose_all(text, Loader=yaml.SafeLoader):
            reader = _Reader(file, problems)
            data = reader.value(node)
            if data is not None:
                documents.append(Document(file, data, node))
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place = (None, None) if mark is None else (mark.line + 1, mark.column + 1)
        problems.append(Problem(f"is not valid YAML: {error.problem or error.context}", "", file, *place))
    except yaml.reader.ReaderError as error:
        before = text[: error.position]
        column = error.position - (before.rfind("\n") + 1) + 1
        message = f"is not valid YAML: the character U+{ord(text[error.position]):04X} is not allowed"
        problems.append(Problem(message, "", file, before.count("\n") + 1, column))
    except RecursionError:
        problems.append(Problem("is nested too deeply", file=file))
    return documents


def validate(document: Document, model: type[_M], problems: list[Problem], warnings: list[Problem]) -> _M | None:
    """Check a document against a model.

    A key that looks like a known one is a problem, since it was meant. Another unknown one is left out with a
    warning, unless what it asks for protects something.

    Args:
        document: What was read.
        model: What may stand there.
        problems: Gets one problem per cause.
        warnings: Gets what has no effect.

    Returns:
        What is there without what a problem is about, so that what is wrong with the rest can be told as well; None if
        that is nothing. Whoever uses it looks whether there were problems.
    """
    data = fitted(document.data, model)
    before = len(problems)
    meant = _check_keys(document, model, data, problems, warnings)
    try:
        # As JSON, where a list may fill a tuple and a mapping a dataclass although the model is strict.
        return model.model_validate_json(json.dumps(data))
    except ValidationError as error:
        errors = error.errors(include_url=False)
        problems.extend(_problems(document, errors, meant))
    finally:
        document.malformed.extend(problems[before:])
    for whole_lists in (False, True):
        for each in errors:
            _leave_out(data, each["loc"], whole_lists)
        try:
            return model.model_validate_json(json.dumps(data))
        except ValidationError as error:
            errors = error.errors(include_url=False)
    return None


def _leave_out(data: object, location: Location, whole_lists: bool) -> None:
    """Take out what stands there; of a list nothing, for all behind it would move, or else the whole list."""
    index = next((at for at, part in enumerate(location) if isinstance(part, int)), None)
    place = location[:index] if whole_lists and index is not None else location
    if not place:
        return  # All of it is wrong.
    *above, last = place
    for part in above:
        if isinstance(data, dict):
            data = data.get(part)
        elif isinstance(data, list) and isinstance(part, int) and part < len(data):
            data = data[part]
    if isinstance(data, dict):
        data.pop(last, None)


def _check_keys(
    document: Document, model: type[FileModel], data: object, problems: list[Problem], warnings: list[Problem]
) -> set[Location]:
    """Take unknown keys out of the data, and tell of all that has no effect; give the places that were meant."""
    meant: set[Location] = set()
    for location, holder, known in keys(data, model):
        key = str(location[-1])
        value = holder[key]
        path = ".".join(part for part in location if isinstance(part, str))
        effect = model.effects.get(path)
        if key not in known:
            del holder[key]
        if effect is None and (key in known or key.startswith(_PRIVATE)):
            continue
        if effect is not None:
            message, unsafe = "" if effect.harmless(value) else effect.reason, effect.unsafe
        elif guess := did_you_mean(key, known):
            problems.append(document.problem(f"unknown field; did you mean '{guess}'?", location, key=True))
            meant.add((*location[:-1], guess))
            continue
        else:
            message, unsafe = _stranger(model, key, known), protects(path)
        if message:
            message += ", and ignoring it would be unsafe" if unsafe else ""
            refused = unsafe or (effect is None and any(location[: len(each)] == each for each in model.exact))
            (problems if refused else warnings).append(document.problem(message, location, key=True))
    return meant


def _stranger(model: type[FileModel], key: str, known: Iterable[str]) -> str:
    elsewhere = " or ".join(f"'{owner}.{key}'" if owner else f"'{key}' at the top" for owner in owners(model, key))
    return "unknown field; " + (f"its place is {elsewhere}" if elsewhere else f"known are {', '.join(sorted(known))}")


class _Reader:
    """Turns the nodes of one document into JSON values."""

    def __init__(self, file: str, problems: list[Problem]) -> None:
        self._file = file
        self._problems = problems
        self._nodes = 0
        self._open: set[int] = set()

    def value(self, node: yaml.Node) -> object:
        self._nodes += 1
        if self._nodes == _MAX_NODES:
            self._refuse(f"holds more than {_MAX_NODES} values", node)
        if self._nodes >= _MAX_NODES:
            return None
        if isinstance(node, yaml.ScalarNode):
            return self._scalar(node)
        if id(node) in self._open:
            self._refuse("an alias contains itself", node)
            return None
        self._open.add(id(node))
        try:
            if isinstance(node, yaml.SequenceNode):
                return [self.value(item) for item in node.value]
            return self._mapping(node)
        finally:
            self._open.discard(id(node))

    def _mapping(self, node: yaml.Node) -> dict[str, object]:
        own: dict[str, object] = {}
        merged: dict[str, object] = {}
        for key_node, value_node in node.value:
            if key_node.tag == _MERGE:
                for source in reversed(_sources(value_node)):
                    value = self.value(source)
                    merged |= value if isinstance(value, dict) else {}
            elif not isinstance(key_node, yaml.ScalarNode):
                self._refuse("a key must be text", key_node)
            else:
                if key_node.value in own:
                    self._refuse(f"the key '{key_node.value}' stands here twice", key_node)
                own[key_node.value] = self.value(value_node)
        return merged | own

    def _scalar(self, node: yaml.ScalarNode) -> object:
        text = str(node.value)
        match node.tag.removeprefix("tag:yaml.org,2002:"):
            case "str" | "timestamp" | "value":
                return text
            case "null":
                return None
            case "bool":
                return text.lower() in ("yes", "true", "on")
            case "int" | "float" if _SEXAGESIMAL.match(text):
                return text
            case "int":
                return _whole(text)
            case "float":
                return _float(text)
            case tag:
                self._refuse(f"the YAML tag '{tag}' is not supported", node)
                return None

    def _refuse(self, message: str, node: yaml.Node) -> None:
        line, column = _position(node)
        self._problems.append(Problem(message, "", self._file, line, column))


def _whole(text: str) -> int | str:
    digits = text.replace("_", "")
    octal = re.fullmatch(r"[-+]?0[0-7]+", digits)
    try:
        number = int(digits, 8 if octal else 0)
        str(number)  # Of one that has too many digits to be written, the text counts.
        return number
    except ValueError:
        return text


def _float(text: str) -> float | str:
    try:
        number = Decimal(text.replace("_", ""))
    except ValueError:
        return text
    # JSON has no infinity and no NaN.
    return number if number - number == 0 else text


def _child(node: yaml.Node, part: str | int) -> tuple[yaml.Node, yaml.Node] | None:
    if isinstance(node, yaml.SequenceNode) and isinstance(part, int):
        item = node.value[part] if part < len(node.value) else None
        return None if item is None else (item, item)
    # The mapping itself, then what it merges in; each is looked at once, since aliases may make many of few.
    waiting, seen = [node], set[int]()
    while waiting and isinstance(part, str):
        node = waiting.pop(0)
        if not isinstance(node, yaml.MappingNode) or id(node) in seen:
            continue
        seen.add(id(node))
        pairs = [(key, value) for key, value in node.value if isinstance(key, yaml.ScalarNode) and key.tag != _MERGE]
        exact = [pair for pair in pairs if pair[0].value == part]
        own = exact or [pair for pair in pairs if pair[0].value.casefold() == part.casefold()]
        if own:
            return own[0]
        waiting = [each for key, value in node.value if key.tag == _MERGE for each in _sources(value)] + waiting
    return None


def _sources(node: yaml.Node) -> list[yaml.Node]:
    """Give what a merge key names; what stands first goes before the others."""
    return list(node.value) if isinstance(node, yaml.SequenceNode) else [node]


def _position(node: yaml.Node) -> tuple[int, int]:
    return int(node.start_mark.line) + 1, int(node.start_mark.column) + 1


def _path(location: Location) -> str:
    text = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in location)
    return text.removeprefix(".")


def _is_in(path: str, place: str) -> bool:
    return path == place or path.startswith((f"{place}.", f"{place}["))


def _problems(document: Document, errors: list[ErrorDetails], meant: set[Location]) -> list[Problem]:
    # A misspelt field is one cause, not an unknown and a missing field.
    return [
        document.problem(_message(error), error["loc"], key=error["type"] == _MISSING)
        for error in errors
        if not (error["type"] == _MISSING and error["loc"] in meant)
    ]


def _message(error: ErrorDetails) -> str:
    kind, value = error["type"], error["input"]
    if kind == _MISSING:
        return "required field is missing"
    if kind in _EXPECTED:
        return f"expected {_EXPECTED[kind]}, got {described(value)}"
    if kind == "literal_error":
        expected = str(error["ctx"]["expected"])
        guess = (
            did_you_mean(value, filter(None, re.findall(r"'([^']*)'", expected))) if isinstance(value, str) else None
        )
        return f"expected {expected}, got {described(value)}" + (f"; did you mean '{guess}'?" if guess else "")
    if kind == "value_error":
        return str(error["ctx"]["error"])
    return error["msg"].replace("Input should", "should", 1)
