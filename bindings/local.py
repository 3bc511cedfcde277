"""``secretstores.local.env`` and ``secretstores.local.file``: secrets of this machine, for development.

Source: Dapr 1.18, the local environment and local file secret stores.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Self, cast

import orjson

from mesh.errors import ConfigError, SecretError
from mesh.resources.component import Component, env_refusal

__all__ = ["EnvironmentSecretStore", "FileSecretStore"]

MAX_FILE_BYTES = 16 * 1024 * 1024


class EnvironmentSecretStore:
    """The gateway's own environment; the runtime's own variables are never told."""

    capabilities: Sequence[str] = ()
    bound = True
    settings = ("prefix",)

    def __init__(self, prefix: str = "", environ: Mapping[str, str] = os.environ) -> None:
        """Read nothing yet.

        Args:
            prefix: Put before every name.
            environ: The variables.
        """
        self._prefix = prefix
        self._environ = environ

    @classmethod
    def from_component(cls, component: Component) -> Self:
        """Read the settings."""
        return cls(component.setting("prefix") or "")

    async def __aenter__(self) -> Self:
        """Need nothing."""
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        """Hold nothing."""

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


class FileSecretStore:
    """A JSON file, read once at start."""

    bound = True
    settings = ("secretsFile", "nestedSeparator", "multiValued")

    def __init__(self, component: Component, file: Path, separator: str = ":", *, multi_valued: bool = False) -> None:
        """Read nothing yet.

        Args:
            component: Its settings are named in what is said of the file.
            file: Relative to the working directory of the gateway.
            separator: Between the names of nested objects.
            multi_valued: Whether a secret is a first-level object with several values, instead of one value.
        """
        self._component = component
        self._file = file
        self._separator = separator
        self._multi_valued = multi_valued
        self._secrets: Mapping[str, Mapping[str, str]] = {}
        self.capabilities: Sequence[str] = ("MULTIPLE_KEY_VALUES_PER_SECRET",) if multi_valued else ()

    @classmethod
    def from_component(cls, component: Component) -> Self:
        """Read the settings.

        Raises:
            ConfigError: One is missing or makes no sense.
        """
        file = component.setting("secretsFile")
        if not file:
            raise ConfigError(component.problem("the setting secretsFile is missing: the path of a JSON file"))
        multi_valued = (component.setting("multiValued") or "false").lower()
        if multi_valued not in ("true", "false"):
            raise ConfigError(component.problem("must be true or false", setting="multiValued"))
        separator = component.setting("nestedSeparator") or ":"
        return cls(component, Path(file), separator, multi_valued=multi_valued == "true")

    async def __aenter__(self) -> Self:
        """Read the file.

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
        return self

    def _wrong(self, message: str) -> ConfigError:
        return ConfigError(self._component.problem(message, setting="secretsFile"))

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

    async def __aexit__(self, *exc_info: object) -> None:
        """Forget."""
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
