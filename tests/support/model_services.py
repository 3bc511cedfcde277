"""What each service of language models is asked and answers, as its documentation says, for one suite of tests."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from bindings.aws.bedrock import BedrockModel
from bindings.conversation.anthropic import AnthropicModel
from bindings.conversation.ollama import OllamaModel
from bindings.conversation.openai import DeepSeekModel, GoogleAIModel, HuggingFaceModel, MistralModel, OpenAIModel
from mesh.blocks.conversation import Converse, Said, Tool, ToolCall
from tests.http.harness import matches

__all__ = ["ASKED", "CALL", "KEY", "KINDS", "ROUND", "SCHEMA", "ModelKind"]

KEY = "sk-0123456789"
SCHEMA = {"type": "object", "properties": {"city": {"type": "string"}}}
CALL = ToolCall("call_1", "weather", '{"city":"Bergen"}')
SYSTEM = (Said("developer", ("Be brief.",)), Said("system", ("Be kind.",)))
ASKED = Converse(
    (*SYSTEM, Said("user", ("Hello", "there"))),
    temperature=0.5,
    tools=(Tool("weather", "tells it", SCHEMA),),
    tool_choice="auto",
    response_format=SCHEMA,
)
ROUND = Converse(
    (
        Said("user", ("Is it raining?",)),
        Said("assistant", ("I look.",), tool_calls=(CALL, ToolCall("call_2", "time", ""))),
        Said("tool", ("yes",), "weather", tool_id="call_1"),
        Said("tool", ("noon",), "time", tool_id="call_2"),
        Said("user", ("So?",)),
    )
)


@dataclass(frozen=True)
class ModelKind:
    """A service.

    Attributes:
        adapter: The class.
        path: Where requests come.
        headers: What tells who asks.
        text: Makes an answer of a text, for 7 tokens, 5 of them asked.
        calls: An answer that is `CALL`.
        asked: The body of `ASKED` with a limit of 9 tokens.
        messages: Those of the body of `ROUND`.
        base: What the endpoint has behind the host.
        settings: Further ones.
        objects: Whether arguments of calls are objects.
    """

    adapter: Any
    path: str
    headers: Mapping[str, object]
    text: Callable[[str], Mapping[str, Any]]
    calls: Mapping[str, Any]
    asked: Mapping[str, Any]
    messages: list[Any]
    base: str = ""
    settings: Mapping[str, str] = field(default_factory=lambda: {"key": KEY, "model": "m1", "maxTokens": "9"})
    objects: bool = True


def _completion(message: Mapping[str, Any], reason: str) -> Mapping[str, Any]:
    usage = {"prompt_tokens": 5, "completion_tokens": 2, "total_tokens": 7, "prompt_tokens_details": None}
    choice = {"index": 0, "finish_reason": reason, "message": {"role": "assistant", **message}}
    return {"id": "c", "object": "chat.completion", "model": "m1-today", "choices": [choice], "usage": usage}


FUNCTION = {"name": "weather", "description": "tells it", "parameters": SCHEMA}
OPENAI_ROUND = [
    {"role": "user", "content": "Is it raining?"},
    {
        "role": "assistant",
        "content": "I look.",
        "tool_calls": [
            {"id": "call_1", "type": "function", "function": {"name": "weather", "arguments": '{"city":"Bergen"}'}},
            {"id": "call_2", "type": "function", "function": {"name": "time", "arguments": ""}},
        ],
    },
    {"role": "tool", "tool_call_id": "call_1", "content": "yes"},
    {"role": "tool", "tool_call_id": "call_2", "content": "noon"},
    {"role": "user", "content": "So?"},
]
OPENAI_CALL = {
    "content": None,
    "tool_calls": [
        {"id": "call_1", "type": "function", "function": {"name": "weather", "arguments": '{"city":"Bergen"}'}}
    ],
}
BY_SCHEMA = {"type": "json_schema", "json_schema": {"name": "response", "schema": SCHEMA}}


def _compatible(adapter: Any, **changed: Any) -> ModelKind:
    asked = {
        "model": "m1",
        "messages": [
            {"role": "system", "content": "Be brief."},
            {"role": "system", "content": "Be kind."},
            {"role": "user", "content": "Hello\nthere"},
        ],
        "temperature": 0.5,
        "max_tokens": 9,
        "tools": [{"type": "function", "function": FUNCTION}],
        "tool_choice": "auto",
        "response_format": BY_SCHEMA,
    }
    told = {name: value for name, value in {**asked, **changed}.items() if value is not None}
    return ModelKind(
        adapter,
        "/v1/chat/completions",
        {"authorization": f"Bearer {KEY}"},
        lambda text: _completion({"content": text}, "stop"),
        _completion(OPENAI_CALL, "tool_calls"),
        told,
        OPENAI_ROUND,
        "/v1",
        objects=False,
    )


OPENAI_SAID = [
    {"role": "developer", "content": "Be brief."},
    {"role": "system", "content": "Be kind."},
    {"role": "user", "content": "Hello\nthere"},
]
SHAPED = {
    "role": "system",
    "content": matches(lambda text: text.startswith("Answer with JSON that fits") and '"city"' in text),
}


def _block(*blocks: Mapping[str, Any], reason: str) -> Mapping[str, Any]:
    usage = {"input_tokens": 5, "output_tokens": 2, "cache_read_input_tokens": 0}
    return {"type": "message", "model": "m1-today", "content": list(blocks), "stop_reason": reason, "usage": usage}


ANTHROPIC = ModelKind(
    AnthropicModel,
    "/v1/messages",
    {"x-api-key": KEY, "anthropic-version": "2023-06-01"},
    lambda text: _block({"type": "text", "text": text}, reason="end_turn"),
    _block(
        {"type": "thinking", "thinking": "hm"},
        {"type": "tool_use", "id": "call_1", "name": "weather", "input": {"city": "Bergen"}},
        reason="tool_use",
    ),
    {
        "model": "m1",
        "max_tokens": 9,
        "system": "Be brief.\nBe kind.",
        "messages": [
            {"role": "user", "content": [{"type": "text", "text": "Hello"}, {"type": "text", "text": "there"}]}
        ],
        "temperature": 0.5,
        "tools": [{"name": "weather", "description": "tells it", "input_schema": SCHEMA}],
        "tool_choice": {"type": "auto"},
        "output_config": {"format": {"type": "json_schema", "schema": SCHEMA}},
    },
    [
        {"role": "user", "content": [{"type": "text", "text": "Is it raining?"}]},
        {
            "role": "assistant",
            "content": [
                {"type": "text", "text": "I look."},
                {"type": "tool_use", "id": "call_1", "name": "weather", "input": {"city": "Bergen"}},
                {"type": "tool_use", "id": "call_2", "name": "time", "input": {}},
            ],
        },
        {
            "role": "user",
            "content": [
                {"type": "tool_result", "tool_use_id": "call_1", "content": "yes"},
                {"type": "tool_result", "tool_use_id": "call_2", "content": "noon"},
                {"type": "text", "text": "So?"},
            ],
        },
    ],
    "/v1",
)


def _chat(message: Mapping[str, Any]) -> Mapping[str, Any]:
    counts = {"prompt_eval_count": 5, "eval_count": 2}
    return {"model": "m1-today", "message": message, "done": True, "done_reason": "stop", **counts}


OLLAMA = ModelKind(
    OllamaModel,
    "/api/chat",
    {"authorization": None},
    lambda text: _chat({"role": "assistant", "content": text}),
    _chat(
        {
            "role": "assistant",
            "content": "",
            "tool_calls": [{"id": "call_1", "function": {"name": "weather", "arguments": {"city": "Bergen"}}}],
        }
    ),
    {
        "model": "m1",
        "stream": False,
        "messages": [
            {"role": "system", "content": "Be brief."},
            {"role": "system", "content": "Be kind."},
            {"role": "user", "content": "Hello\nthere"},
        ],
        "options": {"temperature": 0.5, "num_predict": 9},
        "tools": [{"type": "function", "function": FUNCTION}],
        "format": SCHEMA,
    },
    [
        {"role": "user", "content": "Is it raining?"},
        {
            "role": "assistant",
            "content": "I look.",
            "tool_calls": [
                {"function": {"name": "weather", "arguments": {"city": "Bergen"}}},
                {"function": {"name": "time", "arguments": {}}},
            ],
        },
        {"role": "tool", "tool_name": "weather", "content": "yes"},
        {"role": "tool", "tool_name": "time", "content": "noon"},
        {"role": "user", "content": "So?"},
    ],
    settings={"model": "m1", "maxTokens": "9"},
)


def _output(*blocks: Mapping[str, Any], reason: str) -> Mapping[str, Any]:
    usage = {"inputTokens": 5, "outputTokens": 2, "totalTokens": 7}
    message = {"role": "assistant", "content": list(blocks)}
    return {"output": {"message": message}, "stopReason": reason, "usage": usage, "metrics": {"latencyMs": 1}}


BEDROCK = ModelKind(
    BedrockModel,
    "/model/m1/converse",
    {"authorization": matches(lambda text: text.startswith("AWS4-HMAC-SHA256 Credential=AK") and KEY not in text)},
    lambda text: _output({"text": text}, reason="end_turn"),
    _output({"toolUse": {"toolUseId": "call_1", "name": "weather", "input": {"city": "Bergen"}}}, reason="tool_use"),
    {
        "messages": [{"role": "user", "content": [{"text": "Hello"}, {"text": "there"}]}],
        "system": [{"text": "Be brief."}, {"text": "Be kind."}],
        "inferenceConfig": {"temperature": 0.5, "maxTokens": 9},
        "toolConfig": {
            "tools": [{"toolSpec": {"name": "weather", "description": "tells it", "inputSchema": {"json": SCHEMA}}}],
            "toolChoice": {"auto": {}},
        },
        "outputConfig": {
            "textFormat": {
                "type": "json_schema",
                "structure": {
                    "jsonSchema": {
                        "name": "response",
                        "schema": '{"type":"object","properties":{"city":{"type":"string"}}}',
                    }
                },
            }
        },
    },
    [
        {"role": "user", "content": [{"text": "Is it raining?"}]},
        {
            "role": "assistant",
            "content": [
                {"text": "I look."},
                {"toolUse": {"toolUseId": "call_1", "name": "weather", "input": {"city": "Bergen"}}},
                {"toolUse": {"toolUseId": "call_2", "name": "time", "input": {}}},
            ],
        },
        {
            "role": "user",
            "content": [
                {"toolResult": {"toolUseId": "call_1", "content": [{"text": "yes"}]}},
                {"toolResult": {"toolUseId": "call_2", "content": [{"text": "noon"}]}},
                {"text": "So?"},
            ],
        },
    ],
    settings={"region": "eu-central-1", "accessKey": "AK", "secretKey": KEY, "model": "m1", "maxTokens": "9"},
)

DEEPSEEK = _compatible(DeepSeekModel, response_format={"type": "json_object"})
DEEPSEEK.asked["messages"].insert(0, SHAPED)
KINDS: Mapping[str, ModelKind] = {
    "openai": _compatible(OpenAIModel, max_tokens=None, max_completion_tokens=9, messages=OPENAI_SAID),
    "deepseek": DEEPSEEK,
    "googleai": _compatible(GoogleAIModel),
    "huggingface": _compatible(HuggingFaceModel),
    "mistral": _compatible(MistralModel),
    "anthropic": ANTHROPIC,
    "ollama": OLLAMA,
    "aws.bedrock": BEDROCK,
}
