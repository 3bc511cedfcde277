"""``mesh invoke``, and how a command finds a gateway and gets its data."""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from gateway.cli.client import GatewayUnreachableError, Response, opened, path_segment
from gateway.cli.parsing import Parser, UsageError
from gateway.cli.reference import as_dapr, succeeded
from gateway.cli.terminal import complain
from gateway.runs import KEY_HEADER, Run, list_runs
from mesh.errors import ConfigError
from mesh.home import mesh_home
from mesh.values import parse_duration

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = [
    "add_data_options",
    "add_socket_option",
    "add_timeout",
    "ask",
    "duration_option",
    "lasting_option",
    "error_text",
    "failed",
    "gateway_of",
    "given_data",
    "header_fields",
    "own_gateway",
    "parser",
    "run",
]

_ASK_SECONDS = 75.0  # More than the gateway gives any of it.
# What may stand in a path and query as it is, the percent sign of what is quoted already among them.
_PATH_SAFE = "/?:@!$&'()*+,;=-._~%"


def parser() -> Parser:
    """Describe the command line."""
    made = Parser("mesh invoke", description="Call a method of an application and print its answer.")
    made.add_argument("-a", "--app-id", required=True, metavar="APP-ID", help="the application")
    made.add_argument("-m", "--method", required=True, metavar="PATH", help="the method: a path, perhaps a query")
    add_data_options(made)
    made.add_argument("-p", dest="data", help=argparse.SUPPRESS)
    made.add_argument("-H", "--header", action="append", default=[], metavar="NAME=VALUE", help="a header; repeatable")
    made.add_argument("-v", "--verb", default="POST", metavar="VERB", help="HTTP verb (POST)")
    add_socket_option(made)
    add_timeout(made)
    return made


def run(words: Sequence[str]) -> int:
    """Run the command."""
    found = parser().parse(words)
    path = f"/v1.0/invoke/{path_segment(found.app_id, 'application')}/method/{_quoted(found.method)}"
    body = given_data(found)
    gateway = gateway_of(found.app_id, found.unix_domain_socket)
    headers = {**({"Content-Type": "application/json"} if body is not None else {}), **header_fields(found.header)}
    try:
        with opened(gateway, found.verb.upper(), path, body, headers=headers, timeout=found.timeout) as response:
            if not response.ok:
                known = found.app_id in (each.app_id for each in list_runs(mesh_home(os.environ)))
                what = f"error invoking app {found.app_id}" if as_dapr() else found.app_id
                return failed(what, response, "" if known else "; see: mesh list")
            return _print(response)
    except TimeoutError:
        complain(f"{found.app_id} gave no answer for {found.timeout:g} s; --timeout sets how long to wait")
        return 1


def add_socket_option(parser: argparse.ArgumentParser) -> None:
    """Add ``--unix-domain-socket``."""
    parser.add_argument("-u", "--unix-domain-socket", metavar="DIR", help="folder of the gateway's socket")


def add_data_options(parser: argparse.ArgumentParser) -> None:
    """Add ``--data`` and ``--data-file``."""
    parser.add_argument("-d", "--data", metavar="TEXT", help="what is sent, JSON")
    parser.add_argument("--payload", dest="data", help=argparse.SUPPRESS)
    parser.add_argument("-f", "--data-file", metavar="FILE", help="a file that is sent; - reads it here")


def add_timeout(parser: argparse.ArgumentParser) -> None:
    """Add ``--timeout``. Without it the gateway alone decides, which knows the policies."""
    text = "longest silence of the gateway, such as 30s; its own limit and a policy's hold without"
    parser.add_argument("--timeout", type=duration_option, metavar="TIME", help=text)


def given_data(found: argparse.Namespace) -> bytes | None:
    """Give the bytes to send; None when there are none.

    Raises:
        UsageError: Text and file are both given.
        ConfigError: The file can not be read.
    """
    if found.data is not None and found.data_file is not None:
        raise UsageError("--data and --data-file exclude each other")
    if found.data is not None:
        return str(found.data).encode(errors="surrogateescape")
    if found.data_file is None:
        return None
    if found.data_file == "-":
        return sys.stdin.buffer.read()
    try:
        return Path(found.data_file).read_bytes()
    except OSError as error:
        raise ConfigError(f"{found.data_file}: {error.strerror}") from error


