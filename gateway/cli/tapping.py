"""What ``mesh tap`` and ``mesh record`` have in common: the options that choose, and the lines that a gateway gives."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any
from urllib.parse import urlencode

import orjson

from gateway.cli.client import GatewayUnreachableError, opened
from gateway.cli.invoke import failed, gateway_of
from gateway.cli.output import LineSplitter
from gateway.cli.parsing import UsageError
from gateway.replaying.recording import MAX_LINE_BYTES
from gateway.runs import KEY_HEADER, list_runs
from mesh.home import mesh_home
from mesh.values import parse_size

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from gateway.cli.parsing import Parser
    from gateway.runs import Run

__all__ = ["Event", "add_filter_options", "asked_of", "events", "size_option", "tap_gateway"]

Event = dict[str, Any]
SILENT_SECONDS = 30.0  # A gateway that has nothing to tell says so each 10 seconds.


def add_filter_options(parser: Parser) -> None:
    """Add those that say what is watched, and by whom."""
    parser.add_argument(
        *("-a", "--app"), action="append", default=[], metavar="APP-ID", help="what it asks, gets or does; repeatable"
    )
    parser.add_argument(
        *("-t", "--topic"), action="append", default=[], metavar="TOPIC", help="or PUBSUB/TOPIC; repeatable"
    )
    parser.add_argument(
        *("-b", "--block"), action="append", default=[], metavar="NAME", help="a building block, such as pubsub"
    )
    parser.add_argument("--where", default="", metavar="CEL", help="those for which a rule over event is true")
    parser.add_argument("--sample", type=_share, default=1.0, metavar="PART", help="a part of it, such as 0.1 (1)")
    parser.add_argument("--via", metavar="APP-ID", help="whose gateway asks; without it any will do")


def _share(text: str) -> float:
    try:
        share = float(text)
    except ValueError:
        share = 0.0
    if not 0 < share <= 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no part: more than 0, at most 1")
    return share


def size_option(text: str) -> int:
    """Read the value of an option that is a size, as argparse wants it."""
    try:
        return parse_size(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def asked_of(found: argparse.Namespace) -> dict[str, Any]:
    """Give the filter by the names of the parameters of ``GET /v1.0/mesh/tap``; what says nothing is left out."""
    given = {"app": found.app, "topic": found.topic, "block": found.block, "where": found.where}
    return {**{name: value for name, value in given.items() if value}, **_sampled(found.sample)}


def _sampled(sample: float) -> dict[str, float]:
    return {} if sample == 1.0 else {"sample": sample}


def tap_gateway(found: argparse.Namespace, environ: Mapping[str, str]) -> Run:
    """Find who asks: whom ``--via`` names, an application that is watched, or any.

    Raises:
        ConfigError: None runs.
    """
    if found.via is not None:
        return gateway_of(found.via, only_its_own=True)
    running = {each.app_id for each in list_runs(mesh_home(environ))}
    return gateway_of(next((each for each in found.app if each in running), ""))


def events(gateway: Run, asked: Mapping[str, Any], program: str) -> Iterator[list[tuple[bytes, Event]]]:
    """Iterate over what a gateway tells, as it comes: the lines of each piece, and what they say; at first, of none.

    Args:
        gateway: Which is asked.
        asked: The parameters.
        program: The command, to be named where its options are wrong.

    Raises:
        UsageError: The gateway does not take the filter.
        GatewayUnreachableError: It does not answer, or tells nothing any more, not even that there is nothing.
        SystemExit: What it answered is no success, and was reported.
    """
    path = f"/v1.0/mesh/tap?{urlencode(asked, doseq=True)}"
    lines = LineSplitter(MAX_LINE_BYTES)
    try:
        with opened(gateway, "GET", path, headers={KEY_HEADER: gateway.key}, timeout=SILENT_SECONDS) as response:
            if response.status == 400:
                raise UsageError(_reason(response.read()), program)
            if not response.ok:
                raise SystemExit(failed(gateway.app_id, response))
            yield []
            for chunk in response.chunks():
                yield [(line, orjson.loads(line)) for line in lines.feed(chunk) if line.strip()]
    except TimeoutError:
        text = f"the gateway of {gateway.app_id} said nothing for {SILENT_SECONDS:g} s"
        raise GatewayUnreachableError(text) from None
    except orjson.JSONDecodeError as error:
        text = f"what answers for {gateway.app_id} is no gateway of this version: {error}"
        raise GatewayUnreachableError(text) from None


def _reason(body: bytes) -> str:
    try:
        return str(orjson.loads(body)["message"])
    except (orjson.JSONDecodeError, LookupError, TypeError):
        return body.decode(errors="replace")
