"""Names that operators and resources have; cheap to import."""

from __future__ import annotations

import re

__all__ = ["OPERATOR", "SUPPLY_FOLDER", "is_resource_name"]

OPERATOR = "mesh-operator"
"""The app id of an operator, in the control namespace; no pod is given a certificate of it."""
SUPPLY_FOLDER = "/var/lib/mesh/supply"
"""Where a gateway keeps what it is given, unless it is told another place."""
_NAME = re.compile(r"[a-z0-9]([a-z0-9.-]{0,251}[a-z0-9])?")
_FILE = (".yaml", ".yml")


def is_resource_name(text: str) -> bool:
    """Tell whether a resource of a cluster can have a name, and it is not that of a file."""
    return _NAME.fullmatch(text) is not None and ".." not in text and not text.endswith(_FILE)