def gateway_of(app_id: str, socket_folder: str | None = None, *, only_its_own: bool = False) -> Run:
    """Find the gateway to ask: the application's own, or else any, for each reaches all.

    Args:
        app_id: The application.
        socket_folder: Where its gateway's socket is; None = found in the registry.
        only_its_own: Whether no other will do, since its identity matters.

    Raises:
        ConfigError: None runs.
    """
    if socket_folder is not None:
        return Run(app_id, 0, socket=str(Path(socket_folder) / f"dapr-{app_id}-http.socket"))
    runs = list_runs(mesh_home(os.environ))
    own = [each for each in runs if each.app_id == app_id]
    if not own and only_its_own:
        raise ConfigError(f"{app_id} does not run; see: mesh list")
    if not runs:
        raise ConfigError("no gateway runs; start one with: mesh run --app-id NAME -- COMMAND")
    return (own or runs)[-1]


def own_gateway(app_id: str | None, ask: str, socket_folder: str | None = None) -> Run:
    """Find an application's own gateway, that of the only one that runs where none is named.

    Args:
        app_id: The application; None = the one that runs.
        ask: What to say, where several run.
        socket_folder: As `gateway_of` takes it.

    Raises:
        UsageError: Several run.
        ConfigError: None runs.
    """
    if app_id is not None:
        return gateway_of(app_id, socket_folder, only_its_own=True)
    app_ids = sorted({each.app_id for each in list_runs(mesh_home(os.environ))})
    if len(app_ids) > 1:
        raise UsageError(f"{ask}: one of {', '.join(app_ids)}")
    return gateway_of(app_ids[0] if app_ids else "")


def ask(gateway: Run, method: str, path: str, missing: str = "", body: bytes | None = None) -> Any:
    """Ask a gateway about what it keeps, whatever its ``spec.httpPipeline`` asks for, and give its JSON; None for none.

    Args:
        gateway: Which.
        method: HTTP verb.
        path: With its query.
        missing: The code of an error that is none here, but None.
        body: What is sent, JSON; None = nothing.

    Raises:
        GatewayUnreachableError: It does not answer, or not with JSON.
        SystemExit: What it answered is no success, and was reported.
    """
    name = gateway.app_id
    try:
        with opened(gateway, method, path, body, headers={KEY_HEADER: gateway.key}, timeout=_ASK_SECONDS) as response:
            told = response.read()
    except TimeoutError:
        raise GatewayUnreachableError(f"the gateway of {name} gave no answer for {_ASK_SECONDS:g} s") from None
    if not response.ok:
        text = told.decode(errors="replace").strip()
        if missing and error_text(text).endswith(f"({missing})"):
            return None
        raise SystemExit(_failed(name, response, text))
    try:
        return json.loads(told) if told else None
    except ValueError:
        raise GatewayUnreachableError(f"what answers for {name} is no gateway: it gave no JSON") from None


def failed(what: str, response: Response, see: str = "") -> int:
    """Report an answer that is no success, and perhaps where to look; the exit code is 1."""
    return _failed(what, response, response.read().decode(errors="replace").strip(), see)


def _failed(what: str, response: Response, text: str, see: str = "") -> int:
    told = error_text(text)
    see = see if told.endswith("(ERR_DIRECT_INVOKE)") else ""  # Not for an answer of the application.
    complain(f"{what}: {response.status} {response.reason}" + (f": {told}{see}" if text else ""))
    return 1


def error_text(text: str) -> str:
    """Give the message of an error of the API; the answer of an application stays as it is."""
    try:
        error = json.loads(text)
        return f"{error['message']} ({error['errorCode']})"
    except (ValueError, KeyError, TypeError):
        return text


def _quoted(method: str) -> str:
    """Write a method as a path: as it was given, and what can not stand in one as escapes."""
    return quote(method.removeprefix("/"), safe=_PATH_SAFE, errors="surrogateescape")


def _print(response: Response) -> int:
    out = sys.stdout.buffer
    last = b""
    for chunk in response.chunks():
        out.write(chunk)
        out.flush()
        last = chunk
    if last and (as_dapr() or (sys.stdout.isatty() and not last.endswith(b"\n"))):
        out.write(b"\n")
        out.flush()
    succeeded("App invoked successfully")
    return 0


def header_fields(given: Sequence[str]) -> dict[str, str]:
    """Read what ``--header`` gives; raises ``UsageError``."""
    pairs = [text.partition("=") for text in given]
    if wrong := [text for text, (name, _, value) in zip(given, pairs, strict=True) if not name.strip() or not value]:
        raise UsageError(f"--header: expected NAME=VALUE, got '{wrong[0]}'")
    return {name.strip(): value.strip() for name, _, value in pairs}


def duration_option(text: str) -> float:
    """Read the value of an option that is a duration, as argparse wants it."""
    try:
        return parse_duration(text, bare="s")  # As in the options of the run command.
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def lasting_option(text: str) -> float:
    """Read one that is longer than nothing."""
    seconds = duration_option(text)
    if seconds <= 0:
        raise argparse.ArgumentTypeError(f"{text!r} is no time that something lasts, such as 30s")
    return seconds
