"""Reads a gateway's resources: files to ``NodeSettings`` and clients of HTTPEndpoints.

Importing ``mesh.resources.loader`` takes pydantic and YAML; a gateway without files does without both, so it
is imported only when there are any.
"""

from __future__ import annotations

import logging
import os
import ssl
from functools import reduce

from gateway.config import GatewayConfig
from gateway.http.application import HTTPApplication
from mesh.errors import ConfigError, Problem
from mesh.node.runtime import NodeSettings, default_components
from mesh.resources.component import HTTPEndpoint, TemplateTokens, resolve_entries
from mesh.resources.configuration import Configuration

__all__ = ["load_settings"]

logger = logging.getLogger(__name__)


def load_settings(config: GatewayConfig) -> tuple[NodeSettings, dict[str, HTTPApplication]]:
    """Read the resources of a gateway.

    Without any component, the built-in ones apply: a folder may hold subscriptions alone.

    Raises:
        ConfigError: Something is wrong with them; holds all problems.
    """
    given_namespace = os.environ.get("NAMESPACE")
    if not config.resource_paths and not config.configuration_files:
        settings = NodeSettings(
            config.app_id, config.namespace, config.backbone, namespace_given=bool(given_namespace), home=config.home
        )
        return settings, {}
    from mesh.resources.loader import load_configuration_file, load_resources

    resources = load_resources(config.resource_paths, namespace=given_namespace)
    for warning in resources.warnings:
        logger.warning("%s", warning)
    for ignored in resources.configurations:
        problem = Problem("a Configuration among the resources has no effect: name its file with --config")
        logger.warning("%s:%s: %s", ignored.file, ignored.line, problem)
    files = [load_configuration_file(path, os.environ) for path in config.configuration_files]
    settings = NodeSettings(
        config.app_id,
        config.namespace,
        config.backbone,
        components=resources.components or default_components(),
        subscriptions=resources.subscriptions,
        resiliencies=resources.resiliencies,
        configuration=reduce(lambda earlier, later: earlier.overlaid(later), files, Configuration()),
        namespace_given=bool(given_namespace),
        home=config.home,
    )
    tokens = TemplateTokens(config.app_id, config.namespace, os.environ.get("POD_NAME"))
    endpoints: dict[str, HTTPApplication] = {}
    problems: list[Problem] = []
    for endpoint in resources.http_endpoints:
        if not endpoint.scopes or config.app_id in endpoint.scopes:
            try:
                endpoints[endpoint.name] = _client(endpoint, tokens)
            except ConfigError as error:
                problems.extend(error.problems)
    if problems:
        raise ConfigError(problems)
    return settings, endpoints


def _client(endpoint: HTTPEndpoint, tokens: TemplateTokens) -> HTTPApplication:
    if endpoint.certificate is not None or endpoint.private_key is not None:
        refused = "clientTLS with a client certificate is not supported yet, and ignoring it would be unsafe"
        raise ConfigError(Problem(refused, "spec.clientTLS", endpoint.file, endpoint.line))
    entries = endpoint.headers if endpoint.root_ca is None else (*endpoint.headers, endpoint.root_ca)
    resolved = resolve_entries(entries, tokens, os.environ, {}, file=endpoint.file)
    headers = [(entry.name, entry.text() or "") for entry in resolved[: len(endpoint.headers)]]
    tls = None
    if endpoint.base_url.startswith("https"):
        trusted = resolved[-1].text() if endpoint.root_ca is not None else None
        try:
            tls = ssl.create_default_context(cadata=trusted)
        except ssl.SSLError as error:
            problem = Problem(f"rootCA is no PEM certificate: {error}", "spec.clientTLS.rootCA", endpoint.file)
            raise ConfigError(problem) from error
    return HTTPApplication(endpoint.base_url, headers=headers, tls=tls)
