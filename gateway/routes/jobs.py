"""``jobs``: what the application is told at a time.

A body is a message of gRPC's in JSON, as in all of the API's newer calls: its members may be written with underscores,
and what is no member is left out. It is read without that library, which only data of other clients may need.
"""

from __future__ import annotations

import base64
import logging
from collections.abc import Iterable, Iterator, Mapping
from datetime import UTC, datetime
from operator import attrgetter
from typing import TYPE_CHECKING, Any, cast

import orjson

from gateway.errors import ERRORS, APIError, bad_request, malformed, told
from gateway.http.response import Answered, json_response, no_content
from gateway.routes.failure_policy import NANOSECONDS, policy_of, read_policy, read_whole
from gateway.routes.request import deadline_of, members, query_of, raw_member, read_body
from gateway.routes.route import Asked, Asking, Route
from gateway.routes.rpc import RPC, Called
from mesh.blocks.job_record import MAX_PAGE, Job, JobNotFoundError, Named, Page, Policed, Registered, Schedule, Wanted
from mesh.blocks.jobs import DELETE, DELETE_BY_PREFIX, GET, LIST, RUN, SCHEDULE
from mesh.values import parse_whole

if TYPE_CHECKING:
    from google.protobuf.message import Message

__all__ = ["ROUTES", "RPCS"]

logger = logging.getLogger(__name__)

VERSIONS = ("v1.0", "v1.0-alpha1")
READ, POST, DELETES = frozenset({"GET"}), frozenset({"POST"}), frozenset({"DELETE"})
MAX_UINT32 = 2**32 - 1
MAX_LISTED, MAX_LISTED_BYTES = 10_000, 64 * 1024 * 1024  # A page more at the most.
JSON_TYPE = "type.googleapis.com/google.protobuf.Value"


# HTTP


async def schedule(asked: Asked) -> Answered:
    """Keep a job, until the application has been told of it."""
    body = await read_body(asked.request)
    given = _members(body)
    if given.get("name"):
        raise _refused(asked, "JOB_NAME_IN_BODY")
    overwrite = given.get("overwrite")
    if not isinstance(overwrite, bool | None):
        raise malformed("overwrite must be a boolean")
    job = Job(
        _name(asked, asked.text(0)),
        _text(given, "schedule"),
        read_whole(given.get("repeats"), "repeats", MAX_UINT32),
        _text(given, "dueTime"),
        _text(given, "ttl"),
        raw_member(body, "data") if "data" in given else None,
        policy=read_policy(given.get("failurepolicy")),
    )
    await _schedule(asked, job, overwrite=bool(overwrite))
    return no_content()


async def get(asked: Asked) -> Answered:
    """Read a job as it was scheduled."""
    return json_response(_shown(asked, (await _registered(asked, asked.text(0))).job))


async def delete(asked: Asked) -> Answered:
    """Delete a job, if it is there."""
    await _delete(asked, asked.text(0))
    return no_content()


async def listed(asked: Asked) -> Answered:
    """List jobs, a page of them, each with the time when it is due next."""
    query = query_of(asked.query)
    try:
        limit = parse_whole(query.get("limit", "100"), least=1, most=MAX_PAGE)
    except ValueError as error:
        raise bad_request(f"limit is {error}") from None
    page = await _page(asked, Wanted(query.get("prefix", ""), query.get("after", ""), limit))
    answer: dict[str, object] = {"jobs": [_detailed(asked, each) for each in page.jobs]}
    if page.after:
        answer["after"] = page.after
    return json_response(answer)


async def shown(asked: Asked) -> Answered:
    """Tell of a job, and when it is due next."""
    try:
        job = await _registered(asked, asked.text(0))
    except APIError as error:
        if isinstance(missing := error.__cause__, JobNotFoundError):
            raise told(ERRORS["jobs/JOB_NOT_FOUND"], missing) from missing
        raise
    return json_response(_detailed(asked, job))


async def run(asked: Asked) -> Answered:
    """Tell the application of a job now, once; its times stay as they are."""
    name = Named(_name(asked, asked.text(0)))
    await asked.run(RUN, asked.api.caller.app_id, name, deadline_of(asked.request))
    return no_content()


