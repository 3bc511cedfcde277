// An application and a client on the unmodified Node SDK, over HTTP; prints what it saw as one line of JSON.
const { CommunicationProtocolEnum, DaprClient, DaprServer, HttpMethod } = require("@dapr/dapr");

const HTTP = { communicationProtocol: CommunicationProtocolEnum.HTTP };
const HOST = "127.0.0.1";
const { APP_PORT, APP_GATEWAY_PORT, CLIENT_GATEWAY_PORT } = process.env;

async function main() {
  const seen = { events: [], bulkEvents: [] };
  let noteArrival;
  const arrivals = (wanted) =>
    new Promise((resolve) => {
      noteArrival = () => {
        if (seen.events.length + seen.bulkEvents.length >= wanted) resolve();
      };
      noteArrival();
    });

  const server = new DaprServer({
    ...HTTP,
    serverHost: HOST,
    serverPort: APP_PORT,
    clientOptions: { daprHost: HOST, daprPort: APP_GATEWAY_PORT },
  });
  await server.pubsub.subscribe("pubsub", "orders", async (data) => {
    seen.events.push(data);
    noteArrival?.();
  });
  await server.pubsub.subscribeBulk("pubsub", "many", async (data) => {
    seen.bulkEvents.push(data);
    noteArrival?.();
  });
  await server.invoker.listen("hello", async ({ body, query }) => ({ body, query }), { method: HttpMethod.POST });
  await server.start();

  const client = new DaprClient({ ...HTTP, daprHost: HOST, daprPort: CLIENT_GATEWAY_PORT });
  await client.start();
  seen.healthy = await client.health.isHealthy();

  await client.state.save("statestore", [
    { key: "one", value: { a: 1 } },
    { key: "two", value: "text" },
  ]);
  seen.saved = await client.state.get("statestore", "one");
  seen.bulk = await client.state.getBulk("statestore", ["one", "two", "three"]);
  await client.state.transaction("statestore", [
    { operation: "upsert", request: { key: "three", value: 3 } },
    { operation: "delete", request: { key: "one" } },
  ]);
  await client.state.delete("statestore", "two");
  seen.left = await client.state.getBulk("statestore", ["one", "two", "three"]);

  seen.secret = await client.secret.get("secrets", "SHOP_SECRET");
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
  const refused = await client.pubsub.publish("nowhere", "orders", {});
  seen.refused = String(refused.error);

  seen.invoked = await client.invoker.invoke("javascript", "hello", HttpMethod.POST, { hello: "world" });
  seen.id = (await client.metadata.get()).id;
  seen.tagged = await client.metadata.set("team", "shop");
  await arrivals(4);
  console.log(JSON.stringify(seen));
  await server.stop();
  process.exit(0);
}

main().catch((error) => {
  console.error(error);
  process.exit(1);
});
