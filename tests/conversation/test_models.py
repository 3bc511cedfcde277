"""One suite for all types of conversation components that ask a service."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import replace
from importlib.metadata import entry_points
from typing import Any

import pytest
from aiohttp import web

from mesh.blocks.conversation import (
    Choice,
    ConversationAwayError,
    ConversationError,
    Converse,
    Conversed,
    Said,
    Tool,
    ToolCall,
    Usage,
)
from mesh.errors import BadArgumentError, ConfigError
from mesh.registry import GROUP
from tests.http.harness import App
from tests.support.model_services import ANTHROPIC, ASKED, BEDROCK, CALL, KEY, KINDS, OLLAMA, ROUND, SCHEMA, ModelKind
from tests.support.nodes import component
from tests.support.processes import free_port

HELLO = Converse((Said("user", ("hello",)),))
OPENAI = KINDS["openai"]


@pytest.fixture
async def app() -> AsyncIterator[App]:
    async with App() as app:
        yield app


@pytest.fixture(params=list(KINDS.values()), ids=list(KINDS))
def kind(request: pytest.FixtureRequest) -> ModelKind:
    found: ModelKind = request.param
    return found


@asynccontextmanager
async def opened(kind: ModelKind, port: int, **more: str) -> AsyncIterator[Any]:
    settings = {**kind.settings, "endpoint": f"http://127.0.0.1:{port}{kind.base}", **more}
    async with kind.adapter.from_component(component("model", "conversation.x", **settings)) as model:
        yield model


async def ask(kind: ModelKind, app: App, asked: Converse = HELLO, **more: str) -> Conversed:
    async with opened(kind, app.port, **more) as model:
        found: Conversed = await model.converse(asked)
        return found


async def body(kind: ModelKind, app: App, asked: Converse, **more: str) -> Any:
    """Ask, and give what the service got."""
    app.answer(kind.path, body=kind.text("yes"))
    await ask(kind, app, asked, **more)
    return app.got[-1].json


def test_every_type_is_here() -> None:
    types = {entry.name for entry in entry_points(group=GROUP) if entry.name.startswith("conversation.")}
    assert types == {f"conversation.{name}" for name in ("echo", *KINDS)}


async def test_a_text(kind: ModelKind, app: App) -> None:
    """It is answered, with what it took; the service was told who asks."""
    app.answer(kind.path, body=kind.text("yes, 東京"))
    done = await ask(kind, app)
    assert done.choices == (Choice("yes, 東京", "stop"),)
    assert done.usage == Usage(5, 2, 7)
    assert done.model == ("m1" if kind is BEDROCK else "m1-today")
    [got] = app.got
    assert (got.method, got.path) == ("POST", kind.path)
    assert {name: got.headers.get(name) for name in kind.headers} == kind.headers


async def test_everything_that_can_be_asked(kind: ModelKind, app: App) -> None:
    assert await body(kind, app, ASKED) == kind.asked


async def test_how_many_tokens(kind: ModelKind, app: App) -> None:
    """What a request says counts; else the component, if it says anything."""
    for asked, setting, told in ((11, "9", 11), (None, "9", 9), (None, "", 4096 if kind is ANTHROPIC else None)):
        got = await body(kind, app, replace(HELLO, max_tokens=asked), maxTokens=setting)
        found = {**got, **got.get("inferenceConfig", {}), **got.get("options", {})}
        names = ("max_tokens", "max_completion_tokens", "num_predict", "maxTokens")
        assert [found[name] for name in names if name in found] == ([] if told is None else [told])


async def test_tools_there_and_back(kind: ModelKind, app: App) -> None:
    """A model wants one to be called, and is told what came of it."""
    app.answer(kind.path, body=kind.calls)
    done = await ask(kind, app, ASKED)
    assert done.choices == (Choice("", "tool_calls", (CALL,)),)
    assert (await body(kind, app, ROUND))["messages"] == kind.messages


async def test_arguments_that_are_no_object(kind: ModelKind, app: App) -> None:
    """Where the service wants one, they are refused; else they are its own to judge."""
    asked = Converse((Said("user", ("a",)), Said("assistant", (), tool_calls=(ToolCall("1", "f", "[1]"),))))
    if not kind.objects:
        assert (await body(kind, app, asked))["messages"][1]["content"] is None
        return
    with pytest.raises(BadArgumentError, match="the arguments of the call of 'f' are no JSON object"):
        await ask(kind, app, asked)
    assert not app.got


async def test_further_fields(kind: ModelKind, app: App) -> None:
    asked = replace(HELLO, parameters={"top_k": 3, "model": "m1"})
    got = await body(kind, app, asked)
    assert (got["additionalModelRequestFields"] if kind is BEDROCK else got)["top_k"] == 3
    if kind is not BEDROCK:
        for name in ("messages", "tools", "stream"):
            with pytest.raises(BadArgumentError, match=f"the parameter '{name}' is not one that can be given"):
                await ask(kind, app, replace(HELLO, parameters={name: True}))
        assert len(app.got) == 1


@pytest.mark.parametrize(
    ("status", "error"),
    [(400, False), (401, False), (403, False), (404, False), (429, True), (500, True), (503, True)],
)
async def test_refusals(kind: ModelKind, app: App, status: int, error: bool, caplog: pytest.LogCaptureFixture) -> None:
    """Whether the same may succeed later is told, and why it did not; never the key. It is asked once."""
    caplog.set_level(logging.DEBUG)
    told = f"no such thing, {KEY}" if status in (401, 403) and kind is not BEDROCK else "no such thing"
    app.answer(kind.path, status, {"error": {"message": told}, "message": told})
    with pytest.raises(ConversationError) as raised:
        await ask(kind, app)
    assert isinstance(raised.value, ConversationAwayError) is raised.value.retryable is error
    assert str(status) in str(raised.value) or kind is BEDROCK
    assert ("no such thing" in str(raised.value)) is (kind is BEDROCK or status not in (401, 403))
    assert KEY not in str(raised.value) + caplog.text
    assert len(app.got) == 1


@pytest.mark.parametrize(
    "answer", [b"", b"<html>", b"[]", b"null", b"{}", b'{"choices": []}', b'{"content": 1, "message": 1, "choices": 1}']
)
async def test_answers_that_are_none(kind: ModelKind, app: App, answer: bytes) -> None:
    app.answer(kind.path, body=answer)
    with pytest.raises(ConversationError):
        await ask(kind, app)


async def test_a_service_that_sends_elsewhere(kind: ModelKind, app: App) -> None:
    """Nobody else is told the key; to AWS, none is ever sent."""
    app.answer(kind.path, 307, Location=f"http://127.0.0.1:{app.port}/elsewhere")
    with pytest.raises(ConversationError):
        await ask(kind, app)
    assert kind is BEDROCK or [got.path for got in app.got] == [kind.path]


async def test_a_service_that_is_not_there(kind: ModelKind) -> None:
    async with opened(kind, free_port()) as model:
        with pytest.raises(ConversationAwayError) as raised:
            await model.converse(HELLO)
    assert KEY not in str(raised.value)


async def test_a_request_that_is_cancelled(kind: ModelKind, app: App) -> None:
    """It ends at the service, too."""
    began, ended = asyncio.Event(), asyncio.Event()

    async def hang(request: web.BaseRequest) -> web.StreamResponse:
        began.set()
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()
        raise AssertionError

    app.streams[kind.path] = hang
    async with opened(kind, app.port) as model, asyncio.TaskGroup() as tasks:
        asking = tasks.create_task(model.converse(HELLO))
        async with asyncio.timeout(20):
            await began.wait()
            asking.cancel()
            await ended.wait()


async def test_an_answer_without_end(app: App) -> None:
    app.answer(OPENAI.path, body=b" " * (9 * 2**20))
    with pytest.raises(ConversationError, match="answers more than 8388608 bytes"):
        await ask(OPENAI, app)


TOOLS = (Tool("f"), Tool("g", "", SCHEMA))


@pytest.mark.parametrize(
    ("kind", "choice", "told"),
    [
        (OPENAI, "none", "none"),
        (OPENAI, "required", "required"),
        (OPENAI, "g", {"type": "function", "function": {"name": "g"}}),
        (ANTHROPIC, "none", {"type": "none"}),
        (ANTHROPIC, "required", {"type": "any"}),
        (ANTHROPIC, "g", {"type": "tool", "name": "g"}),
        (BEDROCK, "none", None),
        (BEDROCK, "required", {"any": {}}),
        (BEDROCK, "g", {"tool": {"name": "g"}}),
        (OLLAMA, "none", None),
    ],
)
async def test_the_choice_of_a_tool(kind: ModelKind, choice: str, told: object, app: App) -> None:
    got = await body(kind, app, replace(HELLO, tools=TOOLS, tool_choice=choice))
    found: Mapping[str, Any] = got.get("toolConfig", {}) if kind is BEDROCK else got
    assert found.get("toolChoice", found.get("tool_choice")) == told
    assert ("tools" in found) is (told is not None)


async def test_what_ollama_cannot(app: App) -> None:
    for choice in ("required", "g"):
        with pytest.raises(BadArgumentError, match="Ollama cannot be made to call a tool"):
            await ask(OLLAMA, app, replace(HELLO, tools=TOOLS, tool_choice=choice))


@pytest.mark.parametrize("kind", [ANTHROPIC, BEDROCK])
async def test_a_conversation_without_anybody(kind: ModelKind, app: App) -> None:
    for said in ((Said("system", ("a",)),), (Said("user", ("",)),)):
        with pytest.raises(BadArgumentError, match="needs a message"):
            await ask(kind, app, Converse(said))


@pytest.mark.parametrize(
    ("seconds", "openai", "anthropic"),
    [
        (None, None, None),
        (0.0, None, None),
        (300.0, "in_memory", "5m"),
        (3600.0, "in_memory", "1h"),
        (86400.0, "24h", "1h"),
    ],
)
async def test_how_long_a_prompt_is_kept(app: App, seconds: float | None, openai: object, anthropic: object) -> None:
    asked = replace(HELLO, prompt_cache_seconds=seconds)
    assert (await body(OPENAI, app, asked)).get("prompt_cache_retention") == openai
    block = (await body(ANTHROPIC, app, asked))["messages"][-1]["content"][-1]
    assert block.get("cache_control") == (anthropic and {"type": "ephemeral", "ttl": anthropic})


async def test_a_format_of_the_interface_itself(app: App) -> None:
    for form in ({"type": "json_object"}, {"type": "json_schema", "json_schema": {"name": "n", "schema": SCHEMA}}):
        assert (await body(OPENAI, app, replace(HELLO, response_format=form)))["response_format"] == form


async def test_several_choices_and_details(app: App) -> None:
    choices = [{"message": {"content": each}, "finish_reason": "length"} for each in "ab"]
    choices += [{"message": {"content": [{"type": "thinking", "thinking": []}, {"type": "text", "text": "c"}]}}]
    choices += [{"message": {"refusal": "never"}, "finish_reason": "content_filter"}]
    details = {"prompt_tokens_details": {"cached_tokens": 4}, "completion_tokens_details": {"reasoning_tokens": 3}}
    usage = {"prompt_tokens": 5, "completion_tokens": -1, "total_tokens": None, **details}
    app.answer(OPENAI.path, body={"choices": choices, "usage": usage})
    done = await ask(OPENAI, app, replace(HELLO, parameters={"n": 4}))
    assert [(each.content, each.finish_reason) for each in done.choices] == [
        ("a", "length"), ("b", "length"), ("c", "stop"), ("never", "content_filter"),
    ]  # fmt: skip
    completion = {
        "accepted_prediction_tokens": 0,
        "audio_tokens": 0,
        "reasoning_tokens": 3,
        "rejected_prediction_tokens": 0,
    }
    assert done.usage == Usage(5, 0, 5, {"audio_tokens": 0, "cached_tokens": 4}, completion)


@pytest.mark.parametrize("wrong", [[1], "many", 7.5, True, {"n": {}}], ids=repr)
async def test_what_an_answer_took_that_cannot_be_read(
    kind: ModelKind, app: App, wrong: object, caplog: pytest.LogCaptureFixture
) -> None:
    """It does not spoil an answer, which was paid for."""
    caplog.set_level(logging.DEBUG)
    told: Mapping[str, object] = {"usage": wrong}
    if kind is OLLAMA:
        told = {"prompt_eval_count": wrong, "eval_count": wrong}
    elif kind is BEDROCK:
        pytest.skip("AWS's own library reads the answer, by AWS's own description of it")
    app.answer(kind.path, body={**kind.text("yes"), **told})
    done = await ask(kind, app)
    assert done.choices == (Choice("yes", "stop"),)
    assert done.usage in (None, Usage(0, 0, 0))
    if kind is not OLLAMA and not isinstance(wrong, dict):
        assert f"tells what its answer took as {type(wrong).__name__}" in caplog.text


@pytest.mark.parametrize("wrong", [[1], "many", 7], ids=repr)
async def test_details_that_cannot_be_read(app: App, wrong: object) -> None:
    usage = {"prompt_tokens": 5, "completion_tokens": 2, "prompt_tokens_details": wrong}
    app.answer(OPENAI.path, body={**OPENAI.text("yes"), "usage": usage})
    assert (await ask(OPENAI, app)).usage == Usage(5, 2, 7)


async def test_azure(app: App) -> None:
    path = "/openai/deployments/m%2F1/chat/completions"
    app.answer(path, body=OPENAI.text("yes"))
    azure = {"apiType": "Azure", "apiVersion": "2025-04-01", "model": "m/1", "endpoint": f"http://127.0.0.1:{app.port}"}
    await ask(OPENAI, app, **azure)
    [got] = app.got
    assert got.target == f"{path}?api-version=2025-04-01"
    assert (got.headers["api-key"], got.headers.get("authorization")) == (KEY, None)
    for missing in ("apiVersion", "endpoint"):
        with pytest.raises(ConfigError, match=f"apiType azure needs {missing} as well"):
            await ask(OPENAI, app, **{**azure, missing: ""})


async def test_the_model_that_a_variable_names(app: App, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the component names none; else the type's own is asked."""
    app.answer("/v1/chat/completions", body=OPENAI.text("yes"))
    for kind in ("openai", "googleai", "mistral", "huggingface"):
        monkeypatch.setenv(f"DAPR_CONVERSATION_{kind.upper()}_MODEL", f"{kind}-1")
        await ask(KINDS[kind], app, model="")
        await ask(KINDS[kind], app)
        monkeypatch.delenv(f"DAPR_CONVERSATION_{kind.upper()}_MODEL")
        await ask(KINDS[kind], app, model="")
        assert [got.json["model"] for got in app.got[-3:]] == [f"{kind}-1", "m1", KINDS[kind].adapter.model]


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"key": ""}, "key"),
        ({"endpoint": "ftp://x"}, "is an http:// or https:// URL"),
        ({"endpoint": "https://u:p@x"}, "without credentials"),
        ({"maxTokens": "0"}, "maxTokens"),
    ],
)
def test_settings_that_are_wrong(settings: Mapping[str, str], told: str) -> None:
    given = {**OPENAI.settings, **settings}
    with pytest.raises(ConfigError, match=told):
        OPENAI.adapter.from_component(component("model", "conversation.openai", **given))


async def test_a_key_that_cannot_be_sent(app: App) -> None:
    with pytest.raises(ConversationError) as raised:
        await ask(OPENAI, app, key="sk-\r\nX-Evil: 1")
    assert "Evil" not in str(raised.value)
    assert not app.got
