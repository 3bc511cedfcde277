"""The tables of binding adapters that ``tests/bindings`` runs on: a row for each type and what it stands on."""

from __future__ import annotations

from collections.abc import Mapping

from tests.support.bindings import aws, clouds, databases, local, messages, objects, pluggable, queues, web
from tests.support.bindings.rows import InputKind, OutputKind, ServedInput, ServedOutput, call

__all__ = ["INPUTS", "OUTPUTS", "InputKind", "OutputKind", "ServedInput", "ServedOutput", "call"]

FAMILIES = (
    aws,
    clouds,
    databases,
    local,
    messages,
    objects,
    pluggable,
    queues,
    web,
)
OUTPUTS: Mapping[str, OutputKind] = {name: row for family in FAMILIES for name, row in family.OUTPUTS.items()}
INPUTS: Mapping[str, InputKind] = {name: row for family in FAMILIES for name, row in family.INPUTS.items()}
