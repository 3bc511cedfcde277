"""Conversation: a language model is asked, and answers with a text, or with the tools that it wants to be called.

A model keeps nothing of what was said: who goes on with a conversation sends all of it again. What a person could be
known by is taken out before anything leaves the node that was asked (``mesh/blocks/scrubbing.py``).

Source: Dapr 1.18, the conversation API (alpha 1 and 2).
"""

from __future__ import annotations

import hashlib
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import Any, Literal, Protocol, cast

import msgspec

from mesh.blocks.block import Block, Opened, Parts
from mesh.blocks.components import ComponentService
from mesh.blocks.scrubbing import scrub
from mesh.errors import MeshError
from mesh.operation import Method, Operation
from mesh.pipeline import Handler
from mesh.resources.component import Component
from mesh.resources.settings import DURATION, Setting, located

__all__ = [
    "BLOCK",
    "CONVERSE",
    "Answers",
    "Choice",
    "ConversationAwayError",
    "ConversationError",
    "Converse",
    "Conversed",
    "LanguageModel",
    "ModelComponent",
    "Said",
    "Tool",
    "ToolCall",
    "Usage",
]

SECONDS = 60.0  # Models are slow.
MAX_ANSWERS = 1024
MAX_ANSWERS_BYTES = 16 * 1024 * 1024

Role = Literal["developer", "system", "user", "assistant", "tool"]


class ConversationError(MeshError):
    """A language model did not answer, or not with what can be read; the text tells no key."""

    code = "CONVERSATION_ERROR"


class ConversationAwayError(ConversationError):
    """A language model cannot be reached for now, has too much to do, or failed: the same call may succeed later."""

    code = "CONVERSATION_AWAY"
    retryable = True


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A model wants a tool to be called.

    Attributes:
        id: Tells its answer apart from others; empty = it has none.
        name: Of the tool.
        arguments: A JSON object, as the model wrote it, which may be no JSON.
    """

    id: str
    name: str
    arguments: str


@dataclass(frozen=True, slots=True)
class Said:
    """A message.

    Attributes:
        role: Who said it.
        texts: What.
        name: Of the tool that answers; else of who said it, empty = it is not told.
        tool_calls: Of an assistant.
        tool_id: Of a tool: the id of the call that it answers.
        scrub: Whether what a person could be known by is to be taken out.
    """

    role: Role
    texts: tuple[str, ...]
    name: str = ""
    tool_calls: tuple[ToolCall, ...] = ()
    tool_id: str = ""
    scrub: bool = False

    @property
    def text(self) -> str:
        """All of it."""
        return "\n".join(self.texts)


@dataclass(frozen=True, slots=True)
class Tool:
    """What a model may want to be called.

    Attributes:
        name: Of it.
        description: Tells the model what it does.
        parameters: A JSON schema of its arguments.
    """

    name: str
    description: str = ""
    parameters: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Converse:
    """Ask a model.

    Attributes:
        said: The conversation so far, the last message last.
        temperature: How much chance is in the answer; None = the model's default.
        tools: Those that there are.
        tool_choice: ``auto``, ``none``, ``required``, or the name of one; empty without tools.
        response_format: A JSON schema of the answer; None = it is a text.
        parameters: Further fields for the service that has the model, by the names that it gives them.
        metadata: For the component.
        prompt_cache_seconds: How long the service may keep what it makes of the beginning of a conversation; None = as
            it likes.
        max_tokens: The most tokens that the answer may have; None = as the component says.
        scrub: Whether what a person could be known by is to be taken out of the answer.
    """

    said: tuple[Said, ...] = field(repr=False)
    temperature: float | None = None
    tools: tuple[Tool, ...] = ()
    tool_choice: str = ""
    response_format: Mapping[str, Any] | None = None
    parameters: Mapping[str, Any] = field(default_factory=dict)
    metadata: Mapping[str, str] = field(default_factory=dict)
    prompt_cache_seconds: float | None = None
    max_tokens: int | None = None
    scrub: bool = False


@dataclass(frozen=True, slots=True)
class Choice:
    """One answer of several that a model may give.

    Attributes:
        content: A text.
        finish_reason: Why it ends: ``stop``, ``length``, ``tool_calls``, ``content_filter``, or what the service says.
        tool_calls: The tools that are to be called.
    """

    content: str
    finish_reason: str = "stop"
    tool_calls: tuple[ToolCall, ...] = ()


@dataclass(frozen=True, slots=True)
class Usage:
    """What an answer took, in tokens; details by their names in the API's messages, those that are known."""

    prompt: int
    completion: int
    total: int
    prompt_details: Mapping[str, int] = field(default_factory=dict)
    completion_details: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Conversed:
    """What a model answers.

    Attributes:
        choices: One, if no more were asked for.
        model: Which one answered; empty = it is not told.
        usage: What it took; None = it is not told.
    """

    choices: tuple[Choice, ...] = field(repr=False)
    model: str = ""
    usage: Usage | None = None


CONVERSE = Method("conversation", "converse", Converse, Conversed, seconds=SECONDS)


