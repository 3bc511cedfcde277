"""A client on the unmodified Python SDK, blocking or with asyncio; prints what it saw as one line of JSON."""

import asyncio
import contextlib
import json
import os
import sys
import threading
import urllib.request
from inspect import isawaitable

import grpc
from dapr.clients import BulkPublishEntry
from dapr.clients.exceptions import DaprGrpcError, DaprInternalError
from dapr.clients.grpc import conversation as talk
from dapr.clients.grpc._crypto import DecryptOptions, EncryptOptions
from dapr.clients.grpc._request import TransactionalStateOperation, TransactionOperationType
from dapr.clients.grpc._response import TopicEventResponse
from dapr.clients.grpc._state import Concurrency, Consistency, StateItem, StateOptions
from dapr.clients.health import DaprHealth
from dapr.conf import settings

WAY = sys.argv[1]
if WAY == "blocking":
    from dapr.clients import DaprClient
else:
    from dapr.aio.clients import DaprClient

API = f"http://127.0.0.1:{os.environ['DAPR_HTTP_PORT']}/v1.0"
STORE = "statestore"
FIRST_WRITE = StateOptions(concurrency=Concurrency.first_write, consistency=Consistency.strong)
UPSERT, DELETE = TransactionOperationType.upsert, TransactionOperationType.delete


async def of(value):
    """Give what a call of either client gives."""
    return await value if isawaitable(value) else value


async def happened(event):
    """Wait until a handler has told it; the blocking client calls handlers in threads of its own."""
    assert event.wait(60) if WAY == "blocking" else await asyncio.to_thread(event.wait, 60)


async def refused(call):
    """Tell how a call was refused."""
    try:
        await of(call())
    except DaprGrpcError as error:
        return [error.code().name, error.error_code(), error.details()]
    except DaprInternalError as error:  # What the client with asyncio makes of some of them.
        return [error.__cause__.code().name, error.error_code, error.__cause__.details()]
    except grpc.RpcError as error:
        return [error.code().name, error.details()]
    return []


def over_http(verb, path, body=None):
    """Use the other door."""
    request = urllib.request.Request(API + path, body, {"Content-Type": "application/json"}, method=verb)
    with urllib.request.urlopen(request, timeout=60) as response:
        return response.read().decode()


async def state(client):
    await of(client.save_state(STORE, "text", "plain"))
    await of(client.save_state(STORE, "bytes", b"\x00\xff"))
    await of(client.save_state(STORE, "json", json.dumps({"a": 1}), state_metadata={"ttlInSeconds": "600"}))
    got = {key: await of(client.get_state(STORE, key)) for key in ("text", "bytes", "json", "none")}
    seen = {"got": {key: each.data.hex() for key, each in got.items()}, "missing_etag": got["none"].etag}
    seen["json_over_http"] = over_http("GET", f"/state/{STORE}/json")
    over_http("POST", f"/state/{STORE}", b'[{"key": "http", "value": {"b": 2}}]')
    seen["http_over_grpc"] = (await of(client.get_state(STORE, "http"))).json()

    etag = got["json"].etag
    await of(client.save_state(STORE, "json", "2", etag=etag, options=FIRST_WRITE))
    seen["conflicts"] = [
        await refused(lambda: client.save_state(STORE, "json", "3", etag=etag, options=FIRST_WRITE)),
        await refused(lambda: client.delete_state(STORE, "json", etag=etag, options=FIRST_WRITE)),
    ]
    await of(
        client.save_bulk_state(STORE, [StateItem("b1", "1"), StateItem("b2", "2", metadata={"ttlInSeconds": "9"})])
    )
    bulk = await of(client.get_bulk_state(STORE, ["b1", "b2", "none"], parallelism=2))
    seen["bulk"] = sorted([each.key, each.text(), bool(each.etag), each.error] for each in bulk.items)
    operations = [
        TransactionalStateOperation(key="b3", data="3", operation_type=UPSERT),
        TransactionalStateOperation(key="b1", data="", operation_type=DELETE),
    ]
    await of(client.execute_state_transaction(STORE, operations))
    stale = TransactionalStateOperation(key="json", data="x", etag=etag, operation_type=UPSERT)
    operations = [TransactionalStateOperation(key="b4", data="4", operation_type=UPSERT), stale]
    seen["transaction"] = await refused(lambda: client.execute_state_transaction(STORE, operations))
    await of(client.delete_state(STORE, "b2"))
    left = await of(client.get_bulk_state(STORE, ["b1", "b2", "b3", "b4"]))
    seen["left"] = {each.key: each.text() for each in left.items if each.etag}
    seen["no_store"] = await refused(lambda: client.get_state("nowhere", "key"))

    json_type = {"contentType": "application/json"}
    people = [
        StateItem(name, json.dumps({"name": name, "age": age}), metadata=json_type)
        for name, age in (("ann", 30), ("bob", 40), ("cid", 50))
    ]
    await of(client.save_bulk_state("queries", people))
    query = {
        "filter": {"OR": [{"EQ": {"name": "ann"}}, {"EQ": {"age": 50}}]},
        "sort": [{"key": "age", "order": "DESC"}],
    }
    found = await of(client.query_state("queries", json.dumps(query)))
    seen["found"] = [each.json()["name"] for each in found.results]
    return seen


