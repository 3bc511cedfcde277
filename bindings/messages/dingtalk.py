"""Messages to a group of DingTalk by its robot.

Sources: Dapr 1.18, the DingTalk binding; DingTalk, the robots of groups.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import time
from dataclasses import dataclass
from typing import ClassVar
from urllib.parse import parse_qsl, urlsplit

from bindings._service import Service, protected, safe
from mesh.adapter import ComponentAdapter
from mesh.blocks.binding_contract import BindingError, Invoke
from mesh.resources.settings import setting

__all__ = ["DingTalkBinding"]

SECONDS = 30.0
_LATER = (-1, 130101)  # Too busy; too many messages within a minute.


@dataclass(frozen=True, slots=True)
class DingTalkSettings:
    """What is read of a component."""

    id: str = setting("id", "Read for compatibility: nothing is received.", default="")
    url: str = setting("url", "URL of the robot, with its token.", required=True, secret=True)
    key: str = setting("secret", "What messages are signed with, if the robot asks for it.", default="", secret=True)


class DingTalkBinding(ComponentAdapter):
    """A robot of a group."""

    title = "Sends messages to a group of DingTalk."
    tested = "a server with the one request of its HTTP interface, in tests; it never ran against DingTalk itself"
    settings: ClassVar[type[DingTalkSettings]] = DingTalkSettings
    operations = ("create",)

    def __init__(self, settings: DingTalkSettings) -> None:
        """Prepare."""
        super().__init__(settings)
        self._service: Service

    async def _enter(self) -> None:
        settings: DingTalkSettings = self._settings
        if not protected(settings.url):
            raise self._problem("is a URL with https", "url")
        parts = urlsplit(settings.url)
        self._query = dict(parse_qsl(parts.query))
        self._secrets = (settings.key, *self._query.values())
        whole = f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}"
        service = Service("DingTalk", whole, secrets=self._secrets, seconds=SECONDS)
        self._path = parts.path
        self._service = await self._stack.enter_async_context(service)

    async def invoke(self, asked: Invoke) -> None:
        """Send a message: the data are what DingTalk takes, a JSON object."""
        settings: DingTalkSettings = self._settings
        signed = _signed(settings.key, time.time_ns() // 1_000_000) if settings.key else {}
        answer = await self._service.ask(self._path, asked.data, query=self._query | signed)
        code = answer.body.get("errcode") if isinstance(answer.body, dict) else None
        if code != 0:  # It refuses with status 200.
            reason = answer.body.get("errmsg", "") if isinstance(answer.body, dict) else "no JSON object"
            told = safe(f"DingTalk answered {code}: {reason}", self._secrets)
            raise BindingError(told, {"statusCode": str(answer.status)}, retryable=code in _LATER)


def _signed(key: str, milliseconds: int) -> dict[str, str]:
    told = f"{milliseconds}\n{key}".encode()
    digest = hmac.new(key.encode(), told, hashlib.sha256).digest()
    return {"timestamp": str(milliseconds), "sign": base64.b64encode(digest).decode()}
