"""Reads a gateway's resources: files to ``NodeSettings``, and HTTPEndpoints.

Importing ``mesh.resources.loader`` takes pydantic and YAML; a gateway without files does without both, so it
is imported only when there are any.
"""

from __future__ import annotations

import logging
import os
import ssl
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from gateway.config import DEFAULT_BACKBONE, GatewayConfig
from gateway.http.application import HTTPApplication
from mesh.errors import ConfigError, Problem
from mesh.node.runtime import NodeSettings, Runtime
from mesh.resources.component import Component, HTTPEndpoint, header_refusal, in_kubernetes
from mesh.resources.configuration import Configuration
from mesh.scopes import in_scope
from mesh.trust.identity import DEFAULT_TRUST_DOMAIN, RootSecret, TrustSettings

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mesh.resources.loader import ResourceFiles

__all__ = ["Reader", "endpoint_client", "find_store", "load_settings"]

logger = logging.getLogger(__name__)


def load_settings(config: GatewayConfig, warnings: list[Problem] | None = None) -> NodeSettings:
    """Read the resources of a gateway once; see `Reader`.

    Args:
        config: Of the gateway.
        warnings: Gets what is perhaps not meant; None = it is logged.

    Raises:
        ConfigError: Something is wrong with them; holds all problems.
    """
    reader = Reader(config)
    settings = reader.load()
    if warnings is None:
        reader.log_warnings()
    else:
        warnings += reader.warnings
    return settings


def find_store(root: RootSecret, paths: Sequence[Path], namespace: str | None) -> RootSecret:
    """Find the store of a root, whatever its scopes are; files of others may be wrong.

    Raises:
        ConfigError: There is none, or more than one; also holds what is wrong with the files then.
    """
    from mesh.resources.loader import ResourceFiles

    looked = ResourceFiles(paths, namespace=namespace, together=False).look()
    try:
        return root.among(looked.whole(Component))
    except ConfigError as error:
        raise ConfigError([*error.problems, *looked.problems]) from None


