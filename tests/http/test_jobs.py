"""Jobs over HTTP: what is scheduled, what is told of it, and how the application is told.

Source: reference/dapr-surface.md 1.13, 2.9, 0.3; reference/observed-layouts.md 3, 7; reference/sdk-expectations.md 22.
"""

from __future__ import annotations

import asyncio
import itertools
import math
import time
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from urllib.parse import quote

import orjson
import pytest
import pytest_asyncio
from aiohttp import web

from mesh.blocks.job_record import MAX_DATA_BYTES, Delete, Job, Put, RunNow, encoded
from mesh.blocks.job_timers import JobTimers
from mesh.delivery import Attempt
from mesh.errors import BadArgumentError, PermissionDeniedError
from mesh.schedules import Timing
from mesh.store import StateStore
from mesh.timers import FailurePolicy, Outcome, Timer
from tests.http.harness import ANY, App, Backbone, Case, Got, Node, cases, check, error, gateway, matches
from tests.support.eventually import eventually

pytestmark = pytest.mark.asyncio(loop_scope="module")

ALPHA = "/v1.0-alpha1/jobs"
LATER = {"dueTime": "24h"}
VALUE = "type.googleapis.com/google.protobuf.Value"
DEFAULT = {"constant": {"interval": "1s", "maxRetries": 3}}
_names = (f"job-{number}" for number in itertools.count())


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def told(module_backbone: Backbone) -> AsyncIterator[App]:
    """The application that is told."""
    async with App() as app:
        yield app


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def node(module_backbone: Backbone, told: App, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Node]:
    async with gateway(module_backbone, tmp_path_factory.mktemp("home"), app=told) as node:
        yield node


def post(body: object, name: str | None = None, path: str = "/v1.0/jobs") -> tuple[str, str, None, object]:
    return "POST", f"{path}/{next(_names) if name is None else quote(name, safe='')}", None, body


def nested(opening: str, inner: str, closing: str, levels: int) -> bytes:
    """Give a job whose data are in each other."""
    return f'{{"dueTime": "24h", "data": {opening * levels}{inner}{closing * levels}}}'.encode()


def detailed(code: str, message: object, **metadata: object) -> dict[str, object]:
    info = {
        "@type": "type.googleapis.com/google.rpc.ErrorInfo",
        "domain": "dapr.io",
        "metadata": {"appID": "app", "namespace": ANY},
        "reason": code,
    }
    return error(code, message, [info])


EMPTY = detailed("DAPR_SCHEDULER_SCHEDULE_EMPTY", "Schedule is empty")
NO_NAME = detailed("DAPR_SCHEDULER_JOB_NAME_EMPTY", "Name is empty")
IN_BODY = detailed("DAPR_SCHEDULER_JOB_NAME", "Set the job name in the url only")
NOT_THERE = detailed(
    "DAPR_SCHEDULER_GET_JOB", "failed to get job due to: rpc error: code = NotFound desc = job not found: none"
)
BAD_CRON = detailed(
    "DAPR_SCHEDULER_SCHEDULE_JOB",
    "failed to schedule job due to: rpc error: code = Unknown desc = "
    "job failed validation: expected exactly 6 fields, found 1: [bogus]",
)
INVALID = error("DAPR_SCHEDULER_SCHEDULE_JOB", matches(lambda text: "job failed validation" in text), ANY)
TOO_DEEP = error(
    "DAPR_SCHEDULER_SCHEDULE_JOB", matches(lambda text: "33 objects or 49 arrays are the most" in text), ANY
)
LIMIT = error("DAPR_SCHEDULER_SCHEDULE_JOB", ANY, ANY)
NOT_RUN = detailed("ERR_JOB_RUN", "failed to run job due to: job not found: none")
MALFORMED = error("ERR_MALFORMED_REQUEST")