def _members(body: bytes) -> Mapping[str, object]:
    try:
        found = orjson.loads(body) if body.strip() else None
    except orjson.JSONDecodeError as error:
        raise malformed(error) from None
    return members({} if found is None else found, "the body")


def _text(given: Mapping[str, object], name: str) -> str | None:
    value = given.get(name.lower())
    if value is None or isinstance(value, str):
        return value
    raise malformed(f"{name} must be a string")


def _shown(asked: Asked, job: Job) -> dict[str, object]:
    """Write a job as the API does; what it does not have is left out."""
    data: object = None
    if job.data is not None and asked.api.values:
        data = {"@type": JSON_TYPE, "value": orjson.Fragment(job.data)} if job.data_type is None else _any(asked, job)
    made = {
        "name": job.name,
        "schedule": job.schedule,
        "repeats": job.repeats,
        "dueTime": job.due_time,
        "ttl": job.ttl,
        "data": data,
        "failurePolicy": _shown_policy(job.policy),
    }
    return {name: value for name, value in made.items() if value is not None}


def _any(asked: Asked, job: Job) -> object:
    """Write data that are a message; of a type that is not known here, as base64."""
    from google.protobuf.json_format import MessageToDict  # For who uses it.

    message = asked.api.message("Job")(data={"type_url": job.data_type, "value": job.data})
    try:
        return MessageToDict(message, descriptor_pool=message.DESCRIPTOR.file.pool)["data"]
    except Exception:  # noqa: BLE001 - it raises whatever the message's bytes lead to
        return {"@type": job.data_type, "value": base64.b64encode(job.data or b"").decode()}


def _shown_policy(policy: Policed) -> dict[str, object]:
    if policy.drop:
        return {"drop": {}}
    constant: dict[str, object] = {"interval": _duration(policy.interval)}
    if policy.retries is not None:
        constant["maxRetries"] = policy.retries
    return {"constant": constant}


def _duration(seconds: float) -> str:
    """Write a duration as JSON of messages does: with no fraction, or one of three, six or nine digits."""
    whole, nanoseconds = divmod(round(seconds * NANOSECONDS), NANOSECONDS)
    fraction = f"{nanoseconds:09}"
    while fraction.endswith("000"):
        fraction = fraction[:-3]
    return f"{whole}.{fraction}s" if fraction else f"{whole}s"


