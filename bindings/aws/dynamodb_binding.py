"""``bindings.aws.dynamodb``: items put into a DynamoDB table.

Source: Dapr 1.18, the AWS DynamoDB binding; the Amazon DynamoDB API Reference.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from bindings.aws._binding import AWSBinding
from brokers.clients.aws import AWSSettings
from mesh.blocks.binding_contract import BindingError, Invoke
from mesh.resources.settings import setting

__all__ = ["DynamoDBBinding"]


@dataclass(frozen=True, slots=True, kw_only=True)
class DynamoDBBindingSettings(AWSSettings):
    """Settings of ``bindings.aws.dynamodb``."""

    table: str = setting("table", "The name of the table, which must be there.", required=True, example="items")


class DynamoDBBinding(AWSBinding):
    """A table."""

    title = "Puts items into a DynamoDB table."
    settings = DynamoDBBindingSettings
    service = "dynamodb"

    async def invoke(self, asked: Invoke) -> None:
        """Put the data, a JSON object with the table's key, in place of the item of that key."""
        await self.call("put_item", TableName=self._settings.table, Item=_attributes(asked.data))


class _Number(str):
    """A number as it is written: DynamoDB has 38 digits, which a float has not."""

    __slots__ = ()


def _attributes(data: bytes) -> dict[str, Any]:
    try:
        found = json.loads(data, parse_float=_Number, parse_int=_Number, parse_constant=_refuse)
        if isinstance(found, dict):
            return {name: _attribute(value) for name, value in found.items()}
    except (ValueError, RecursionError) as error:
        raise BindingError(f"the data for DynamoDB must be a JSON object: {error}") from None
    raise BindingError("the data for DynamoDB must be a JSON object")


def _refuse(name: str) -> None:
    raise ValueError(f"{name} is no JSON")


def _attribute(value: object) -> dict[str, Any]:
    match value:
        case None:
            return {"NULL": True}
        case bool():
            return {"BOOL": value}
        case _Number():
            return {"N": str(value)}
        case str():
            return {"S": value}
        case list():
            return {"L": [_attribute(each) for each in value]}
        case dict():
            return {"M": {name: _attribute(each) for name, each in value.items()}}
        case _:
            raise AssertionError(f"JSON has no {type(value).__name__}")