@cases(
    Case("once", post(LATER), 204, b""),
    Case("in the version before", post(LATER, path=ALPHA), 204, b""),
    Case("once at an instant", post({"dueTime": "2100-01-01T00:00:00Z"}), 204),
    Case("once by ISO 8601", post({"dueTime": "PT24H"}), 204),
    Case("again and again", post({"schedule": "@every 24h"}), 204),
    Case("by cron with seconds", post({"schedule": "30 15 3 * * *"}), 204),
    Case("by cron of a zone", post({"schedule": "CRON_TZ=Europe/Berlin 0 15 3 * * *"}), 204),
    Case("daily", post({"schedule": "@daily"}), 204),
    Case("everything", post({"schedule": "@every 24h", "dueTime": "24h", "ttl": "240h", "repeats": 3}), 204),
    Case("names with underscores", post({"due_time": "24h", "failure_policy": {"constant": {"max_retries": 1}}}), 204),
    Case("repeats as text", post({"schedule": "@every 24h", "repeats": "2"}), 204),
    Case("further members", post({**LATER, "x": 1}), 204),
    Case("members that are null", post({**LATER, "schedule": None, "repeats": None, "failurePolicy": None}), 204),
    Case("dropped when it fails", post({**LATER, "failurePolicy": {"drop": {}}}), 204),
    Case("a name with anything in it", post(LATER, "a b/ü?#%."), 204),
    Case("the longest name", post(LATER, "n" * 256), 204),
    Case("no schedule", post({}), 400, EMPTY),
    Case("nothing at all", post(b""), 400, EMPTY),
    Case("null", post(b" null "), 400, EMPTY),
    Case(
        "a policy's number below none",
        post({**LATER, "failurePolicy": {"constant": {"maxRetries": -1}}}),
        400,
        error("ERR_MALFORMED_REQUEST", matches(lambda text: "failurePolicy.constant.maxRetries" in text)),
    ),
    Case("texts that are empty", post({"schedule": "", "dueTime": ""}), 400, EMPTY),
    Case("a name in the body too", post({**LATER, "name": "x"}), 400, IN_BODY),
    Case("an empty name", ("POST", "/v1.0/jobs/%20", None, LATER), 400, NO_NAME),
    Case("a name with what separates them", post(LATER, "a|b"), 400, NO_NAME),
    Case("a name that leads away", post(LATER, "a\nb"), 400, LIMIT),
    Case("too long a name", post(LATER, "n" * 257), 400, LIMIT),
    Case("too many data", post({**LATER, "data": "x" * MAX_DATA_BYTES}), 400, LIMIT),
    Case("nested deeply", post(nested('{"a":', "1", "}", 33)), 204),
    Case("nested too deeply", post(nested('{"a":', "1", "}", 34)), 400, TOO_DEEP),
    Case("lists nested deeply", post(nested("[", "1", "]", 49)), 204),
    Case("lists nested too deeply", post(nested("[", "1", "]", 50)), 400, TOO_DEEP),
    Case("nothing nested deeply", post(nested("[", "", "]", 50)), 204),
    Case("nothing nested too deeply", post(nested("[", "", "]", 51)), 400, TOO_DEEP),
    Case("many, which are not nested", post(nested("", str([[]] * 200), "", 1)), 204),
    Case("bad cron", post({"schedule": "bogus"}), 500, BAD_CRON),
    Case("five fields", post({"schedule": "15 3 * * *"}), 500, INVALID),
    Case("an unknown zone", post({"schedule": "CRON_TZ=Nowhere/City 0 15 3 * * *"}), 500, INVALID),
    Case("a zone of a period", post({"schedule": "CRON_TZ=Europe/Berlin @every 1h"}), 500, INVALID),
    Case("no time", post({"dueTime": "soon"}), 500, INVALID),
    Case("a repeated time", post({"dueTime": "R3/PT1H"}), 500, INVALID),
    Case("over before it begins", post({"schedule": "@every 1h", "ttl": "2001-01-01T00:00:00Z"}), 500, INVALID),
    Case("repeats without a schedule", post({**LATER, "repeats": 2}), 500, INVALID),
    Case("no repeats", post({"schedule": "@every 1h", "repeats": 0}), 500, INVALID),
    Case("repeats below none", post({"schedule": "@every 1h", "repeats": -1}), 400, MALFORMED),
    Case("repeats that are a fraction", post({"schedule": "@every 1h", "repeats": 1.5}), 400, MALFORMED),
    Case("a schedule that is a number", post({"schedule": 1}), 400, MALFORMED),
    Case("a policy that is a text", post({**LATER, "failurePolicy": "drop"}), 400, MALFORMED),
    Case("two policies", post({**LATER, "failurePolicy": {"drop": {}, "constant": {}}}), 400, MALFORMED),
    Case("an interval in minutes", post({**LATER, "failurePolicy": {"constant": {"interval": "1m"}}}), 400, MALFORMED),
    Case("an interval before now", post({**LATER, "failurePolicy": {"constant": {"interval": "-1s"}}}), 400, MALFORMED),
    Case("overwrite that is a text", post({**LATER, "overwrite": "yes"}), 400, MALFORMED),
    Case("a list", post([]), 400, MALFORMED),
    Case("broken", post(b"{"), 400, MALFORMED),
    Case("get what is not there", ("GET", "/v1.0/jobs/none"), 500, NOT_THERE),
    Case("get what is not there, as before", ("GET", f"{ALPHA}/none"), 500, NOT_THERE),
    Case("delete what is not there", ("DELETE", "/v1.0/jobs/none"), 204, b""),
    Case(
        "run what is not there",
        ("POST", "/v1.0/mesh/jobs/none/run"),
        404,
        error("ERR_JOB_RUN", "failed to run job due to: job not found: none", ANY),
    ),
    Case("a page of none", ("GET", "/v1.0/mesh/jobs?limit=0"), 400, error("ERR_BAD_REQUEST")),
    Case("a page behind none", ("GET", "/v1.0/mesh/jobs?after=x"), 400, error("DAPR_SCHEDULER_LIST_JOBS", ANY, ANY)),
    Case("by PUT", ("PUT", "/v1.0/jobs/x", None, LATER), 404, error("ERR_DIRECT_INVOKE")),
)
async def test_route(node: Node, case: Case) -> None:
    await check(node, case)


