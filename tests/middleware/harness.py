"""A gateway with middleware in its ways."""

from __future__ import annotations

import itertools
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from tests.http.harness import DEFAULTS, Backbone, Node, gateway, yaml

__all__ = ["API", "APP", "configuration", "of_type", "through"]

API, APP = "httpPipeline", "appHttpPipeline"
_numbers = itertools.count()


def configuration(**sections: Sequence[str]) -> str:
    """Write a Configuration; each handler as ``name:type``, the type without ``middleware.http.``."""
    handlers = {
        section: {
            "handlers": [
                {"name": name, "type": f"middleware.http.{kind or name}"}
                for name, _, kind in (each.partition(":") for each in names)
            ]
        }
        for section, names in sections.items()
    }
    return yaml("Configuration", "ways", handlers)


def of_type(name: str, kind: str, settings: Mapping[str, str]) -> str:
    """Write a component with any names of settings."""
    metadata = [{"name": key, "value": value} for key, value in settings.items()]
    return yaml("Component", name, {"type": kind, "version": "v1", "metadata": metadata})


@asynccontextmanager
async def through(
    backbone: Backbone, home: Path, components: str, settings: str | None = None, **more: Any
) -> AsyncIterator[Node]:
    """Run a gateway.

    Args:
        backbone: Where.
        home: For its files.
        components: YAML, besides the defaults.
        settings: Its Configuration, as `configuration` writes it.
        more: As of `gateway`.
    """
    file = home / f"configuration-{next(_numbers)}.yaml"
    file.write_text(configuration() if settings is None else settings)
    more.setdefault("resources", DEFAULTS + components)
    async with gateway(backbone, home, configuration_files=(file,), **more) as node:
        yield node
