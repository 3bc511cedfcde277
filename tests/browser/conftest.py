"""A browser and what it is shown, once for all tests of a module."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from playwright.sync_api import Browser

from tests.support.chromium import chromium
from tests.support.shown_mesh import Shown, shown

__all__ = ["browser", "mesh"]


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as started:
        yield started


@pytest.fixture(scope="module")
def mesh(browser: Browser, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shown]:
    """Give a mesh with something of everything; the browser comes first, since without one nobody needs it."""
    with shown(tmp_path_factory.mktemp("mesh")) as running:
        yield running