class LanguageModel(Protocol):
    """What an adapter implements."""

    @property
    def capabilities(self) -> Sequence[str]:
        """What metadata tells."""

    async def converse(self, asked: Converse) -> Conversed:
        """Ask the model.

        Raises:
            BadArgumentError: It cannot do what is asked.
            ConversationError: It did not answer; the text tells no key.
        """


class Answers:
    """Answers that are given again to whoever asks the same, for a time; the oldest go when there are too many."""

    def __init__(self, seconds: float, clock: Callable[[], float] = time.monotonic) -> None:
        """Keep nothing yet.

        Args:
            seconds: How long an answer is kept.
            clock: Tells the time.
        """
        self._seconds, self._clock = seconds, clock
        self._kept: OrderedDict[bytes, tuple[float, int, Conversed]] = OrderedDict()
        self._bytes = 0

    @staticmethod
    def key(asked: Converse) -> bytes:
        """Give what two requests have in common that are answered alike."""
        return hashlib.sha256(msgspec.msgpack.encode(replace(asked, scrub=False))).digest()

    def get(self, key: bytes) -> Conversed | None:
        """Give an answer that is not too old."""
        self._drop_old()
        found = self._kept.get(key)
        return None if found is None else found[2]

    def put(self, key: bytes, answer: Conversed) -> None:
        """Keep an answer, unless it is larger than all of them may be."""
        size = len(msgspec.msgpack.encode(answer))
        self._drop(key)
        if size > MAX_ANSWERS_BYTES:
            return
        self._kept[key] = (self._clock() + self._seconds, size, answer)
        self._bytes += size
        while len(self._kept) > MAX_ANSWERS or self._bytes > MAX_ANSWERS_BYTES:
            self._drop(next(iter(self._kept)))

    def _drop_old(self) -> None:
        now = self._clock()
        while self._kept and (first := next(iter(self._kept.items())))[1][0] <= now:
            self._drop(first[0])

    def _drop(self, key: bytes) -> None:
        gone = self._kept.pop(key, None)
        self._bytes -= 0 if gone is None else gone[1]


class ModelComponent:
    """A configured model; its function is the block's method."""

    def __init__(self, model: LanguageModel, seconds: float = 0.0) -> None:
        """Use an open one, by the name that those of other blocks have.

        Args:
            model: The adapter.
            seconds: How long answers are given again; 0 = never.
        """
        self.store = model
        self._answers = Answers(seconds) if seconds else None

    @property
    def capabilities(self) -> Sequence[str]:
        """What metadata tells."""
        return self.store.capabilities

    async def converse(self, operation: Operation) -> Conversed:
        """Ask the model, unless the same was answered a while ago."""
        asked = cast("Converse", operation.arguments)
        if self._answers is None:
            return await self.store.converse(asked)
        key = self._answers.key(asked)
        answer = self._answers.get(key)
        if answer is None:
            answer = await self.store.converse(asked)
            self._answers.put(key, answer)
        return answer


async def _scrubbing(run: Handler, operation: Operation) -> object:
    """Take out what is to be taken out, before the component has it and before the caller has it.

    It is done on the node that is asked, so nothing of it crosses the backbone; a host finds nothing more to do.
    """
    asked = cast("Converse", operation.arguments)
    if any(each.scrub for each in asked.said):
        operation.arguments = replace(asked, said=await _scrubbed(asked.said))
    answer = cast("Conversed", await run(operation))
    if not asked.scrub:
        return answer
    contents = await scrub([each.content for each in answer.choices])
    choices = zip(answer.choices, contents, strict=True)
    return replace(answer, choices=tuple(replace(each, content=content) for each, content in choices))


async def _scrubbed(said: Sequence[Said]) -> tuple[Said, ...]:
    found = iter(await scrub([text for each in said if each.scrub for text in each.texts]))
    return tuple(
        replace(each, texts=tuple(islice(found, len(each.texts))), scrub=False) if each.scrub else each for each in said
    )


def _start(block: Block, parts: Parts, components: Mapping[str, Opened]) -> ComponentService:
    return ComponentService(block, parts, components, _scrubbing)


_CACHE = Setting(
    "responseCacheTTL",
    "How long an answer is given again to whoever asks the same; without it every request is the model's.",
    DURATION,
    aliases=("cacheTTL",),
    example="10m",
)


def cache_seconds(component: Component) -> float:
    """Read how long answers are kept; raises ``ConfigError``."""
    for name in _CACHE.names:
        if text := (component.setting(name) or "").strip():
            with located(component, name):
                return cast("float", DURATION.parse(text))
    return 0.0


async def open_model(component: Component, parts: Parts) -> ModelComponent:
    """Open a conversation component; raises ``ConfigError``."""
    seconds = cache_seconds(component)
    adapter = parts.registry.load(component.type).from_component(component)  # type: ignore[attr-defined]
    model: LanguageModel = await parts.stack.enter_async_context(adapter)
    return ModelComponent(model, seconds)


BLOCK = Block(
    "conversation",
    (CONVERSE,),
    _start,
    kind="conversation",
    open=open_model,
    settings=(_CACHE,),
    check=cache_seconds,
    hosted=True,
    policy=lambda policies, target: policies.for_component(target, "conversation", "outbound"),
    called="model",
)