@pytest.mark.parametrize("data", [{"jd": 1}, "perftest", [1, None], 12345678901234567890, None, {"@type": "x"}, ""])
async def test_what_was_scheduled_is_told(node: Node, data: object) -> None:
    """The default policy is told too; data come back wrapped."""
    _, path, _, body = post({"schedule": "@every 24h", "dueTime": "24h", "repeats": 2, "ttl": "240h", "data": data})
    assert (await node.post(path, body)).status == 204
    reply = await node.get(path)
    assert list(reply.json) == ["name", "schedule", "repeats", "dueTime", "ttl", "data", "failurePolicy"]
    assert reply.json == {
        "name": path.rpartition("/")[2],
        **body,  # type: ignore[dict-item]  # a dictionary, as above
        "data": {"@type": VALUE, "value": data},
        "failurePolicy": DEFAULT,
    }


@pytest.mark.parametrize(
    ("policy", "shown"),
    [
        ({"drop": {}}, {"drop": {}}),
        ({"constant": {"interval": "3s", "maxRetries": 5}}, {"constant": {"interval": "3s", "maxRetries": 5}}),
        ({"constant": {"interval": "0.5s"}}, {"constant": {"interval": "0.500s"}}),
        ({}, DEFAULT),
    ],
)
async def test_failure_policies_are_told(node: Node, policy: object, shown: object) -> None:
    _, path, _, _ = post({})
    await node.post(path, {**LATER, "failurePolicy": policy})
    assert (await node.get(path)).json == {"name": path.rpartition("/")[2], **LATER, "failurePolicy": shown}


async def test_a_second_one_of_a_name(node: Node) -> None:
    """It is refused, unless it is to take the place of the first."""
    _, path, _, _ = post({})
    name = path.rpartition("/")[2]
    for status, body in ((204, LATER), (409, {"dueTime": "1h"}), (204, {"dueTime": "48h", "overwrite": True})):
        reply = await node.post(path, body)
        assert reply.status == status, reply
        if status == 409:
            text = f"failed to schedule job due to: rpc error: code = AlreadyExists desc = job already exists: '{name}'"
            assert reply.json == detailed("DAPR_SCHEDULER_SCHEDULE_JOB", text)
            assert (await node.get(path)).json["dueTime"] == "24h"
    assert (await node.get(path)).json["dueTime"] == "48h"


async def test_pages(node: Node) -> None:
    """All are listed, each once, a page at a time; each says when it is due next."""
    names = {f"paged {number}" for number in range(7)}
    for name in names:
        assert (await node.request(*post({**LATER, "data": 1}, name))).status == 204
    found: list[dict[str, object]] = []
    after = ""
    while True:
        page = (await node.get(f"/v1.0/mesh/jobs?prefix=paged%20&limit=3&after={quote(after)}")).json
        assert len(page["jobs"]) <= 3
        found += page["jobs"]
        if not (after := page.get("after", "")):
            break
    assert sorted(str(each["name"]) for each in found) == sorted(names)
    for each in found:
        due = datetime.fromisoformat(str(each["nextDue"])) - datetime.now(UTC)
        assert timedelta(hours=23) < due <= timedelta(hours=24)
    shown = (await node.get("/v1.0/mesh/jobs/paged%203")).json
    assert (shown["name"], shown["data"]["value"]) == ("paged 3", 1)
    assert (await node.request("DELETE", "/v1.0/jobs/paged%203")).status == 204
    assert (await node.get("/v1.0/mesh/jobs/paged%203")).status == 404


