"""What it costs to load an adapter."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Mapping

import pytest

from mesh.registry import EXTRAS
from tests.meta.sources import ROOT, in_fresh_process

CLIENTS = {
    "aio_pika",
    "aiobotocore",
    "aiokafka",
    "aiormq",
    "aiosmtplib",
    "apprise",
    "asyncmy",
    "asyncpg",
    "asyncssh",
    "cassandra",
    "cloudevents",
    "faststream",
    "grpc",
    "mqtt5",
    "nats",
    "paho",
    "pymongo",
    "pyodbc",
    "proton",
    "pulsar",
    "redis",
    "sqlalchemy",
}

# The most modules that a process holds once it has loaded an adapter; on another Python there are a few more or less.
# An adapter loads its own client: FastStream's needs pydantic.
BUDGET: Mapping[str, tuple[int, frozenset[str]]] = {
    "bindings.aws.dynamodb": (670, frozenset({"aiobotocore"})),
    "bindings.aws.dynamodb_binding": (670, frozenset({"aiobotocore"})),
    "bindings.aws.kinesis": (670, frozenset({"aiobotocore"})),
    "bindings.aws.parameterstore": (670, frozenset({"aiobotocore"})),
    "bindings.aws.s3": (680, frozenset({"aiobotocore"})),
    "bindings.aws.secretmanager": (670, frozenset({"aiobotocore"})),
    "bindings.aws.ses": (670, frozenset({"aiobotocore"})),
    "bindings.aws.sns": (670, frozenset({"aiobotocore"})),
    "bindings.aws.sqs": (670, frozenset({"aiobotocore"})),
    "bindings.azure.blob_binding": (890, frozenset()),
    "bindings.azure.blobstorage": (860, frozenset()),
    "bindings.azure.tablestorage": (820, frozenset()),
    "bindings.azure.eventhubs": (1000, frozenset()),
    "bindings.azure.servicebusqueues": (890, frozenset()),
    "bindings.azure.storagequeues": (865, frozenset()),
    "bindings.azure.cosmosdb": (910, frozenset()),
    "bindings.azure.keyvault": (720, frozenset()),
    "bindings.azure.keyvault_crypto": (760, frozenset()),
    "bindings.gcp.bucket": (660, frozenset()),
    "bindings.gcp.firestore": (635, frozenset()),
    "bindings.gcp.pubsub": (665, frozenset()),
    "bindings.gcp.secretmanager": (620, frozenset()),
    "bindings.cassandra": (400, frozenset({"cassandra"})),
    "bindings.aws.bedrock": (670, frozenset({"aiobotocore"})),
    "bindings.conversation.anthropic": (470, frozenset()),
    "bindings.conversation.echo": (345, frozenset()),
    "bindings.conversation.ollama": (470, frozenset()),
    "bindings.conversation.openai": (470, frozenset()),
    "bindings.crypto.jwks": (560, frozenset()),
    "bindings.crypto.local": (390, frozenset()),
    "bindings.etcd": (425, frozenset()),
    "bindings.cron": (360, frozenset()),
    "bindings.files": (420, frozenset()),
    "bindings.http_binding": (520, frozenset()),
    "bindings.localstorage": (345, frozenset()),
    "bindings.graphql": (450, frozenset()),
    "bindings.influx": (450, frozenset()),
    "bindings.messages.dingtalk": (455, frozenset()),
    "bindings.messages.notifications": (425, frozenset({"apprise"})),
    "bindings.messages.postmark": (455, frozenset()),
    "bindings.messages.sendgrid": (455, frozenset()),
    "bindings.messages.smtp": (465, frozenset({"aiosmtplib"})),
    "bindings.twilio_sms": (540, frozenset()),
    "bindings.webhook": (540, frozenset()),
    "bindings.queues.jetstream": (470, frozenset({"nats"})),
    "bindings.queues.kafka": (415, frozenset({"aiokafka"})),
    "bindings.queues.mqtt": (350, frozenset()),
    "bindings.queues.rabbitmq": (395, frozenset({"aiormq"})),
    "bindings.in_memory": (345, frozenset()),
    "bindings.kubernetes.configuration": (450, frozenset()),
    "bindings.kubernetes.crypto": (575, frozenset()),
    "bindings.kubernetes.events": (480, frozenset()),
    "bindings.kubernetes.platform": (310, frozenset()),
    "bindings.kubernetes.secrets": (455, frozenset()),
    "bindings.local": (210, frozenset()),
    "bindings.memcached": (320, frozenset()),
    "bindings.mongodb.state": (500, frozenset({"pymongo"})),
    "bindings.pluggable.bindings": (415, frozenset({"grpc"})),
    "bindings.pluggable.pubsub": (400, frozenset({"grpc"})),
    "bindings.pluggable.secrets": (415, frozenset({"grpc"})),
    "bindings.pluggable.state": (400, frozenset({"grpc"})),
    "bindings.middleware.bearer": (520, frozenset()),
    "bindings.middleware.oauth2": (460, frozenset()),
    "bindings.middleware.oauth2clientcredentials": (460, frozenset()),
    "bindings.middleware.opa": (455, frozenset()),
    "bindings.middleware.ratelimit": (125, frozenset()),
    "bindings.middleware.routeralias": (130, frozenset()),
    "bindings.middleware.routerchecker": (125, frozenset()),
    "bindings.middleware.uppercase": (125, frozenset()),
    "bindings.redis.binding": (495, frozenset({"redis"})),
    "bindings.redis.configuration": (495, frozenset({"redis"})),
    "bindings.redis.lock": (495, frozenset({"redis"})),
    "bindings.redis.state": (495, frozenset({"redis"})),
    "bindings.spiffe": (480, frozenset({"grpc"})),
    "bindings.sql.configuration": (525, frozenset({"asyncpg", "sqlalchemy"})),
    "bindings.sql.mysql": (535, frozenset({"asyncmy", "sqlalchemy"})),
    "bindings.sql.mysql_binding": (560, frozenset({"asyncmy", "sqlalchemy"})),
    "bindings.sql.postgresql_binding": (525, frozenset({"asyncpg", "sqlalchemy"})),
    "bindings.sql.sqlite_binding": (495, frozenset({"sqlalchemy"})),
    "bindings.sql.sqlserver_binding": (495, frozenset({"sqlalchemy"})),
    "bindings.sql.postgresql": (500, frozenset({"asyncpg", "sqlalchemy"})),
    "bindings.sql.sqlite": (475, frozenset({"sqlalchemy"})),
    "bindings.sql.sqlserver": (470, frozenset({"sqlalchemy"})),
    "bindings.sftp": (485, frozenset({"asyncssh"})),
    "bindings.vault": (450, frozenset()),
    "brokers.embedded": (410, frozenset({"nats"})),
    "brokers.faststream": (590, frozenset({"faststream", "pydantic"})),
    "brokers.kafka": (320, frozenset({"aiokafka"})),
    "brokers.memory": (205, frozenset()),
    "brokers.native.amqp": (310, frozenset({"proton"})),
    "brokers.native.jetstream": (415, frozenset({"nats"})),
    "brokers.native.kafka": (365, frozenset({"aiokafka"})),
    "brokers.native.mqtt": (360, frozenset({"paho"})),
    "brokers.native.pulsar": (380, frozenset({"pulsar"})),
    "brokers.nats": (405, frozenset({"nats"})),
    "brokers.native.gcp_pubsub": (670, frozenset()),
    "brokers.native.eventhubs": (910, frozenset()),
    "brokers.native.servicebus": (890, frozenset()),
    "brokers.native.snssqs": (580, frozenset({"aiobotocore"})),
    "brokers.rabbitmq": (335, frozenset({"aiormq"})),
    "brokers.native.rabbitmq": (360, frozenset({"aio_pika", "aiormq"})),
    "brokers.native.redis": (490, frozenset({"redis"})),
    "brokers.redis": (415, frozenset({"redis"})),
}


def _adapters() -> set[str]:
    config = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    groups = config["project"]["entry-points"].values()
    return {entry.partition(":")[0] for entries in groups for entry in entries.values()} | {"brokers.faststream"}


def test_every_adapter_has_a_budget() -> None:
    """The table above is complete."""
    assert BUDGET.keys() == _adapters()


@pytest.mark.costly
@pytest.mark.parametrize("adapter", sorted(BUDGET))
def test_adapter_imports_little(adapter: str) -> None:
    """An adapter loads its own client, and neither models nor a YAML parser: they are for files."""
    most, own = BUDGET[adapter]
    code = f"import sys, json, {adapter}; print(json.dumps(sorted(sys.modules)))"
    loaded = json.loads(in_fresh_process(code))
    packages = {name.partition(".")[0] for name in loaded}
    assert packages & (CLIENTS | {"pydantic", "yaml", "gateway"}) == own
    assert len(loaded) <= most


def test_the_extra_for_all_brings_every_adapter() -> None:
    """``pip install '/path/to/brokermesh[all]'``; whoever develops has them all, too."""
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"]
    [everything] = extras["all"]
    named = everything.partition("[")[2].rstrip("]").split(",")
    # What is built with a C compiler is asked for by its name.
    assert {*named, "amqp"} == extras.keys() - {"all", "dev"} == {*EXTRAS.values()}
    assert "brokermesh[all]" in extras["dev"]
