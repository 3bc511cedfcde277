// Bindings, out and in, and cryptography, by the unmodified Node SDK; prints what it saw as one line of JSON.
const { CommunicationProtocolEnum, DaprClient, DaprServer } = require("@dapr/dapr");

const GRPC = process.env.PROTOCOL === "grpc";
const SPEAKING = { communicationProtocol: GRPC ? CommunicationProtocolEnum.GRPC : CommunicationProtocolEnum.HTTP };
const HOST = "127.0.0.1";
const { APP_PORT, GATEWAY_PORT } = process.env;

async function main() {
  const seen = { ticks: 0 };
  const server = new DaprServer({
    ...SPEAKING,
    serverHost: HOST,
    serverPort: APP_PORT,
    clientOptions: { daprHost: HOST, daprPort: GATEWAY_PORT },
  });
  const ticked = new Promise((resolve) =>
    server.binding.receive("tick", async () => {
      if (++seen.ticks === 2) resolve();
    }),
  );
  await server.start();
  const client = new DaprClient({ ...SPEAKING, daprHost: HOST, daprPort: GATEWAY_PORT });
  await client.start();
  seen.made = await client.binding.send("files", "create", "hello", { fileName: "a.txt" });
  await client.binding.send("files", "create", { a: 1 }, { fileName: "a.json" });
  seen.refused = await client.binding.send("nowhere", "create", "x").then(
    () => "",
    (error) => String(error),
  );
  if (GRPC) {
    const how = { componentName: "vault", keyName: "key", keyWrapAlgorithm: "AES" };
    const hidden = await client.crypto.encrypt(Buffer.from("a secret"), how);
    seen.hidden = !hidden.includes("a secret");
    seen.back = (await client.crypto.decrypt(hidden, { componentName: "vault" })).toString();
  }
  await ticked;
  console.log(JSON.stringify(seen));
  process.exit(0);
}

main().catch((error) => {
  console.error(error);
  process.exit(1);
});
