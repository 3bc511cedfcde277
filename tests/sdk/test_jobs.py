"""Jobs on the official SDKs, unmodified."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

from tests.faults.conftest import mesh_home
from tests.sdk.harness import PATIENT, PYTHON, needs, run
from tests.sdk.test_programs import built
from tests.support.mesh import GatewayProcess
from tests.support.processes import free_port

__all__ = ["mesh_home"]


async def through_gateway(home: Path, name: str, *command: str) -> dict[str, Any]:
    """Run an application that uses its own gateway."""
    app_port, grpc_port = free_port(), free_port()
    arguments = ("--app-protocol", "grpc", "--dapr-grpc-port", str(grpc_port))
    gateway = GatewayProcess(name, home, app=app_port, arguments=arguments)
    await gateway.start(ready=False)  # It waits for the application.
    environ = {**PATIENT, "APP_PORT": app_port, "DAPR_HTTP_PORT": gateway.port, "DAPR_GRPC_PORT": grpc_port}
    try:
        return await run(*command, environ=environ)
    except BaseException:
        gateway.show_log()
        raise
    finally:
        await gateway.kill()


async def test_python(mesh_home: Path) -> None:
    """Clients with and without asyncio; what an application gets; repetitions, failure policies, deletion."""
    needs(PYTHON)
    seen = await through_gateway(mesh_home, "python", str(PYTHON), "python_jobs.py")
    assert seen["got"] == {
        "schedule": "CRON_TZ=Europe/Madrid 0 30 4 * * *",
        "due": None,
        "repeats": 3,
        "ttl": "9999h",
        "data": "kept",
        "constant": [3, 1],
    }
    assert (seen["overwritten"]["schedule"], seen["overwritten"]["constant"]) == ("@every 1h", [2, 7])
    assert seen["by_asyncio"]["due"] == "1h"
    assert seen["again"] == ["ALREADY_EXISTS", "DAPR_SCHEDULER_SCHEDULE_JOB"]
    assert seen["malformed"] == ["INTERNAL", "DAPR_SCHEDULER_SCHEDULE_JOB"]
    for missing in (seen["missing"], *seen["over"]):
        assert missing == ["INTERNAL", "DAPR_SCHEDULER_GET_JOB"]
    happened = Counter(map(tuple, seen["happened"]))
    assert happened.pop(("later", "")) >= 3
    assert happened == {
        ("often", '{"n": 1}'): 2,
        ("once", ""): 1,
        ("packed", "\n\x07wrapped"): 1,
        ("dropped", ""): 1,
        ("retried", ""): 3,
        ("by asyncio", "a"): 1,
    }


async def test_go(mesh_home: Path) -> None:
    """A client; what an application gets; repetitions, failure policies, deletion."""
    seen = await through_gateway(mesh_home, "go", str(built("go") / "program"), "jobs")
    assert seen["got"] == ["@every 1h", 3, "9h", "ddd", 2, 7]
    assert (seen["again"], seen["missing"]) == ("AlreadyExists", "Internal")
    assert seen["happened"] == {"often ddd": 2, "once ": 1, "dropped ": 1, "retried ": 3}
