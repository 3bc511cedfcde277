"""Jobs on the official Go SDK, unmodified."""

from __future__ import annotations

from pathlib import Path

from tests.faults.conftest import mesh_home
from tests.sdk.harness import PATIENT, run
from tests.sdk.test_programs import built
from tests.support.mesh import GatewayProcess
from tests.support.processes import free_port

__all__ = ["mesh_home"]


async def test_go(mesh_home: Path) -> None:
    """A client; what an application gets; repetitions, failure policies, deletion."""
    program = str(built("go") / "program")
    app_port, grpc_port = free_port(), free_port()
    arguments = ("--app-protocol", "grpc", "--dapr-grpc-port", str(grpc_port))
    gateway = GatewayProcess("go", mesh_home, app=app_port, arguments=arguments)
    await gateway.start(ready=False)  # It waits for the application.
    try:
        seen = await run(program, "jobs", environ={**PATIENT, "APP_PORT": app_port, "DAPR_GRPC_PORT": grpc_port})
    except BaseException:
        gateway.show_log()
        raise
    finally:
        await gateway.kill()
    assert seen["got"] == ["@every 1h", 3, "9h", "ddd", 2, 7]
    assert (seen["again"], seen["missing"]) == ("AlreadyExists", "Internal")
    assert seen["happened"] == {"often ddd": 2, "once ": 1, "dropped ": 1, "retried ": 3}
