"""Models behind OpenAI's interface of chat completions: its own, and those of everybody who answers in the same way.

Source: OpenAI's API reference, chat completions; the pages of the others on what they have of it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar
from urllib.parse import quote

import orjson

from bindings.conversation._service import KeyedSettings, ModelService, counts, number, text_of, usage_of
from mesh.blocks.conversation import Choice, Converse, Conversed, Said, ToolCall, Usage
from mesh.resources.settings import choice, setting

__all__ = ["DeepSeekModel", "GoogleAIModel", "HuggingFaceModel", "MistralModel", "OpenAIModel"]

NOT_RUN = "a server written by hand from the documentation of OpenAI's interface; never ran against the real service"
HOUR = 3600.0
COMPLETION_DETAILS = ("accepted_prediction_tokens", "audio_tokens", "reasoning_tokens", "rejected_prediction_tokens")
PROMPT_DETAILS = ("audio_tokens", "cached_tokens")
AZURE_MODEL, AZURE_VARIABLE = "gpt-4.1-nano", "AZURE_OPENAI_MODEL"


class CompatibleModel(ModelService):
    """A service with OpenAI's interface.

    Attributes:
        most_named: What it calls the most tokens of an answer.
        schemas: Whether it keeps to a JSON schema; otherwise it is told to, and asked for any JSON.
    """

    tested = NOT_RUN
    settings: ClassVar[type[KeyedSettings]] = KeyedSettings
    most_named: ClassVar[str] = "max_tokens"
    schemas: ClassVar[bool] = True

    def _target(self) -> str:
        return f"{self._base}/chat/completions"

    def _headers(self) -> Mapping[str, str]:
        return {"Authorization": f"Bearer {self._settings.key}"}

    def _body(self, asked: Converse) -> Mapping[str, Any]:
        body: dict[str, Any] = {
            "model": self._model,
            "messages": [each for said in asked.said for each in self._said(said)],
        }
        if asked.temperature is not None:
            body["temperature"] = asked.temperature
        if (most := self._most(asked)) is not None:
            body[self.most_named] = most
        if asked.tools:
            body["tools"] = [
                {
                    "type": "function",
                    "function": {
                        "name": each.name,
                        **({"description": each.description} if each.description else {}),
                        "parameters": each.parameters or {"type": "object", "properties": {}},
                    },
                }
                for each in asked.tools
            ]
            named = {"type": "function", "function": {"name": asked.tool_choice}}
            body["tool_choice"] = asked.tool_choice if asked.tool_choice in ("auto", "none", "required") else named
        if asked.response_format is not None:
            self._shape(body, asked.response_format)
        return body

    def _shape(self, body: dict[str, Any], schema: Mapping[str, Any]) -> None:
        """Ask for JSON: a schema, or what the interface itself has in its place."""
        if schema.get("type") in ("json_schema", "json_object", "text"):
            body["response_format"] = schema
        elif self.schemas:
            made = {"name": "response", "schema": schema}
            body["response_format"] = {"type": "json_schema", "json_schema": made}
        else:
            body["response_format"] = {"type": "json_object"}
            told = f"Answer with JSON that fits this JSON schema: {orjson.dumps(schema).decode()}"
            body["messages"].insert(0, {"role": "system", "content": told})

    def _role(self, said: Said) -> str:
        return "system" if said.role == "developer" else said.role

    def _said(self, said: Said) -> Iterator[Mapping[str, Any]]:
        made: dict[str, Any] = {"role": self._role(said), "content": said.text}
        if said.role == "tool":
            made["tool_call_id"] = said.tool_id
        if said.tool_calls:
            made["content"] = said.text or None
            made["tool_calls"] = [
                {"id": each.id, "type": "function", "function": {"name": each.name, "arguments": each.arguments}}
                for each in said.tool_calls
            ]
        yield made

    def _read(self, answer: Any) -> Conversed:
        choices = tuple(_choice(each) for each in answer["choices"])
        if not choices:
            raise ValueError("no choice")
        told = counts(self.service, answer.get("usage"))
        return Conversed(choices, text_of(answer.get("model")), self._usage(told) if told else None)

    def _usage(self, told: Mapping[str, Any]) -> Usage:
        details = {
            name: {each: number(found.get(each)) for each in known}
            for name, known, given in (
                ("prompt_details", PROMPT_DETAILS, told.get("prompt_tokens_details")),
                ("completion_details", COMPLETION_DETAILS, told.get("completion_tokens_details")),
            )
            if (found := counts(self.service, given))
        }
        return usage_of(told.get("prompt_tokens"), told.get("completion_tokens"), told.get("total_tokens"), **details)


def _choice(given: Any) -> Choice:
    message = given["message"]
    calls = tuple(
        ToolCall(text_of(each.get("id")), text_of(each["function"]["name"]), text_of(each["function"].get("arguments")))
        for each in message.get("tool_calls") or ()
    )
    content = message.get("content")
    if isinstance(content, list):  # Some tell their thoughts besides.
        content = "".join(text_of(each.get("text")) for each in content if each.get("type") == "text")
    content = text_of(content) or text_of(message.get("refusal"))
    return Choice(content, text_of(given.get("finish_reason")) or ("tool_calls" if calls else "stop"), calls)


@dataclass(frozen=True, slots=True)
class OpenAISettings(KeyedSettings):
    """What is read of a component of OpenAI's, which may be at Azure."""

    kind: str = setting(
        "apiType",
        "`azure` for Azure OpenAI: `endpoint` is the resource's, `model` the deployment.",
        choice("openai", "azure"),
    )
    version: str = setting("apiVersion", "Version of Azure's interface.", default="", example="2025-04-01-preview")


