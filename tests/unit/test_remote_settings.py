"""What the state stores of other systems are told about them."""

from __future__ import annotations

from typing import Any

import pytest

from bindings.aws.dynamodb import DynamoDBSettings, DynamoDBStateStore
from bindings.azure.blobstorage import BlobStorageSettings, BlobStorageStateStore
from bindings.azure.cosmosdb import CosmosDBSettings, CosmosDBStateStore
from bindings.azure.tablestorage import TableStorageSettings, TableStorageStateStore
from bindings.cassandra import CassandraSettings, CassandraStateStore
from bindings.etcd import EtcdSettings, EtcdStateStore
from bindings.gcp.firestore import FirestoreSettings, FirestoreStateStore
from bindings.memcached import MemcachedSettings, MemcachedStateStore
from bindings.mongodb._settings import MongoDBSettings, plain
from bindings.mongodb.state import MongoDBStateStore
from mesh.errors import ConfigError
from mesh.resources.settings import settings_of
from tests.support.nodes import component

# The settings that Dapr 1.18 documents; those of the block are read by the block.
_AZURE = (
    "azureTenantId azureClientId azureClientSecret azureCertificate azureCertificateFile azureCertificatePassword "
    "azureEnvironment"
)
KNOWN = {
    BlobStorageSettings: "accountName accountKey containerName endpoint contentType contentMD5 contentEncoding "
    f"contentLanguage contentDisposition cacheControl publicAccessLevel disableEntityManagement {_AZURE}",
    TableStorageSettings: f"accountName accountKey tableName cosmosDbMode serviceURL skipCreateTable {_AZURE}",
    CosmosDBSettings: f"url masterKey database collection contentType {_AZURE}",
    DynamoDBSettings: "table accessKey secretKey region endpoint sessionToken ttlAttributeName partitionKey "
    "awsAccessKey awsSecretKey awsRegion awsSessionToken assumeRoleArn sessionName trustAnchorArn trustProfileArn",
    CassandraSettings: "hosts port username password protoVersion replicationFactor consistency table keyspace "
    "enableHostVerification",
    FirestoreSettings: "type project_id private_key_id private_key client_email client_id auth_uri token_uri "
    "auth_provider_x509_cert_url client_x509_cert_url entity_kind noIndex endpoint connectionEndpoint",
    EtcdSettings: "endpoints keyPrefixPath tlsEnable ca cert key maxTxnOps",
    MemcachedSettings: "hosts maxIdleConnections timeout",
    MongoDBSettings: "connectionString server host username password databaseName collectionName writeConcern "
    "readConcern operationTimeout params",
}
_BLOBS = {"accountName": "shop", "containerName": "state"}
_COSMOS = {"url": "https://shop.documents.azure.com:443/", "database": "shop", "collection": "state"}


@pytest.mark.parametrize("model", list(KNOWN))
def test_every_documented_setting_is_declared(model: type) -> None:
    """None of them is told to be unknown."""
    declared = {name for each in settings_of(model) for name in each.names}
    assert set(KNOWN[model].split()) <= declared


def test_secrets_are_not_shown() -> None:
    """Neither is in the text of a value of the model."""
    settings = DynamoDBSettings(table="t", access_key="AKIA", secret_key="hush", session_token="hush")
    assert "AKIA" not in repr(settings)
    assert "hush" not in repr(settings)
    assert "hush" not in repr(CosmosDBSettings(url="https://a", key="hush", client_secret="hush"))
    assert "hush" not in repr(CassandraSettings(hosts=(), password="hush"))
    assert "hush" not in repr(FirestoreSettings(private_key="hush", private_key_id="hush"))
    assert "hush" not in repr(EtcdSettings(endpoints=(), key="hush"))
    assert "hush" not in repr(MongoDBSettings(url="mongodb://u:hush@a", password="hush"))


