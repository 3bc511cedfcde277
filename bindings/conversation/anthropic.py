"""Models of Anthropic, by its interface of messages.

Source: Anthropic's API reference: messages, tool use, structured outputs, prompt caching.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import orjson

from bindings.conversation._service import (
    KeyedSettings,
    ModelService,
    arguments_of,
    counts,
    number,
    sides,
    text_of,
    usage_of,
)
from mesh.blocks.conversation import Choice, Converse, Conversed, Said, ToolCall

__all__ = ["AnthropicModel"]

VERSION = "2023-06-01"
MOST_TOKENS = 4096  # The interface wants a number.
SHORT_SECONDS = 300.0
REASONS = {
    "end_turn": "stop",
    "stop_sequence": "stop",
    "max_tokens": "length",
    "tool_use": "tool_calls",
    "refusal": "content_filter",
}
CHOICES: Mapping[str, str] = {"auto": "auto", "none": "none", "required": "any"}


class AnthropicModel(ModelService):
    """Anthropic."""

    title = "A model of Anthropic."
    tested = "a server written by hand from the documentation of Anthropic; never ran against the real service"
    settings: ClassVar[type[KeyedSettings]] = KeyedSettings
    service = "Anthropic"
    url = "https://api.anthropic.com/v1"
    model = "claude-sonnet-4-20250514"
    variable = "DAPR_CONVERSATION_ANTHROPIC_MODEL"

    def _target(self) -> str:
        return f"{self._base}/messages"

    def _headers(self) -> Mapping[str, str]:
        return {"x-api-key": self._settings.key, "anthropic-version": VERSION}

    def _body(self, asked: Converse) -> Mapping[str, Any]:
        told = [each.text for each in asked.said if each.role in ("developer", "system")]
        messages = sides("Anthropic", asked.said, _blocks)
        body: dict[str, Any] = {
            "model": self._model,
            "max_tokens": self._most(asked) or MOST_TOKENS,
            "messages": messages,
        }
        if told:
            body["system"] = "\n".join(told)
        if asked.temperature is not None:
            body["temperature"] = asked.temperature
        if asked.tools:
            body["tools"] = [
                {
                    "name": each.name,
                    "description": each.description,
                    "input_schema": each.parameters or {"type": "object"},
                }
                for each in asked.tools
            ]
            kind = CHOICES.get(asked.tool_choice)
            body["tool_choice"] = {"type": kind} if kind else {"type": "tool", "name": asked.tool_choice}
        if asked.response_format is not None:
            body["output_config"] = {"format": {"type": "json_schema", "schema": asked.response_format}}
        if asked.prompt_cache_seconds:
            ttl = "5m" if asked.prompt_cache_seconds <= SHORT_SECONDS else "1h"
            messages[-1]["content"][-1]["cache_control"] = {"type": "ephemeral", "ttl": ttl}
        return body

    def _read(self, answer: Any) -> Conversed:
        blocks = answer["content"]
        texts = [text_of(each["text"]) for each in blocks if each["type"] == "text"]
        calls = tuple(
            ToolCall(text_of(each["id"]), text_of(each["name"]), orjson.dumps(each["input"]).decode())
            for each in blocks
            if each["type"] == "tool_use"
        )
        reason = text_of(answer.get("stop_reason"))
        choice = Choice("".join(texts), REASONS.get(reason, reason) or "stop", calls)
        told = counts(self.service, answer.get("usage"))
        cached = number(told.get("cache_read_input_tokens"))
        given = number(told.get("input_tokens")) + cached + number(told.get("cache_creation_input_tokens"))
        details = {"prompt_details": {"cached_tokens": cached}} if cached else {}
        usage = usage_of(given, told.get("output_tokens"), **details)
        return Conversed((choice,), text_of(answer.get("model")), usage)


def _blocks(said: Said) -> list[dict[str, Any]]:
    if said.role == "tool":
        return [{"type": "tool_result", "tool_use_id": said.tool_id, "content": said.text}]
    texts: list[dict[str, Any]] = [{"type": "text", "text": text} for text in said.texts if text]
    calls = [
        {"type": "tool_use", "id": each.id, "name": each.name, "input": arguments_of(each.name, each.arguments)}
        for each in said.tool_calls
    ]
    return texts + calls
