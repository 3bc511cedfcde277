"""Jobs over gRPC, beside the same over HTTP, and an application on gRPC that is told of them.

Source: reference/dapr-surface.md 1.13, 2.9, 8.4.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_asyncio
from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.struct_pb2 import Value
from google.protobuf.wrappers_pb2 import StringValue
from msgspec.structs import replace

from gateway.grpc.messages import message
from mesh.blocks.job_record import Job, Put
from mesh.blocks.job_timers import timer_of
from tests.grpc.app import GRPCApp, fail
from tests.grpc.harness import Call, Client, Failed, calls, check_call, client
from tests.http.harness import ANY, App, Backbone, Node, gateway
from tests.support.eventually import eventually

pytestmark = pytest.mark.asyncio(loop_scope="module")

BAD = "INVALID_ARGUMENT"
VALUE = "type.googleapis.com/google.protobuf.Value"
DEFAULT = {"constant": {"interval": "1s", "max_retries": 3}}
REPLY = message("JobEventResponse")()
_names = (f"job-{number}" for number in itertools.count())


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def told(module_backbone: Backbone) -> AsyncIterator[GRPCApp]:
    """The application that is told; it has the method of today."""
    app = GRPCApp()
    app.always("OnJobEvent", REPLY)
    async with app:
        yield app


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def node(
    module_backbone: Backbone, told: GRPCApp, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Node]:
    home = tmp_path_factory.mktemp("home")
    async with gateway(module_backbone, home, app=told.port, app_protocol="grpc", grpc_port=0) as node:
        yield node


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def called(node: Node) -> AsyncIterator[Client]:
    async with client(node) as called:
        yield called


def job(name: str | None = None, **fields: Any) -> dict[str, Any]:
    return {"job": {"name": next(_names) if name is None else name, "due_time": "24h", **fields}}


def packed(made: Any) -> AnyMessage:
    whole = AnyMessage()
    whole.Pack(made)
    return whole


NOT_THERE = "failed to get job due to: rpc error: code = NotFound desc = job not found: none"
DEEP = Value(list_value={"values": [Value(number_value=1.5), Value(struct_value={"fields": {}}), Value(null_value=0)]})


@calls(
    Call("a job", "ScheduleJob", job(), {}),
    Call("a job, under the name before", "ScheduleJobAlpha1", job(), {}),
    Call("with everything", "ScheduleJob",
         job(schedule="@every 24h", repeats=2, ttl="240h", failure_policy={"drop": {}}), {}),
    Call("no job", "ScheduleJob", {}, (BAD, "Job is empty")),
    Call("no name", "ScheduleJob", job(""), (BAD, "Name is empty")),
    Call("no times", "ScheduleJob", {"job": {"name": "x"}}, (BAD, "Schedule is empty")),
    Call("bad cron", "ScheduleJob", job(schedule="bogus"), ("INTERNAL", ANY)),
    Call("too long a name", "ScheduleJob", job("n" * 257), (BAD, ANY)),
    Call("an interval longer than any", "ScheduleJob",
         job(failure_policy={"constant": {"interval": {"seconds": 2**63 - 1}}}), (BAD, ANY)),
    Call("data that are none", "ScheduleJob", job(data={"type_url": VALUE, "value": b"\xff"}), (BAD, ANY)),
    Call("what is not there", "GetJob", {"name": "none"}, ("INTERNAL", NOT_THERE)),
    Call("what is not there, under the name before", "GetJobAlpha1", {"name": "none"}, ("INTERNAL", NOT_THERE)),
    Call("get no name", "GetJob", {}, (BAD, "Name is empty")),
    Call("delete what is not there", "DeleteJob", {"name": "none"}, {}),
    Call("delete no name", "DeleteJobAlpha1", {}, (BAD, "Name is empty")),
)  # fmt: skip
async def test_calls(called: Client, call: Call) -> None:
    await check_call(called, call)


async def test_a_second_one_of_a_name(called: Client) -> None:
    asked = job()
    await called.call("ScheduleJob", **asked)
    with pytest.raises(Failed) as failed:
        await called.call("ScheduleJob", **asked)
    assert failed.value.code == "ALREADY_EXISTS"
    (info,) = failed.value.details
    assert (info["reason"], info["metadata"]["appID"]) == ("DAPR_SCHEDULER_SCHEDULE_JOB", "app")
    await called.call("ScheduleJob", **asked, overwrite=True)


@pytest.mark.parametrize(
    "data", [packed(StringValue(value="hello")), AnyMessage(type_url="x/of.mine", value=b"\xff\x00"), packed(DEEP)]
)
async def test_what_was_scheduled_is_told(called: Client, data: AnyMessage) -> None:
    """Data are the message that they were; times are as they were written."""
    asked = job(schedule="@every 24h", repeats=2, ttl="240h", data={"type_url": data.type_url, "value": data.value})
    await called.call("ScheduleJob", **asked)
    found = (await called.message("GetJob", name=asked["job"]["name"])).job
    assert (found.schedule, found.due_time, found.repeats, found.ttl) == ("@every 24h", "24h", 2, "240h")
    assert (found.data.type_url, found.data.value) == (data.type_url, data.value)
    assert found.failure_policy.constant.max_retries == 3


async def test_lists_and_deletes(called: Client) -> None:
    """By a beginning of their names; jobs of others stay."""
    for name in ("some-1", "some-2", "other-1"):
        await called.call("ScheduleJob", **job(name, failure_policy={"drop": {}}))
    listed = (await called.message("ListJobs")).jobs
    assert {"some-1", "some-2", "other-1"} <= {each.name for each in listed}
    assert all(each.due_time == "24h" for each in listed)
    await called.call("DeleteJobsByPrefix", name_prefix="some-")
    left = {each.name for each in (await called.message("ListJobsAlpha1")).jobs}
    assert left == {each.name for each in listed} - {"some-1", "some-2"}
    await called.call("DeleteJob", name="other-1")
    await called.call("DeleteJobsByPrefixAlpha1")
    assert not (await called.message("ListJobs")).jobs


async def test_what_cannot_be_listed_is_left_out(node: Node, called: Client, caplog: pytest.LogCaptureFixture) -> None:
    """What an older or a newer version has kept costs nobody the list of the others; it can be deleted with them."""
    await called.call("ScheduleJob", **job("kept-1"))
    jobs = node.gateway._runtime.services["jobs"]  # type: ignore[attr-defined]  # as another version would write
    deep = timer_of(Put(Job("kept-2", due_time="24h", data=b"[" * 60 + b"]" * 60), time.time(), overwrite=False))
    for timer in (deep, replace(deep, key="kept-3", data=b"\xc1")):
        await (await jobs._opened()).timers.put(await jobs._partition(timer.key), timer, overwrite=False)
    listed = {each.name for each in (await called.message("ListJobs")).jobs}
    assert listed & {"kept-1", "kept-2", "kept-3"} == {"kept-1"}
    assert [f"'{name}'" in caplog.text for name in ("kept-2", "kept-3")] == [True, True]
    with pytest.raises(Failed) as failed:
        await called.call("GetJob", name="kept-2")
    assert (failed.value.code, "do not go into a message" in failed.value.text) == (BAD, True)
    await called.call("DeleteJobsByPrefix", name_prefix="kept-")
    for name in ("kept-2", "kept-3"):
        with pytest.raises(Failed, match="job not found"):
            await called.call("GetJob", name=name)


@pytest.mark.parametrize("data", [packed(StringValue(value="hello")), packed(DEEP), AnyMessage(value=b"{}")])
async def test_the_application_is_told(called: Client, told: GRPCApp, data: AnyMessage) -> None:
    """By the message that was scheduled, and where it belongs."""
    asked = job(due_time="0s", data={"type_url": data.type_url, "value": data.value})
    name = asked["job"]["name"]
    await called.call("ScheduleJob", **asked)
    got = await until_told(told, "OnJobEvent", name)
    assert (got.method, got.content_type) == (f"job/{name}", data.type_url)
    assert (got.data.type_url, got.data.value) == (data.type_url, data.value)
    assert got.http_extension.verb == 3, "POST"


async def test_json_of_http_is_a_value(node: Node, told: GRPCApp) -> None:
    name = next(_names)
    assert (await node.post(f"/v1.0/jobs/{name}", {"dueTime": "0s", "data": {"jd": [1, None]}})).status == 204
    got = await until_told(told, "OnJobEvent", name)
    found = Value()
    assert got.data.Unpack(found)
    assert [each.number_value for each in found.struct_value.fields["jd"].list_value.values] == [1, 0]


async def test_a_message_for_an_application_on_http(module_backbone: Backbone, node: Node, tmp_path: Any) -> None:
    """It gets the message's bytes and its type; what is told of one whose type nobody knows is base64."""
    async with (
        App() as app,
        gateway(module_backbone, tmp_path, app=app, app_id="web", grpc_port=0) as web,
        client(web) as called,
    ):
        asked = job("mine", due_time="0s", data={"type_url": "x/of.mine", "value": b' {"a": 1}\n'})
        await called.call("ScheduleJob", **asked)
        got = (await app.until("/job/mine"))[0]
        assert (got.body, got.headers["mesh-data-type"]) == (b' {"a": 1}\n', "x/of.mine")
        await called.call("ScheduleJob", **job("later", data={"type_url": "x/of.mine", "value": b"\xff"}))
        assert (await web.get("/v1.0/jobs/later")).json["data"] == {"@type": "x/of.mine", "value": "/w=="}
        text = packed(StringValue(value="hello"))
        await called.call("ScheduleJob", **job("text", data={"type_url": text.type_url, "value": text.value}))
        assert (await web.get("/v1.0/jobs/text")).json["data"] == {"@type": text.type_url, "value": "hello"}


