"""``mesh/topics``: what a gateway's topics have, what lies in them, and their dead letters."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from functools import wraps

from gateway.dead_letters import Chosen, Outcome
from gateway.errors import APIError, answer, bad_request, malformed
from gateway.http.response import Answered, json_response
from gateway.routes.request import members, query_of, read_json
from gateway.routes.route import Asked, Route
from gateway.topic_views import Page
from mesh.errors import (
    BadArgumentError,
    ComponentNotFoundError,
    DeadlineExceededError,
    ExpressionError,
    FeatureNotSupportedError,
    MeshError,
)
from mesh.expressions import Match, compile_match
from mesh.spelling import did_you_mean
from mesh.values import parse_bool, parse_whole

__all__ = ["ROUTES"]

READ, POST = frozenset({"GET"}), frozenset({"POST"})
DEFAULT_LIMIT, MAX_LIMIT = 20, 200
DEFAULT_CHANGED, MAX_CHANGED = 1000, 10_000
_MEMBERS = ("ids", "all", "where", "topic", "undeclared", "limit")


def _failing(answered: Callable[[Asked], Awaitable[Answered]]) -> Callable[[Asked], Awaitable[Answered]]:
    """Say what clients are told of failures of looking."""

    @wraps(answered)
    async def run(asked: Asked) -> Answered:
        try:
            return await answered(asked)
        except ComponentNotFoundError as error:
            raise APIError(404, "ERR_PUBSUB_NOT_FOUND", str(error)) from error
        except FeatureNotSupportedError as error:
            raise APIError(501, "ERR_TOPIC_NOT_KEPT", f"{error}; docs/doctor.md names brokers that do") from error
        except DeadlineExceededError as error:
            raise APIError(504, "ERR_BROKER", str(error)) from error
        except BadArgumentError as error:
            raise bad_request(error) from error
        except MeshError as error:
            raise answer(error) from error

    return run


async def topics(asked: Asked) -> Answered:
    """List the topics that this node publishes or subscribes to, and their dead letter topics."""
    return json_response({"topics": await asked.api.node.views.topics.listed()})


async def topic(asked: Asked) -> Answered:
    """Tell of one topic."""
    return json_response(await asked.api.node.views.topics.shown(asked.text(0), asked.text(1)))


async def events(asked: Asked) -> Answered:
    """Give events of a topic as they lie there."""
    found = await asked.api.node.views.topics.events(asked.text(0), asked.text(1), _page(asked))
    return json_response(found)


async def dead_letters(asked: Asked) -> Answered:
    """Give the dead letters of a topic, or those that lie in a dead letter topic."""
    found = await asked.api.node.views.topics.dead_letters(asked.text(0), asked.text(1), _page(asked))
    return json_response(found)


async def replay(asked: Asked) -> Answered:
    """Send dead letters back to where they are from."""
    chosen, given, undeclared = await _chosen(asked)
    views = asked.api.node.views.topics
    outcome = await views.replay(asked.text(0), asked.text(1), chosen, given, undeclared=undeclared)
    return json_response({"replayed": outcome.done, "to": outcome.to, **_left(outcome, chosen)})


async def purge(asked: Asked) -> Answered:
    """Delete dead letters."""
    chosen, given, undeclared = await _chosen(asked)
    if given:
        raise malformed("topic belongs to a replay")
    outcome = await asked.api.node.views.topics.purge(asked.text(0), asked.text(1), chosen, undeclared=undeclared)
    return json_response({"purged": outcome.done, **_left(outcome, chosen)})


def _left(outcome: Outcome, chosen: Chosen) -> dict[str, object]:
    return {"left": sum(outcome.left.values()), "why": outcome.left, "unjudged": chosen.unjudged}


def _page(asked: Asked) -> Page:
    query = query_of(asked.query)
    try:
        limit = parse_whole(query.get("limit", str(DEFAULT_LIMIT)), least=1, most=MAX_LIMIT)
    except ValueError as error:
        raise bad_request(f"limit is {error}") from None
    try:
        newest = parse_bool(query.get("newest", "false"))
    except ValueError as error:
        raise bad_request(f"newest: {error}") from None
    after = query.get("after", "")
    if newest and after:
        raise bad_request("newest gives the last ones; after goes on from the oldest: one of them")
    return Page(limit, after, newest)


async def _chosen(asked: Asked) -> tuple[Chosen, str, bool]:
    """Read which letters are meant, where those go that do not say it, and whether the topic may be any."""
    body = await read_json(asked.request)
    given = members({} if body is None else body, "the body")
    if unknown := next(iter(given.keys() - set(_MEMBERS)), None):
        guess = did_you_mean(unknown, _MEMBERS)
        hint = f"did you mean {guess}?" if guess else f"one of {', '.join(_MEMBERS)}"
        raise malformed(f"there is no member {unknown[:50]}; {hint}")
    ids, everything, where = given.get("ids"), given.get("all", False), given.get("where")
    topic, undeclared, limit = given.get("topic", ""), given.get("undeclared", False), given.get("limit", 0)
    if ids is not None and not (isinstance(ids, list) and ids and all(isinstance(each, str) and each for each in ids)):
        raise malformed("ids must be a list of ids, with one at least")
    if not isinstance(everything, bool) or not isinstance(undeclared, bool):
        raise malformed("all and undeclared must be true or false")
    if not isinstance(topic, str) or not isinstance(where, str | None):
        raise malformed("topic and where must be texts")
    if not isinstance(limit, int) or isinstance(limit, bool) or not 0 <= limit <= MAX_CHANGED:
        raise malformed(f"limit must be a whole number from 1 to {MAX_CHANGED}")
    if [ids is not None, everything, where is not None].count(True) != 1:
        raise malformed("one of ids, all: true and where says which dead letters are meant")
    return Chosen(frozenset(ids or ()), _rule(where), most=limit or DEFAULT_CHANGED), topic, undeclared


def _rule(where: str | None) -> Match | None:
    if where is None:
        return None
    try:
        return compile_match(where)
    except ExpressionError as error:
        raise malformed(f"where: {error}") from None


_TOPIC = "mesh/topics/{component}/{topic}"
ROUTES = (
    Route("mesh/topics", topics, READ),
    Route(_TOPIC, _failing(topic), READ),
    Route(f"{_TOPIC}/events", _failing(events), READ),
    Route(f"{_TOPIC}/dead-letters", _failing(dead_letters), READ),
    Route(f"{_TOPIC}/dead-letters/replay", _failing(replay), POST),
    Route(f"{_TOPIC}/dead-letters/purge", _failing(purge), POST),
)
