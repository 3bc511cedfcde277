"""Lines of the log for calls of the API, as `spec.logging` asks for them, and the span that a request's lines name."""

from __future__ import annotations

import json
import logging
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.http.harness import App, Backbone, gateway, yaml

CALLS = (
    ("GET", "/v1.0/state/statestore/secret-key?metadata.x=y"),
    ("POST", "/v1.0/publish/pubsub/t"),
    ("GET", "/v1.0/invoke/nobody/method/secret-path"),
    ("GET", "/v1.0/nothing/secret-path"),
    ("GET", "/secret-path"),
    ("GET", "/v1.0/healthz/outbound"),
)
WHOLE = [f"{method} {path.partition('?')[0]}" for method, path in CALLS]
SHORT = ["GET /v1.0/state", "POST /v1.0/publish", "GET /v1.0/invoke", "GET invoke", "GET invoke", "GET /v1.0/healthz"]


@pytest.mark.parametrize(
    ("section", "flag", "told"),
    [
        ({}, None, []),
        ({"enabled": False}, None, []),
        ({"obfuscateURLs": True}, None, []),
        ({"enabled": True}, None, WHOLE),
        ({}, True, WHOLE),
        ({"enabled": True}, False, []),
        ({"enabled": False}, True, WHOLE),
        ({"enabled": True, "omitHealthChecks": True}, None, WHOLE[:-1]),
        ({"enabled": True, "obfuscateURLs": True}, None, SHORT),
        ({"obfuscateURLs": True, "omitHealthChecks": True}, True, SHORT[:-1]),
    ],
)
async def test_what_is_told_of_calls(
    memory: Backbone,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    section: dict[str, bool],
    flag: bool | None,
    told: list[str],
) -> None:
    """Each call, by its path or by the block's name alone; the flag goes before the file."""
    file = tmp_path / "config.yaml"
    file.write_text(yaml("Configuration", "c", {"logging": {"apiLogging": section}}))
    caplog.set_level(logging.INFO, "gateway.api")
    async with gateway(memory, tmp_path, configuration_files=(file,), api_logging=flag) as node:
        for method, path in CALLS:
            await node.request(method, path)
    lines = [record.fields for record in caplog.records if record.message == "HTTP API Called"]  # type: ignore[attr-defined]
    assert [each["method"] for each in lines] == told


_LOG = """
import logging
from pathlib import Path
from gateway.config import GatewayConfig
from gateway.logs import configure_logging
from mesh.telemetry import CURRENT
configure_logging(GatewayConfig("app", Path(), log_json=JSON))
logging.getLogger("x").info("before")
CURRENT.set("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01")
logging.getLogger("x").info("within")
"""


@pytest.mark.parametrize("as_json", [True, False])
def test_lines_name_their_span(as_json: bool) -> None:
    """When there is one."""
    code = _LOG.replace("JSON", str(as_json))
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, timeout=60, check=True, text=True)
    before, within = found.stdout.splitlines()
    if as_json:
        assert "trace_id" not in json.loads(before)
        line = json.loads(within)
        assert (line["trace_id"], line["id"]) == ("0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331")
    else:
        assert "trace_id" not in before
        assert 'trace_id="0af7651916cd43dd8448eb211c80319c" id="b7ad6b7169203331"' in within


async def test_each_operation_at_debug(
    memory: Backbone, app: App, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """What was asked of which block and target, what came of it and how long it took; no key, value, body or token."""
    caplog.set_level(logging.INFO, "mesh.pipeline")
    async with gateway(memory, tmp_path, app=app) as node:
        await node.get("/v1.0/state/statestore/secret-key")
        assert [each for each in caplog.records if each.name == "mesh.pipeline"] == []
        caplog.set_level(logging.DEBUG, "mesh.pipeline")  # As SIGUSR1 does while it runs.
        fields = {"dapr-api-token": "secret-token"}
        body = [{"key": "secret-key", "value": "secret-value"}]
        assert (await node.request("POST", "/v1.0/state/statestore", fields, body)).status == 204
        await node.publish("t", "secret-value")
        await node.request("PUT", "/v1.0/invoke/app/method/secret-path?secret=1", fields, b"secret-body")
        await node.get("/v1.0/invoke/nobody/method/x")
    told = [each.getMessage() for each in caplog.records if each.name == "mesh.pipeline"]
    assert [re.sub(r"[\d.]+ ms$", "", each) for each in told] == [
        "operation state save statestore: ok, ",
        "operation pubsub publish pubsub: ok, ",
        "arrival call app: ok, ",
        "operation invocation invoke app: ok, ",
        "operation invocation invoke nobody: NO_RESPONDER, ",
    ]
    assert "secret" not in "".join(told)
