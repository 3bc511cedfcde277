"""Which app a resource is for."""

from __future__ import annotations

__all__ = ["in_scope", "share_apps"]


def share_apps(one: tuple[str, ...], other: tuple[str, ...]) -> bool:
    """Tell whether two resources with these scopes may be for the same app."""
    return not one or not other or not set(one).isdisjoint(other)


def in_scope(scopes: tuple[str, ...], app_id: str) -> bool:
    """Tell whether a resource with these scopes is for this app; no scopes = for all."""
    return not scopes or app_id in scopes
