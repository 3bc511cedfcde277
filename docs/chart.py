"""The Helm chart, from the objects that ``mesh init -k`` applies."""

from __future__ import annotations

from pathlib import Path

from bindings.kubernetes.delivery.chart import chart
from bindings.kubernetes.delivery.settings import SETTINGS
from mesh import __version__

__all__ = ["files", "settings"]

FOLDER = Path(__file__).parents[1] / "charts" / "brokermesh"


def settings() -> str:
    """Give the table of settings."""
    head = ("| setting | default | what it is |", "| --- | --- | --- |")
    rows = (f"| `{each.name}` | {_default(each.default)} | {each.help} |" for each in SETTINGS)
    return "\n".join([*head, *rows]) + "\n"


def _default(value: object) -> str:
    text = str(value).lower() if isinstance(value, bool) else str(value)
    return f"`{text}`" if text else ""


def files() -> dict[Path, str]:
    """Give each file of the chart."""
    return {FOLDER / path: text for path, text in chart(__version__).items()}