@pytest.mark.parametrize(
    ("adapter", "given", "says"),
    [
        (DynamoDBStateStore, {}, "the setting table is missing"),
        (DynamoDBStateStore, {"table": "t", "accessKey": "a"}, "accessKey.* needs secretKey as well"),
        (DynamoDBStateStore, {"table": "t", "secretKey": "a"}, "secretKey.* needs accessKey as well"),
        (DynamoDBStateStore, {"table": "t", "endpoint": "localhost:8000"}, "endpoint.* http:// or https:// URL"),
        (DynamoDBStateStore, {"table": "t", "endpoint": "http://a:b@c"}, "without credentials"),
        (DynamoDBStateStore, {"table": "t", "trustProfileArn": "arn"}, "trustProfileArn.* not supported"),
        (DynamoDBStateStore, {"table": "t", "accessKey": "a", "partitionKey": "etag"}, "secretKey(.|\n)*of their own"),
        (DynamoDBStateStore, {"table": "t", "partitionKey": "value"}, "names of their own"),
        (DynamoDBStateStore, {"table": "t", "ttlAttributeName": "key"}, "names of their own"),
        (BlobStorageStateStore, {}, "the setting accountName(.|\n)*containerName"),
        (BlobStorageStateStore, {**_BLOBS, "accountKey": "no key"}, "accountKey: is no key"),
        (BlobStorageStateStore, {**_BLOBS, "endpoint": "shop.blob.core.windows.net"}, "endpoint.* https:// URL"),
        (BlobStorageStateStore, {**_BLOBS, "endpoint": "https://shop?sig=x"}, "without credentials"),
        (BlobStorageStateStore, {**_BLOBS, "publicAccessLevel": "all"}, "publicAccessLevel.* none or blob"),
        (BlobStorageStateStore, {**_BLOBS, "azureClientSecret": "s"}, "azureClientSecret needs azureTenantId"),
        (TableStorageStateStore, {}, "the setting accountName(.|\n)*tableName"),
        (TableStorageStateStore, {"accountName": "a", "tableName": "t", "cosmosDbMode": "perhaps"}, "cosmosDbMode"),
        (CosmosDBStateStore, {}, "the setting url(.|\n)*database(.|\n)*collection"),
        (CosmosDBStateStore, {**_COSMOS, "url": "shop.documents.azure.com"}, "url.* https:// URL"),
        (CosmosDBStateStore, {**_COSMOS, "url": "https://a:b@c"}, "without credentials"),
        (CosmosDBStateStore, {**_COSMOS, "masterKey": "no key"}, "masterKey.*: is no key"),
        (CosmosDBStateStore, {**_COSMOS, "azureClientSecret": "s"}, "azureClientSecret needs azureTenantId"),
        (CosmosDBStateStore, {**_COSMOS, "outboxPublishPubsub": "p"}, "outboxPublishPubsub.* another partition"),
        (CassandraStateStore, {}, "the setting hosts is missing"),
        (CassandraStateStore, {"hosts": "u:p@a"}, "without credentials"),
        (CassandraStateStore, {"hosts": "a", "port": "0"}, "port"),
        (CassandraStateStore, {"hosts": "a", "username": "u"}, "username.* needs password as well"),
        (CassandraStateStore, {"hosts": "a", "password": "p"}, "password.* needs username as well"),
        (CassandraStateStore, {"hosts": "a", "protoVersion": "2"}, "protoVersion"),
        (CassandraStateStore, {"hosts": "a", "replicationFactor": "0"}, "replicationFactor"),
        (CassandraStateStore, {"hosts": "a", "consistency": "Most"}, "consistency.* is All or Any"),
        (CassandraStateStore, {"hosts": "a", "table": "items; DROP"}, "table.* letters, digits and underscores"),
        (CassandraStateStore, {"hosts": "a", "keyspace": "k-1"}, "keyspace.* letters, digits and underscores"),
        (FirestoreStateStore, {"client_email": "a@b"}, "client_email.* needs private_key as well"),
        (FirestoreStateStore, {"private_key": "hush"}, "private_key.* needs client_email as well"),
        (FirestoreStateStore, {"endpoint": "http://u:p@a"}, "endpoint.* without credentials"),
        (FirestoreStateStore, {"endpoint": "https://a/b"}, "endpoint.* without a path"),
        (FirestoreStateStore, {"entity_kind": "__a__"}, "entity_kind.* two underscores"),
        (FirestoreStateStore, {"noIndex": "perhaps"}, "noIndex"),
        (EtcdStateStore, {}, "the setting endpoints is missing"),
        (EtcdStateStore, {"endpoints": "a:1,b"}, "endpoints.* host:port"),
        (EtcdStateStore, {"endpoints": "http://u:p@a:1"}, "without credentials"),
        (EtcdStateStore, {"endpoints": "a:1", "ca": "x"}, "ca.* needs tlsEnable"),
        (EtcdStateStore, {"endpoints": "a:1", "tlsEnable": "true", "cert": "x"}, "cert.* goes with key"),
        (EtcdStateStore, {"endpoints": "a:1", "tlsEnable": "true", "ca": "x"}, "cannot be used"),
        (EtcdStateStore, {"endpoints": "a:1", "maxTxnOps": "0"}, "maxTxnOps"),
        (MongoDBStateStore, {}, "host, server and connectionString"),
        (MongoDBStateStore, {"host": "a", "server": "b"}, "server.* only one of them"),
        (MongoDBStateStore, {"host": "u:p@a"}, "host.* without credentials"),
        (MongoDBStateStore, {"host": "a", "username": "u"}, "username.* goes with password"),
        (MongoDBStateStore, {"host": "a", "password": "p"}, "password.* goes with username"),
        (MongoDBStateStore, {"host": "a", "writeConcern": "0"}, "writeConcern.* confirmed before"),
        (MongoDBStateStore, {"host": "a", "readConcern": "none"}, "readConcern.* linearizable"),
        (MongoDBStateStore, {"host": "a", "operationTimeout": "0s"}, "operationTimeout.* longer than 0"),
        (MongoDBStateStore, {"host": "a", "operationTimeout": "soon"}, "operationTimeout"),
        (MemcachedStateStore, {}, "the setting hosts is missing"),
        (MemcachedStateStore, {"hosts": "a:1,"}, "hosts.* host:port"),
        (MemcachedStateStore, {"hosts": "a:b"}, "hosts.* host:port"),
        (
            MemcachedStateStore,
            {"hosts": "u:pw@a:1"},
            "hosts: is host:port, or several with commas between, without cred",
        ),
        (MemcachedStateStore, {"hosts": "a", "timeout": "soon"}, "timeout"),
    ],
)
def test_settings_that_are_wrong(adapter: Any, given: dict[str, str], says: str) -> None:
    """Each is told where it stands."""
    with pytest.raises(ConfigError, match=says):
        adapter.from_component(component("c", "", **given))