class OpenAIModel(CompatibleModel):
    """OpenAI, Azure OpenAI, and servers with the same interface."""

    title = "A model of OpenAI or Azure OpenAI, or of any server with OpenAI's interface (`endpoint`)."
    settings: ClassVar[type[OpenAISettings]] = OpenAISettings
    service = "OpenAI"
    url = "https://api.openai.com/v1"
    model = "gpt-5-nano"
    variable = "DAPR_CONVERSATION_OPENAI_MODEL"
    most_named = "max_completion_tokens"

    async def _enter(self) -> None:
        if self._azure:
            for name, value in (("endpoint", self._settings.endpoint), ("apiVersion", self._settings.version)):
                if not value:
                    raise self._problem(f"apiType azure needs {name} as well", "apiType")
        await super()._enter()

    @property
    def _azure(self) -> bool:
        return bool(self._settings.kind == "azure")

    @property
    def _model(self) -> str:
        return super()._model if not self._azure else self._settings.model or AZURE_MODEL

    def _target(self) -> str:
        if not self._azure:
            return super()._target()
        version, deployment = quote(self._settings.version, safe=""), quote(self._model, safe="")
        return f"{self._base}/openai/deployments/{deployment}/chat/completions?api-version={version}"

    def _headers(self) -> Mapping[str, str]:
        return {"api-key": self._settings.key} if self._azure else super()._headers()

    def _role(self, said: Said) -> str:
        return said.role

    def _body(self, asked: Converse) -> Mapping[str, Any]:
        seconds = asked.prompt_cache_seconds
        kept = {} if not seconds else {"prompt_cache_retention": "24h" if seconds > HOUR else "in_memory"}
        return {**super()._body(asked), **kept}


class DeepSeekModel(CompatibleModel):
    """DeepSeek."""

    title = "A model of DeepSeek."
    service = "DeepSeek"
    url = "https://api.deepseek.com"
    model = "deepseek-chat"
    schemas = False


class GoogleAIModel(CompatibleModel):
    """Google's Gemini."""

    title = "A model of Google AI (Gemini), by its interface that is OpenAI's."
    service = "Google AI"
    url = "https://generativelanguage.googleapis.com/v1beta/openai"
    model = "gemini-2.5-flash-lite"
    variable = "DAPR_CONVERSATION_GOOGLEAI_MODEL"


class HuggingFaceModel(CompatibleModel):
    """Hugging Face's router."""

    title = "A model at Hugging Face, by its interface that is OpenAI's."
    service = "Hugging Face"
    model = "deepseek-ai/DeepSeek-R1-Distill-Qwen-32B"
    variable = "DAPR_CONVERSATION_HUGGINGFACE_MODEL"

    @property
    def _base(self) -> str:
        at = f"https://router.huggingface.co/hf-inference/models/{quote(self._model)}/v1"
        return self._settings.endpoint or at


class MistralModel(CompatibleModel):
    """Mistral."""

    title = "A model of Mistral AI."
    service = "Mistral"
    url = "https://api.mistral.ai/v1"
    model = "open-mistral-7b"
    variable = "DAPR_CONVERSATION_MISTRAL_MODEL"
