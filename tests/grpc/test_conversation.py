"""Conversation over gRPC, both versions, beside the same over HTTP."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from typing import Any

import pytest
import pytest_asyncio
from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.wrappers_pb2 import Int64Value

from tests.grpc.harness import Both, Call, Client, calls, check_both, check_call, client, pairs
from tests.http.harness import Backbone, Node, component, gateway

pytestmark = pytest.mark.asyncio(loop_scope="module")
BAD = "INVALID_ARGUMENT"


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def node(module_backbone: Backbone, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Node]:
    down = component("down", "conversation.openai", key="sk-secret", endpoint="http://127.0.0.1:1/v1")
    resources = component("echo", "conversation.echo") + down
    async with gateway(module_backbone, tmp_path_factory.mktemp("home"), resources=resources) as node:
        yield node


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def called(node: Node) -> AsyncIterator[Client]:
    async with client(node) as called:
        yield called


def said(*messages: object, scrub: bool = False) -> list[dict[str, object]]:
    return [{"messages": list(messages), "scrub_pii": scrub}]


def by(who: str, *texts: str, **more: object) -> dict[str, object]:
    return {f"of_{who}": {"content": [{"text": text} for text in texts], **more}}


def told(content: str, words: int, *names: str, **more: object) -> dict[str, object]:
    calls = [{"id": str(index), "function": {"name": name}} for index, name in enumerate(names)]
    message = {"content": content, **({"tool_calls": calls} if calls else {})}
    usage = {"prompt_tokens": str(words), "completion_tokens": str(words), "total_tokens": str(2 * words)}
    choice = {"finish_reason": "tool_calls" if calls else "stop", "message": message}
    return {"outputs": [{"choices": [choice], "usage": usage}], **more}


TOOL = {"function": {"name": "f", "parameters": {}}}


@calls(
    Call("texts", "ConverseAlpha1", {"name": "echo", "inputs": [{"content": "a"}, {"content": "b"}], "contextID": "c"},
         {"contextID": "c", "outputs": [{"result": "a\nb"}]}),
    Call("scrubbed", "ConverseAlpha1", {"name": "echo", "inputs": [{"content": "a@b.cd", "scrubPII": True}]},
         {"outputs": [{"result": "<EMAIL_ADDRESS>"}]}),
    Call("messages", "ConverseAlpha2", {"name": "echo", "context_id": "c", "temperature": 0.0, "inputs": said(
        by("system", "a"), by("user", "b"), by("tool", "c", name="n", tool_id="i"))},
         told("a\nb\nTool Response for tool ID 'i' with name 'n': c", 12, context_id="c")),
    Call("scrubbed messages", "ConverseAlpha2", {"name": "echo", "inputs": said(by("user", "10.8.9.1"), scrub=True)},
         told("<IP>", 1)),
    Call("a tool", "ConverseAlpha2", {"name": "echo", "inputs": said(by("user", "a")), "tools": [TOOL]},
         told("a", 1, "f")),
    Call("no component", "ConverseAlpha2", {}, (BAD, "failed finding conversation component ")),
    Call("a tool that is none", "ConverseAlpha2", {"name": "echo", "inputs": said(by("user", "a")), "tools": [{}]},
         (BAD, "failed conversing with component echo: invalid params: tool types cannot be nil")),
)  # fmt: skip
async def test_calls(called: Client, call: Call) -> None:
    await check_call(called, call)


async def test_parameters(called: Client) -> None:
    """Of any type; those that cannot be read are refused."""
    packed, broken, other = AnyMessage(), AnyMessage(), AnyMessage(type_url="x/y.Z", value=b"\xff")
    packed.Pack(Int64Value(value=100))
    broken.CopyFrom(packed)
    broken.value = b"\xff"

    def parameters(**given: AnyMessage) -> Mapping[str, Any]:
        return {name: {"type_url": each.type_url, "value": each.value} for name, each in given.items()}

    first: dict[str, Any] = {"name": "echo", "inputs": [{"content": "a"}]}
    done = await called.message("ConverseAlpha1", **first, parameters=parameters(n=packed, x=other))
    [output] = done.outputs
    assert {name: each.value for name, each in output.parameters.items()} == {"n": packed.value, "x": b"\xff"}
    refused = (BAD, "failed conversing with component echo: invalid params: the parameter 'b' cannot be read")
    nan = {"fields": {"a": {"number_value": float("nan")}}}
    given = {"name": "echo", "inputs": said(by("user", "a")), "response_format": nan}
    reason = "a number in an object is none that JSON has"
    none = (BAD, f"failed conversing with component echo: invalid params: {reason}")
    await check_call(called, Call("", "ConverseAlpha2", given, none))
    await check_call(called, Call("", "ConverseAlpha1", {**first, "parameters": parameters(b=broken)}, refused))


def posted(name: str, body: object) -> tuple[str, str, None, object]:
    return "POST", f"/v1.0-alpha2/conversation/{name}/converse", None, body


USER = {"messages": [{"ofUser": {"content": [{"text": "a"}]}}]}


@pairs(
    Both("unknown component", posted("nope", {}), "ConverseAlpha2", {"name": "nope"}, BAD, 400),
    Both("no inputs", posted("echo", {}), "ConverseAlpha2", {"name": "echo"}, BAD, 400),
    Both("no kind of message", posted("echo", {"inputs": [{"messages": [{}]}]}), "ConverseAlpha2",
         {"name": "echo", "inputs": said({})}, BAD, 400),
    Both("a model that is away", posted("down", {"inputs": [USER]}), "ConverseAlpha2",
         {"name": "down", "inputs": said(by("user", "a"))}, "UNAVAILABLE", 500),
)  # fmt: skip
async def test_failures(node: Node, called: Client, both: Both) -> None:
    await check_both(node, called, both)