def test_etcd_has_two_versions() -> None:
    """Another one would be read and written wrongly."""
    for version in ("v1", "v2"):
        EtcdStateStore.from_component(component("c", "state.etcd", version=version, endpoints="a:1"))
    with pytest.raises(ConfigError, match="v1 and v2"):
        EtcdStateStore.from_component(component("c", "state.etcd", version="v3", endpoints="a:1"))


@pytest.mark.parametrize(
    ("given", "hosts"),
    [
        ("localhost", (("localhost", 11211),)),
        ("a:1, b:2", (("a", 1), ("b", 2))),
        ("[::1]:5", (("::1", 5),)),
    ],
)
def test_hosts_of_memcached(given: str, hosts: tuple[tuple[str, int], ...]) -> None:
    """A port may be left out."""
    made = MemcachedStateStore.from_component(component("c", "", hosts=given))
    assert made._settings.hosts == hosts


@pytest.mark.parametrize(
    ("given", "abilities"), [({}, ("ETAG", "TRANSACTIONAL", "ACTOR")), ({"ttlAttributeName": "ttl"}, ("TTL",))]
)
def test_dynamodb_expires_where_an_attribute_is_named(given: dict[str, str], abilities: tuple[str, ...]) -> None:
    """Else it does not say that it can."""
    declared = DynamoDBStateStore.from_component(component("c", "", table="t", **given)).capabilities
    assert set(abilities) <= set(declared)
    assert ("TTL" in declared) == bool(given)


@pytest.mark.parametrize(
    ("text", "meant"),
    [
        ("p@ss:w/rd%", "p@ss:w/rd%"),
        ("100%", "100%"),
        ("p%40ss+1", "p@ss+1"),
        ("p%40ss@1", "p%40ss@1"),
        ("plain", "plain"),
        ("a b ", "a b "),
        ("%C3%A9", "é"),
    ],
)
def test_mongodb_credentials_as_in_a_url(text: str, meant: str) -> None:
    """As Dapr's URL needs them, or as they are."""
    assert plain(text) == meant
