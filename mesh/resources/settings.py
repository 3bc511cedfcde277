"""The settings of a component's adapter, declared once: what is read, checked, shown and documented comes from here.

An adapter has a frozen dataclass of them; each of its fields is made by `setting`::

    @dataclass(frozen=True, slots=True)
    class VaultSettings:
        address: str = setting("vaultAddr", "URL of the server.", default="https://127.0.0.1:8200")
        token: str = setting("vaultToken", "Token to log in with.", secret=True)
        timeout: float = setting("timeout", "How long a request may take.", DURATION, default=5.0)

Names are compared without regard to case. A setting that is there for compatibility and does nothing is declared
with `ignored`, so that its user is told once.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar, cast
from urllib.parse import urlsplit

from mesh.errors import ConfigError, Problem
from mesh.resources.component import Component, EnvRef, Secret
from mesh.values import parse_bool, parse_duration, parse_size, parse_whole, show_duration

__all__ = [
    "BOOLEAN",
    "COUNT",
    "DURATION",
    "LIMIT",
    "LIMIT_SECONDS",
    "SECONDS",
    "SIZE",
    "TEXT",
    "URL",
    "VERBATIM",
    "Kind",
    "Setting",
    "check_port",
    "choice",
    "declared_by",
    "example",
    "gather",
    "ignored",
    "is_takable",
    "lasting",
    "located",
    "read_settings",
    "refused",
    "setting",
    "settings_of",
    "whole",
    "without_effect",
]

_MARK = "mesh.setting"
PLACEHOLDER = "CHANGE-ME"
_TEXTS = ("false", "5s", "1", "4Ki", "https://localhost:8443")  # One of every kind.
# The port of a URL; what looks like one before an @ is a part of a password.
_PORT = re.compile(
    r"[a-z][a-z0-9+.-]*://(?:[^/?#\s]*@)?(?:\[[^]\s]*]|[^/?#\s@:[]+):([0-9]+)(?=[/?#,]|\Z)(?!.*@)", re.IGNORECASE
)
_Model = TypeVar("_Model")


@dataclass(frozen=True, slots=True)
class Kind:
    """What a setting's text is.

    Attributes:
        name: For people (``duration``).
        parse: Reads it; raises ValueError with a text that says what is expected.
        choices: All that it can be, if those are few words.
    """

    name: str
    parse: Callable[[str], object]
    choices: tuple[str, ...] = ()


def whole(least: int = 0, most: int | None = None) -> Kind:
    """Make the kind of whole numbers within bounds."""
    return Kind("whole number", lambda text: parse_whole(text, least=least, most=most))


def choice(*words: str) -> Kind:
    """Make the kind of a few words, compared without regard to case."""

    def parse(text: str) -> str:
        found = next((word for word in words if word.casefold() == text.casefold()), None)
        if found is None:
            raise ValueError(f"is {' or '.join(words)}, not {text!r}")
        return found

    return Kind("one of a few words", parse, words)


def lasting(most: float | None = None, *, bare: Literal["s", "ms"] | None = None) -> Kind:
    """Make the kind of times in which something must be done: nothing can be in no time.

    Args:
        most: The longest, in seconds; None = any.
        bare: The unit of a number without one; None = there must be one.
    """

    def parse(text: str) -> float:
        seconds = parse_duration(text, bare=bare)
        if seconds <= 0:
            raise ValueError("must be longer than 0")
        if most is not None and seconds > most:
            raise ValueError(f"is at most {show_duration(most)}")
        return seconds

    names = {None: "duration", "s": "seconds, or a duration", "ms": "duration, or milliseconds"}
    return Kind(names[bare], parse)


def _url(text: str) -> str:
    parts = urlsplit(text)
    if parts.scheme not in ("http", "https") or not parts.hostname or "@" in parts.netloc or parts.query:
        raise ValueError("is an http:// or https:// URL, without credentials")
    return text.rstrip("/")


TEXT = Kind("text", str)
VERBATIM = Kind("text", str)  # Blanks around it are a part of it, as of a password.
BOOLEAN = Kind("boolean", lambda text: parse_bool(text, words=True))
COUNT = whole(1)
DURATION = Kind("duration", parse_duration)
SECONDS = Kind("seconds, or a duration", lambda text: parse_duration(text, bare="s"))
URL = Kind("URL", _url)
LIMIT = lasting()
LIMIT_SECONDS = lasting(bare="s")
SIZE = Kind("size in bytes", parse_size)


@dataclass(frozen=True, slots=True)
class Setting:
    """A setting as it is declared.

    Attributes:
        name: As in files.
        told: What it is, one sentence.
        kind: What its text is.
        default: What holds where it is not set; None = there is nothing.
        required: Whether it must be set.
        secret: Whether its text must never be shown.
        aliases: Other names of it, as older files have them.
        suggested: Whether a file that is written for somebody has it: of several ways it is the usual one.
        refused: What it asks for, which is not supported; empty = it is taken.
        ignored: Why it has no effect; empty = it has one.
        anyway: Where it has none: values, in lower case, that ask for what is so anyway; then nothing is said.
        example: Shown in a file that is written for somebody; empty = the default.
    """

    name: str
    told: str
    kind: Kind = TEXT
    default: object = None
    required: bool = False
    secret: bool = False
    aliases: tuple[str, ...] = ()
    ignored: str = ""
    anyway: tuple[str, ...] = ()
    example: str = ""
    suggested: bool = False
    refused: str = ""

    @property
    def used(self) -> bool:
        """Whether it has an effect."""
        return not self.ignored and not self.refused

    @property
    def names(self) -> tuple[str, ...]:
        """All its names."""
        return (self.name, *self.aliases)

    @property
    def shown_default(self) -> str:
        """What holds where it is not set, as a file would have it; empty = there is nothing."""
        match self.default:
            case None | ():
                return ""
            case bool():
                return "true" if self.default else "false"
            case float():
                return next(filter(self._is_default, (show_duration(self.default), f"{self.default:g}")), "")
            case _:
                return str(self.default)

    def _is_default(self, text: str) -> bool:
        try:
            return self.kind.parse(text) == self.default
        except ValueError:
            return False


def setting(
    name: str,
    told: str,
    kind: Kind = TEXT,
    *,
    default: Any = None,
    required: bool = False,
    secret: bool = False,
    aliases: tuple[str, ...] = (),
    example: str = "",
    suggested: bool = False,
) -> Any:
    """Declare a field of an adapter's settings; the arguments are the attributes of `Setting`."""
    made = Setting(name, told, kind, default, required, secret, aliases, example=example, suggested=suggested)
    return field(default=default, repr=not secret, metadata={_MARK: made})


