"""The way to the application, by the protocol that it speaks."""

from __future__ import annotations

import asyncio
import logging
import ssl
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from gateway.config import ON_GRPC, GatewayConfig
from gateway.http.application import Direct, HTTPApplication, Permits

if TYPE_CHECKING:
    from gateway.workers.child import Siblings

__all__ = ["application_of"]

logger = logging.getLogger(__name__)


def application_of(
    config: GatewayConfig, around: Callable[[Direct], Direct] | None = None, siblings: Siblings | None = None
) -> HTTPApplication:
    """Make the application of a gateway; loads what its protocol needs.

    Args:
        config: Of the gateway.
        around: What calls over HTTP pass; None = nothing.
        siblings: The same gateway in other processes, with which limits and probes are shared; None = there is none.
    """
    protocol = config.app_protocol
    secure = protocol in ("https", "grpcs")
    base_url = f"http{'s' * secure}://{config.app_host}:{config.app_port}"
    given: dict[str, Any] = {
        "token": config.tokens.app,
        "permits": _permits(config.app_max_concurrency, siblings),
        "health": config.app_health,
        "tls": _unverified() if secure else None,
    }
    if siblings is not None:
        given["probing"] = siblings.probe
    if protocol in ON_GRPC:
        if around is not None:
            logger.warning("spec.appHttpPipeline has no effect: the application is on gRPC, which passes no middleware")
        from gateway.grpc.application import GRPCApplication  # Takes 15 MB, for such applications alone.

        return GRPCApplication(base_url, limit_bytes=config.max_body_bytes, **given)
    given["around"] = around
    if protocol == "h2c":
        from gateway.http2.client import HTTP2Client

        return HTTPApplication(base_url, client=HTTP2Client, **given)
    return HTTPApplication(base_url, **given)


def _permits(limit: int | None, siblings: Siblings | None) -> Permits | None:
    if limit is None:
        return None
    return asyncio.Semaphore(limit) if siblings is None else siblings.permits


def _unverified() -> ssl.SSLContext:
    """Trust the application's certificate as it is, as Dapr does: it is beside us."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context
