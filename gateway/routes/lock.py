"""``lock`` and ``unlock``: take a resource for a time, and give it back."""

from __future__ import annotations

from collections.abc import Mapping
from typing import cast

from gateway.errors import APIError, malformed
from gateway.http.response import Answered, json_response
from gateway.routes.request import fields, read_json
from gateway.routes.route import Asked, Asking, Route
from gateway.routes.rpc import RPC, Called
from mesh.blocks.lock import ACQUIRE, RELEASE, Acquire, Release, Released
from mesh.operation import Method
from mesh.values import parse_whole

__all__ = ["ROUTES", "RPCS", "TOKEN_HEADER"]

ALPHA = ("v1.0-alpha1",)
POST = frozenset({"POST"})
TOKEN_HEADER = "mesh-fencing-token"
MAX_SECONDS = 2**31 - 1


async def lock(asked: Asked) -> Answered:
    """Take a lock, if nobody holds it."""
    store, body = asked.text(0), await _body(asked)
    token = await _acquire(asked, store, _seconds(body), _text(body, "resourceId"), _text(body, "lockOwner"))
    answer = json_response({"success": token is not None})
    if token:
        answer.fields.append((TOKEN_HEADER, str(token)))
    return answer


async def unlock(asked: Asked) -> Answered:
    """Give a lock back."""
    store, body = asked.text(0), await _body(asked)
    return json_response({"status": await _release(asked, store, _text(body, "resourceId"), _text(body, "lockOwner"))})


async def _acquire(asking: Asking, store: str, seconds: int, resource: str, owner: str) -> int | None:
    """Take a lock; give its token, None when somebody has it."""
    if seconds <= 0:
        raise _refused(f"ExpiryInSeconds is not positive in lock store {store}")
    await _check(asking, ACQUIRE, store, resource, owner)
    return cast("int | None", await asking.run(ACQUIRE, store, Acquire(resource, owner, float(seconds))))


async def _release(asking: Asking, store: str, resource: str, owner: str) -> int:
    """Give a lock back; give what the API tells of it."""
    await _check(asking, RELEASE, store, resource, owner)
    return int(cast("Released", await asking.run(RELEASE, store, Release(resource, owner))))


async def _body(asked: Asked) -> Mapping[str, object]:
    """Read the members; as in all of these bodies, names may be written with underscores."""
    body = await read_json(asked.request)
    return {name.replace("_", ""): value for name, value in fields({} if body is None else body, "the body").items()}


async def _check(asking: Asking, method: Method, store: str, resource: str, owner: str) -> None:
    """Refuse what is missing; that there is any store is told before what is wrong with names, which store after."""
    missing: APIError | None = None
    try:
        await asking.find(method, store)
    except APIError as error:
        if error.code != "ERR_LOCK_STORE_NOT_FOUND":
            raise
        missing = error
    if not resource or not owner:
        raise _refused(f"{'LockOwner' if resource else 'ResourceId'} is empty in lock store {store}")
    if missing is not None:
        raise missing


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


async def lock_rpc(called: Called) -> object:
    """Take a lock, if nobody holds it."""
    asked = called.message
    token = await _acquire(called, asked.store_name, asked.expiry_in_seconds, asked.resource_id, asked.lock_owner)
    if token:
        called.trailers.append((TOKEN_HEADER, str(token)))
    return called.reply(success=token is not None)


async def unlock_rpc(called: Called) -> object:
    """Give a lock back."""
    asked = called.message
    return called.reply(status=await _release(called, asked.store_name, asked.resource_id, asked.lock_owner))


RPCS = (RPC("TryLockAlpha1", lock_rpc, "lock"), RPC("UnlockAlpha1", unlock_rpc, "unlock"))

ROUTES = (Route("lock/{store}", lock, POST, ALPHA), Route("unlock/{store}", unlock, POST, ALPHA))