async def publish(client):
    json_type = "application/json"
    await of(client.publish_event("pubsub", "orders", json.dumps({"way": WAY}), data_content_type=json_type))
    await of(client.publish_event("pubsub", "orders", json.dumps({"way": WAY, "fail": 1}), data_content_type=json_type))
    await of(client.publish_event("pubsub", "orders", f"text of {WAY}"))
    for kind in ("important", "usual"):
        await of(client.publish_event("pubsub", "kinds", kind + WAY, {"cloudevent.type": kind}))
    await of(client.publish_event("pubsub", "legacy", f"old of {WAY}", data_content_type="text/plain"))
    entries = [BulkPublishEntry(event=f"many 1 of {WAY}", content_type="text/plain", entry_id="e1"), f"many 2 of {WAY}"]
    bulk = await of(client.publish_events("pubsub", "many", entries, data_content_type="text/plain"))
    return {
        "failed": [each.entry_id for each in bulk.failed_entries],
        "no_pubsub": await refused(lambda: client.publish_event("nowhere", "orders", "x")),
        "no_pubsub_in_bulk": await refused(lambda: client.publish_events("nowhere", "orders", ["x"])),
        "no_topic": await refused(lambda: client.publish_event("pubsub", "", "x")),
    }


async def streams(client):
    topic, dead = f"streamed-{WAY}", f"dead-{WAY}"
    subscription = await of(client.subscribe("pubsub", topic))
    for number in range(2):
        await of(client.publish_event("pubsub", topic, json.dumps(number), data_content_type="application/json"))
    answers, got = {0: subscription.respond_retry}, []
    while len(got) < 3:
        message = await of(subscription.next_message())
        got.append([message.data(), message.topic(), message.pubsub_name(), message.data_content_type()])
        await of(answers.pop(message.data(), subscription.respond_success)(message))
    await of(subscription.close())

    subscription = await of(client.subscribe("pubsub", topic + "-2", {"maxInFlight": "1"}, dead))
    letters = await of(client.subscribe("pubsub", dead))
    await of(client.publish_event("pubsub", topic + "-2", "dropped", data_content_type="text/plain"))
    await of(subscription.respond_drop(await of(subscription.next_message())))
    letter = await of(letters.next_message())
    await of(letters.respond_success(letter))
    await of(letters.close())
    await of(subscription.close())

    handled, arrived = [], threading.Event()

    def take(message):
        handled.append(message.data())
        if len(handled) == 2:
            arrived.set()
        return TopicEventResponse("success")

    async def take_later(message):
        return take(message)

    handler = take if WAY == "blocking" else take_later
    close = await of(client.subscribe_with_handler("pubsub", f"handled-{WAY}", handler))
    for text in ("one", "two"):
        await of(client.publish_event("pubsub", f"handled-{WAY}", text, data_content_type="text/plain"))
    await happened(arrived)
    await of(close())
    return {"got": sorted(got), "letter": letter.data(), "handled": sorted(handled)}