def example(setting: Setting) -> str:
    """Give a text that a setting may have, to be replaced by what is meant."""
    if setting.example or setting.shown_default:
        return setting.example or setting.shown_default
    texts = (*filter(None, setting.kind.choices), PLACEHOLDER, *_TEXTS)
    return next((text for text in texts if _is(setting, text)), PLACEHOLDER)


def is_takable(setting: Setting) -> bool:
    """Tell whether a file may have it: some are there only to be refused with a reason."""
    return setting.secret or _is(setting, example(setting))


def _is(setting: Setting, text: str) -> bool:
    try:
        setting.kind.parse(text)
    except ValueError:
        return False
    return True


def ignored(why: str, *names: str, anyway: tuple[str, ...] = ()) -> tuple[Setting, ...]:
    """Declare settings that have no effect; an adapter's model lists them as ``ignored: ClassVar``."""
    return tuple(Setting(name, "", ignored=why, anyway=anyway) for name in names)


def refused(what: str, *names: str) -> tuple[Setting, ...]:
    """Declare settings of what is not supported: who sets them is told so; they stand among those without effect."""
    return tuple(Setting(name, "", refused=what) for name in names)


def settings_of(model: type) -> tuple[Setting, ...]:
    """Give all settings of a model, those without effect last."""
    declared = tuple(each.metadata[_MARK] for each in dataclasses.fields(model) if _MARK in each.metadata)
    return (*declared, *getattr(model, "ignored", ()))