def _detailed(asked: Asked, found: Registered) -> dict[str, object]:
    due = datetime.fromtimestamp(found.due, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    return {**_shown(asked, found.job), "nextDue": due, "left": found.left}


# gRPC


async def schedule_rpc(called: Called) -> object:
    """Keep a job, until the application has been told of it."""
    if not called.message.HasField("job"):
        raise _refused(called, "JOB_EMPTY")
    given = called.message.job

    def told_of(name: str) -> Any:
        return getattr(given, name) if given.HasField(name) else None

    data, data_type = _told_data(given)
    said = {name: told_of(name) for name in ("schedule", "repeats", "due_time", "ttl")}
    job = Job(_name(called, given.name), **said, data=data, data_type=data_type, policy=policy_of(given))
    await _schedule(called, job, overwrite=called.message.overwrite)
    return called.reply()


async def get_rpc(called: Called) -> object:
    """Read a job as it was scheduled."""
    found = await _registered(called, called.message.name)
    return called.reply(job=_message(called, found.job))


async def delete_rpc(called: Called) -> object:
    """Delete a job, if it is there."""
    await _delete(called, called.message.name)
    return called.reply()


async def delete_prefix_rpc(called: Called) -> object:
    """Delete all jobs whose name begins so; without a beginning all of the application."""
    await called.run(DELETE_BY_PREFIX, called.api.caller.app_id, Named(called.message.name_prefix))
    return called.reply()


async def list_rpc(called: Called) -> object:
    """List all jobs of the application."""
    found: list[Job] = []
    after = ""
    while True:
        page = await _page(called, Wanted(after=after))
        found += [each.job for each in page.jobs]
        if not (after := page.after):
            return called.reply(jobs=list(_messages(called, sorted(found, key=attrgetter("name")))))
        if len(found) >= MAX_LISTED or sum(len(each.data or b"") for each in found) > MAX_LISTED_BYTES:
            row = ERRORS["jobs.list/JOBS_TOO_MANY"]
            text = f"there are more than {MAX_LISTED} jobs, or {MAX_LISTED_BYTES >> 20} MiB of data"
            raise told(row, text, app_id=called.api.caller.app_id)


def _messages(called: Called, jobs: Iterable[Job]) -> Iterator[object]:
    for each in jobs:
        try:
            yield _message(called, each)
        except APIError as error:  # A version that did not refuse it has kept it.
            logger.warning("a list leaves job %r out: %s", each.name, error.message)


def _told_data(given: Message) -> tuple[bytes | None, str | None]:
    """Take the data of a message: a JSON value as JSON, any other message as it is."""
    data = cast("Any", given).data
    if not data.type_url and not data.value:
        return None, None
    if data.type_url.rpartition("/")[2] != "google.protobuf.Value":
        return bytes(data.value), data.type_url
    from gateway.json_value import value_json

    try:
        return value_json(data.value), None
    except ValueError as error:
        raise bad_request(error) from None


def _message(called: Called, job: Job) -> object:
    """Make the message of a job; what it does not have is left out."""
    made = called.api.message("Job")(name=job.name)
    for name in ("schedule", "repeats", "due_time", "ttl"):
        if (value := getattr(job, name)) is not None:
            setattr(made, name, value)
    if job.data is not None:
        value, type_url = (_json_value(job.data), JSON_TYPE) if job.data_type is None else (job.data, job.data_type)
        made.data.type_url, made.data.value = type_url, value
    policy = job.policy
    if policy.drop:
        made.failure_policy.drop.SetInParent()
        return made
    constant = made.failure_policy.constant
    constant.interval.seconds, constant.interval.nanos = divmod(round(policy.interval * NANOSECONDS), NANOSECONDS)
    if policy.retries is not None:
        constant.max_retries = policy.retries
    return made


def _json_value(data: bytes) -> bytes:
    """Write JSON as the bytes of a message; raises ``APIError`` for what is nested too deeply for one."""
    from gateway.json_value import json_value

    try:
        return json_value(data)
    except ValueError as error:
        raise bad_request(error) from None


# Both


def _name(asking: Asking, name: str) -> str:
    """Give a name without blanks at its ends; one with what separates names elsewhere is none, as for the reference."""
    name = name.strip()
    if not name or "|" in name:
        raise _refused(asking, "JOB_NAME_EMPTY")
    return name


def _refused(asking: Asking, what: str) -> APIError:
    caller = asking.api.caller
    return told(ERRORS[f"jobs/{what}"], app_id=caller.app_id, namespace=caller.namespace)


async def _schedule(asking: Asking, job: Job, *, overwrite: bool) -> None:
    if not job.schedule and not job.due_time:
        raise _refused(asking, "JOB_SCHEDULE_EMPTY")
    await asking.run(SCHEDULE, asking.api.caller.app_id, Schedule(job, overwrite))


async def _registered(asking: Asking, name: str) -> Registered:
    return cast("Registered", await asking.run(GET, asking.api.caller.app_id, Named(_name(asking, name))))


async def _delete(asking: Asking, name: str) -> None:
    await asking.run(DELETE, asking.api.caller.app_id, Named(_name(asking, name)))


async def _page(asking: Asking, wanted: Wanted) -> Page:
    return cast("Page", await asking.run(LIST, asking.api.caller.app_id, wanted))


def _both(name: str) -> Mapping[str, Any]:
    return {"name": name, "api": "jobs", "aliases": (f"{name}Alpha1",)}


RPCS = (
    RPC(answer=schedule_rpc, **_both("ScheduleJob")),
    RPC(answer=get_rpc, **_both("GetJob")),
    RPC(answer=delete_rpc, **_both("DeleteJob")),
    RPC(answer=delete_prefix_rpc, **_both("DeleteJobsByPrefix")),
    RPC(answer=list_rpc, **_both("ListJobs")),
)

ROUTES = (
    Route("jobs/{name}", schedule, POST, VERSIONS),
    Route("jobs/{name}", get, READ, VERSIONS),
    Route("jobs/{name}", delete, DELETES, VERSIONS),
    Route("mesh/jobs", listed, READ, api="jobs"),
    Route("mesh/jobs/{name}", shown, READ, api="jobs"),
    Route("mesh/jobs/{name}/run", run, POST, api="jobs"),
)