async def test_blanks_around_a_name_are_not_of_it(node: Node) -> None:
    """That is so in all calls, so that who schedules a job finds it."""
    name = next(_names)
    blank = f"%20{name}%09"
    assert (await node.post(f"/v1.0/jobs/{blank}", LATER)).status == 204
    for path in (f"/v1.0/jobs/{blank}", f"/v1.0/mesh/jobs/{blank}", f"/v1.0/jobs/{name}"):
        reply = await node.get(path)
        assert (reply.status, reply.json["name"]) == (200, name)
    assert (await node.post(f"/v1.0/mesh/jobs/{blank}/run")).status == 204
    assert (await node.request("DELETE", f"/v1.0/jobs/{blank}")).status == 204
    assert (await node.get(f"/v1.0/jobs/{name}")).status == 500


@pytest.mark.parametrize("data", ['{"jd": 1}', '"perftest"', "12345678901234567890", "null"])
async def test_the_application_is_told_the_json(node: Node, told: App, data: str) -> None:
    name = next(_names)
    await node.post(f"/v1.0/jobs/{name}", f'{{"dueTime": "0s", "data": {data}}}')
    got = (await told.until(f"/job/{name}", 1))[0]
    assert (got.method, got.body, got.headers["content-type"]) == ("POST", data.encode(), "application/json")
    assert "traceparent" in got.headers


async def test_a_job_without_data_has_no_body(node: Node, told: App) -> None:
    await node.request(*post({"dueTime": "0s"}, "a b/ü"))
    got = (await told.until("/job/a%20b%2F%C3%BC", 1))[0]
    assert got.body == b""

    async def gone() -> None:
        assert (await node.get("/v1.0/jobs/a%20b%2F%C3%BC")).status == 500

    await eventually(gone)


async def test_it_comes_as_often_as_said(node: Node, told: App) -> None:
    """Then it is gone."""
    name = next(_names)
    await node.post(f"/v1.0/jobs/{name}", {"schedule": "@every 100ms", "repeats": 3})

    async def gone() -> None:
        assert (await node.get(f"/v1.0/jobs/{name}")).status == 500

    await eventually(gone)
    assert len(told.at(f"/job/{name}")) == 3


@pytest.mark.parametrize(
    ("policy", "status", "times"),
    [
        ({"drop": {}}, 500, 1),
        ({"constant": {"interval": "0.1s", "maxRetries": 2}}, 500, 3),
        ({"constant": {"interval": "0.1s", "maxRetries": 1}}, 400, 2),
        ({"constant": {"interval": "0.1s", "maxRetries": 2}}, 404, 1),
        ({"constant": {"interval": "0.1s", "maxRetries": 2}}, 299, 1),
    ],
)
async def test_failures_follow_the_policy(node: Node, told: App, policy: object, status: int, times: int) -> None:
    """404 counts as taken."""
    name = next(_names)
    told.answer(f"/job/{name}", status)
    await node.post(f"/v1.0/jobs/{name}", {"dueTime": "0s", "failurePolicy": policy})

    async def gone() -> None:
        assert (await node.get(f"/v1.0/jobs/{name}")).status == 500

    await eventually(gone)
    assert len(told.at(f"/job/{name}")) == times


async def test_the_application_schedules_the_next_one_itself(node: Node, told: App) -> None:
    """What its handler puts in the place of the job that it is told of stays."""
    name = next(_names)

    async def again(got: Got, request: web.BaseRequest) -> web.Response:
        await node.post(f"/v1.0/jobs/{name}", {**LATER, "overwrite": True, "data": 2})
        return web.Response()

    told.answers[f"/job/{name}"] = again
    await node.post(f"/v1.0/jobs/{name}", {"dueTime": "0s", "data": 1})
    assert (await told.until(f"/job/{name}", 1))[0].json == 1

    async def there() -> None:
        assert (await node.get(f"/v1.0/jobs/{name}")).json["data"]["value"] == 2

    await eventually(there)


async def test_run_now(node: Node, told: App) -> None:
    """Its times stay as they are; what the application says is told."""
    name = next(_names)
    await node.post(f"/v1.0/jobs/{name}", {**LATER, "data": {"now": True}})
    before = (await node.get(f"/v1.0/mesh/jobs/{name}")).json
    assert (await node.post(f"/v1.0/mesh/jobs/{name}/run")).status == 204
    assert [got.json for got in told.at(f"/job/{name}")] == [{"now": True}]
    assert (await node.get(f"/v1.0/mesh/jobs/{name}")).json == before
    told.answer(f"/job/{name}", 503)
    reply = await node.post(f"/v1.0/mesh/jobs/{name}/run")
    text = "failed to run job due to: the application answered 503"
    assert (reply.status, reply.json["message"]) == (500, text)