def declared_by(adapter: object) -> tuple[Setting, ...] | None:
    """Give all settings of an adapter; None for one that looks at them itself."""
    model = getattr(adapter, "settings", None)
    return settings_of(model) if isinstance(model, type) else None


def without_effect(component: Component, settings: Iterable[Setting]) -> list[Problem]:
    """Find settings that do nothing although their adapter takes them; one without a text asks for nothing."""
    folded = {name.casefold(): each for each in settings if each.ignored for name in each.names}
    found = [(entry, folded.get(entry.name.casefold())) for entry in component.metadata]
    return [
        component.problem(f"it has no effect: {each.ignored}", setting=entry.name)
        for entry, each in found
        if each is not None and (entry.text() or "").strip().lower() not in ("", *each.anyway)
    ]


@contextmanager
def located(component: Component, setting: str) -> Iterator[None]:
    """Say at which setting it is that a ``ValueError`` tells: raises ``ConfigError``."""
    try:
        yield
    except ValueError as error:
        raise ConfigError(component.problem(str(error), setting=setting)) from None


def check_port(text: str) -> None:
    """Refuse a URL whose port there cannot be: who connects would say it late, and each in its own words.

    Raises:
        ValueError: It is no port; nothing of the text is quoted, for it may hold a password.
    """
    found = _PORT.match(text)
    if found is not None and not (len(found[1]) < 6 and 0 < int(found[1]) < 65536):
        raise ValueError("names a port that there cannot be: one is from 1 to 65535")


def read_settings(component: Component, model: type[_Model]) -> _Model:
    """Read the settings of a component whose references are closed.

    Args:
        component: Whose.
        model: A dataclass whose fields are made by `setting`.

    Raises:
        ConfigError: Holds every setting that is missing or wrong, located. A secret's text is not in it.
    """
    problems: list[Problem] = []
    found = gather(component, model, problems)
    if problems:
        raise ConfigError(problems)
    return found


def gather(component: Component, model: type[_Model], problems: list[Problem]) -> _Model:
    """Read settings as `read_settings` does; what is missing or wrong is added to the problems, and is its default."""
    values: dict[str, object] = {}
    for each in dataclasses.fields(cast("Any", model)):
        declared: Setting | None = cast("Mapping[str, Setting]", each.metadata).get(_MARK)
        if declared is None:
            continue
        there = [name for name in declared.names if component.entry(name) is not None]
        name = next((name for name in there if component.setting(name)), next(iter(there), None))
        text = "" if name is None else (component.setting(name) or "")
        text = text if declared.kind is VERBATIM else text.strip()
        entry = None if name is None else component.entry(name)
        hidden = declared.secret or (entry is not None and isinstance(entry.value, Secret))
        if not text:
            if declared.required:
                problems.append(_missing(component, declared, name))
            continue
        try:
            values[each.name] = declared.kind.parse(text)
        except ValueError as error:
            message = f"is no {declared.kind.name}" if hidden else str(error)
            problems.append(component.problem(message, setting=name))
            continue
        try:
            check_port(text)
        except ValueError as error:
            problems.append(component.problem(str(error), setting=name))
    problems += [
        component.problem(f"{each.refused} is not supported", setting=each.name)
        for each in settings_of(cast("type", model))
        if each.refused and component.setting(each.name)
    ]
    return model(**values)


def _missing(component: Component, declared: Setting, name: str | None) -> Problem:
    if name is not None:
        value = None if (entry := component.entry(name)) is None else entry.value
        source = value.source if isinstance(value, Secret) else None
        why = f"; the variable '{source.variable}' is not set, or is empty" if isinstance(source, EnvRef) else ""
        return component.problem(f"must not be empty{why}", setting=name)
    told = declared.told[:1].lower() + declared.told[1:].replace("`", "")
    return component.missing(f"the setting {declared.name} is missing: {told}")
