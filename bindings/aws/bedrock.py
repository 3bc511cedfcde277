"""Models of Amazon Bedrock, by its Converse interface, which is one for all of them.

Source: the Amazon Bedrock API reference, Converse.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import orjson

from bindings.conversation._service import number, sides, usage_of
from brokers.clients.aws import AWSAdapter, AWSSettings
from mesh.blocks.conversation import (
    Choice,
    ConversationAwayError,
    ConversationError,
    Converse,
    Conversed,
    Said,
    ToolCall,
)
from mesh.errors import BadArgumentError
from mesh.resources.settings import COUNT, setting

__all__ = ["BedrockModel"]

REASONS = {
    "end_turn": "stop",
    "stop_sequence": "stop",
    "max_tokens": "length",
    "tool_use": "tool_calls",
    "guardrail_intervened": "content_filter",
    "content_filtered": "content_filter",
}


@dataclass(frozen=True, slots=True)
class BedrockSettings(AWSSettings):
    """What is read of a component."""

    model: str = setting(
        "model", "The model's id, or the ARN of an inference profile.", default="amazon.titan-text-express-v1"
    )
    most: int | None = setting("maxTokens", "The most tokens that an answer may have.", COUNT, example="2048")


class BedrockModel(AWSAdapter):
    """Bedrock."""

    title = "A model of Amazon Bedrock."
    tested = "a server written by hand from the documentation of Amazon Bedrock; never ran against the real service"
    settings: ClassVar[type[BedrockSettings]] = BedrockSettings
    capabilities: Sequence[str] = ()
    service = "bedrock-runtime"
    failed = ConversationError
    away = ConversationAwayError
    attempts = 1  # A policy says whether a model is asked again.
    answer_seconds = 3600.0  # How long an answer may take is the operation's to say.

    async def converse(self, asked: Converse) -> Conversed:
        """Ask the model."""
        request = self._request(asked)
        try:
            answer = await self.call("converse", **request)
            return _read(answer, asked.parameters.get("model", self._settings.model))
        except (KeyError, IndexError, TypeError, AttributeError, ValueError):  # Of the library, too.
            raise ConversationError(f"{self._shown} answered what is no answer of a model") from None

    def _request(self, asked: Converse) -> dict[str, Any]:
        told = [{"text": each.text} for each in asked.said if each.role in ("developer", "system")]
        parameters = dict(asked.parameters)
        request: dict[str, Any] = {
            "modelId": str(parameters.pop("model", self._settings.model)),
            "messages": sides("Bedrock", asked.said, _blocks),
        }
        if told:
            request["system"] = told
        most = self._settings.most if asked.max_tokens is None else asked.max_tokens
        limits: dict[str, Any] = {} if most is None else {"maxTokens": most}
        if asked.temperature is not None:
            limits["temperature"] = asked.temperature
        if limits:
            request["inferenceConfig"] = limits
        if asked.tools and asked.tool_choice != "none":
            request["toolConfig"] = {
                "tools": [{"toolSpec": _tool(each)} for each in asked.tools],
                "toolChoice": _choice(asked.tool_choice),
            }
        if asked.response_format is not None:
            schema = {"name": "response", "schema": orjson.dumps(asked.response_format).decode()}
            shape = {"type": "json_schema", "structure": {"jsonSchema": schema}}
            request["outputConfig"] = {"textFormat": shape}
        if parameters:
            request["additionalModelRequestFields"] = parameters
        return request


def _tool(tool: Any) -> Mapping[str, Any]:
    described = {"description": tool.description} if tool.description else {}
    return {"name": tool.name, **described, "inputSchema": {"json": tool.parameters or {"type": "object"}}}


def _choice(choice: str) -> Mapping[str, Any]:
    if choice == "auto":
        return {"auto": {}}
    return {"any": {}} if choice == "required" else {"tool": {"name": choice}}


def _blocks(said: Said) -> list[dict[str, Any]]:
    if said.role == "tool":
        return [{"toolResult": {"toolUseId": said.tool_id, "content": [{"text": said.text}]}}]
    texts: list[dict[str, Any]] = [{"text": text} for text in said.texts if text]
    return texts + [{"toolUse": _call(each)} for each in said.tool_calls]


def _call(call: ToolCall) -> dict[str, Any]:
    try:
        found = orjson.loads(call.arguments or "{}")
    except orjson.JSONDecodeError:
        found = None
    if not isinstance(found, dict):
        raise BadArgumentError(f"the arguments of the call of {call.name!r} are no JSON object")
    return {"toolUseId": call.id, "name": call.name, "input": found}


def _read(answer: Mapping[str, Any], model: str) -> Conversed:
    blocks = answer["output"]["message"]["content"]
    used = [each["toolUse"] for each in blocks if "toolUse" in each]
    calls = tuple(ToolCall(each["toolUseId"], each["name"], orjson.dumps(each["input"]).decode()) for each in used)
    reason = str(answer.get("stopReason", ""))
    choice = Choice("".join(each.get("text", "") for each in blocks), REASONS.get(reason, reason) or "stop", calls)
    told = answer.get("usage") or {}
    cached = number(told.get("cacheReadInputTokens"))
    details = {"prompt_details": {"cached_tokens": cached}} if cached else {}
    usage = usage_of(told.get("inputTokens"), told.get("outputTokens"), told.get("totalTokens"), **details)
    return Conversed((choice,), model, usage)
