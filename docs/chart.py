"""The Helm chart, from the objects that ``mesh init -k`` applies."""

from __future__ import annotations

from pathlib import Path

from bindings.kubernetes.delivery.chart import chart
from mesh import __version__

__all__ = ["files"]

FOLDER = Path(__file__).parents[1] / "charts" / "brokermesh"


def files() -> dict[Path, str]:
    """Give each file of the chart."""
    return {FOLDER / path: text for path, text in chart(__version__).items()}
