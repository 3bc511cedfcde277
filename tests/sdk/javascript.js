// An application and a client on the unmodified Node SDK, over HTTP or gRPC; prints what it saw as one line of JSON.
const { CommunicationProtocolEnum, DaprClient, DaprServer, HttpMethod } = require("@dapr/dapr");

const GRPC = process.env.PROTOCOL === "grpc";
const SPEAKING = { communicationProtocol: GRPC ? CommunicationProtocolEnum.GRPC : CommunicationProtocolEnum.HTTP };
const HOST = "127.0.0.1";
const { APP_PORT, APP_GATEWAY_PORT, CLIENT_GATEWAY_PORT, CLIENT_HTTP_PORT, TOKEN } = process.env;
const EVENTS = 6;

// What the SDK gives as bytes over gRPC is a value over HTTP.
const valueOf = (data) => (data instanceof Uint8Array ? JSON.parse(Buffer.from(data).toString()) : data);

function arrivals(wanted) {
  let tell;
  const all = new Promise((resolve) => (tell = resolve));
  let count = 0;
  return { all, note: () => ++count === wanted && tell() };
}

// Over HTTP the SDK gives an error of publishing, over gRPC it throws it.
async function refusedText(call) {
  return call().then(
    (answer) => String(answer?.error ?? ""),
    (thrown) => String(thrown.error ?? thrown),
  );
}

async function main() {
  const seen = { events: [], bulkEvents: [], routed: [], dead: [] };
  const coming = arrivals(EVENTS);
  const keep = (list) => async (data) => {
    list.push(data);
    coming.note();
  };

  const server = new DaprServer({
    ...SPEAKING,
    serverHost: HOST,
    serverPort: APP_PORT,
    clientOptions: { daprHost: HOST, daprPort: APP_GATEWAY_PORT },
  });
  await server.pubsub.subscribe("pubsub", "orders", keep(seen.events));
  await server.pubsub.subscribeBulk("pubsub", "many", keep(seen.bulkEvents));
  const route = { default: "usual", rules: [{ match: `event.type == "important"`, path: "important" }] };
  await server.pubsub.subscribeWithOptions("pubsub", "kinds", { route, deadLetterTopic: "dead" });
  await server.pubsub.subscribeToRoute("pubsub", "kinds", "important", keep(seen.routed));
  await server.pubsub.subscribeToRoute("pubsub", "kinds", "usual", async () => "DROP");
  await server.pubsub.subscribe("pubsub", "dead", keep(seen.dead));
  await server.invoker.listen("hello", async ({ body, query }) => ({ body, query }), { method: HttpMethod.POST });
  await server.start();

  const client = new DaprClient({ ...SPEAKING, daprHost: HOST, daprPort: CLIENT_GATEWAY_PORT, daprApiToken: TOKEN });
  await client.start();
  seen.healthy = await client.health.isHealthy();

  await client.state.save("statestore", [
    { key: "one", value: { a: 1 } },
    { key: "two", value: "text" },
  ]);
  seen.saved = await client.state.get("statestore", "one");
  seen.bulk = await client.state.getBulk("statestore", ["one", "two", "three"]);
  await client.state.transaction("statestore", [
    { operation: "upsert", request: { key: "three", value: GRPC ? "3" : 3 } },
    { operation: "delete", request: { key: "one" } },
  ]);
  await client.state.delete("statestore", "two");
  seen.left = await client.state.getBulk("statestore", ["one", "two", "three"]);
  const metadata = { contentType: "application/json" };
  await client.state.save("queries", [
    { key: "ann", value: { name: "Ann", age: 30 }, metadata },
    { key: "bob", value: { name: "Bob", age: 40 }, metadata },
  ]);
  const query = { filter: { EQ: { age: 40 } }, sort: [], page: { limit: 10 } };
  seen.found = (await client.state.query("queries", query)).results.map((each) => valueOf(each.data));

  seen.secret = await client.secret.get("secrets", "SHOP_SECRET");
  seen.secrets = (await client.secret.getBulk("secrets")).SHOP_SECRET;
  seen.locks = [
    await client.lock.lock("locks", "r", "me", 60),
    await client.lock.lock("locks", "r", "you", 60),
    await client.lock.unlock("locks", "r", "you"),
    await client.lock.unlock("locks", "r", "me"),
    await client.lock.unlock("locks", "r", "me"),
  ];

  seen.published = [
    await client.pubsub.publish("pubsub", "orders", { orderId: 7 }),
    await client.pubsub.publish("pubsub", "orders", "plain"),
    await client.pubsub.publishBulk("pubsub", "many", [{ entryID: "e1", event: { n: 1 }, contentType: "application/json" }, "two"]),
  ];
  for (const kind of ["important", "usual"])
    await client.pubsub.publish("pubsub", "kinds", { kind }, { metadata: { "cloudevent.type": kind } });
  seen.refused = await refusedText(() => client.pubsub.publish("nowhere", "orders", {}));

  seen.invoked = await client.invoker.invoke("javascript", "hello", HttpMethod.POST, { hello: "world" });
  seen.nobody = await refusedText(() => client.invoker.invoke("nobody", "hello", HttpMethod.POST, {}));
  seen.id = (await client.metadata.get()).id;
  seen.tagged = await client.metadata.set("team", "shop");
  seen.extended = (await client.metadata.get()).extended.team;
  if (GRPC) seen.configuration = await configuration(client);
  await coming.all;
  if (GRPC) await client.sidecar.shutdown();
  console.log(JSON.stringify(seen));
  process.exit(0);
}

// The SDK has configuration over gRPC only.
async function configuration(client) {
  const url = `http://${HOST}:${CLIENT_HTTP_PORT}/v1.0/mesh/configuration/settings/colour`;
  const put = (body) => fetch(url, { method: "PUT", headers: { "dapr-api-token": TOKEN }, body });
  await put("red");
  const seen = { got: (await client.configuration.get("settings", ["colour"])).items.colour.value, told: [] };
  const [first, second] = [arrivals(1), arrivals(1)];
  const follow = (told, list) => (changed) => {
    list?.push(changed.items.colour.value);
    told.note();
  };
  // It does not tell when a subscription is there: so values are written until one is told.
  const stream = await client.configuration.subscribeWithKeys("settings", ["colour"], follow(first, seen.told));
  const all = await client.configuration.subscribe("settings", follow(second));
  for (let n = 0, there = false; !there; n++) {
    await put(`blue${n}`);
    const told = Promise.all([first.all, second.all]).then(() => true);
    there = await Promise.race([told, new Promise((resolve) => setTimeout(resolve, 200, false))]);
  }
  await stream.stop();
  await all.stop();
  return seen;
}

main().catch((error) => {
  console.error(error);
  process.exit(1);
});
