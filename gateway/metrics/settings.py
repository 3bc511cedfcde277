"""``spec.metrics`` of a Configuration, ready to be used: which label a path gets, and which rules change labels."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from gateway.metrics.recording import BUCKETS
from gateway.metrics.sources import HTTP_SERVED
from mesh.errors import Problem
from mesh.resources.configuration import Configuration, MetricRule, Metrics
from mesh.resources.metric_patterns import PathPatterns, substitution
from mesh.spelling import did_you_mean
from mesh.telemetry import APPLICATION_CALLED

__all__ = ["Rules", "Settings", "of_configuration", "rules_without_effect"]


class Rules:
    """What changes labels, by the names of metric and label."""

    def __init__(self, rules: Sequence[MetricRule] = ()) -> None:
        """Compile; what is wrong was refused when the file was read."""
        self._rules: dict[str, dict[str, Callable[[str], str]]] = {}
        for rule in rules:
            changes = self._rules.setdefault(_name(rule.name), {})
            changes |= {label.name: substitution(label.regex) for label in rule.labels}

    def of(self, metric: str) -> Mapping[str, Callable[[str], str]]:
        """Give what changes the labels of a metric."""
        return self._rules.get(_name(metric), {})


def _name(text: str) -> str:
    return text.replace("/", "_").replace(".", "_").removeprefix("dapr_")


@dataclass(frozen=True, slots=True)
class Settings:
    """How metrics are kept.

    Attributes:
        enabled: Whether they are.
        error_codes: Whether errors that clients are told are counted by their codes.
        raw: Whether paths are as they are, where no pattern matches.
        exclude_verbs: Whether verbs are left out.
        buckets: Upper bounds of latencies in milliseconds.
        paths: Patterns of paths.
        rules: Change labels.
    """

    enabled: bool = True
    error_codes: bool = False
    raw: bool = True
    exclude_verbs: bool = False
    buckets: tuple[float, ...] = BUCKETS
    paths: PathPatterns = field(default_factory=PathPatterns)
    rules: Rules = field(default_factory=Rules)

    @property
    def relabel(self) -> Mapping[str, Callable[[Sequence[str]], tuple[str, ...]]]:
        """What gives requests and calls of HTTP their labels; nothing where these are as they come."""
        if self.raw and not self.paths and not self.exclude_verbs:
            return {}
        return {HTTP_SERVED: self._http, APPLICATION_CALLED: self._http}

    def _http(self, labels: Sequence[str]) -> tuple[str, ...]:
        verb, path, status = labels
        found = self.paths.match(path)
        if found is None:
            found = path if self.raw else ""
        hidden = self.exclude_verbs or not (self.raw or self.paths)
        return "" if hidden else verb, found, status


def of_configuration(configuration: Configuration) -> Settings:
    """Read it; ``metrics`` goes before ``metric``, its old name."""
    spec = configuration.spec
    metrics = spec.metrics or spec.metric or Metrics()
    return Settings(
        metrics.enabled,
        metrics.record_error_codes,
        metrics.http.increased_cardinality,
        metrics.http.exclude_verbs,
        metrics.latency_distribution_buckets or BUCKETS,
        PathPatterns(metrics.http.path_matching),
        Rules(metrics.rules),
    )


def rules_without_effect(configuration: Configuration) -> list[Problem]:
    """Find rules of one file about metrics, or labels of them, that a gateway has not; Dapr has more."""
    from gateway.metrics.table import METRICS

    names = {_name(row.name): row.name for row in METRICS}
    labels = {name: {label for row in METRICS if row.name == name for label in row.labels} for name in names.values()}
    found = []
    for section in ("metric", "metrics"):
        metrics = getattr(configuration.spec, section)
        for number, rule in enumerate(() if metrics is None else metrics.rules):
            metric = names.get(_name(rule.name))
            if metric is None:
                guess = did_you_mean(rule.name, names.values(), 0.9)
                wrong = f"it has no effect: a gateway has no metric '{rule.name}'"
                wrong += f"; did you mean '{guess}'?" if guess else ""
                found.append(replace(configuration.rules_at[section, number, None], message=wrong))
                continue
            known = sorted({"app_id", *labels[metric]})
            found += [
                replace(
                    configuration.rules_at[section, number, place],
                    message=f"it has no effect: {metric} has no label '{label.name}', but {', '.join(known)}",
                )
                for place, label in enumerate(rule.labels)
                if label.name not in known
            ]
    return found
