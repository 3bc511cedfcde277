"""No model at all: it answers what was said, for tests of applications."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar

from mesh.adapter import ComponentAdapter
from mesh.blocks.conversation import Choice, Converse, Conversed, Said, Tool, ToolCall, Usage
from mesh.resources.settings import Setting, ignored

__all__ = ["EchoModel"]


@dataclass(frozen=True, slots=True)
class EchoSettings:
    """What is read of a component: nothing."""

    ignored: ClassVar[tuple[Setting, ...]] = ignored("no service is asked", "key", "model", "endpoint", "maxTokens")


class EchoModel(ComponentAdapter):
    """The texts of all messages, and a call of each tool."""

    title = "No model: it answers what was said, and calls every tool, for tests of applications."
    tested = "itself"
    settings: ClassVar[type[EchoSettings]] = EchoSettings
    capabilities: Sequence[str] = ()

    async def converse(self, asked: Converse) -> Conversed:
        """Answer what was said; words are counted as tokens."""
        content = "\n".join(text for said in asked.said for text in _texts(said))
        calls = (*(call for said in asked.said for call in said.tool_calls), *_calls(asked))
        words = len(content.split())
        choice = Choice(content, "tool_calls" if calls else "stop", calls)
        return Conversed((choice,), usage=Usage(words, words, 2 * words))


def _texts(said: Said) -> Iterator[str]:
    for text in said.texts:
        if said.role == "tool":
            yield f"Tool Response for tool ID '{said.tool_id}' with name '{said.name}': {text}"
        else:
            yield text


def _calls(asked: Converse) -> Iterator[ToolCall]:
    """Call the tools that may be; their arguments are the names of their parameters."""
    for index, tool in enumerate(asked.tools):
        if asked.tool_choice in ("auto", "required", tool.name):
            yield ToolCall(str(index), tool.name, ",".join(_names(tool)))


def _names(tool: Tool) -> Sequence[str]:
    properties = tool.parameters.get("properties")
    return sorted(properties) if isinstance(properties, dict) else ()
