"""``mesh jobs`` against a real gateway."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest

from gateway.cli.dispatch import main
from tests.http.harness import App, Backbone, gateway


async def test_what_it_says(
    memory_only: Backbone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Names are in order; what is not there is said, and scripts are told the rest."""
    monkeypatch.setenv("MESH_HOME", str(tmp_path))

    async def mesh(*words: str) -> tuple[int, str, str]:
        def run() -> int:
            try:
                return main(["jobs", *words])
            except SystemExit as end:
                return int(end.code or 0)

        code = await asyncio.to_thread(run)
        return code, *capsys.readouterr()

    async with App() as app, gateway(memory_only, tmp_path, app=app, app_id="shop", registered=True) as node:
        for number in range(9, -1, -1):
            assert (await node.post(f"/v1.0/jobs/j{number}", {"dueTime": "24h"})).status == 204
        code, out, _ = await mesh("list", "-o", "json")
        assert (code, [each["name"] for each in json.loads(out)]) == (0, [f"j{number}" for number in range(10)])
        code, out, _ = await mesh("run", "j1", "-o", "json")
        assert (code, json.loads(out)) == (0, {"name": "j1", "outcome": "taken"})
        code, out, _ = await mesh("delete", "j1", "-o", "json")
        assert (code, json.loads(out)) == (0, {"name": "j1", "outcome": "deleted"})
        code, out, told = await mesh("delete", "j1")
        missing = "error: shop has no job j1; see: mesh jobs list --app-id shop\n"
        assert (code, out, told) == (1, "", missing)
        for what in ("show", "run"):
            assert await mesh(what, "j1") == (1, "", missing)
        assert await mesh("delete", "j2") == (0, "", "job j2 is deleted\n")
        for name in ("..", ".", ""):
            code, out, told = await mesh("show", name)
            assert (code, out, f"no job is named '{name}'" in told) == (2, "", True)


@pytest.fixture
def memory_only() -> Backbone:
    return Backbone("memory:")
