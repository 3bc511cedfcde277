"""Which app a resource is for."""

from __future__ import annotations

__all__ = ["in_scope"]


def in_scope(scopes: tuple[str, ...], app_id: str) -> bool:
    """Tell whether a resource with these scopes is for this app; no scopes = for all."""
    return not scopes or app_id in scopes
