"""What a model's annotations say about the keys of a file.

Models are pydantic models or plain dataclasses, in tuples and mappings of each other.
"""

from __future__ import annotations

import dataclasses
import json
import re
import typing
from collections.abc import Iterator, Mapping
from functools import cache
from types import UnionType

from pydantic import BaseModel

from mesh.resources.fields import Parsed

__all__ = ["Decimal", "fitted", "keys", "owners", "wire_name"]

_WORD = re.compile(r"_([a-z0-9]+)")
_SPECIAL = {
    "client_tls": "clientTLS",
    "grpc_status_codes": "gRPCStatusCodes",
    "obfuscate_urls": "obfuscateURLs",
    "root_ca": "rootCA",
    "workload_cert_ttl": "workloadCertTTL",
}


class Decimal(float):
    """A number that knows how it was written: where text belongs, ``1.10`` is not ``1.1``."""

    __slots__ = ("text",)

    def __new__(cls, text: str) -> typing.Self:
        """Read a number; ValueError if it is none."""
        made = super().__new__(cls, text)
        made.text = text
        return made

    text: str


def wire_name(name: str) -> str:
    """Give the key of a field in a file: ``dead_letter_topic`` is ``deadLetterTopic``."""
    return _SPECIAL.get(name) or _WORD.sub(lambda match: match[1].capitalize(), name)


def fitted(data: object, hint: object) -> object:
    """Give the data with known keys in the model's spelling, and without known keys that have no value.

    A number or boolean where text belongs is its text, as for the YAML libraries of Dapr.
    """
    if isinstance(data, list):
        return [fitted(item, _step(hint, index)) for index, item in enumerate(data)]
    if isinstance(data, bool | int | float) and _is_text(hint):
        return data.text if isinstance(data, Decimal) else json.dumps(data)
    if not isinstance(data, dict):
        return data
    spelling = {key.casefold(): key for kind in _kinds(hint) for key in _fields(kind)}
    result: dict[str, object] = {}
    for key, value in data.items():
        known = spelling.get(key.casefold())
        name = known if known is not None and (known == key or known not in data) and known not in result else key
        if value is not None or known is None:
            result[name] = fitted(value, _step(hint, name))
    return result


def keys(
    data: object, hint: object, at: tuple[str | int, ...] = ()
) -> Iterator[tuple[tuple[str | int, ...], dict[str, object], frozenset[str]]]:
    """List the keys of fitted data where a model says what they may be.

    Yields:
        Where the key stands, the mapping that has it, and the keys that the model knows there. What is taken out
        of the mapping meanwhile is not looked into.
    """
    if isinstance(data, list):
        for index, item in enumerate(data):
            yield from keys(item, _step(hint, index), (*at, index))
    elif isinstance(data, dict):
        known = _known(hint)
        for key in list(data):
            if known:
                yield (*at, key), data, known
            if key in data:
                yield from keys(data[key], _step(hint, key), (*at, key))


def owners(model: type, key: str) -> list[str]:
    """List the sections of a model that know a key; the top itself is empty."""
    top = _fields(model)
    sections = {"": frozenset(top)} | {name: known for name, hint in top.items() if (known := _known(hint))}
    return [name for name, known in sections.items() if key in known]


def _known(hint: object) -> frozenset[str]:
    return frozenset(key for kind in _kinds(hint) for key in _fields(kind))


def _step(hint: object, part: str | int) -> object:
    for kind in _kinds(hint):
        if isinstance(part, str) and part in _fields(kind):
            return _fields(kind)[part]
    for option in _options(hint):
        origin, arguments = typing.get_origin(option), typing.get_args(option)
        if isinstance(part, int) and origin is tuple:
            return arguments[0]
        if isinstance(part, str) and origin in (dict, Mapping):
            return arguments[1]
    return None


def _options(hint: object) -> Iterator[object]:
    # A marked value is read by its own function: what is inside is not ours to respell.
    if typing.get_origin(hint) in (typing.Union, UnionType):
        for option in typing.get_args(hint):
            yield from _options(option)
    elif typing.get_origin(hint) is not typing.Annotated:
        yield hint


def _is_text(hint: object) -> bool:
    if typing.get_origin(hint) in (typing.Union, UnionType):
        return any(map(_is_text, typing.get_args(hint)))
    return hint is str or any(isinstance(mark, Parsed) and mark.is_text for mark in typing.get_args(hint)[1:])


def _kinds(hint: object) -> list[type]:
    options = [option for option in _options(hint) if isinstance(option, type)]
    return [kind for kind in options if dataclasses.is_dataclass(kind) or issubclass(kind, BaseModel)]


@cache
def _fields(kind: type) -> Mapping[str, object]:
    if issubclass(kind, BaseModel):
        return {
            item.alias or name: typing.Annotated[item.annotation, *item.metadata] if item.metadata else item.annotation
            for name, item in kind.model_fields.items()
        }
    hints = typing.get_type_hints(kind, include_extras=True)
    own = {item.name for item in dataclasses.fields(kind)} if dataclasses.is_dataclass(kind) else set()
    return {wire_name(name): hint for name, hint in hints.items() if name in own}
