"""Every YAML kind as frozen values; importing this needs neither pydantic nor a YAML parser.

``schema*.py`` hold the strict models of what may stand in a file and turn them into these
values; ``documents.py`` reads files and locates problems; ``mesh/resources/loader.py`` drives both.
"""

from mesh.resources.component import (
    Component,
    EnvRef,
    HTTPEndpoint,
    MetadataEntry,
    Secret,
    SecretRef,
    TemplateTokens,
    env_refusal,
    expand_template,
    resolve_entries,
)
from mesh.resources.configuration import Configuration
from mesh.resources.resiliency import ComponentTarget, Resiliency, ResiliencyPolicies, Target
from mesh.resources.subscription import BulkOptions, Rule, Subscription, programmatic_subscriptions

__all__ = [
    "BulkOptions",
    "Component",
    "ComponentTarget",
    "Configuration",
    "EnvRef",
    "HTTPEndpoint",
    "MetadataEntry",
    "Resiliency",
    "ResiliencyPolicies",
    "Rule",
    "Secret",
    "SecretRef",
    "Subscription",
    "Target",
    "TemplateTokens",
    "env_refusal",
    "expand_template",
    "programmatic_subscriptions",
    "resolve_entries",
]
