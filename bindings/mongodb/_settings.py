"""What ``state.mongodb`` is told, and the client that comes of it."""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any
from urllib.parse import unquote

from bson.codec_options import CodecOptions, DatetimeConversion
from pymongo import AsyncMongoClient
from pymongo.asynchronous.collection import AsyncCollection
from pymongo.driver_info import DriverInfo
from pymongo.errors import PyMongoError
from pymongo.read_concern import ReadConcern
from pymongo.write_concern import WriteConcern

from mesh.errors import Problem
from mesh.resources.component import Component
from mesh.resources.settings import LIMIT, VERBATIM, Kind, choice, setting

__all__ = ["Document", "MongoDBSettings", "collection_of", "make_client", "plain", "wrong"]

Document = dict[str, Any]

_CONCERNS = ("available", "linearizable", "local", "majority", "snapshot")
# What may stand in a URL before the @ as it is.
_ESCAPED = re.compile(r"(?:[^%@:/?#\[\]]|%[0-9A-Fa-f]{2})*")
_PAST = DatetimeConversion.DATETIME_MS  # Python's own ends with the year 9999.


def _write_concern(text: str) -> str | int:
    if text.isascii() and text.isdigit():
        if int(text) == 0:
            raise ValueError("must not be 0: a write would be confirmed before it is done")
        return int(text)
    return text


@dataclass(frozen=True, slots=True)
class MongoDBSettings:
    """Settings of ``state.mongodb``."""

    url: str | None = setting(
        "connectionString",
        "The mongodb:// or mongodb+srv:// URL, instead of `host`, `server`, `username`, `password` and `params`.",
        secret=True,
    )
    host: str | None = setting(
        "host",
        "Host and port of the server; several with commas between are members of a replica set.",
        example="localhost:27017",
        suggested=True,
    )
    server: str | None = setting(
        "server", "The name whose DNS SRV record names the servers, instead of `host`.", example="shop.example.com"
    )
    username: str | None = setting(
        "username", "Whom to log in as; what Dapr's URL needs percent-encoded may be so here.", example="shop"
    )
    password: str | None = setting("password", "The password, as `username`.", VERBATIM, secret=True)
    database: str = setting("databaseName", "The name of the database.", default="daprStore")
    collection: str = setting("collectionName", "The name of the collection.", default="daprCollection")
    write_concern: str | int | None = setting(
        "writeConcern",
        "How many members confirm a write, or `majority`; 1, if the URL does not say more.",
        Kind("number, or the name of a write concern", _write_concern),
        example="majority",
    )
    read_concern: str | None = setting(
        "readConcern",
        "What a read may give; `local`, if the URL does not say another.",
        choice(*_CONCERNS),
        example="local",
    )
    timeout: float = setting("operationTimeout", "How long an operation may take.", LIMIT, default=5.0)
    params: str = setting(
        "params", "Further options of the URL, from its question mark on.", default="", example="?replicaSet=rs0"
    )

    @property
    def shown(self) -> str:
        """Name the server, without credentials."""
        return f"MongoDB at {self.server or self.host}" if not self.url else "MongoDB of the connectionString"


def _is_port(host: str) -> bool:
    port = re.fullmatch(r"(?:[^:]+|\[.+\]):([0-9]+)", host.strip())
    return port is None or (len(port[1]) < 6 and 0 < int(port[1]) < 65536)


def wrong(settings: MongoDBSettings, component: Component) -> Iterator[Problem]:
    """Find what does not go together."""
    if not settings.url:
        if settings.host is None and settings.server is None:
            yield component.missing("one of the settings host, server and connectionString must be there")
        if settings.host is not None and settings.server is not None:
            yield component.problem("is instead of host; only one of them may be there", setting="server")
        if not all(map(_is_port, (settings.host or "").split(","))):
            yield component.problem("names a port that there cannot be: one is from 1 to 65535", setting="host")
        if "@" in f"{settings.host}{settings.server}":
            yield component.problem(
                "must be without credentials, which are username and password",
                setting="host" if settings.host else "server",
            )
        if bool(settings.username) != bool(settings.password):
            there, other = ("username", "password") if settings.username else ("password", "username")
            yield component.problem(f"goes with {other}", setting=there)


def make_client(settings: MongoDBSettings, within: float, tell: Callable[[str], object]) -> AsyncMongoClient[Document]:
    """Make the client, which does not connect yet.

    Args:
        settings: Its settings.
        within: Seconds that a server is looked for at most.
        tell: Is told of options that have no effect.

    Raises:
        ValueError: The URL cannot be used; the text tells no secret.
    """
    options: dict[str, Any] = {
        "timeoutMS": settings.timeout * 1000,
        "serverSelectionTimeoutMS": min(settings.timeout, within) * 1000,
        "driver": DriverInfo("brokermesh"),
    }
    url = settings.url
    if not url:
        scheme = "mongodb+srv" if settings.server else "mongodb"
        params = f"?{settings.params.removeprefix('?')}" if settings.params else ""
        url = f"{scheme}://{settings.server or settings.host}/{settings.database}{params}"
        if settings.username and settings.password:
            options |= {"username": plain(settings.username), "password": plain(settings.password)}
    with warnings.catch_warnings(record=True) as told:  # Of options that it does not know.
        warnings.simplefilter("always")
        try:
            client: AsyncMongoClient[Document] = AsyncMongoClient(url, **options)
        except (PyMongoError, ValueError, TypeError) as error:
            if settings.url:  # Its parts may be in the text.
                raise ValueError(
                    f"is no URL of MongoDB that can be used ({type(error).__name__}); what is @ : / ? # [ ] or % "
                    "in user and password must be percent-encoded"
                ) from None
            raise ValueError(f"cannot be used: {error}") from None
    for each in told:
        tell(str(each.message))
    return client


def plain(text: str) -> str:
    """Decode what Dapr puts into its URL as it is; a text that cannot be meant so is itself."""
    return unquote(text) if _ESCAPED.fullmatch(text) else text


def collection_of(client: AsyncMongoClient[Document], settings: MongoDBSettings) -> AsyncCollection[Document]:
    """Give the collection; a write is confirmed when it is in the journal, if nothing else is said.

    Raises:
        ValueError: The URL asks for writes that are not confirmed.
    """
    concern = {"w": 1, "j": True, **client.write_concern.document}
    if settings.write_concern is not None:
        concern["w"] = settings.write_concern
    if concern["w"] == 0:
        raise ValueError("asks for w=0: a write would be confirmed before it is done")
    return client[settings.database].get_collection(
        settings.collection,
        codec_options=CodecOptions(datetime_conversion=_PAST),
        write_concern=WriteConcern(concern["w"], concern.get("wtimeout"), concern["j"]),
        read_concern=ReadConcern(settings.read_concern or client.read_concern.level or "local"),
    )