async def secrets(client):
    secret = await of(client.get_secret("secrets", "SHOP_SECRET"))
    bulk = await of(client.get_bulk_secret("secrets"))
    return {
        "one": dict(secret.secret),
        "of_all": bulk.secrets["SHOP_SECRET"],
        "no_store": await refused(lambda: client.get_secret("nowhere", "x")),
    }


async def configuration(client):
    colour, size = f"colour-{WAY}", f"size-{WAY}"
    over_http("PUT", f"/mesh/configuration/settings/{colour}", b"red")
    got = await of(client.get_configuration("settings", [colour, "none"]))
    seen = {"got": {key.removesuffix(f"-{WAY}"): each.value for key, each in got.items.items()}}
    if WAY == "asyncio":
        return seen  # The SDK reads the stream of a client of this kind in a thread, where that can not be read.
    told, arrived = {}, threading.Event()

    def tell(subscription, changed):
        told.update({key.removesuffix(f"-{WAY}"): [subscription, each.value] for key, each in changed.items.items()})
        if {"colour", "size"} <= told.keys():
            arrived.set()

    identity = client.subscribe_configuration("settings", [colour, size], tell)
    over_http("PUT", f"/mesh/configuration/settings/{colour}", b"blue")
    over_http("PUT", f"/mesh/configuration/settings/{size}", b"7")
    await happened(arrived)
    seen["told"] = {key: [subscription == identity, value] for key, (subscription, value) in told.items()}
    seen["ended"] = client.unsubscribe_configuration("settings", identity)
    seen["ended_unknown"] = client.unsubscribe_configuration("settings", "none")
    return seen


async def locks(client):
    resource = f"r-{WAY}"
    held = await of(client.try_lock("locks", resource, "me", 60))
    other = await of(client.try_lock("locks", resource, "you", 60))
    statuses = [(await of(client.unlock("locks", resource, owner))).status.name for owner in ("you", "me", "me")]
    if WAY == "blocking":
        with client.try_lock("locks", resource, "me", 60) as scoped:
            within = scoped.success
    else:
        async with await client.try_lock("locks", resource, "me", 60) as scoped:
            within = scoped.success
    after = await of(client.try_lock("locks", resource, "you", 60))
    return {"held": [held.success, other.success, within, after.success], "unlocked": statuses}


async def crypto(client):
    async def encrypted(data, **options):
        return await of((await of(client.encrypt(data, EncryptOptions("vault", **options)))).read())

    async def decrypted(data):
        return await of((await of(client.decrypt(data, DecryptOptions("vault")))).read())

    how, large = {"key_name": "key", "key_wrap_algorithm": "AES"}, os.urandom(300_000)
    other = {"key_name": "key", "key_wrap_algorithm": "A256CBC-NOPAD", "data_encryption_cipher": "chacha20-poly1305"}
    documents = [await encrypted(b"hello", **how), await encrypted(large, **how), await encrypted("text", **other)]
    return {
        "back": [await decrypted(each) for each in documents] == [b"hello", large, b"text"],
        "hidden": not any(b"hello" in each or large in each for each in documents),
        "changed": await refused(lambda: decrypted(documents[0][:-1] + b"\0\0")),
        "no_key": await refused(lambda: encrypted(b"hello", key_name="none", key_wrap_algorithm="AES")),
    }


