"""``secretstores.aws.parameterstore``: parameters of AWS Systems Manager.

Source: Dapr 1.18, the AWS SSM Parameter Store secret store; the AWS Systems Manager API Reference.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from brokers.clients.aws import AWSAdapter, AWSSettings
from mesh.errors import SecretError, SecretStoreAwayError
from mesh.resources.settings import setting

__all__ = ["ParameterStore"]

AT_ONCE = 10  # As many as GetParameters takes.
PAGE = 50


@dataclass(frozen=True, slots=True)
class ParameterStoreSettings(AWSSettings):
    """Settings of ``secretstores.aws.parameterstore``."""

    prefix: str = setting("prefix", "Put before every name to find its parameter.", default="", example="/shop/")


class ParameterStore(AWSAdapter):
    """Parameters by name, decrypted."""

    settings = ParameterStoreSettings
    service = "ssm"
    failed, away = SecretError, SecretStoreAwayError
    capabilities: Sequence[str] = ()
    tested = "moto's server; not run against the real service"

    async def _enter(self) -> None:
        """Connect, and see that the credentials are some; a permission to list them all is not needed."""
        await super()._enter()
        await self.check()

    async def check(self) -> None:
        """Ask whether the service answers."""
        await self.probe("describe_parameters", MaxResults=1)

    async def get(self, name: str, metadata: Mapping[str, str]) -> Mapping[str, str]:
        """Read a parameter: its newest version, or that of ``version_id``.

        Raises:
            SecretError: There is none of this name.
        """
        version = metadata.get("version_id")
        asked = f"{self._settings.prefix}{name}{f':{version}' if version else ''}"
        found = await self.call("get_parameter", Name=asked, WithDecryption=True)
        parameter = found["Parameter"]
        return {self._own(parameter["Name"]): str(parameter["Value"])}

    async def bulk(self, metadata: Mapping[str, str]) -> Mapping[str, Mapping[str, str]]:
        """Read every parameter below the prefix."""
        prefix = self._settings.prefix
        below = [{"Key": "Name", "Option": "BeginsWith", "Values": [prefix]}] if prefix else []
        pages = self.pages("describe_parameters", ParameterFilters=below, PaginationConfig={"PageSize": PAGE})
        names = iter([str(each["Name"]) async for page in pages for each in page["Parameters"]])
        found: dict[str, Mapping[str, str]] = {}
        while some := list(itertools.islice(names, AT_ONCE)):  # One after the other: the service allows few a second.
            parameters = await self.call("get_parameters", Names=some, WithDecryption=True)
            for each in parameters["Parameters"]:
                name = self._own(each["Name"])
                found[name] = {name: str(each["Value"])}
        return found

    def _own(self, name: str) -> str:
        return name.removeprefix(self._settings.prefix)
