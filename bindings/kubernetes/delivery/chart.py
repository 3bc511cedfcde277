"""The Helm chart: the same objects, with a template's expressions where they hold values of settings."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import yaml

from bindings.kubernetes.delivery.objects import When, crds, parts
from bindings.kubernetes.delivery.settings import SETTINGS, nested

__all__ = ["chart"]

NAME = "brokermesh"
_NAMESPACE = "mark-namespace-mark"
_BACKBONE = "gatewayBackbone"
# A value is all of a scalar, or within one; numbers and truth stay what they are.
_ALONE = re.compile(r"(?<=: )'?mark-([A-Za-z.]+)-mark'?$", re.MULTILINE)
_WITHIN = re.compile(r"mark-([A-Za-z.]+)-mark")
_CONDITIONS: Mapping[When, str] = {
    "always": "",
    "several": "gt (int .Values.replicas) 1",
    "nats": "not .Values.backbone",
    "alone": "and (not .Values.backbone) (eq (int .Values.nats.replicas) 1)",
    "three": "and (not .Values.backbone) (eq (int .Values.nats.replicas) 3)",
    "five": "and (not .Values.backbone) (eq (int .Values.nats.replicas) 5)",
    "disk": "and (not .Values.backbone) .Values.nats.storage",
    "memory": "and (not .Values.backbone) (not .Values.nats.storage)",
    "dashboard": ".Values.dashboard",
}
_HELPER = """\
{{- define "mesh.backbone" -}}
{{- if .Values.backbone -}}
{{ .Values.backbone }}
{{- else -}}
nats://mesh-nats.{{ .Release.Namespace }}.svc:4222?replicas={{ .Values.nats.replicas }}
{{- end -}}
{{- end -}}
"""
# As for `mesh init -k`: an empty class is none.
_CLASS = re.compile(r"^( *)storageClassName: .*$", re.MULTILINE)


def chart(version: str) -> dict[str, str]:
    """Give the files of the chart, by their paths.

    Args:
        version: Of the program.
    """
    about = {
        "apiVersion": "v2",
        "name": NAME,
        "description": "The building blocks of a distributed application, with only a message broker behind them",
        "type": "application",
        "version": version,
        "appVersion": version,
        "kubeVersion": ">=1.29.0-0",
    }
    files = {
        "Chart.yaml": _yaml(about),
        "values.yaml": _values(),
        "templates/_helpers.tpl": _HELPER,
        **{f"crds/{each['spec']['names']['plural']}.yaml": _yaml(each) for each in crds()},
    }
    marks = {each.name: f"mark-{each.name}-mark" for each in SETTINGS} | {_BACKBONE: f"mark-{_BACKBONE}-mark"}
    for part in parts(_NAMESPACE, marks):
        about = part.manifest["metadata"]
        path = f"templates/{about['name'].removeprefix('mesh-')}-{part.manifest['kind'].lower()}.yaml"
        text = _template(part.manifest)
        condition = _CONDITIONS[part.when]
        if condition:
            text = f"{{{{- if {condition} }}}}\n{text}{{{{- end }}}}\n"
        files[path] = files[path] + f"---\n{text}" if path in files else text
    return files


def _yaml(value: Any) -> str:
    written: str = yaml.safe_dump(value, sort_keys=False, width=1000)
    return written


def _template(manifest: Mapping[str, Any]) -> str:
    # A copy without shared parts: YAML would write references to them.
    text = yaml.dump(manifest, Dumper=_Plain, sort_keys=False, width=1000)
    text = _CLASS.sub(
        r"\1{{- with .Values.nats.storageClass }}\n\1storageClassName: {{ . | quote }}\n\1{{- end }}", text
    )
    text = _ALONE.sub(_whole, text)
    return _WITHIN.sub(lambda found: _expression(found[1]), text)


class _Plain(yaml.SafeDumper):
    def ignore_aliases(self, data: Any) -> bool:
        return True


def _whole(found: re.Match[str]) -> str:
    name = found[1]
    kind = next((type(each.default) for each in SETTINGS if each.name == name), str)
    inner = _expression(name)
    return inner.replace(" }}", " | quote }}") if kind is str else inner


def _expression(name: str) -> str:
    if name == "namespace":
        return "{{ .Release.Namespace }}"
    return '{{ include "mesh.backbone" . }}' if name == _BACKBONE else f"{{{{ .Values.{name} }}}}"


def _values() -> str:
    lines = []
    tree = nested({each.name: each for each in SETTINGS})

    def write(at: Mapping[str, Any], indent: str) -> None:
        for name, value in at.items():
            if isinstance(value, dict):
                lines.append(f"{indent}{name}:")
                write(value, f"{indent}  ")
                continue
            lines.append(f"{indent}# {value.help[0].upper()}{value.help[1:]}.")
            lines.append(f"{indent}{_yaml({name: value.default}).rstrip()}")

    write(tree, "")
    return "\n".join([*lines, ""])
