"""What the services that have language models have in common: one request of JSON, and one answer.

A model is asked once: an answer costs money, and a policy says whether it is asked again. How long that may take is the
operation's to say; only the connection has a limit here.
"""

from __future__ import annotations

import logging
import os
from abc import abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import aiohttp
import orjson

from mesh.adapter import ComponentAdapter
from mesh.blocks.conversation import ConversationAwayError, ConversationError, Converse, Conversed, Said, Usage
from mesh.errors import BadArgumentError
from mesh.resources.settings import COUNT, URL, setting

__all__ = [
    "KeyedSettings",
    "ModelService",
    "ModelSettings",
    "arguments_of",
    "counts",
    "number",
    "sides",
    "text_of",
    "usage_of",
]

logger = logging.getLogger(__name__)

MAX_CONNECTIONS = 100
MAX_ANSWER_BYTES = 8 * 1024 * 1024
MAX_REASON = 300
CONNECT_SECONDS = 10.0
BUSY = (408, 409, 425, 429, 529)
DENIED = (401, 403)


@dataclass(frozen=True, slots=True)
class ModelSettings:
    """What every one has."""

    model: str = setting("model", "The model; without it the one that the type's page names.", default="")
    endpoint: str = setting(
        "endpoint",
        "URL of another service with the same interface.",
        URL,
        default="",
        example="http://localhost:8000/v1",
    )
    most: int | None = setting("maxTokens", "The most tokens that an answer may have.", COUNT, example="2048")


@dataclass(frozen=True, slots=True)
class KeyedSettings(ModelSettings):
    """What one has that asks who is there."""

    key: str = setting("key", "Key of the service's API.", required=True, secret=True)


class ModelService(ComponentAdapter):
    """A service over HTTP.

    Attributes:
        service: Its name, for people.
        url: Where it is; its own address, unless `endpoint` tells another.
        model: The model, where neither setting nor variable names one.
        variable: An environment variable that names one.
    """

    capabilities: Sequence[str] = ()
    service: ClassVar[str]
    url: ClassVar[str] = ""
    model: ClassVar[str] = ""
    variable: ClassVar[str] = ""
    _session: aiohttp.ClientSession

    async def _enter(self) -> None:
        session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=MAX_CONNECTIONS),
            timeout=aiohttp.ClientTimeout(total=None, connect=CONNECT_SECONDS),
            cookie_jar=aiohttp.DummyCookieJar(),
            trust_env=False,
        )
        self._session = await self._stack.enter_async_context(session)

    async def converse(self, asked: Converse) -> Conversed:
        """Ask the model."""
        body = {**self._body(asked), **self._more(asked)}
        answer = await self._ask(self._target(), body)
        try:
            return self._read(answer)
        except (KeyError, IndexError, TypeError, AttributeError, ValueError):
            raise ConversationError(f"{self.service} answered what is no answer of a model") from None

    def _more(self, asked: Converse) -> Mapping[str, Any]:
        """Give the parameters of a request, which are fields of it, but for those that are written here."""
        for name in ("messages", "tools", "stream"):
            if name in asked.parameters:
                raise BadArgumentError(f"the parameter {name!r} is not one that can be given")
        return asked.parameters

    def _most(self, asked: Converse) -> int | None:
        """Give the most tokens of an answer; what a request says of it counts."""
        most: int | None = self._settings.most if asked.max_tokens is None else asked.max_tokens
        return most

    @property
    def _base(self) -> str:
        return self._settings.endpoint or self.url

    @property
    def _model(self) -> str:
        return self._settings.model or os.environ.get(self.variable, "") or self.model

    @abstractmethod
    def _target(self) -> str:
        """Give the URL of requests."""

    @abstractmethod
    def _headers(self) -> Mapping[str, str]:
        """Give the header that says who asks."""

    @abstractmethod
    def _body(self, asked: Converse) -> Mapping[str, Any]:
        """Write a request; raises ``BadArgumentError`` where the service cannot do it."""

    @abstractmethod
    def _read(self, answer: Any) -> Conversed:
        """Read an answer; whatever is missing in it may raise what it does."""

    async def _ask(self, url: str, body: Mapping[str, Any]) -> Any:
        headers = {"Content-Type": "application/json", "Accept": "application/json", **self._headers()}
        try:
            async with self._session.post(
                url, data=orjson.dumps(body), headers=headers, allow_redirects=False
            ) as response:
                status, answer = response.status, await _read(response)
        except TimeoutError:
            raise ConversationAwayError(f"{self.service} at {self._base} does not answer") from None
        except (aiohttp.ClientError, OSError, ValueError) as error:  # The last one: the key cannot stand in a header.
            reason = self._without_key(str(error) or type(error).__name__)
            raise ConversationAwayError(f"{self.service} at {self._base} cannot be reached: {reason}") from None
        if 200 <= status < 300:
            return answer
        if status in DENIED:  # What it says may quote the key.
            raise ConversationError(
                f"{self.service} answered {status}: it knows no such key, or the key may not do this"
            )
        kind = ConversationAwayError if status in BUSY or status >= 500 else ConversationError
        raise kind(f"{self.service} answered {status}{self._without_key(_reason(answer))}")

    def _without_key(self, text: str) -> str:
        key = getattr(self._settings, "key", "")
        return (text.replace(key, "…") if key else text)[:MAX_REASON]


