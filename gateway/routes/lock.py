"""``lock`` and ``unlock``: take a resource for a time, and give it back."""

from __future__ import annotations

from collections.abc import Mapping
from typing import cast

from gateway.errors import APIError, malformed
from gateway.http.response import Answered, json_response
from gateway.routes.request import fields, read_json
from gateway.routes.route import Asked, Route
from mesh.blocks.lock import ACQUIRE, RELEASE, Acquire, Release, Released
from mesh.operation import Method
from mesh.values import parse_whole

__all__ = ["ROUTES", "TOKEN_HEADER"]

ALPHA = ("v1.0-alpha1",)
POST = frozenset({"POST"})
TOKEN_HEADER = "mesh-fencing-token"
MAX_SECONDS = 2**31 - 1


async def lock(asked: Asked) -> Answered:
    """Take a lock, if nobody holds it."""
    store, body = asked.text(0), await _body(asked)
    seconds = _seconds(body)
    if seconds <= 0:
        raise _refused(f"ExpiryInSeconds is not positive in lock store {store}")
    resource, owner = await _named(asked, ACQUIRE, store, body)
    token = cast("int | None", await asked.run(ACQUIRE, store, Acquire(resource, owner, float(seconds))))
    answer = json_response({"success": token is not None})
    if token:
        answer.fields.append((TOKEN_HEADER, str(token)))
    return answer


async def unlock(asked: Asked) -> Answered:
    """Give a lock back."""
    store, body = asked.text(0), await _body(asked)
    resource, owner = await _named(asked, RELEASE, store, body)
    released = cast("Released", await asked.run(RELEASE, store, Release(resource, owner)))
    return json_response({"status": int(released)})


async def _body(asked: Asked) -> Mapping[str, object]:
    """Read the members; as in all of these bodies, names may be written with underscores."""
    body = await read_json(asked.request)
    return {name.replace("_", ""): value for name, value in fields({} if body is None else body, "the body").items()}


async def _named(asked: Asked, method: Method, store: str, body: Mapping[str, object]) -> tuple[str, str]:
    """Read resource and owner; that there is any store is told before what is wrong with them, which store after."""
    missing: APIError | None = None
    try:
        await asked.find(method, store)
    except APIError as error:
        if error.code != "ERR_LOCK_STORE_NOT_FOUND":
            raise
        missing = error
    resource, owner = _text(body, "resourceId"), _text(body, "lockOwner")
    if not resource or not owner:
        raise _refused(f"{'LockOwner' if resource else 'ResourceId'} is empty in lock store {store}")
    if missing is not None:
        raise missing
    return resource, owner


def _text(body: Mapping[str, object], name: str) -> str:
    value = body.get(name.lower())
    if value is None:
        return ""
    if not isinstance(value, str):
        raise malformed(f"{name} must be a string")
    return value


def _seconds(body: Mapping[str, object]) -> int:
    """Read the time: a whole number, or its text."""
    value = body.get("expiryinseconds")
    if value is None:
        return 0
    text = f"{value:.0f}" if isinstance(value, float) and value.is_integer() else str(value)
    try:
        return parse_whole(text, least=-MAX_SECONDS, most=MAX_SECONDS)
    except ValueError as error:
        raise malformed(f"expiryInSeconds is {error}") from None


def _refused(message: str) -> APIError:
    return APIError(400, "ERR_MALFORMED_REQUEST", message)


ROUTES = (Route("lock/{store}", lock, POST, ALPHA), Route("unlock/{store}", unlock, POST, ALPHA))
