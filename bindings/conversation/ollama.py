"""Models on a machine of one's own, by the interface of Ollama.

Source: Ollama's API documentation, /api/chat.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import orjson

from bindings.conversation._service import ModelService, ModelSettings, arguments_of, text_of, usage_of
from mesh.blocks.conversation import Choice, Converse, Conversed, Said, ToolCall
from mesh.errors import BadArgumentError

__all__ = ["OllamaModel"]


class OllamaModel(ModelService):
    """Ollama."""

    title = "A model of an Ollama server."
    tested = "a server written by hand from the documentation of Ollama; never ran against the real server"
    settings: ClassVar[type[ModelSettings]] = ModelSettings
    service = "Ollama"
    url = "http://localhost:11434"
    model = "llama3.2:latest"
    variable = "DAPR_CONVERSATION_OLLAMA_MODEL"

    def _target(self) -> str:
        return f"{self._base}/api/chat"

    def _headers(self) -> Mapping[str, str]:
        return {}

    def _body(self, asked: Converse) -> Mapping[str, Any]:
        if asked.tool_choice not in ("", "auto", "none"):
            raise BadArgumentError("Ollama cannot be made to call a tool: toolChoice is auto or none")
        body: dict[str, Any] = {"model": self._model, "messages": [_said(each) for each in asked.said], "stream": False}
        most = self._most(asked)
        options: dict[str, Any] = {} if most is None else {"num_predict": most}
        if asked.temperature is not None:
            options["temperature"] = asked.temperature
        if options:
            body["options"] = options
        if asked.tools and asked.tool_choice != "none":
            body["tools"] = [
                {
                    "type": "function",
                    "function": {"name": each.name, "description": each.description, "parameters": each.parameters},
                }
                for each in asked.tools
            ]
        if asked.response_format is not None:
            body["format"] = asked.response_format
        return body

    def _read(self, answer: Any) -> Conversed:
        message = answer["message"]
        calls = tuple(
            ToolCall(
                text_of(each.get("id")) or f"call_{index}",
                text_of(each["function"]["name"]),
                orjson.dumps(each["function"].get("arguments") or {}).decode(),
            )
            for index, each in enumerate(message.get("tool_calls") or ())
        )
        reason = "tool_calls" if calls else text_of(answer.get("done_reason")) or "stop"
        usage = usage_of(answer.get("prompt_eval_count"), answer.get("eval_count"))
        choice = Choice(text_of(message.get("content")), reason, calls)
        return Conversed((choice,), text_of(answer.get("model")), usage)


def _said(said: Said) -> Mapping[str, Any]:
    role = "system" if said.role == "developer" else said.role
    made: dict[str, Any] = {"role": role, "content": said.text}
    if said.role == "tool":
        made["tool_name"] = said.name
    if said.tool_calls:
        made["tool_calls"] = [
            {"function": {"name": each.name, "arguments": arguments_of(each.name, each.arguments)}}
            for each in said.tool_calls
        ]
    return made
