"""``secretstores.local.env`` and ``secretstores.local.file``: secrets of this machine, for development.

Source: Dapr 1.18, the local environment and local file secret stores.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Self, cast

import orjson

from mesh.adapter import ComponentAdapter
from mesh.errors import ConfigError, SecretError
from mesh.resources.component import Component, env_refusal
from mesh.resources.settings import BOOLEAN, read_settings, setting

__all__ = ["EnvironmentSecretStore", "FileSecretStore"]

MAX_FILE_BYTES = 16 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class EnvironmentSettings:
    """Settings of ``secretstores.local.env``."""

    prefix: str = setting("prefix", "Put before every name to find its variable.", default="", example="SHOP_")


class EnvironmentSecretStore(ComponentAdapter):
    """The gateway's own environment; the runtime's own variables are never told."""

    tested = "variables of a real process"
    bound = True
    settings = EnvironmentSettings
    capabilities: Sequence[str] = ()

    def __init__(self, settings: EnvironmentSettings, environ: Mapping[str, str] = os.environ) -> None:
        """Read nothing yet.

        Args:
            settings: Its settings.
            environ: The variables.
        """
        super().__init__(settings)
        self._prefix = settings.prefix
        self._environ = environ

    async def get(self, name: str, metadata: Mapping[str, str]) -> Mapping[str, str]:
        """Read a variable; one that is not set, or may not be told, is empty.

        Raises:
            SecretError: It is no text.
        """
        variable = self._prefix + name
        value = "" if env_refusal(variable, {}) else self._environ.get(variable, "")
        if not _is_text(value):
            raise SecretError(f"the variable {variable} is not UTF-8")
        return {name: value}

    async def bulk(self, metadata: Mapping[str, str]) -> Mapping[str, Mapping[str, str]]:
        """Read every variable that may be told, without the prefix; what is no text is left out."""
        told = (
            (variable.removeprefix(self._prefix), value)
            for variable, value in self._environ.items()
            if variable.startswith(self._prefix) and env_refusal(variable, {}) is None and _is_text(variable + value)
        )
        return {name: {name: value} for name, value in told}


@dataclass(frozen=True, slots=True)
class FileSettings:
    """Settings of ``secretstores.local.file``."""

    file: str = setting(
        "secretsFile",
        "The path of a JSON file, relative to the working directory of the gateway.",
        required=True,
        example="secrets.json",
    )
    separator: str = setting("nestedSeparator", "Between the names of nested objects.", default=":")
    multi_valued: bool = setting(
        "multiValued",
        "Whether a secret is a first-level object with several values, instead of one value.",
        BOOLEAN,
        default=False,
    )


class FileSecretStore(ComponentAdapter):
    """A JSON file, read once at start."""

    tested = "real files"
    bound = True
    settings = FileSettings
    capabilities_with: ClassVar[Mapping[str, str]] = {"MULTIPLE_KEY_VALUES_PER_SECRET": "`multiValued`"}

    def __init__(self, settings: FileSettings, component: Component) -> None:
        """Read nothing yet.

        Args:
            settings: Its settings.
            component: They are named in what is said of the file.
        """
        super().__init__(settings)
        self._component = component
        self._file = Path(settings.file)
        self._separator = settings.separator
        self._multi_valued = settings.multi_valued
        self._secrets: Mapping[str, Mapping[str, str]] = {}
        self.capabilities: Sequence[str] = ("MULTIPLE_KEY_VALUES_PER_SECRET",) if settings.multi_valued else ()

    @classmethod
    def from_component(cls, component: Component) -> Self:
        """Read the settings; raises ``ConfigError`` with every one that is wrong, located."""
        return cls(read_settings(component, cls.settings), component)

    async def _enter(self) -> None:
        """Read the file; leaving forgets it.

        Raises:
            ConfigError: It cannot be read, or is not a JSON object.
        """
        where = self._file.absolute()
        try:
            secrets = orjson.loads(await asyncio.to_thread(self._read))
        except OSError as error:
            beside = "" if self._file.is_absolute() else "; the path is relative to the directory of the command"
            raise self._wrong(f"cannot read the secrets file {where}: {error.strerror or error}{beside}") from error
        except ValueError as error:
            raise self._wrong(f"cannot read the secrets file {where}: {error}") from error
        if not isinstance(secrets, dict):
            raise self._wrong(f"the secrets file {where} must hold a JSON object")
        try:
            self._secrets = self._all(secrets)
        except RecursionError:  # The parser takes more levels.
            raise self._wrong(f"the secrets file {where} is nested too deeply") from None
        self._stack.callback(self._forget)

    def _wrong(self, message: str) -> ConfigError:
        return self._problem(message, setting="secretsFile")

    def _all(self, secrets: dict[str, object]) -> Mapping[str, Mapping[str, str]]:
        if not self._multi_valued:
            return {name: {name: value} for name, value in self._flattened("", secrets)}
        return {
            name: dict(self._flattened("", value)) if isinstance(value, dict) else {name: _text(value)}
            for name, value in secrets.items()
        }

    def _read(self) -> bytes:
        with self._file.open("rb") as file:
            content = file.read(MAX_FILE_BYTES + 1)
        if len(content) > MAX_FILE_BYTES:
            raise ValueError(f"it is larger than {MAX_FILE_BYTES} bytes")
        return content

    def _flattened(self, path: str, value: object) -> Iterator[tuple[str, str]]:
        if isinstance(value, dict):
            members = cast("dict[str, object]", value).items()
        elif isinstance(value, list):
            members = ((str(index), member) for index, member in enumerate(value))  # type: ignore[assignment]
        else:
            yield path, _text(value)
            return
        for name, member in members:
            yield from self._flattened(f"{path}{self._separator}{name}" if path else name, member)

    def _forget(self) -> None:
        self._secrets = {}

    async def get(self, name: str, metadata: Mapping[str, str]) -> Mapping[str, str]:
        """Read a secret.

        Raises:
            SecretError: There is none of this name.
        """
        secret = self._secrets.get(name)
        if secret is None:
            raise SecretError(f"secret {name} not found")
        return secret

    async def bulk(self, metadata: Mapping[str, str]) -> Mapping[str, Mapping[str, str]]:
        """Read every secret."""
        return self._secrets


def _text(value: object) -> str:
    return value if isinstance(value, str) else orjson.dumps(value).decode()


def _is_text(value: str) -> bool:
    """Tell whether it is none of the bytes that the environment may hold as well."""
    return not any("\ud800" <= character <= "\udfff" for character in value)
