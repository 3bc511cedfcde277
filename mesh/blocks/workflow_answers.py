"""Answers of the owner of a workflow instance, to whoever may ask."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Mapping
from typing import TYPE_CHECKING

import msgspec

from mesh.blocks import workflow_questions as questions
from mesh.broker import Message
from mesh.deadlines import Deadlines
from mesh.workflows import observed
from mesh.workflows.access import Operation, denied
from mesh.workflows.errors import WorkflowForbiddenError
from mesh.workflows.messages import ChildDone, Purge, Raise, Resume, Start, StartWithHistory, Suspend, Terminate, Told
from mesh.workflows.state import State, Status, View
from mesh.workflows.waiting import Waiting
from mesh.workflows.worker import Ref

if TYPE_CHECKING:
    from mesh.blocks.block import Parts
    from mesh.blocks.workflow_host import WorkflowHost
    from mesh.ownership.asking import Asked
    from mesh.workflows.reading import Reader

__all__ = ["Answers"]

OPERATIONS: Mapping[type, Operation] = {
    Start: "schedule",
    StartWithHistory: "schedule",
    Raise: "raise",
    Suspend: "pause",
    Resume: "resume",
    Terminate: "terminate",
    Purge: "purge",
    questions.Wait: "get",
    questions.Read: "get",
}
_OF_A_PARENT = (Terminate, Purge, questions.Read)  # What whoever has started a child may always do with it.


class Answers:
    """Answers questions."""

    def __init__(
        self,
        parts: Parts,
        opened: Callable[[], Awaitable[WorkflowHost]],
        reader: Callable[[], Awaitable[Reader]],
    ) -> None:
        """Prepare.

        Args:
            parts: The node's.
            opened: Gives the engine.
            reader: Gives what reads instances.
        """
        self._parts, self._opened, self._reader = parts, opened, reader
        self._app_id = parts.caller.app_id
        self._deadlines = Deadlines()
        self._functions: Mapping[type, Callable[..., Awaitable[object]]] = {
            questions.Tell: self._answer_tell,
            questions.Wait: self._answer_wait,
            questions.Read: self._answer_read,
            questions.Look: self._answer_look,
        }

    async def answer(self, asked: Asked) -> Message:
        """Do at the owner what is asked of an instance, where that is allowed."""
        question = questions.question_of(asked.body)
        question = await self._allowed(asked, question)
        seconds = asked.deadline - time.time()
        answer = await self._deadlines.within(seconds, self._functions[type(question)], asked, question)
        return Message({}, questions.encoded(answer))

    async def _answer_tell(self, asked: Asked, question: questions.Tell) -> Told:
        engine = (await self._opened()).keeper
        return await engine.tell(Ref(asked.partition, asked.key), question.message, asked.deadline)

    async def _answer_wait(self, asked: Asked, question: questions.Wait) -> View | None:
        engine = (await self._opened()).keeper
        await engine.wait(Ref(asked.partition, asked.key), _has_ended if question.ended else _has_begun, asked.deadline)
        return await (await self._reader()).view(asked.key, texts=question.texts)

    async def _answer_read(self, asked: Asked, question: questions.Read) -> View | None:
        return await (await self._reader()).view(asked.key, texts=question.texts)

    async def _answer_look(self, asked: Asked, question: questions.Look) -> questions.Looked:
        host, waiting = await self._opened(), Waiting()
        if not question.ended:  # Else it would be read for nothing.
            waiting = await host.keeper.waiting(Ref(asked.partition, asked.key), asked.deadline)
        return questions.Looked(waiting, dict(host.dispatch.workers))

    async def _allowed(self, asked: Asked, question: questions.Question) -> questions.Question:
        """Give a question as it is to be answered: an application speaks for itself alone.

        Raises:
            WorkflowForbiddenError: The caller may not ask that.
        """
        app, own = asked.caller.app_id, asked.caller.app_id == self._app_id
        what: object = question
        if isinstance(question, questions.Tell):
            what = message = question.message
            if isinstance(message, ChildDone):
                if message.app != app:
                    raise WorkflowForbiddenError(f"{app} tells how a child of {message.app[:100]} has ended")
                return question
            if isinstance(message, Start):
                if message.parent is not None and message.parent.app != app:
                    raise WorkflowForbiddenError(f"{app} starts a child for {message.parent.app[:100]}")
                question = questions.Tell(msgspec.structs.replace(message, caller="" if own else app))
        if own:
            return question
        operation = OPERATIONS.get(type(what))
        if operation is None:
            raise WorkflowForbiddenError(f"that is asked of workflows of {self._app_id} by itself alone")
        if isinstance(what, Start):
            name = what.name
        else:
            view = await (await self._reader()).view(asked.key, texts=False)
            if view is None:
                return question  # It is told that there is none.
            parent = view.state.parent
            if isinstance(what, _OF_A_PARENT) and parent is not None and parent.app == app:
                return question
            name = view.state.name
        namespace = self._parts.caller.namespace
        rules = self._parts.workflow_access
        allowed = rules.allows(app, namespace, self._app_id, namespace, "workflow", operation, name)
        observed.accessed(self._parts.observer, allowed=allowed, caller=app, kind="workflow", operation=operation)
        if not allowed:
            raise WorkflowForbiddenError(denied(app, "workflow", operation, name))
        return question


def _has_begun(state: State | None) -> bool:
    return state is None or state.status != Status.PENDING


def _has_ended(state: State | None) -> bool:
    return state is None or state.ended is not None
