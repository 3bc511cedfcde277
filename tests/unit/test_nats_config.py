"""Where NATS is: URLs and component metadata, and what is wrong with them."""

from __future__ import annotations

import ssl
import sys
from pathlib import Path

import pytest

from brokers.nats import NatsBroker, NatsConfig
from mesh.errors import ConfigError, MissingDependencyError
from mesh.resources.component import Component, MetadataEntry

SEED = "SUAMLK2ZNL35WSMW37E7UD4VZ7ELPKW7DHC3BWBSD2GCZ7IUQQXZIORRBU"  # Of the documentation of NATS.


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("nats://h", NatsConfig(("nats://h:4222",))),
        ("nats://a:1, nats://b", NatsConfig(("nats://a:1", "nats://b:4222"))),
        ("nats://u:p%40ss@a,b:2", NatsConfig(("nats://a:4222", "nats://b:2"), user="u", password="p@ss")),
        ("nats://u:p@a,nats://u:p@b", NatsConfig(("nats://a:4222", "nats://b:4222"), user="u", password="p")),
        ("nats://u:@h", NatsConfig(("nats://h:4222",), user="u", password="")),
        ("nats://t%20k@[::1]:1/", NatsConfig(("nats://[::1]:1",), token="t k")),
        ("nats://h?name=me&replicas=3", NatsConfig(("nats://h:4222",), name="me", replicas=3)),
    ],
)
def test_url(url: str, expected: NatsConfig) -> None:
    assert NatsConfig.from_url(url) == expected
    assert isinstance(NatsBroker.from_url(url), NatsBroker)


@pytest.mark.parametrize(
    ("url", "mode"),
    [
        ("tls://h", ssl.CERT_REQUIRED),
        ("tls://h?verify=verify_none", ssl.CERT_NONE),
        ("nats://h?verify=verify_peer", ssl.CERT_REQUIRED),
    ],
)
def test_tls_url(url: str, mode: ssl.VerifyMode) -> None:
    config = NatsConfig.from_url(url)
    assert config.tls is not None
    assert config.tls.verify_mode == mode


def test_keys_are_read_and_nothing_of_them_is_shown(tmp_path: Path) -> None:
    creds, nkey = tmp_path / "user.creds", tmp_path / "user.nk"
    nkey.write_text(f"{SEED}\n")
    creds.write_text(
        f"-----BEGIN NATS USER JWT-----\r\nh.p.s\r\n------END NATS USER JWT------\r\n\r\nKeep it.\r\n\r\n"
        f"-----BEGIN USER NKEY SEED-----\r\n{SEED}\r\n------END USER NKEY SEED------\r\n"
    )
    assert NatsConfig.from_url(f"nats://h?nkey={nkey}").seed == SEED
    config = NatsConfig.from_url(f"nats://u:secret@h?creds={creds}")
    assert (config.jwt, config.seed) == ("h.p.s", SEED)
    for part in (SEED, "h.p.s", "secret"):
        assert part not in repr(config)


@pytest.mark.parametrize(
    ("url", "problem"),
    [
        ("http://u:secret@h", "a NATS URL is"),
        ("nats://u:secret@h:port", "a NATS URL is"),
        ("nats://u:secret@", "a NATS URL is"),
        ("nats://u:secret@a,tls://b", "a NATS URL is"),
        ("nats://u:secret@a/b", "a NATS URL is"),
        ("nats://u:12#secret@a", "a NATS URL is"),
        ("nats://u:secret@a,nats://v:secret@b", "one login"),
        ("nats://u:secret@h?cafile=/ca.pem", "did you mean 'cacertfile'?"),
        ("nats://u:secret@h?x=1", "cacertfile, certfile, keyfile, verify, creds, inbox, name, nkey, replicas"),
        ("nats://u:secret@h?replicas=none", "whole number"),
        ("nats://u:secret@h?creds=/nowhere", "option creds: '/nowhere' cannot be read: No such file"),
        ("nats://u:secret@h?nkey=a&creds=b", "one of creds and nkey"),
        ("tls://u:secret@h?cacertfile=/nowhere", "'/nowhere' cannot be used"),
    ],
)
def test_wrong_url(url: str, problem: str) -> None:
    with pytest.raises(ConfigError) as raised:
        NatsConfig.from_url(url)
    assert problem in str(raised.value)
    assert "secret" not in str(raised.value)


WRONG_SEEDS = {"word": "secret", "operator": f"SO{SEED[2:]}", "short": "SUsecret", "empty": "", "not ASCII": "é"}


@pytest.mark.parametrize("text", WRONG_SEEDS.values(), ids=WRONG_SEEDS)
def test_wrong_seed(text: str, tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text(text)
    for option in ("nkey", "creds"):
        with pytest.raises(ConfigError, match=f"option {option}") as raised:
            NatsConfig.from_url(f"nats://h?{option}={path}")
        assert not text or text not in str(raised.value)


def test_nkeys_is_asked_for_where_it_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "user.nk"
    path.write_text(SEED)
    monkeypatch.setitem(sys.modules, "nkeys", None)  # As Python itself marks what cannot be imported.
    with pytest.raises(MissingDependencyError, match=r"pip install '.*\[nkeys\]'"):
        NatsBroker.from_url(f"nats://h?nkey={path}")


def component(**settings: str) -> Component:
    entries = tuple(
        MetadataEntry(name, value, f"spec.metadata[{at}]", at + 1, 1)
        for at, (name, value) in enumerate(settings.items())
    )
    return Component("messages", "pubsub.jetstream", entries, file="f.yaml", line=1)


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        (
            {"natsURL": "nats://a:4222, nats://b:4222", "token": "t", "streamName": "s", "consumerID": "c"},
            NatsConfig(("nats://a:4222", "nats://b:4222"), token="t", name="brokermesh messages"),
        ),
        (
            {"natsURL": "nats://u:p@a?name=me", "jwt": "j", "seedKey": SEED, "replicas": "3"},
            NatsConfig(("nats://a:4222",), user="u", password="p", jwt="j", seed=SEED, replicas=3, name="me"),
        ),
        ({"natsURL": "nats://a?name=me", "name": "you"}, NatsConfig(("nats://a:4222",), name="you")),
    ],
)
def test_component(settings: dict[str, str], expected: NatsConfig) -> None:
    assert NatsConfig.from_component(component(**settings)) == expected
    assert isinstance(NatsBroker.from_component(component(**settings)), NatsBroker)


@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        ({}, "f.yaml:1:1: the setting natsURL is missing"),
        ({"natsURL": "nats://a?x=y"}, "f.yaml:1:1: spec.metadata[0] (natsURL): unknown option of a NATS URL: 'x'"),
        ({"natsURL": "nats://a", "jwt": "x"}, "f.yaml:2:1: spec.metadata[1] (jwt): jwt and seedKey go together"),
        ({"natsURL": "nats://a", "jwt": "x", "seedKey": "secret"}, "(seedKey): that is not the seed"),
        ({"natsURL": "nats://a", "tls_client_key": "x"}, "(tls_client_key): tls_client_cert and tls_client_key go"),
        ({"natsURL": "nats://a", "tls_client_key": "x", "tls_client_cert": "y"}, "(tls_client_cert): the client cert"),
        ({"natsURL": "nats://a", "replicas": "-1"}, "(replicas): not a whole number of at least 0: '-1'"),
    ],
)
def test_wrong_component(settings: dict[str, str], problem: str) -> None:
    with pytest.raises(ConfigError) as raised:
        NatsConfig.from_component(component(**settings))
    assert problem in str(raised.value)
    assert len(raised.value.problems) == 1
    assert "secret" not in str(raised.value)
