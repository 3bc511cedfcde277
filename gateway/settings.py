"""Reads a gateway's resources: files to ``NodeSettings``, and HTTPEndpoints.

Importing ``mesh.resources.loader`` takes pydantic and YAML; a gateway without files does without both, so it
is imported only when there are any.
"""

from __future__ import annotations

import logging
import os
import ssl
from dataclasses import replace
from functools import reduce
from pathlib import Path

from gateway.config import DEFAULT_BACKBONE, GatewayConfig
from gateway.http.application import HTTPApplication
from mesh.errors import ConfigError, Problem
from mesh.node.runtime import NodeSettings, Runtime
from mesh.resources.component import HTTPEndpoint
from mesh.resources.configuration import Configuration

__all__ = ["endpoint_client", "load_settings"]

logger = logging.getLogger(__name__)


def load_settings(config: GatewayConfig, warnings: list[Problem] | None = None) -> NodeSettings:
    """Read the resources of a gateway.

    Without any component, the built-in ones apply: a folder may hold subscriptions alone.

    Args:
        config: Of the gateway.
        warnings: Gets what is perhaps not meant; None = it is logged.

    Raises:
        ConfigError: Something is wrong with them; holds all problems.
    """
    given_namespace = os.environ.get("NAMESPACE")
    settings = NodeSettings(
        config.app_id,
        config.namespace,
        config.backbone,
        namespace_given=bool(given_namespace),
        home=config.home,
        backbone_timeout=config.backbone_timeout,
        host_only=config.host_only,
        backbone_from="MESH_BACKBONE" if config.backbone != DEFAULT_BACKBONE else "",
    )
    if not config.resource_paths and not config.configuration_files:
        return settings
    from mesh.resources.loader import load_configuration_file, load_resources

    app_id = None if config.host_only else config.app_id
    resources = load_resources(config.resource_paths, namespace=given_namespace, app_id=app_id)
    if config.host_only and not resources.components:
        where = ", ".join(map(str, config.resource_paths))
        where += f" for namespace {given_namespace}" if given_namespace else ""
        raise ConfigError(f"there is nothing to host: no Component in {where}; add one, see docs/hosting.md")
    found = [
        *resources.warnings,
        *(
            Problem(
                "a Configuration among the resources has no effect: name its file with --config",
                "",
                each.file,
                each.line,
            )
            for each in resources.configurations
            if Path(each.file or "") not in config.configuration_files
        ),
    ]
    files = [load_configuration_file(path, os.environ, found) for path in config.configuration_files]
    if warnings is not None:
        warnings += found
    else:
        for warning in dict.fromkeys(found):
            logger.warning("%s", warning)
    return replace(
        settings,
        components=resources.components or None,
        subscriptions=resources.subscriptions,
        resiliencies=resources.resiliencies,
        configuration=reduce(lambda earlier, later: earlier.overlaid(later), files, Configuration()),
        endpoints=resources.http_endpoints,
    )


async def endpoint_client(endpoint: HTTPEndpoint, runtime: Runtime) -> HTTPApplication:
    """Make the client of an HTTPEndpoint; its secrets are read from the node's secret stores.

    Raises:
        ConfigError: A reference has no value, or a certificate is none.
    """
    entries = endpoint.headers if endpoint.root_ca is None else (*endpoint.headers, endpoint.root_ca)
    resolved = await runtime.resolved(entries, endpoint.auth_secret_store, endpoint.file)
    headers = [(entry.name, entry.text() or "") for entry in resolved[: len(endpoint.headers)]]
    tls = None
    if endpoint.base_url.startswith("https") and endpoint.root_ca is not None:
        try:
            tls = ssl.create_default_context(cadata=resolved[-1].text())
        except ssl.SSLError as error:
            problem = Problem(f"rootCA is no PEM certificate: {error}", "spec.clientTLS.rootCA", endpoint.file)
            raise ConfigError(problem) from error
    return HTTPApplication(endpoint.base_url, headers=headers, tls=tls)
