"""What is shown of a component's words, and calls that wait for its connection."""

from __future__ import annotations

import pytest

from bindings.pluggable._hidden import hiding
from mesh.resources.component import MetadataEntry, Secret


@pytest.mark.parametrize(
    ("name", "value", "told", "shown"),
    [
        pytest.param("host", Secret("s3cr;t"), "no login with s3cr;t: s3cr;t", "no login with ***: ***", id="secret"),
        pytest.param("host", Secret("x"), "no x", "no ***", id="short secret"),
        pytest.param("host", Secret(""), "no host", "no host", id="empty secret"),
        pytest.param("Password", "hunter2", "bad hunter2", "bad ***", id="by name"),
        pytest.param("accountKey", "YWJj/w==", "bad YWJj%2Fw%3D%3D", "bad ***", id="quoted"),
        pytest.param("token", 'a"b\nc', 'bad "a\\"b\\nc"', 'bad "***"', id="escaped"),
        pytest.param(
            "connectionString", "a=1;b=2", "cannot parse 'a=1;b=2'", "cannot parse '***'", id="connection string"
        ),
        pytest.param("server", "Host=h;Pwd=hunter2;X=y", "hunter2 at Host=h", "*** at Host=h", id="part of a string"),
        pytest.param(
            "url", "redis://me:p%40ss@h:1/0", "redis://me:p@ss@h:1: no", "redis://me:***@h:1: no", id="URL, read"
        ),
        pytest.param("url", "redis://me:p%40ss@h:1/0", "p%40ss at h", "*** at h", id="URL, as it is"),
        pytest.param("host", "db.example", "no host db.example", "no host db.example", id="no secret"),
        pytest.param("keyPrefix", "name", "no name", "no name", id="no secret either"),
        pytest.param("tokenAuth", "true", "is true", "is true", id="a switch"),
    ],
)
def test_secrets_of_its_settings_are_not_shown(name: str, value: str | Secret, told: str, shown: str) -> None:
    assert hiding([MetadataEntry("other", "told"), MetadataEntry(name, value)])(told) == shown


def test_longer_secrets_are_found_first() -> None:
    """One may be a part of another."""
    entries = [MetadataEntry("password", "word"), MetadataEntry("token", "password1")]
    assert hiding(entries)("password1, word") == "***, ***"