async def test_run_now_within_a_time(node: Node, told: App) -> None:
    """Whoever asks says how long to wait; the application is not waited for any longer either."""
    name = next(_names)
    await node.post(f"/v1.0/jobs/{name}", LATER)
    left = asyncio.Event()

    async def hang(request: web.BaseRequest) -> web.StreamResponse:
        try:
            return await asyncio.get_running_loop().create_future()
        finally:
            left.set()

    told.streams[f"/job/{name}"] = hang
    reply = await node.request("POST", f"/v1.0/mesh/jobs/{name}/run", {"mesh-timeout": "300ms"})
    assert (reply.status, reply.json["errorCode"]) == (500, "ERR_JOB_RUN")
    assert "no answer within" in reply.json["message"]
    async with asyncio.timeout(10):
        await left.wait()
    refused = await node.request("POST", f"/v1.0/mesh/jobs/{name}/run", {"mesh-timeout": "soon"})
    assert (refused.status, refused.json["errorCode"]) == (400, "ERR_BAD_REQUEST")


@pytest.mark.asyncio(loop_scope="function")
async def test_what_a_later_version_has_kept_waits_for_that() -> None:
    """It is no failure of the application, after some of which it would be given up."""

    async def never(_: Job) -> Attempt:
        raise AssertionError

    jobs = JobTimers("jobs.shop", StateStore(), never, lambda _: True)
    assert await jobs._fire(Timer("k", "", Timing(1.0), FailurePolicy(), b"\xc1")) is Outcome.AWAY


@pytest.mark.asyncio(loop_scope="function")
async def test_jobs_of_an_application_are_its_own(nats: Backbone, tmp_path: Path) -> None:
    """Another one that asks the owner is refused, whatever it asks; it has jobs of the same names for itself."""
    async with (
        gateway(nats, tmp_path / "shop", app_id="shop", ready=False) as shop,
        gateway(nats, tmp_path / "other", app_id="other", ready=False) as other,
    ):
        for node in (shop, other):
            assert (await node.post("/v1.0/jobs/mine", {"dueTime": "24h", "data": node is shop})).status == 204
        owners = other.gateway._runtime.parts.owners  # type: ignore[attr-defined]  # as a node that is hostile would
        for what in (Delete(), RunNow(), Put(Job("mine", due_time="1h"), time.time(), overwrite=True)):
            with pytest.raises(PermissionDeniedError, match="jobs of shop are its own"):
                await owners.ask("jobs.shop", "mine", {}, encoded(what), time.time() + 30)
        own = shop.gateway._runtime.parts.owners  # type: ignore[attr-defined]  # the same
        for key, at, problem in (
            ("a", time.time(), "names another job"),
            ("b", -1.0, "'at' is a Unix time from 0 to 253402300799, not -1.0"),
            ("b", math.inf, "'at' is a Unix time"),
            ("b", math.nan, "'at' is a Unix time"),
        ):
            with pytest.raises(BadArgumentError, match=problem):
                asked = encoded(Put(Job("b", due_time="1h"), at, overwrite=True))
                await own.ask("jobs.shop", key, {}, asked, time.time() + 30)
        assert (await other.request("DELETE", "/v1.0/jobs/mine")).status == 204
        assert (await shop.get("/v1.0/jobs/mine")).json["data"]["value"] is True


async def test_jobs_that_are_not_allowed(backbone_home: Path, memory_only: Backbone) -> None:
    """What a Configuration takes away is no route."""
    config = backbone_home / "config.yaml"
    denied = {"denied": [{"name": "jobs", "version": "v1"}]}
    config.write_bytes(
        orjson.dumps(
            {
                "apiVersion": "dapr.io/v1alpha1",
                "kind": "Configuration",
                "metadata": {"name": "c"},
                "spec": {"api": denied},
            }
        )
    )
    async with gateway(memory_only, backbone_home, configuration_files=(config,)) as node:
        for path in ("/v1.0/jobs/x", "/v1.0/mesh/jobs", "/v1.0/mesh/jobs/x"):
            assert (await node.get(path)).json["errorCode"] == "ERR_DIRECT_INVOKE"
        assert (await node.get(f"{ALPHA}/x")).json["errorCode"] == "DAPR_SCHEDULER_GET_JOB"


@pytest.fixture
def backbone_home(tmp_path: Path) -> Path:
    return tmp_path


@pytest.fixture
def memory_only() -> Backbone:
    return Backbone("memory:")
