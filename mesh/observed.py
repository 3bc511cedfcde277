"""Broker and application as before, and an observer told of what they are asked.

Whoever builds a node may give it an observer (``NodeSettings.observer``); only then these stand in between.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Sequence
from contextlib import AbstractAsyncContextManager
from types import TracebackType
from typing import Any, TypeVar, cast

from mesh import telemetry
from mesh.address import Address
from mesh.address import Kind as AddressKind
from mesh.application import Application, AppResponse, BindingAnswer, Headers, Kind
from mesh.broker import Broker, Message
from mesh.errors import BrokerError, MeshError
from mesh.telemetry import Observer

__all__ = ["observed_application", "observed_broker", "unobserved"]

_T = TypeVar("_T")


class _Broker:
    def __init__(self, broker: Broker, observer: Observer, component: str) -> None:
        self._broker = broker
        self._observer = observer
        name = f"{broker.features.name}/{component}" if component else broker.features.name
        self.features = broker.features  # They are fixed once it is entered.
        # Made once, and found by identity: an enumeration's own way to a value or hash takes longer than all the rest.
        self._published = {id(kind): (name, kind.value, telemetry.OK) for kind in AddressKind}

    def __getattr__(self, name: str) -> Any:
        return getattr(self._broker, name)

    def _tell(self, address: Address, outcome: str, times: int, started: float) -> None:
        name, kind, _ = self._published[id(address.kind)]
        seconds = time.perf_counter() - started
        self._observer(telemetry.BROKER_PUBLISHED, (name, kind, outcome), times, seconds)

    async def publish(self, address: Address, message: Message) -> None:
        started = time.perf_counter()
        try:
            await self._broker.publish(address, message)
        except BaseException as error:
            self._tell(address, _outcome(error), 1, started)
            raise
        labels = self._published[id(address.kind)]
        self._observer(telemetry.BROKER_PUBLISHED, labels, 1, time.perf_counter() - started)

    async def publish_many(self, address: Address, messages: Sequence[Message]) -> list[BrokerError | None]:
        started = time.perf_counter()
        try:
            results = await self._broker.publish_many(address, messages)
        except BaseException as error:
            self._tell(address, _outcome(error), len(messages), started)
            raise
        for outcome in {None if error is None else error.code for error in results}:
            times = sum((None if error is None else error.code) == outcome for error in results)
            self._tell(address, outcome or telemetry.OK, times, started)
        return results


def observed_broker(broker: Broker, observer: Observer | None, component: str = "") -> Broker:
    """Give an entered broker that tells of each publish: how often, what came of it, how long it took.

    Args:
        broker: The backbone, or a component's own broker.
        observer: Whom it tells; None leaves the broker as it is.
        component: The component's name; empty for the backbone.
    """
    return broker if observer is None else cast("Broker", _Broker(broker, observer, component))


def unobserved(broker: Broker) -> Broker:
    """Give the broker itself, of which it can be asked what it is able to do."""
    return broker._broker if isinstance(broker, _Broker) else broker


class _Call(AbstractAsyncContextManager[AppResponse]):
    """A call as it is; a generator for it would take longer than all the rest."""

    __slots__ = ("_calling", "_observer", "_path", "_started", "_status", "_verb")

    def __init__(
        self, calling: AbstractAsyncContextManager[AppResponse], observer: Observer, verb: str, path: str
    ) -> None:
        self._calling, self._observer, self._verb, self._path = calling, observer, verb, path
        self._started, self._status = 0.0, ""

    def _tell(self, outcome: str) -> None:
        labels = self._verb, self._path, outcome
        self._observer(telemetry.APPLICATION_CALLED, labels, 1, time.perf_counter() - self._started)

    async def __aenter__(self) -> AppResponse:
        self._started = time.perf_counter()
        try:
            response = await self._calling.__aenter__()
        except BaseException as error:
            self._tell(_outcome(error))
            raise
        self._status = str(response.status)
        return response

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> bool | None:
        try:
            return await self._calling.__aexit__(kind, error, traceback)
        except BaseException as raised:
            error = raised
            raise
        finally:
            # What else breaks is that of whoever reads the answer.
            self._tell(error.code if isinstance(error, MeshError) else self._status)


def _outcome(error: BaseException) -> str:
    if isinstance(error, MeshError):
        return error.code
    return telemetry.CANCELLED if isinstance(error, asyncio.CancelledError) else telemetry.FAILED


class _Application:
    def __init__(self, application: Application, observer: Observer) -> None:
        self._application = application
        self._observer = observer

    def __getattr__(self, name: str) -> Any:
        return getattr(self._application, name)

    def _tell(self, target: str, outcome: str, started: float) -> None:
        labels = "POST", target.partition("?")[0], outcome
        self._observer(telemetry.APPLICATION_CALLED, labels, 1, time.perf_counter() - started)

    def call(self, method: str, target: str, headers: Headers, body: Any) -> AbstractAsyncContextManager[AppResponse]:
        calling = self._application.call(method, target, headers, body)
        return _Call(calling, self._observer, method, target.partition("?")[0])

    async def post(self, path: str, headers: Headers, body: bytes, kind: Kind) -> tuple[int, bytes]:
        return await self._posted(path, self._application.post(path, headers, body, kind))

    async def trigger(self, name: str, path: str, headers: Headers, body: bytes) -> tuple[int, BindingAnswer]:
        return await self._posted(path, self._application.trigger(name, path, headers, body))

    async def _posted(self, path: str, answering: Awaitable[tuple[int, _T]]) -> tuple[int, _T]:
        started = time.perf_counter()
        try:
            status, answer = await answering
        except BaseException as error:
            self._tell(path, _outcome(error), started)
            raise
        self._tell(path, str(status), started)
        return status, answer


def observed_application(application: Application, observer: Observer) -> Application:
    """Give an application that tells of each call: its status or an error's code, how long it took."""
    return cast("Application", _Application(application, observer))
