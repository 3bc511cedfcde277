"""Conversation over HTTP, both versions: bodies, what is refused, and models that are elsewhere.

Source: reference/dapr-surface.md 1.15, 0.3; Dapr's documentation of the conversation API and of its echo component.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import orjson
import pytest
import pytest_asyncio
from aiohttp import web

from tests.http.harness import ANY, App, Backbone, Case, Node, cases, check, component, error, gateway, matches, yaml
from tests.meta.sources import ROOT

pytestmark = pytest.mark.asyncio(loop_scope="module")

RESOURCES = component("echo", "conversation.echo", key="none") + component(
    "other", "conversation.echo", scopes=["someone"]
)
TYPE = "type.googleapis.com/google.protobuf."


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def node(module_backbone: Backbone, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Node]:
    async with gateway(module_backbone, tmp_path_factory.mktemp("home"), resources=RESOURCES) as node:
        yield node


def first(body: object, name: str = "echo") -> tuple[str, str, None, object]:
    return "POST", f"/v1.0-alpha1/conversation/{name}/converse", None, body


def second(body: object, name: str = "echo") -> tuple[str, str, None, object]:
    return "POST", f"/v1.0-alpha2/conversation/{name}/converse", None, body


def said(*messages: object, **more: object) -> dict[str, object]:
    return {"inputs": [{"messages": list(messages)}], **more}


def user(*texts: str, who: str = "ofUser", **more: object) -> dict[str, object]:
    return {who: {"content": [{"text": text} for text in texts], **more}}


def called(name: str, arguments: str, **more: object) -> dict[str, object]:
    return {"function": {"name": name, "arguments": arguments}, **more}


def tool(name: str, *parameters: str) -> dict[str, object]:
    schema = {"type": "object", "properties": {each: {"type": "string"} for each in parameters}}
    return {"function": {"name": name, "description": "does it", "parameters": schema}}


def told(content: str, words: int, *calls: object, **more: object) -> dict[str, object]:
    message = {"content": content, **({"toolCalls": list(calls)} if calls else {})}
    choice = {"finishReason": "tool_calls" if calls else "stop", "message": message}
    usage = {"promptTokens": str(words), "completionTokens": str(words), "totalTokens": str(2 * words)}
    return {"outputs": [{"choices": [choice], "usage": usage}], **more}


NOTHING = {"outputs": [{"choices": [{"finishReason": "stop", "message": {}}], "usage": {}}]}
MISSING = error("ERR_CONVERSATION_MISSING_INPUTS", "failed conversing with component echo: missing inputs in request")
MALFORMED = error("ERR_MALFORMED_REQUEST", ANY)


def unknown(name: str) -> dict[str, object]:
    return error("ERR_CONVERSATION_NOT_FOUND", f"failed finding conversation component {name}")


def invalid(reason: str) -> dict[str, object]:
    text = f"failed conversing with component echo: invalid params: {reason}"
    return error("ERR_CONVERSATION_INVALID_PARMS", text)


WORDS = "must be 'auto', 'none', 'required', or a specific tool name matching the tools available to be used"
CHOICE = invalid(f"tool choice {WORDS}")


@cases(
    Case("a text", first({"inputs": [{"content": "hello there"}]}), 200, {"outputs": [{"result": "hello there"}]}),
    Case("a conversation's id", first({"inputs": [{"content": "a"}], "contextID": "c"}), 200,
         {"contextID": "c", "outputs": [{"result": "a"}]}),
    Case("several texts", first({"inputs": [{"content": "a", "role": "system"}, {"content": "b", "role": "AI"}]}), 200,
         {"outputs": [{"result": "a\nb"}]}),
    Case("an unknown role", first({"inputs": [{"content": "a", "role": "x"}]}), 200, {"outputs": [{"result": "a"}]}),
    Case("parameters come back", first({"inputs": [{"content": "a"}], "temperature": 0.5,
                                       "parameters": {"n": {"@type": TYPE + "Int64Value", "value": "100"}}}), 200,
         {"outputs": [{"result": "a", "parameters": {"n": {"@type": TYPE + "Int64Value", "value": "100"}}}]}),
    Case("unknown members", first({"inputs": [{"content": "a", "x": 1}], "y": {}}), 200,
         {"outputs": [{"result": "a"}]}),
    Case("no text", first({"inputs": [{}]}), 200, {"outputs": [{}]}),
    Case("scrubbed before", first({"inputs": [{"content": "call +2222222222", "scrubPII": True},
                                              {"content": "or a@b.cd"}]}), 200,
         {"outputs": [{"result": "call <PHONE_NUMBER>\nor a@b.cd"}]}),
    Case("scrubbed after", first({"inputs": [{"content": "from 10.8.9.1"}], "scrubPII": True}), 200,
         {"outputs": [{"result": "from <IP>"}]}),
    Case("no inputs", first({"metadata": {"model": "x"}}), 400, MISSING),
    Case("no body", first(None), 400, MISSING),
    Case("a body that is no JSON", first(b"{"), 400, MALFORMED),
    Case("a body that is a list", first([1]), 400, MALFORMED),
    Case("a content that is a number", first({"inputs": [{"content": 1}]}), 400, MALFORMED),
    Case("unknown component", first({"inputs": [{"content": "a"}]}, "nope"), 400, unknown("nope")),
    Case("of another application", first({"inputs": [{"content": "a"}]}, "other"), 400, unknown("other")),
    Case("another verb", ("GET", "/v1.0-alpha1/conversation/echo/converse"), 404, ANY),
    Case("no such version", ("POST", "/v1.0/conversation/echo/converse", None, {}), 404, ANY),
)  # fmt: skip
async def test_the_first_version(node: Node, case: Case) -> None:
    await check(node, case)


@cases(
    Case("a user", second(said(user("user message"))), 200, told("user message", 2)),
    Case("a system", second(said(user("system message", who="ofSystem", name="s"))), 200, told("system message", 2)),
    Case("a developer", second(said(user("for developers", who="ofDeveloper"))), 200, told("for developers", 2)),
    Case("with underscores", second({"inputs": [{"messages": [{"of_user": {"content": [{"text": "a"}]}}]}],
                                     "context_id": "c"}), 200, told("a", 1, contextId="c")),
    Case("an assistant that calls", second(said(user("a", who="ofAssistant", toolCalls=[called("f", "{}", id="7")]))),
         200, told("a", 1, called("f", "{}", id="7"))),
    Case("a call without an id", second(said(user("a", who="ofAssistant", toolCalls=[called("f", "x")]))), 200,
         told("a", 1, called("f", "x"))),
    Case("a tool", second(said(user("tool message", who="ofTool", toolId="tool-123", name="tool name"))), 200,
         told("Tool Response for tool ID 'tool-123' with name 'tool name': tool message", 12)),
    Case("several texts", second(said(user("a b", "c"), user("d"))), 200, told("a b\nc\nd", 4)),
    Case("several inputs", second({"inputs": [said(user("a"))["inputs"][0], said(user("b"))["inputs"][0]]}), 200,  # type: ignore[index]
         told("a\nb", 2)),
    Case("no text", second(said(user())), 200, NOTHING),
    Case("tools", second(said(user("a"), tools=[tool("f", "p"), tool("g", "y", "x"), tool("h")])), 200,
         told("a", 1, called("f", "p", id="0"), called("g", "x,y", id="1"),
              {"function": {"name": "h"}, "id": "2"})),
    Case("a tool that is chosen", second(said(user("a"), tools=[tool("f", "p"), tool("g", "x")], toolChoice="g")), 200,
         told("a", 1, called("g", "x", id="1"))),
    Case("no tool", second(said(user("a"), tools=[tool("f", "p")], toolChoice="none")), 200, told("a", 1)),
    Case("any tool", second(said(user("a"), tools=[tool("f", "p")], toolChoice="required")), 200,
         told("a", 1, called("f", "p", id="0"))),
    Case("every member", second({
        **said(user("a b")), "name": "nope", "contextId": "c1", "metadata": {"api_key": "k"}, "scrubPii": True,
        "temperature": 0.7, "responseFormat": {"type": "object"}, "promptCacheRetention": "86400s", "maxTokens": "5",
        "toolChoice": "auto",
        "parameters": {"s": {"@type": TYPE + "StringValue", "value": "x"},
                       "o": {"@type": TYPE + "Struct", "value": {"a": [1, None]}}},
        "unknown": [1],
    }), 200, told("a b", 2, contextId="c1")),
    Case("numbers as texts", second(said(user("a"), temperature="0.5")), 200, told("a", 1)),
    Case("null members", second(said(user("a"), temperature=None, tools=None, contextId=None)), 200, told("a", 1)),
    Case("scrubbed before", second({"inputs": [{**said(user("a@b.cd", "c"))["inputs"][0], "scrubPii": True}]}), 200,  # type: ignore[index]
         told("<EMAIL_ADDRESS>\nc", 2)),
    Case("scrubbed after", second(said(user("at 10.8.9.1 or +4422222222"), scrubPii=True)), 200,
         told("at <IP> or <PHONE_NUMBER>", 4)),
    Case("no inputs", second({}), 400, MISSING),
    Case("no messages", second({"inputs": [{}]}), 400, MISSING),
    Case("a message of no kind", second(said({"ofNobody": {}})), 400, invalid("message type cannot be nil")),
    Case("a call of nothing", second(said(user("a", who="ofAssistant", toolCalls=[{"id": "c"}]))), 400,
         invalid("tool types cannot be nil")),
    Case("a tool that is none", second(said(user("a"), tools=[{}])), 400, invalid("tool types cannot be nil")),
    Case("an unknown choice", second(said(user("a"), tools=[tool("f")], toolChoice="F")), 400, CHOICE),
    Case("a choice without tools", second(said(user("a"), toolChoice="required")), 400, CHOICE),
    Case("a temperature that is none", second(said(user("a"), temperature="NaN")), 400,
         invalid("the temperature must be a finite number")),
    Case("no tokens at all", second(said(user("a"), maxTokens="0")), 400, invalid("maxTokens must be positive")),
    Case("a negative time", second(said(user("a"), promptCacheRetention="-1s")), 400,
         invalid("promptCacheRetention cannot be negative")),
    Case("two kinds of message", second(said({**user("a"), **user("b", who="ofSystem")})), 400, MALFORMED),
    Case("a time that is none", second(said(user("a"), promptCacheRetention="1h")), 400, MALFORMED),
    Case("a parameter without a type", second(said(user("a"), parameters={"p": 1})), 400, MALFORMED),
    Case("parameters of other types", second(said(user("a"), parameters={
        "p": {"@type": "x/y.Z", "value": 1}, "q": {"@type": "Z"}, "r": {"@type": TYPE + "Duration", "value": "x"},
    })), 200, told("a", 1)),
    Case("a parameter that is not of its type", second(said(user("a"), parameters={
        "p": {"@type": TYPE + "Int64Value", "value": "x"}})), 400, MALFORMED),
    Case("a format that is no object", second(said(user("a"), responseFormat=[1])), 400, MALFORMED),
    Case("inputs that are no list", second({"inputs": "a"}), 400, MALFORMED),
    Case("a body that is a text", second('"a"'), 400, MALFORMED),
    Case("unknown component", second({}, "nope"), 400, unknown("nope")),
)  # fmt: skip
async def test_the_second_version(node: Node, case: Case) -> None:
    await check(node, case)


async def test_the_examples_of_the_page(node: Node) -> None:
    """What docs/conversation.md sends is answered, and as it says."""
    page = (ROOT / "docs" / "conversation.md").read_text(encoding="utf-8")
    sent = re.findall(r"curl -X POST \S+/conversation/model/converse[ \\\n]+-d '(.*?)'\n", page, re.DOTALL)
    answers = [(await node.request(*second(each))) for each in sent]
    assert [each.status for each in answers] == [200, 200]
    assert answers[0].json == orjson.loads(page.partition(sent[0])[2].partition("```json\n")[2].partition("```")[0])
    told = answers[1].json["outputs"][0]["choices"][0]["message"]["content"]
    assert told.endswith("Tool Response for tool ID 'call_1' with name 'weather': yes")


def deep(levels: int) -> object:
    return {"a": deep(levels - 1)} if levels else {}


@pytest.mark.parametrize(
    "members",
    [
        {"responseFormat": deep(200)},
        {"unknown": deep(200)},
        {"tools": [{"function": {"name": "f", "parameters": deep(200)}}]},
        {"parameters": {"p": {"@type": TYPE + "Int64Value", "value": None}}},
        {"parameters": {"p": {"@type": TYPE + "Int64Value"}}},
        {"parameters": {"p": {"@type": TYPE + "Struct", "value": 1}}},
        {"parameters": {"p": {"@type": TYPE + "Any", "value": {"@type": TYPE + "StringValue", "value": "x"}}}},
        {"parameters": {"p": {"@type": TYPE + "Duration", "value": "1s"}}},
        {"parameters": {"p": {"@type": 1}}},
        {"parameters": {"p": {}}},
        {"parameters": {"p": None}},
        {"parameters": [1]},
        {"promptCacheRetention": "99999999999999999999s"},
        {"promptCacheRetention": 1},
        {"maxTokens": "9223372036854775808"},
        {"maxTokens": 1.5},
        {"temperature": "1e999"},
        {"temperature": True},
        {"scrubPii": "yes"},
        {"inputs": [None]},
        {"inputs": [{"messages": [None]}]},
        {"inputs": [{"messages": {"ofUser": {}}}]},
        {"metadata": {"a": 1}},
        {"metadata": [["a", "b"]]},
        {"tools": {"function": {}}},
        {"toolChoice": ["auto"]},
        {"responseFormat": "json"},
        {"contextId": {"a": 1}},
        {"": 1},
    ],
)
async def test_strange_bodies(node: Node, members: dict[str, object]) -> None:
    """They are answered, or refused as what they are."""
    for make in (first, second):
        reply = await node.request(*make({**said(user("a")), **members}))
        assert reply.status in (200, 400), reply
        assert reply.status == 200 or reply.json["errorCode"].startswith(("ERR_MALFORMED", "ERR_CONVERSATION_"))


async def test_it_is_told_of(node: Node) -> None:
    described = (await node.get("/v1.0/metadata")).json["components"]
    assert [each["type"] for each in described if each["name"] == "echo"] == ["conversation.echo"]


@pytest_asyncio.fixture(loop_scope="module")
async def service() -> AsyncIterator[App]:
    async with App() as app:
        yield app


def openai(app: App, name: str = "model", **more: str) -> str:
    return component(name, "conversation.openai", key="sk-secret", endpoint=f"http://127.0.0.1:{app.port}/v1", **more)


COMPLETIONS = "/v1/chat/completions"
ANSWER = {"choices": [{"message": {"content": "yes"}, "finish_reason": "stop"}]}
CHOSEN = {"message": {"content": "yes"}, "finishReason": "stop"}
FAILED = "failed conversing with component model: "


async def test_answers_that_are_given_again(memory: Backbone, tmp_path: Path, service: App) -> None:
    """To whoever asks the same; what the model is not asked for, it does not answer."""
    service.answer(COMPLETIONS, body=ANSWER)
    async with gateway(memory, tmp_path, resources=openai(service, cacheTTL="10m")) as node:
        for text, scrub in (("a", False), ("a", False), ("a", True), ("b", False), ("b", False)):
            reply = await node.request(*second(said(user(text), scrubPii=scrub), "model"))
            assert reply.json == {"outputs": [{"choices": [CHOSEN]}]}
        assert len(service.got) == 2
        service.answer(COMPLETIONS, 500)
        for _ in range(2):
            assert (await node.request(*second(said(user("c")), "model"))).status == 500
        assert len(service.got) == 4, "a failure is not kept"


@pytest.mark.parametrize(("retries", "status", "asked"), [(None, 503, 1), (2, 503, 3), (2, 400, 1)])
async def test_policies(
    memory: Backbone, tmp_path: Path, service: App, retries: int | None, status: int, asked: int
) -> None:
    """A model is asked once, unless a policy says otherwise, and again only where that may help."""
    service.answer(COMPLETIONS, status, {"error": {"message": "no, not with sk-secret"}})
    resources = openai(service)
    if retries is not None:
        policies = {"retries": {"r": {"policy": "constant", "duration": "10ms", "maxRetries": retries}}}
        targets = {"components": {"model": {"outbound": {"retry": "r"}}}}
        resources += yaml("Resiliency", "r", {"policies": policies, "targets": targets})
    async with gateway(memory, tmp_path, resources=resources) as node:
        reply = await node.request(*second(said(user("a")), "model"))
        text = f"{FAILED}OpenAI answered {status}: no, not with …"
        assert (reply.status, reply.json) == (500, error("ERR_CONVERSATION_INVOKE", text))
        assert len(service.got) == asked


async def test_a_model_that_does_not_answer(memory: Backbone, tmp_path: Path, service: App) -> None:
    """It is waited for as long as a policy says, and the request to it ends then."""
    began, ended = asyncio.Event(), asyncio.Event()

    async def hang(request: web.BaseRequest) -> web.StreamResponse:
        began.set()
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()
        raise AssertionError

    service.streams[COMPLETIONS] = hang
    policies = {"timeouts": {"t": "500ms"}}
    targets = {"components": {"model": {"outbound": {"timeout": "t"}}}}
    resources = openai(service) + yaml("Resiliency", "r", {"policies": policies, "targets": targets})
    async with gateway(memory, tmp_path, resources=resources) as node:
        reply = await node.request(*second(said(user("a")), "model"))
        assert (reply.status, reply.json) == (
            500,
            error("ERR_CONVERSATION_INVOKE", matches(lambda text: FAILED in text)),
        )
        assert began.is_set()
        async with asyncio.timeout(10):
            await ended.wait()


async def test_a_model_of_a_host(nats: Backbone, tmp_path: Path, service: App) -> None:
    """A gateway without the key asks the node that has it; what is to be scrubbed does not go there."""
    service.answer(COMPLETIONS, body={"choices": [{"message": {
        "content": "a@b.cd", "tool_calls": [{"id": "1", "function": {"name": "f", "arguments": "{}"}}]}}]})  # fmt: skip
    away = openai(service, scopes=["host", "friend"]).replace(
        '"name":"model"', '"name":"model","annotations":{"mesh.placement":"backbone"}', 1
    )
    own = component("own", "conversation.echo")
    for each in "abc":
        (tmp_path / each).mkdir()
    async with gateway(nats, tmp_path / "a", app_id="host", resources=away), \
        gateway(nats, tmp_path / "b", app_id="friend", resources=own) as friend, \
        gateway(nats, tmp_path / "c", app_id="stranger", resources=own) as stranger:  # fmt: skip
        inputs: Any = [{**said(user("I am 10.8.9.1"))["inputs"][0], "scrubPii": True}]  # type: ignore[index]
        body = {"inputs": inputs, "scrubPii": True, "tools": [tool("f", "p")], "responseFormat": {"type": "object"},
                "parameters": {"n": {"@type": TYPE + "Int32Value", "value": 1}}}  # fmt: skip
        reply = await friend.request(*second(body, "model"))
        assert reply.json["outputs"][0]["choices"][0]["message"] == {
            "content": "<EMAIL_ADDRESS>", "toolCalls": [called("f", "{}", id="1")],
        }  # fmt: skip
        assert service.got[0].json["messages"] == [{"role": "user", "content": "I am <IP>"}]
        assert service.got[0].json["n"] == 1
        service.answer(COMPLETIONS, 401, {"error": {"message": "sk-secret is wrong"}})
        refused = await friend.request(*second(body, "model"))
        assert refused.json == error(
            "ERR_CONVERSATION_INVOKE", matches(lambda text: "401" in text and "sk-" not in text)
        )
        assert (await stranger.request(*second(body, "model"))).json == unknown("model")
