"""What an application wants done when it answers an event of a binding: state that is saved, bindings that are called.

An application on gRPC says so in its message. One on HTTP answers with a document, which is read as one only where the
component has the setting ``mesh.answer: do``: else it is an answer like any other, as in Dapr.

State comes first, then the calls. What of it fails makes the event one that was not taken: all of it is done again.

Source: Dapr 1.18, input bindings; its documentation for the document.
"""

from __future__ import annotations

from collections.abc import Mapping

import orjson

from mesh.application import BindingAnswer
from mesh.blocks.binding_contract import INVOKE, BindingError, Invoke
from mesh.blocks.items import completed
from mesh.blocks.state import SAVE, Save
from mesh.errors import MeshError
from mesh.operation import Context, Method, Operation
from mesh.pipeline import Handler
from mesh.store import Item
from mesh.tasks import task_group

__all__ = ["carry_out", "document"]

MAX_TO = 100
PARALLEL, SEQUENTIAL = "parallel", "sequential"
_MEMBERS = frozenset({"storename", "state", "to"})


def document(data: bytes | None) -> BindingAnswer:
    """Read what an application on HTTP answered; what is no document asks for nothing.

    Raises:
        BindingError: It is one that cannot be read.
    """
    if data is None:
        raise BindingError("the application's answer is too large for a document that is done")
    try:
        read = orjson.loads(data)
    except orjson.JSONDecodeError:
        return BindingAnswer(data)
    members = {name.lower(): value for name, value in read.items()} if isinstance(read, dict) else {}
    if not members.keys() & _MEMBERS:
        return BindingAnswer(data)
    store, to = members.get("storename") or "", members.get("to") or []
    concurrency = members.get("concurrency") or SEQUENTIAL
    if not isinstance(store, str):
        raise _unreadable("storeName must be a string")
    if not isinstance(to, list) or not all(isinstance(name, str) for name in to):
        raise _unreadable("to must be a list of strings")
    if concurrency not in (PARALLEL, SEQUENTIAL):
        raise _unreadable(f"concurrency is {PARALLEL} or {SEQUENTIAL}")
    states = members.get("state") or []
    if not isinstance(states, list) or not all(isinstance(each, dict) for each in states):
        raise _unreadable("state must be a list of items")
    written = [{**each, "value": orjson.dumps(each.get("value"))} for each in states]
    return BindingAnswer(orjson.dumps(members.get("data")), tuple(to), concurrency == PARALLEL, store, tuple(written))


def _unreadable(reason: str) -> BindingError:
    return BindingError(f"the application's answer is a document that cannot be read: {reason}")


async def carry_out(answer: BindingAnswer, run: Handler, context: Context, *, states: bool) -> None:
    """Do what an answer asks for, as the application itself would.

    Args:
        answer: What it asks for.
        run: The node's pipeline.
        context: Of the application.
        states: Whether state is saved.

    Raises:
        BindingError: Something of it was not done.
    """
    if states and answer.states:
        if not answer.store:
            raise _unreadable("it has state, and no store for it")
        items = [_item(each) for each in answer.states]
        await _do(run, SAVE, answer.store, Save(items), context)
    if len(answer.to) > MAX_TO:
        raise _unreadable(f"it has more than {MAX_TO} bindings to call")
    if not answer.parallel:
        for name in answer.to:
            await _do(run, INVOKE, name, Invoke("create", answer.data or b""), context)
        return
    failed: list[BindingError] = []

    async def call(name: str) -> None:
        try:
            await _do(run, INVOKE, name, Invoke("create", answer.data or b""), context)
        except BindingError as error:  # The others are called nevertheless, and to their ends.
            failed.append(error)

    async with task_group() as tasks:
        for name in answer.to:
            tasks.create_task(call(name), name="bindings-answer")
    if failed:
        raise failed[0]


async def _do(run: Handler, method: Method, target: str, arguments: object, context: Context) -> None:
    try:
        await run(Operation(method, target, arguments, context))
    except MeshError as error:
        text = f"what the application answered was not done, {method.block} {target}: {error}"
        raise BindingError(text, retryable=error.retryable) from error


def _item(given: Mapping[str, object]) -> Item:
    key, value, etag = given.get("key"), given.get("value"), given.get("etag") or None
    metadata, options = given.get("metadata") or {}, given.get("options") or {}
    if not isinstance(key, str) or not key:
        raise _unreadable("the key of an item must be a string that is not empty")
    if not isinstance(etag, str | None):
        raise _unreadable(f"etag of key {key} must be a string")
    if not isinstance(metadata, dict) or not all(isinstance(each, str) for each in metadata.values()):
        raise _unreadable(f"metadata of key {key} must be an object of strings")
    if not isinstance(options, dict):
        raise _unreadable(f"options of key {key} must be an object")
    assert isinstance(value, bytes)
    try:
        return completed(Item(key, value, etag, metadata=metadata), options)
    except MeshError as error:
        raise _unreadable(str(error)) from None
