"""No exception of a client's leaves its adapter: each public one has a counterpart of ours."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Iterator

import pytest
from faststream import Response

from brokers.faststream._application import FastStreamApplication
from brokers.kafka import KafkaBroker
from brokers.kafka._cluster import errors_of as kafka_errors
from brokers.mqtt import MQTTBroker
from brokers.nats import NatsBroker
from brokers.nats._errors import errors_of as nats_errors
from brokers.rabbitmq import RabbitMQBroker
from brokers.rabbitmq._refusals import ERRORS as RABBITMQ_ERRORS
from brokers.redis import RedisBroker
from brokers.redis._wire import ERRORS as REDIS_ERRORS
from brokers.shared.adapter import Adapter
from brokers.shared.errors import map_errors
from mesh.errors import BrokerError, BrokerUnavailableError, HandlerFailedError

SERVER = "a server"
# What each client offers, and what its adapter makes of it.
CLIENTS: dict[str, tuple[map_errors, tuple[str, ...]]] = {
    "aiokafka": (kafka_errors(SERVER), ("aiokafka.errors", "aiokafka")),
    "nats-py": (nats_errors(SERVER), ("nats.errors", "nats.js.errors", "nats.aio.client", "nats.protocol.parser")),
    "aiormq": (RABBITMQ_ERRORS, ("aiormq.exceptions", "aiormq", "pamqp.exceptions")),
    "redis-py": (REDIS_ERRORS, ("redis.exceptions", "redis.asyncio")),
}


def public_exceptions(*modules: str) -> Iterator[type[Exception]]:
    """Give the exceptions that a client's modules offer, each once."""
    found = {}
    for module in map(importlib.import_module, modules):
        for name, value in vars(module).items():
            own = inspect.isclass(value) and value.__module__.partition(".")[0] == module.__name__.partition(".")[0]
            if own and issubclass(value, Exception) and not name.startswith("_"):
                found[f"{value.__module__}.{value.__qualname__}"] = value
    yield from found.values()


def made(kind: type[Exception]) -> Exception:
    """Make one, whatever it asks for."""
    plain = {
        "__init__": lambda self: None,
        "__str__": lambda self: kind.__name__,
        "__repr__": lambda self: kind.__name__,
    }
    error: Exception = type(kind.__name__, (kind,), plain)()
    return error


@pytest.mark.parametrize("client", CLIENTS)
def test_every_exception_has_a_counterpart(client: str) -> None:
    errors, modules = CLIENTS[client]
    foreign = [*public_exceptions(*modules)]
    assert len(foreign) > 10
    assert not [kind for kind in foreign if not isinstance(errors.translate(made(kind)), BrokerError)]


@pytest.mark.parametrize("client", CLIENTS)
def test_our_own_mistakes_are_not_taken_for_the_client_s(client: str) -> None:
    errors, _ = CLIENTS[client]
    assert all(errors.translate(kind("ours")) is None for kind in (KeyError, TypeError, AttributeError, AssertionError))


@pytest.mark.parametrize(
    ("adapter", "url"),
    [
        (KafkaBroker, "kafka://a..b"),
        (MQTTBroker, "mqtt://a..b"),
        (NatsBroker, "nats://a..b"),
        (RabbitMQBroker, "amqp://a..b"),
        (RedisBroker, "redis://a..b"),
    ],
)
async def test_name_that_cannot_be_looked_up(adapter: type[Adapter], url: str) -> None:
    """Python's own look-up raises no OSError for it."""
    with pytest.raises(BrokerUnavailableError, match="is not reachable"):
        async with adapter.from_url(url):
            pass


def test_mqtt5_has_no_exceptions_of_its_own() -> None:
    """It raises built-in ones, which the adapter names where it reads and writes."""
    assert not [*public_exceptions("mqtt5")]


class Raising:
    """A FastStream subscriber whose handler fails."""

    def __init__(self, error: Exception) -> None:
        self._error = error

    async def process_message(self, msg: object) -> Response:
        raise self._error


@pytest.mark.parametrize("kind", [*public_exceptions("faststream.exceptions")], ids=lambda kind: kind.__name__)
async def test_what_a_faststream_handler_raises_is_settled_or_told(kind: type[Exception]) -> None:
    application = FastStreamApplication(1024)
    application.topics["t"] = application.methods["", "m"] = Raising(made(kind))
    event = b'{"specversion":"1.0","id":"1","source":"s","type":"t","data":1}'
    try:
        assert (await application.post("t", [], event))[0] == 200
    except HandlerFailedError as error:
        assert str(error).startswith(f"the handler raised {kind.__name__}")
    async with application.call("POST", "/m", [], b"") as answer:
        assert answer.status == 500
