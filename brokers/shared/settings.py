"""What people write about a broker: the options of a backbone URL, and the metadata of a component."""

from __future__ import annotations

import logging
import os
import re
import secrets
import socket
import ssl
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Generic, TypeVar
from urllib.parse import parse_qsl, urlsplit

from brokers.shared.backoff import CONNECT_WAIT
from brokers.shared.tls import TLS_OPTIONS, TLSFiles
from mesh.errors import ConfigError, Problem
from mesh.resources.component import Component
from mesh.resources.settings import choice, gather, setting
from mesh.spelling import did_you_mean
from mesh.values import parse_whole

__all__ = [
    "CONNECT_SHARE",
    "Reading",
    "count_option",
    "hosts_of",
    "inbox_option",
    "layout_setting",
    "node_name",
    "shown_hosts",
    "tls_of",
    "url_options",
]

logger = logging.getLogger(__name__)

CONNECT_SHARE = 0.8  # Of the time for a component's start, so that what fails can still be told.
_Model = TypeVar("_Model")


def layout_setting() -> Any:
    """Declare the setting by which a component's type has several adapters (``Registry.load``)."""
    told = "`native`: topics as every other program on the broker has them; `mesh`: topics of the mesh's own."
    return setting("layout", told, choice("native", "mesh"), default="native")


def node_name(mark: str = "") -> str:
    """Make a name for this node that nobody else has, and that says in a server's reports where it runs.

    Args:
        mark: Stands in it, before a colon, for rights by names; from `inbox_option`.
    """
    host = re.sub(r"[^A-Za-z0-9_-]", "-", socket.gethostname())[:40]
    return f"mesh-{mark and f'{mark}:'}{host}-{os.getpid()}-{secrets.token_hex(4)}"


def inbox_option(options: Mapping[str, str]) -> str:
    """Give what stands in the names of a node's inboxes, so that the server can tell whose they are; empty = nothing.

    Raises:
        ConfigError: No name may hold it.
    """
    text = options.get("inbox", "")
    if text and not re.fullmatch(r"[A-Za-z0-9_=-]+", text):
        raise ConfigError(f"option inbox: {text!r} must be letters, digits, '_', '-' and '='")
    return text


def url_options(broker: str, query: str, known: Sequence[str]) -> dict[str, str]:
    """Read the part of a URL behind the question mark.

    Args:
        broker: Its name, for messages.
        query: ``option=value&…``, percent-encoded.
        known: The options that there are.

    Raises:
        ConfigError: It is no such text, or an option is unknown.
    """
    try:
        options = dict(parse_qsl(query, keep_blank_values=True, strict_parsing=bool(query)))
    except ValueError:  # Its text may hold what is secret.
        raise ConfigError(f"what follows the '?' of a {broker} URL is option=value&option=value") from None
    for name in options:
        if name not in known:
            if "@" in query:  # The '?' may stand in a password.
                raise ConfigError(f"unknown option of a {broker} URL; percent-encode a '?' and an '@' in its parts")
            guess = did_you_mean(name, known)
            hint = f"did you mean {guess!r}?" if guess else f"there are: {', '.join(known)}"
            raise ConfigError(f"unknown option of a {broker} URL: {name!r}; {hint}")
    return options


def tls_of(options: Mapping[str, str], scheme: str | None) -> TLSFiles | None:
    """Read the options for TLS; None without it.

    Args:
        options: Those of a URL.
        scheme: With which a URL of this broker has TLS; None when this one has.

    Raises:
        ConfigError: One of them is wrong, or there are some and no TLS.
    """
    if scheme is None:
        return TLSFiles.from_options(options)
    if useless := [name for name in TLS_OPTIONS if name in options]:
        raise ConfigError(f"option {useless[0]} needs a URL that begins with {scheme}://")
    return None


def count_option(options: Mapping[str, str], name: str) -> int | None:
    """Read an option that is a whole number from 1 on; None when it is not given.

    Raises:
        ConfigError: It is none.
    """
    try:
        return parse_whole(options[name], least=1) if name in options else None
    except ValueError as error:
        raise ConfigError(f"option {name} is {error}") from None


def hosts_of(text: str, default_port: int) -> tuple[tuple[str, int], ...]:
    """Read ``host[:port][,host[:port]]…``.

    Raises:
        ValueError: It is something else.
    """
    found = []
    for each in text.split(","):
        parts = urlsplit(f"//{each.strip()}")
        if parts.netloc != each.strip() or parts.username is not None or not parts.hostname or parts.port == 0:
            raise ValueError(each)
        found.append((parts.hostname, parts.port or default_port))
    return tuple(found)


def shown_hosts(hosts: Iterable[tuple[str, int]]) -> str:
    """Write hosts as ``hosts_of`` reads them."""
    return ",".join(f"[{host}]:{port}" if ":" in host else f"{host}:{port}" for host, port in hosts)


class Reading(Generic[_Model]):
    """A pub/sub component's settings, and what is wrong with them: what no model says is looked for in them.

    Attributes:
        component: Whose.
        found: Them; what is missing or wrong is as if it was not set.
        problems: What is wrong.
    """

    def __init__(self, component: Component, model: type[_Model]) -> None:
        """Read them.

        Args:
            component: Whose.
            model: What they are.
        """
        self.component = component
        self.problems: list[Problem] = []
        self.found = gather(component, model, self.problems)

    @property
    def connect_wait(self) -> float:
        """Seconds that an attempt to connect may take."""
        return min(CONNECT_WAIT, self.component.init_timeout * CONNECT_SHARE)

    def wrong(self, setting: str, message: str) -> None:
        """Note a problem at a setting."""
        self.problems.append(self.component.problem(message, setting=setting))

    def text(self, name: str) -> str:
        """Give a setting's text without blanks around it; empty if it is not set."""
        return (self.component.setting(name) or "").strip()

    def useless(self, why: str, *names: str) -> None:
        """Tell of settings that are set and do nothing beside others."""
        if given := [name for name in names if self.text(name)]:
            logger.warning("component %s: %s: no effect %s", self.component.name, " and ".join(given), why)

    def without_tls(self, advice: str, *more: str) -> None:
        """Tell of certificates that are set, and do nothing: the connection has no TLS."""
        self.useless(f"without TLS; {advice}", "caCert", "clientCert", "clientKey", *more)

    def tls(
        self, certificate: str, key: str, *, ca: str | None = None, files: TLSFiles | None = None
    ) -> ssl.SSLContext | None:
        """Make a TLS context; None if a setting is wrong.

        Args:
            certificate: The setting that holds our certificate.
            key: The one that holds its private key.
            ca: The one that holds whom to trust.
            files: What holds where these are not set.
        """
        ours, proof, authority = (self.text(name) or None for name in (certificate, key, ca or ""))
        if (ours is None) != (proof is None):
            self.wrong(certificate if proof is None else key, f"{certificate} and {key} go together")
            return None
        if self.component.assumes(certificate, key, ca or ""):
            return None
        files = files or TLSFiles()
        if ours is not None:
            files = replace(files, certificate=ours, key=proof)
        if authority is not None:
            files = replace(files, ca=authority)
        setting = ca or certificate
        try:
            context = files.trust()
            setting = certificate
            files.identify(context)
        except ConfigError as error:
            self.wrong(setting, str(error))
            return None
        return context

    def finish(self) -> None:
        """Raise what was wrong.

        Raises:
            ConfigError: Holds every problem, located.
        """
        if self.problems:
            raise ConfigError(self.problems)