async def conversation(client):
    first = await of(
        client.converse_alpha1(
            "model",
            [talk.ConversationInput("call +2222222222", "user", scrub_pii=True)],
            context_id="c1",
            parameters={"max_tokens": 100, "stop": "x", "top_p": 0.5, "safe": True},
            metadata={"model": "m", "key": "k", "cacheTTL": "10m"},
            temperature=0.7,
        )
    )

    async def second(*messages, **more):
        answer = await of(client.converse_alpha2("model", [talk.ConversationInputAlpha2(list(messages))], **more))
        return answer.outputs[0].choices[0].message, answer

    schema = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
    tool = talk.ConversationTools(function=talk.ConversationToolsFunction("weather", "tells it", schema))
    asked = talk.create_user_message("Is it raining?")
    message, answer = await second(
        talk.create_system_message("Be brief."), asked, tools=[tool], tool_choice="auto", temperature=0.0
    )
    call = message.tool_calls[0]
    told = talk.create_tool_message(call.id, call.function.name, "yes")
    message, _ = await second(asked, *answer.to_assistant_messages(), told, scrub_pii=True, parameters={"n": 1})
    return {
        "first": [first.context_id, first.outputs[0].result, len(first.outputs[0].parameters)],
        "call": [call.id, call.function.name, call.function.arguments],
        "usage": answer.outputs[0].usage.total_tokens,
        "finish": answer.outputs[0].choices[0].finish_reason,
        "back": message.content.splitlines()[-1],
        "no_model": await refused(lambda: client.converse_alpha2("none", [talk.ConversationInputAlpha2([asked])])),
    }


async def metadata(client):
    await of(client.set_metadata("team", "shop"))
    got = await of(client.get_metadata())
    return {
        "id": got.application_id,
        "components": {each.name: [each.type, sorted(each.capabilities)] for each in got.registered_components},
        "team": got.extended_metadata["team"],
    }


async def invoke(client):
    settings.DAPR_API_METHOD_INVOCATION_PROTOCOL = "grpc"
    over_grpc = DaprClient()
    settings.DAPR_API_METHOD_INVOCATION_PROTOCOL = "http"
    seen = {}
    for name, each in (("http", client), ("grpc", over_grpc)):
        answer = await of(each.invoke_method("python", "hello", b"there", "text/plain", http_verb="POST"))
        seen[name] = [answer.text(), answer.content_type]
        seen[f"{name}_header"] = dict(answer.headers).get("greeted")
    seen["grpc_unknown"] = await refused(lambda: over_grpc.invoke_method("python", "nothing", b""))
    seen["grpc_broken"] = await refused(lambda: over_grpc.invoke_method("python", "broken", b""))
    seen["grpc_nobody"] = await refused(lambda: over_grpc.invoke_method("nobody", "hello", b""))
    try:
        await of(client.invoke_method("nobody", "hello", b"", http_verb="GET"))
    except DaprInternalError as error:
        seen["http_nobody"] = str(error)
    await of(over_grpc.close())
    return seen


def proxied():
    """Call the application's own service through the gateway, as the SDK's examples do: by a channel and its stub."""
    to = (("dapr-app-id", "python"),)
    with grpc.insecure_channel(f"127.0.0.1:{os.environ['DAPR_GRPC_PORT']}") as channel:
        seen = {
            "greet": channel.unary_unary("/shop.Shop/Greet")(b"world", metadata=to).decode(),
            "count": [each.decode() for each in channel.unary_stream("/shop.Shop/Count")(b"3", metadata=to)],
            "join": channel.stream_unary("/shop.Shop/Join")(iter([b"a", b"b"]), metadata=to).decode(),
            "upper": [
                each.decode() for each in channel.stream_stream("/shop.Shop/Upper")(iter([b"x", b"y"]), metadata=to)
            ],
        }
        try:
            channel.unary_unary("/shop.Shop/Refuse")(b"", metadata=to)
        except grpc.RpcError as error:
            seen["refuse"] = [error.code().name, error.details(), dict(error.trailing_metadata()).get("why")]
        return seen


async def main():
    DaprHealth.wait_for_sidecar()
    client = DaprClient()
    if WAY == "blocking":
        client.wait(5)
    parts = {
        each.__name__: each
        for each in (state, publish, streams, secrets, configuration, locks, crypto, conversation, metadata, invoke)
    }
    wanted = sys.argv[2:] or [*parts, "proxied", "shutdown"]
    seen = {name: await part(client) for name, part in parts.items() if name in wanted}
    if "proxied" in wanted:
        seen["proxied"] = proxied()
    if "shutdown" in wanted:
        await of(client.shutdown())
    await of(client.close())
    print(json.dumps(seen), flush=True)


if WAY == "asyncio":
    asyncio.run(main())
else:  # Nothing in it waits for a loop, which the SDK would not have run around it.
    with contextlib.suppress(StopIteration):
        main().send(None)
