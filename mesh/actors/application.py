"""The application beside this node as a host of actors, over HTTP.

Source: Dapr 1.18, the actors API towards the application.
"""

from __future__ import annotations

import logging
from urllib.parse import quote

import orjson

from mesh.actors.host import Turn, TurnAnswer, TurnKind
from mesh.actors.settings import HostSettings, read_settings
from mesh.application import Application, AppResponse, Headers, read_within
from mesh.errors import AppFailedError

__all__ = ["HTTPHost", "settings_of"]

logger = logging.getLogger(__name__)

MAX_ANSWER_BYTES = 16 * 1024 * 1024
JSON: Headers = (("Content-Type", "application/json"),)
_LEGAL = "!$&'()*+,:;=@~"


def settings_of(answer: bytes) -> HostSettings:
    """Read which types of actors an application hosts, of its answer; what is wrong is logged."""
    settings, problems = read_settings(answer)
    for problem in problems:
        logger.warning("GET /dapr/config: %s", problem)
    return settings


class HTTPHost:
    """See ``mesh.actors.host.ActorHost``.

    Attributes:
        settings: The types.
    """

    def __init__(self, application: Application, settings: HostSettings) -> None:
        """Use an application that is there."""
        self.settings = settings
        self._application = application

    async def turn(self, turn: Turn) -> TurnAnswer:
        """Have an actor do something."""
        verb, target, headers, body = _request(turn)
        async with self._application.call(verb, target, headers, body) as response:
            return TurnAnswer(response.status, response.headers, await _read(response, MAX_ANSWER_BYTES))


def _request(turn: Turn) -> tuple[str, str, Headers, bytes]:
    actor = f"/actors/{quote(turn.type, _LEGAL)}/{quote(turn.id, _LEGAL)}"
    name = quote(turn.name, _LEGAL)
    data = orjson.Fragment(turn.body or b"null")
    match turn.kind:
        case TurnKind.METHOD:
            query = f"?{turn.query}" if turn.query else ""
            return "PUT", f"{actor}/method/{name}{query}", turn.headers, turn.body
        case TurnKind.REMINDER:
            # The reference's scheduler leaves these texts empty, so that is what applications are used to.
            document: dict[str, object] = {"data": data, "dueTime": "", "period": ""}
            return "PUT", f"{actor}/method/remind/{name}", (*turn.headers, *JSON), orjson.dumps(document)
        case TurnKind.TIMER:
            document = {"data": data, "callback": turn.callback, "dueTime": turn.due_time, "period": turn.period}
            return "PUT", f"{actor}/method/timer/{name}", (*turn.headers, *JSON), orjson.dumps(document)
        case TurnKind.DEACTIVATION:
            return "DELETE", actor, turn.headers, b""


async def _read(response: AppResponse, limit_bytes: int) -> bytes:
    body = await read_within(response, limit_bytes)
    if body is None:
        raise AppFailedError(f"the application's answer is larger than {limit_bytes} bytes")
    return body
