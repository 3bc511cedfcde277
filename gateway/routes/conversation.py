"""``conversation``: ask a language model.

A body is a message of gRPC's in JSON, as in all of the API's newer calls, so both ways are one: what is read of the
message and what is answered stand here once.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any, cast

from gateway.errors import ERRORS, APIError, answer, malformed, told
from gateway.http.response import Answered, Response, json_response
from gateway.routes.request import read_json
from gateway.routes.route import Asked, Asking, Route
from gateway.routes.rpc import RPC, Called
from mesh.blocks.conversation import CONVERSE, Choice, Converse, Conversed, Said, Tool, ToolCall, Usage
from mesh.errors import BadArgumentError

if TYPE_CHECKING:
    from google.protobuf.message import Message

__all__ = ["ROUTES", "RPCS"]

POST = frozenset({"POST"})
# What an input of the first version says of who speaks; anybody else is the user.
ROLES = {"system": "system", "assistant": "assistant", "ai": "assistant"}
SPEAKERS = {
    "of_developer": "developer",
    "of_system": "system",
    "of_user": "user",
    "of_assistant": "assistant",
    "of_tool": "tool",
}
WORDS = ("", "auto", "none", "required")
CHOICE = "must be 'auto', 'none', 'required', or a specific tool name matching the tools available to be used"
WRAPPED = ("Bool", "Double", "Float", "Int32", "Int64", "String", "UInt32", "UInt64")
WRAPPERS = frozenset(f"google.protobuf.{each}Value" for each in WRAPPED)
STRUCTURES = frozenset(f"google.protobuf.{each}" for each in ("Struct", "Value", "ListValue"))


async def converse(asked: Asked) -> Answered:
    """Ask a language model, with tools and messages of several roles."""
    message = await _read(asked, "ConversationRequestAlpha2")
    return _json(await _second(asked, asked.text(0), message, asked.api.message("ConversationResponseAlpha2")))


async def converse_rpc(called: Called) -> object:
    """Ask a language model, with tools and messages of several roles."""
    return await _second(called, called.message.name, called.message, called.reply)


async def converse_alpha1(asked: Asked) -> Answered:
    """Ask a language model: texts alone."""
    message = await _read(asked, "ConversationRequest")
    return _json(await _first(asked, asked.text(0), message, asked.api.message("ConversationResponse")))


async def converse_alpha1_rpc(called: Called) -> object:
    """Ask a language model: texts alone."""
    return await _first(called, called.message.name, called.message, called.reply)


async def _read(asked: Asked, name: str) -> Message:
    """Read a body that is a message in JSON; fields that it does not have are left out."""
    body = await read_json(asked.request)
    from google.protobuf.json_format import ParseDict, ParseError  # For who uses it.

    message = asked.api.message(name)()
    if body is None:
        return cast("Message", message)
    if not isinstance(body, dict):
        raise malformed("the body must be an object")
    if isinstance(given := body.get("parameters"), dict):
        body = {**body, "parameters": {each: value for each, value in given.items() if not _of_another_type(value)}}
    try:
        ParseDict(body, message, ignore_unknown_fields=True, descriptor_pool=message.DESCRIPTOR.file.pool)
    except (ParseError, TypeError, ValueError, AttributeError, KeyError) as error:  # All of them: it checks little.
        raise malformed(error) from None
    return cast("Message", message)


def _of_another_type(parameter: object) -> bool:
    """Tell whether a parameter is left out; the library refuses the types that it does not know."""
    kind = parameter.get("@type") if isinstance(parameter, dict) else None
    return isinstance(kind, str) and kind.rpartition("/")[2] not in WRAPPERS | STRUCTURES


def _json(reply: Any) -> Response:
    from google.protobuf.json_format import MessageToDict

    return json_response(MessageToDict(reply, descriptor_pool=reply.DESCRIPTOR.file.pool))


async def _first(asking: Asking, name: str, message: Any, reply: Callable[..., Any]) -> Any:
    """Ask as the first version does; parameters are told again with the answer."""
    await _found(asking, name, message)
    said = tuple(
        Said(ROLES.get(each.role.lower(), "user"), (each.content,), scrub=each.scrubPII)  # type: ignore[arg-type]
        for each in message.inputs
    )
    done = await _ask(asking, name, message, said, scrub=message.scrubPII)
    outputs = [{"result": each.content, "parameters": dict(message.parameters)} for each in done.choices[:1]]
    return reply(contextID=message.contextID or None, outputs=outputs)


async def _second(asking: Asking, name: str, message: Any, reply: Callable[..., Any]) -> Any:
    """Ask as the second version does."""
    await _found(asking, name, message)
    try:
        said = tuple(_said(each, given.scrub_pii) for given in message.inputs for each in given.messages)
        tools = tuple(map(_tool, message.tools))
        more: dict[str, Any] = {"tools": tools, "tool_choice": _tool_choice(message.tool_choice, tools)}
        if message.HasField("prompt_cache_retention"):
            more["prompt_cache_seconds"] = _seconds(message.prompt_cache_retention)
        if message.HasField("max_tokens"):
            more["max_tokens"] = _tokens(message.max_tokens)
        if message.HasField("response_format"):
            more["response_format"] = _plain(message.response_format)
    except BadArgumentError as error:
        raise answer(error, CONVERSE, name) from None
    if not said:
        raise _no_inputs(name)
    done = await _ask(asking, name, message, said, scrub=message.scrub_pii, **more)
    output: dict[str, Any] = {
        "choices": [_shown(index, each) for index, each in enumerate(done.choices)],
        "model": done.model or None,
        "usage": None if done.usage is None else _usage(done.usage),
    }
    return reply(context_id=message.context_id or None, outputs=[output])


async def _found(asking: Asking, name: str, message: Any) -> None:
    await asking.find(CONVERSE, name)
    if not message.inputs:
        raise _no_inputs(name)


def _no_inputs(name: str) -> APIError:
    return told(ERRORS["conversation/INPUTS_MISSING"], target=name)


async def _ask(asking: Asking, name: str, message: Any, said: tuple[Said, ...], **more: Any) -> Conversed:
    """Ask, with what both versions have."""
    try:
        temperature = message.temperature if message.HasField("temperature") else None
        if temperature is not None and not math.isfinite(temperature):
            raise BadArgumentError("the temperature must be a finite number")
        parameters = dict(_parameters(message.parameters))
    except BadArgumentError as error:
        raise answer(error, CONVERSE, name) from None
    arguments = Converse(said, temperature, parameters=parameters, metadata=dict(message.metadata), **more)
    return cast("Conversed", await asking.run(CONVERSE, name, arguments))


def _said(message: Any, scrub: bool) -> Said:
    """Read a message."""
    which = message.WhichOneof("message_types")
    if which is None:
        raise BadArgumentError("message type cannot be nil")
    given, role = getattr(message, which), cast("Any", SPEAKERS[which])
    calls = tuple(map(_call, given.tool_calls)) if role == "assistant" else ()
    tool_id = given.tool_id if role == "tool" else ""
    return Said(role, tuple(each.text for each in given.content), given.name, calls, tool_id, scrub)


def _call(call: Any) -> ToolCall:
    if call.WhichOneof("tool_types") is None:
        raise BadArgumentError("tool types cannot be nil")
    return ToolCall(call.id, call.function.name, call.function.arguments)


def _tool(tool: Any) -> Tool:
    if tool.WhichOneof("tool_types") is None:
        raise BadArgumentError("tool types cannot be nil")
    return Tool(tool.function.name, tool.function.description, _plain(tool.function.parameters))


def _tool_choice(choice: str, tools: Iterable[Tool]) -> str:
    """Check which tools may be called; without any, nothing is left to say."""
    names = [each.name for each in tools]
    if choice not in (*WORDS, *names) or (choice == "required" and not names):
        raise BadArgumentError(f"tool choice {CHOICE}")
    return (choice or "auto") if names else ""


def _seconds(duration: Any) -> float:
    seconds = float(duration.seconds + duration.nanos / 1e9)
    if seconds < 0:
        raise BadArgumentError("promptCacheRetention cannot be negative")
    return seconds


def _tokens(number: int) -> int:
    if number < 1:
        raise BadArgumentError("maxTokens must be positive")
    return number


def _plain(structure: Any) -> Any:
    """Give a structure as plain values; numbers in it are whole where they can be."""
    from google.protobuf.json_format import MessageToDict

    try:
        return _whole(MessageToDict(structure))
    except ValueError:
        raise BadArgumentError("a number in an object is none that JSON has") from None


def _whole(value: Any) -> Any:
    match value:
        case float() if value.is_integer() and abs(value) < 2**53:
            return int(value)
        case dict():
            return {name: _whole(each) for name, each in value.items()}
        case list():
            return [_whole(each) for each in value]
        case _:
            return value


def _parameters(given: Mapping[str, Any]) -> Iterable[tuple[str, Any]]:
    """Give the parameters that are plain values; those of another type mean nothing to any model."""
    from google.protobuf.message import DecodeError
    from google.protobuf.message_factory import GetMessageClass

    for name, each in given.items():
        kind = each.type_url.rpartition("/")[2]
        if kind not in WRAPPERS | STRUCTURES:
            continue
        made: Any = GetMessageClass(each.DESCRIPTOR.file.pool.FindMessageTypeByName(kind))()
        try:
            made.ParseFromString(each.value)
            yield name, made.value if kind in WRAPPERS else _plain(made)
        except (DecodeError, BadArgumentError):
            raise BadArgumentError(f"the parameter {name!r} cannot be read") from None


def _shown(index: int, choice: Choice) -> dict[str, Any]:
    calls = [
        {"id": each.id or None, "function": {"name": each.name, "arguments": each.arguments}}
        for each in choice.tool_calls
    ]
    return {
        "finish_reason": choice.finish_reason,
        "index": index,
        "message": {"content": choice.content, "tool_calls": calls},
    }


def _usage(usage: Usage) -> dict[str, Any]:
    shown: dict[str, Any] = {
        "prompt_tokens": usage.prompt,
        "completion_tokens": usage.completion,
        "total_tokens": usage.total,
    }
    if usage.prompt_details:
        shown["prompt_tokens_details"] = dict(usage.prompt_details)
    if usage.completion_details:
        shown["completion_tokens_details"] = dict(usage.completion_details)
    return shown


RPCS = (
    RPC("ConverseAlpha2", converse_rpc, "conversation"),
    RPC("ConverseAlpha1", converse_alpha1_rpc, "conversation"),
)

ROUTES = (
    Route("conversation/{name}/converse", converse, POST, ("v1.0-alpha2",)),
    Route("conversation/{name}/converse", converse_alpha1, POST, ("v1.0-alpha1",)),
)