class Reader:
    """Reads the resources of a gateway, any number of times.

    Without any component, the built-in ones apply: a folder may hold subscriptions alone.
    """

    def __init__(self, config: GatewayConfig) -> None:
        """Read nothing yet."""
        self.warnings: list[Problem] = []
        self.bad: list[Problem] = []
        self._config = config
        self._told: set[Problem] = set()
        self._files: ResourceFiles | None = None
        self._configuration = Configuration()
        self._root: RootSecret | None = None
        self._namespace = os.environ.get("NAMESPACE")

    @property
    def paths(self) -> tuple[Path, ...]:
        """All that is read."""
        supply = self._config.supply
        secrets = () if supply is None else (supply.folder / "secrets.json",)
        return (*self._config.resource_paths, *self._config.configuration_files, *secrets)

    def load(self) -> NodeSettings:
        """Read everything; raises ``ConfigError`` with all problems."""
        config = self._config
        settings = self.again()
        if self.bad:
            raise ConfigError(self.bad)
        if config.host_only and settings.components == ():
            where = ", ".join(map(str, config.resource_paths)) + (
                f" for namespace {self._namespace}" if self._namespace else ""
            )
            raise ConfigError(f"there is nothing to host: no Component in {where}; add one, see docs/hosting.md")
        return settings

    def again(self) -> NodeSettings:
        """Read everything; a file that went wrong counts as it was last, and ``bad`` says what is wrong with it.

        Raises:
            ConfigError: The files do not go together.
        """
        config = self._config
        self.warnings, self.bad = [], []
        settings = self._without_files()
        if not self.paths:
            return replace(settings, trust=self._trust())
        from mesh.resources.loader import ResourceFiles, ordered

        if self._files is None:
            app_id = None if config.host_only else config.app_id
            self._files = ResourceFiles(config.resource_paths, namespace=self._namespace, app_id=app_id)
        self._read_configuration()
        try:
            resources = self._files.again()
        except ConfigError as error:
            raise ConfigError(ordered([*error.problems, *self.bad])) from None
        self.bad = ordered([*self._files.bad, *self.bad])
        self.warnings += resources.warnings
        self.warnings += [
            Problem(
                "a Configuration among the resources has no effect: name its file with --config",
                "",
                each.file,
                each.line,
            )
            for each in resources.configurations
            if Path(each.file or "") not in config.configuration_files
        ]
        components, endpoints = resources.components, resources.http_endpoints
        builtin: Sequence[Component] = ()
        in_cluster = config.supply is not None or "KUBERNETES_SERVICE_HOST" in os.environ
        if in_cluster and config.builtin_secrets:
            components, endpoints = in_kubernetes(components, endpoints, injected=config.supply is not None)
            if not resources.components:
                components, builtin = (), components
        if config.supply is not None:
            from mesh.supply.secrets import marked

            folder = config.supply.folder
            components, endpoints = marked(components, folder), marked(endpoints, folder)
        return replace(
            settings,
            components=components or (() if config.host_only else None),
            builtin=builtin,
            subscriptions=resources.subscriptions,
            resiliencies=resources.resiliencies,
            configuration=self._configuration,
            endpoints=endpoints,
            workflow_access=resources.workflow_access,
            withheld=resources.withheld,
            trust=self._trust(),
        )

    def _without_files(self) -> NodeSettings:
        """Give what is said by options and variables alone."""
        config = self._config
        named = "MESH_BACKBONE" if config.bridge is None else config.bridge.own_from
        return NodeSettings(
            config.app_id,
            config.namespace,
            config.backbone,
            namespace_given=bool(self._namespace),
            home=config.home,
            single_host=config.single_host,
            backbone_timeout=config.backbone_timeout,
            binding_seconds=config.app_binding_seconds,
            asks_config="config" not in config.init_endpoints_off,
            host_only=config.host_only,
            backbone_from=named if config.backbone != DEFAULT_BACKBONE else "",
            application="" if config.app_port is None or config.runs_app else f"{config.app_host}:{config.app_port}",
        )

    def _trust(self) -> TrustSettings | None:
        """Say how the node proves who it is, in the trust domain of the option, else of the Configuration."""
        trust = self._config.trust
        if trust is None:
            return None
        if trust.secret is not None:
            if self.bad and self._root is None:
                return trust  # There is no start: what is wrong with the files is told.
            self._root = self._root or self._found(trust.secret)
            trust = replace(trust, secret=self._root)
        if trust.trust_domain:
            return trust
        rules = self._configuration.spec.access_control
        return replace(trust, trust_domain=DEFAULT_TRUST_DOMAIN if rules is None else rules.trust_domain)

    def _found(self, root: RootSecret) -> RootSecret:
        """Find the store of a root, also by scopes that no application is in: none is to read it."""
        found = find_store(root, self._config.resource_paths, self._namespace)
        store = found.component
        if store is not None and in_scope(store.scopes, self._config.app_id):
            text = (
                f"application {self._config.app_id} can read the root in {root}, and be anybody; write scopes: [nobody]"
            )
            self.warnings.append(store.problem(text))
        return found

    def _read_configuration(self) -> None:
        """Read what ``--config`` names; what is wrong leaves it as it was."""
        from gateway.metrics.settings import rules_without_effect
        from mesh.resources.loader import load_configuration_file

        merged = Configuration()
        problems: list[Problem] = []
        trust = self._config.trust
        domain, proven = ("", False) if trust is None else (trust.trust_domain, trust.mode == "strict")
        for path in self._config.configuration_files:
            try:
                configuration = load_configuration_file(path, os.environ, self.warnings, domain, proven=proven)
            except ConfigError as error:
                problems += error.problems
                continue
            self.warnings += rules_without_effect(configuration)
            merged = merged.overlaid(configuration)
        self.bad += problems
        if not problems:
            self._configuration = merged

    def log_warnings(self) -> None:
        """Log what is perhaps not meant, each once."""
        for warning in dict.fromkeys(self.warnings):
            if warning not in self._told:
                logger.warning("%s", warning)
        self._told = set(self.warnings)


async def endpoint_client(endpoint: HTTPEndpoint, runtime: Runtime) -> HTTPApplication:
    """Make the client of an HTTPEndpoint; its secrets are read from the node's secret stores.

    Raises:
        ConfigError: A reference has no value, or a certificate is none.
    """
    entries = endpoint.headers if endpoint.root_ca is None else (*endpoint.headers, endpoint.root_ca)
    resolved = await runtime.resolved(entries, endpoint.auth_secret_store, endpoint.file)
    headers = [(entry.name, entry.text() or "") for entry in resolved[: len(endpoint.headers)]]
    told = [(header_refusal(value), entry.path) for (_, value), entry in zip(headers, resolved, strict=False)]
    if problems := [Problem(refusal, path, endpoint.file) for refusal, path in told if refusal]:
        raise ConfigError(problems)
    tls = None
    if endpoint.base_url.startswith("https") and endpoint.root_ca is not None:
        try:
            tls = ssl.create_default_context(cadata=resolved[-1].text())
        except (ssl.SSLError, TypeError, ValueError) as error:
            problem = Problem(f"rootCA is no PEM certificate: {error}", "spec.clientTLS.rootCA", endpoint.file)
            raise ConfigError(problem) from error
    return HTTPApplication(endpoint.base_url, headers=headers, tls=tls)