@pytest.mark.parametrize(("code", "times"), [("NOT_FOUND", 1), ("UNIMPLEMENTED", 2), ("INTERNAL", 2)])
async def test_failures_follow_the_policy(
    module_backbone: Backbone, node: Node, tmp_path: Any, code: str, times: int
) -> None:
    """One that is not known has been taken."""
    policy = {"constant": {"interval": {"nanos": 100_000_000}, "max_retries": 1}}
    app = GRPCApp()
    app.answers["OnJobEvent"] = fail(code)
    async with (
        app,
        gateway(module_backbone, tmp_path, app=app.port, app_protocol="grpc", grpc_port=0, app_id="fails") as other,
        client(other) as called,
    ):
        await called.call("ScheduleJob", **job("failing", due_time="0s", failure_policy=policy))

        async def gone() -> None:
            assert not (await called.message("ListJobs")).jobs

        await eventually(gone)
    assert len(app.of("OnJobEvent")) == times


async def test_an_application_of_before(module_backbone: Backbone, node: Node, tmp_path: Any) -> None:
    """It has the method of the name before, and is asked by that alone once that is known."""
    app = GRPCApp()
    app.always("OnJobEventAlpha1", REPLY)
    async with (
        app,
        gateway(module_backbone, tmp_path, app=app.port, app_protocol="grpc", grpc_port=0, app_id="before") as other,
        client(other) as called,
    ):
        for name in ("one", "two"):
            await called.call("ScheduleJob", **job(name, due_time="0s"))
            await until_told(app, "OnJobEventAlpha1", name)


async def until_told(app: GRPCApp, method: str, name: str) -> Any:
    def check() -> Any:
        found = [asked.message for asked in app.of(method) if asked.message.name == name]
        assert found
        return found[0]

    return await eventually(check)
