"""Opens what a Configuration, or the environment, says of where spans go; without either it loads nothing."""

from __future__ import annotations

import logging
import os
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager

from gateway.export.queue import Exporter, exporting
from gateway.export.targets import OTLP, Targets, resource_of, targets_of
from mesh import __version__
from mesh.errors import ConfigError, Problem
from mesh.node.runtime import Runtime
from mesh.registry import needs
from mesh.resources.component import KUBERNETES, MetadataEntry, SecretRef, header_refusal
from mesh.resources.configuration import Configuration, OTel

__all__ = ["spans_sent"]

logger = logging.getLogger(__name__)

NO_PLACE = "has no endpointAddress, and no variable OTEL_EXPORTER_OTLP_ENDPOINT names one"


@asynccontextmanager
async def spans_sent(runtime: Runtime, grace: Callable[[], float]) -> AsyncIterator[None]:
    """Send the node's spans to where they belong while entered.

    Args:
        runtime: The node, entered.
        grace: Gives the seconds that it may take at the end.

    Raises:
        ConfigError: A place is none, or a secret has no value, or one that no header can hold.
        MissingDependencyError: What a Configuration asks for is not installed.
    """
    settings = runtime.settings
    configuration = settings.configuration
    targets = targets_of(configuration.spec.tracing, os.environ, await _headers(configuration, runtime))
    if targets.otlp is None and (tracing := configuration.spec.tracing) is not None and tracing.otel != OTel():
        place = Problem(NO_PLACE, "spec.tracing.otel", configuration.file, configuration.line)
        logger.warning("no spans go to a collector: %s", place)
    async with AsyncExitStack() as stack:
        exporters: list[Exporter] = []
        if targets != Targets():
            resource = resource_of(settings.app_id, settings.namespace, __version__, os.environ)
            exporters = await _opened(targets, resource, stack)
        await stack.enter_async_context(exporting(exporters, runtime.tracing, runtime.counters, grace))
        for each in exporters:
            logger.info("spans of sampled traces go to %s", each.where)
        yield


async def _opened(targets: Targets, resource: Mapping[str, str], stack: AsyncExitStack) -> list[Exporter]:
    found: list[Exporter] = []
    if targets.otlp is not None and (otlp := await _otlp(targets.otlp, resource, stack)) is not None:
        found.append(otlp)
    if targets.zipkin:
        from gateway.export.zipkin import ZipkinExporter

        found.append(await stack.enter_async_context(ZipkinExporter(targets.zipkin, resource)))
    if targets.stdout:
        from gateway.export.stdout import LogExporter

        found.append(LogExporter(resource))
    return found


async def _otlp(target: OTLP, resource: Mapping[str, str], stack: AsyncExitStack) -> Exporter | None:
    try:
        from gateway.export.otlp import OTLPExporter
    except ModuleNotFoundError as error:
        missing = needs("sending spans by OTLP", error.name or "opentelemetry")
        if not target.from_environment:
            raise missing from error
        # The variables may be meant for the application alone.
        logger.warning("the variables OTEL_EXPORTER_OTLP_* have no effect: %s", missing)
        return None
    return await stack.enter_async_context(OTLPExporter(target, resource))


async def _headers(configuration: Configuration, runtime: Runtime) -> Mapping[str, str]:
    """Give the header fields for the collector, with their secrets."""
    tracing = configuration.spec.tracing
    given = () if tracing is None else tracing.otel.headers
    refs = [each for each in given if each.secret_key_ref is not None]
    if not refs:
        return {each.name: each.value for each in given}
    store = KUBERNETES if "KUBERNETES_SERVICE_HOST" in os.environ else _only_store(configuration, runtime)
    entries = [
        MetadataEntry(
            each.name,
            each.value
            if each.secret_key_ref is None
            else SecretRef(each.secret_key_ref.name, each.secret_key_ref.key or each.secret_key_ref.name),
            f"spec.tracing.otel.headers[{index}]",
        )
        for index, each in enumerate(given)
    ]
    resolved = await runtime.resolved(entries, store, configuration.file)
    told = [(header_refusal(each.text() or ""), each.path) for each in resolved]
    if problems := [Problem(refusal, path, configuration.file) for refusal, path in told if refusal]:
        raise ConfigError(problems)
    return {each.name: each.text() or "" for each in resolved}


def _only_store(configuration: Configuration, runtime: Runtime) -> str:
    """Give the one secret store of this node: a Configuration has no place to name one."""
    stores = [each.name for each in runtime.description.components if each.type.startswith("secretstores.")]
    if len(stores) != 1:
        text = f"a secret of a Configuration is read from the node's one secret store; there are {len(stores)}"
        raise ConfigError(Problem(text, "spec.tracing.otel.headers", configuration.file, configuration.line))
    return stores[0]
