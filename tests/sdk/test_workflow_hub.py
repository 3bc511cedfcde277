"""A worker of the official Python SDK, before an engine that is scripted: what is handed out is what it understands."""

from __future__ import annotations

import asyncio
from asyncio.subprocess import PIPE
from pathlib import Path

import orjson

from mesh.workflows.state import Status
from tests.grpc.test_workflow_hub import hub
from tests.sdk.harness import HERE, PYTHON, needs
from tests.support.eventually import PATIENCE, eventually
from tests.support.workflow_engine import Engine, listening

RUN = {
    "sequence": (5, Status.COMPLETED, 40),
    "fan_out": (30, Status.COMPLETED, 870),
    "timer": (20, Status.COMPLETED, "fired"),
    "event": (0, Status.COMPLETED, {"given": ["x"]}),
    "failing": (101, Status.FAILED, None),
}


async def test_a_worker(tmp_path: Path) -> None:
    """A sequence, a fan-out, a timer, an event, a failure."""
    needs(PYTHON)
    words = [str(PYTHON), str(HERE / "python_workflow_worker.py")]
    async with Engine() as engine, listening(engine, tmp_path) as port, hub(port) as client:
        process = await asyncio.create_subprocess_exec(*words, str(port), stdin=PIPE)
        assert process.stdin is not None
        try:
            async with asyncio.timeout(PATIENCE):
                await engine.attached.wait()
            assert engine.workers[0].title.startswith("grpc-python/")
            for name, (given, _, _) in RUN.items():
                await client.message("StartInstance", instanceId=name, name=name, input={"value": str(given)})

            def waits() -> None:
                assert engine.instances["event"].custom_status == "waiting"

            await eventually(waits)
            await client.message("RaiseEvent", instanceId="event", name="go", input={"value": '["x"]'})
            for name, (_, status, output) in RUN.items():
                fields = {"instanceId": name, "getInputsAndOutputs": True}
                state = (await client.message("WaitForInstanceCompletion", **fields)).workflowState
                assert state.workflowStatus == status, name
                if output is None:
                    assert "101 is odd" in state.failureDetails.errorMessage
                else:
                    assert orjson.loads(state.output.value) == output
            assert engine.instances["sequence"].turns == 4
        finally:
            process.stdin.close()
            await process.wait()