async def _read(response: aiohttp.ClientResponse) -> Any:
    body = bytearray()
    async for part in response.content.iter_any():
        body += part
        if len(body) > MAX_ANSWER_BYTES:
            raise ConversationError(f"the model's service answers more than {MAX_ANSWER_BYTES} bytes")
    try:
        return orjson.loads(bytes(body))
    except orjson.JSONDecodeError:
        return None


def _reason(answer: Any) -> str:
    """Tell what a service says of a failure; all of them say it in one of these ways."""
    told = answer[0] if isinstance(answer, list) and answer else answer
    error = told.get("error", told) if isinstance(told, dict) else None
    text = error.get("message") if isinstance(error, dict) else error
    return f": {text}" if isinstance(text, str) and text else ""


def sides(service: str, said: Iterable[Said], blocks: Callable[[Said], list[dict[str, Any]]]) -> list[dict[str, Any]]:
    """Write messages of two sides in turn: those of one that follow each other are one, as answers of tools must be.

    Args:
        service: For people.
        said: The messages; those of systems and developers, which stand elsewhere, are left out.
        blocks: Writes the contents of one.

    Raises:
        BadArgumentError: There is none.
    """
    messages: list[dict[str, Any]] = []
    for each in said:
        if each.role in ("developer", "system"):
            continue
        role = "assistant" if each.role == "assistant" else "user"
        written = blocks(each)
        if messages and messages[-1]["role"] == role:
            messages[-1]["content"] += written
        elif written:
            messages.append({"role": role, "content": written})
    if not messages:
        raise BadArgumentError(f"{service} needs a message that is no system's and no developer's, and is not empty")
    return messages


def arguments_of(name: str, text: str) -> dict[str, Any]:
    """Read the arguments of a tool call, for a service that has them as a JSON object."""
    try:
        found = orjson.loads(text or "{}")
    except orjson.JSONDecodeError:
        found = None
    if not isinstance(found, dict):
        raise BadArgumentError(f"the arguments of the call of {name!r} are no JSON object")
    return found


def text_of(value: object) -> str:
    """Take a text that may be missing."""
    if value is not None and not isinstance(value, str):
        raise TypeError("no text")
    return value or ""


def counts(service: str, told: object) -> Mapping[str, Any]:
    """Take what an answer took; of another type it is left out, as the answer is there and was paid for."""
    if told is None or isinstance(told, dict):
        return told or {}
    logger.debug("%s tells what its answer took as %s: it is left out", service, type(told).__name__)
    return {}


def number(value: object) -> int:
    """Take a count; what is none is 0."""
    return value if type(value) is int and 0 <= value < 2**63 else 0


def usage_of(prompt: object, completion: object, total: object = None, **details: Mapping[str, int]) -> Usage:
    """Make the usage of counts that the service told."""
    given, made = number(prompt), number(completion)
    return Usage(given, made, number(total) or given + made, **details)
