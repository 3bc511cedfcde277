"""Parameters of the checks."""

from __future__ import annotations

import pytest

from tests.meta.sources import ROOT, modules, pages


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Give a test that asks for ``page`` or ``module`` each of them."""
    if "page" in metafunc.fixturenames:
        metafunc.parametrize("page", pages(), ids=[str(page.relative_to(ROOT)) for page in pages()])
    if "module" in metafunc.fixturenames:
        metafunc.parametrize("module", modules().values(), ids=list(modules()))
