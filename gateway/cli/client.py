"""One HTTP request to a gateway; the standard library's client, since its import is cheap."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import socket
from dataclasses import dataclass
from functools import partial
from http import HTTPStatus
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from gateway.api_tokens import read_tokens
from gateway.cli.parsing import UsageError
from gateway.runs import KEY_HEADER
from mesh.errors import MeshError
from mesh.urls import in_url

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from gateway.runs import Run

__all__ = [
    "ANY",
    "GatewayUnreachableError",
    "Response",
    "api_token",
    "grpc_endpoint",
    "metadata",
    "opened",
    "path_segment",
    "request",
]

_CHUNK_BYTES = 64 * 1024
_AT_ONCE = 16
# An address to listen on everywhere is none to connect to.
ANY = {"0.0.0.0": "127.0.0.1", "::": "::1", "[::]": "::1"}  # noqa: S104 - what others listen on


class GatewayUnreachableError(MeshError):
    """The gateway does not answer."""

    code = "GATEWAY_UNREACHABLE"
    retryable = True


class _SocketConnection(http.client.HTTPConnection):
    def __init__(self, path: str, timeout: float | None) -> None:
        super().__init__("localhost", timeout=timeout)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self._path)


@contextlib.contextmanager
def _translated(run: Run) -> Iterator[None]:
    try:
        yield
    except TimeoutError:
        raise
    except (OSError, http.client.HTTPException) as error:
        where = run.socket or f"{in_url(run.host)}:{run.http_port}"
        message = f"the gateway of {run.app_id} at {where} does not answer: {str(error) or type(error).__name__}"
        raise GatewayUnreachableError(message) from error


@dataclass(frozen=True, slots=True)
class Response:
    """What was answered; the body is still to be read. Reading raises what `opened` raises."""

    status: int
    reason: str
    _run: Run
    _answer: http.client.HTTPResponse

    @property
    def ok(self) -> bool:
        """Whether it went well."""
        return HTTPStatus.OK <= self.status < HTTPStatus.MULTIPLE_CHOICES

    def read(self) -> bytes:
        """Read the whole body."""
        with _translated(self._run):
            return self._answer.read()

    def chunks(self) -> Iterator[bytes]:
        """Read the body as it comes."""
        while True:
            with _translated(self._run):
                chunk = self._answer.read1(_CHUNK_BYTES)
            if not chunk:
                return
            yield chunk


def grpc_endpoint(run: Run) -> str:
    """Give where a local client of gRPC connects to, as SDKs read it in ``DAPR_GRPC_ENDPOINT``."""
    if run.socket is not None:
        return f"unix://{run.socket.removesuffix('http.socket')}grpc.socket"
    return f"http://{in_url(ANY.get(run.host, run.host))}:{run.grpc_port}"


def api_token(run: Run | None = None) -> str | None:
    """Give what a gateway may ask for: the first token of the file, as all of them are good there.

    Args:
        run: A gateway that has a file of its own for its application, of several in its process.
    """
    if run is not None and run.token_file and os.access(run.token_file, os.R_OK):
        return read_tokens(Path(run.token_file))[0].decode("latin-1")
    if file := os.environ.get("DAPR_API_TOKEN_FILE"):
        return read_tokens(Path(file).expanduser())[0].decode("latin-1")
    return os.environ.get("DAPR_API_TOKEN")


@contextlib.contextmanager
def opened(
    run: Run,
    method: str,
    path: str,
    body: bytes | None = None,
    *,
    headers: Mapping[str, str] | None = None,
    timeout: float | None = 60.0,
) -> Iterator[Response]:
    """Send a request and give the answer while it is being read.

    Args:
        run: The gateway.
        method: Any.
        path: With its query; what must be quoted is quoted already.
        body: None = there is none.
        headers: ``Content-Type`` and others; the API token is added.
        timeout: Seconds of silence; None = no limit.

    Raises:
        GatewayUnreachableError: It does not listen, or the connection broke.
        TimeoutError: It was silent for too long.
    """
    # Without a proxy, whatever the environment says: it is on this machine.
    connection = (
        http.client.HTTPConnection(ANY.get(run.host, run.host), run.http_port, timeout=timeout)
        if run.socket is None
        else _SocketConnection(run.socket, timeout)
    )
    token = api_token(run)
    all_headers = {**({"dapr-api-token": token} if token else {}), **(headers or {})}
    try:
        with _translated(run):
            connection.request(method, path, body, all_headers)
            answer = connection.getresponse()
        yield Response(answer.status, answer.reason, run, answer)
    finally:
        connection.close()


def request(
    run: Run,
    method: str,
    path: str,
    body: bytes | None = None,
    *,
    headers: Mapping[str, str] | None = None,
    timeout: float | None = 10.0,
) -> tuple[int, bytes]:
    """Ask a gateway about itself, whatever its ``spec.httpPipeline`` asks for; give status and body, see `opened`."""
    with opened(run, method, path, body, headers={**(headers or {}), KEY_HEADER: run.key}, timeout=timeout) as response:
        return response.status, response.read()


def metadata(runs: Sequence[Run], timeout: float) -> list[dict[str, Any] | str]:
    """Ask gateways, all at once, what they tell of themselves; give that of each, or why there is none.

    Args:
        runs: The gateways.
        timeout: Seconds that each has.
    """
    from concurrent.futures import ThreadPoolExecutor  # Imported here: most commands do without.

    with ThreadPoolExecutor(_AT_ONCE) as threads:
        return list(threads.map(partial(_metadata, timeout=timeout), runs))


def _metadata(run: Run, timeout: float) -> dict[str, Any] | str:
    try:
        status, body = request(run, "GET", "/v1.0/metadata", timeout=timeout)
        if status == HTTPStatus.OK and isinstance(told := json.loads(body), dict):
            return told
    except (MeshError, TimeoutError, ValueError) as error:
        return str(error) or type(error).__name__
    advice = "; is DAPR_API_TOKEN set right?" if status == HTTPStatus.UNAUTHORIZED else ""
    return f"GET metadata was answered with {status}{advice}"


def path_segment(text: str, what: str) -> str:
    """Quote text to be one segment of a path.

    Args:
        text: As it was given, bytes that are no UTF-8 among it.
        what: What it names.

    Raises:
        UsageError: It names nothing: whoever passes a path on may take one with such a segment for another's.
    """
    if text in ("", ".", ".."):
        raise UsageError(f"no {what} is named {text!r}")
    return quote(text, safe="", errors="surrogateescape")
