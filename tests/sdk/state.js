// State by the unmodified Node SDK, over HTTP or gRPC; prints what it saw as one line of JSON.
const { CommunicationProtocolEnum, DaprClient, StateConcurrencyEnum } = require("@dapr/dapr");

const GRPC = process.env.PROTOCOL === "grpc";
const JSON_VALUE = { contentType: "application/json" };
const FIRST_WRITE = { concurrency: StateConcurrencyEnum.CONCURRENCY_FIRST_WRITE };
const client = new DaprClient({
  communicationProtocol: GRPC ? CommunicationProtocolEnum.GRPC : CommunicationProtocolEnum.HTTP,
  daprHost: "127.0.0.1",
  daprPort: process.env.CLIENT_GATEWAY_PORT,
});
const { STORE, QUERIES } = process.env;

// Over gRPC the SDK takes values of a transaction as text, and gives what a query found as bytes.
const given = (value) => (GRPC ? JSON.stringify(value) : value);
const valueOf = (data) => (data instanceof Uint8Array ? JSON.parse(Buffer.from(data).toString()) : data);

// Over HTTP the SDK gives an error, over gRPC it throws it.
const refusal = (call) => call.then((answer) => String(answer?.error ?? ""), String);

async function etagOf(key) {
  return (await client.state.getBulk(STORE, [key]))[0].etag;
}

async function main() {
  const seen = {};
  const { state } = client;
  seen.saved = await state.save(STORE, [
    { key: "one", value: { a: 1 } },
    { key: "two", value: "text" },
    { key: "three", value: [1, null, "ü"] },
  ]);
  seen.got = [];
  for (const key of ["one", "two", "three", "none"]) seen.got.push(await state.get(STORE, key));
  seen.bulk = await state.getBulk(STORE, ["one", "two", "none"]);

  const etag = await etagOf("one");
  seen.updated = await state.save(STORE, [{ key: "one", value: { a: 2 }, etag, options: FIRST_WRITE }]);
  seen.conflicts = [
    await refusal(state.save(STORE, [{ key: "one", value: { a: 3 }, etag, options: FIRST_WRITE }])),
    await refusal(state.delete(STORE, "one", { etag, ...FIRST_WRITE })),
    await refusal(state.save(STORE, [{ key: "two", value: "other", options: FIRST_WRITE }])),
  ];
  seen.kept = [await state.get(STORE, "one"), await state.get(STORE, "two")];
  seen.deleted = await state.delete(STORE, "one", { etag: await etagOf("one"), ...FIRST_WRITE });

  await state.transaction(STORE, [
    { operation: "upsert", request: { key: "four", value: given(4) } },
    { operation: "delete", request: { key: "two" } },
  ]);
  const stale = { key: "four", value: given(5), etag: "999999", options: FIRST_WRITE };
  seen.refused = await refusal(
    state.transaction(STORE, [
      { operation: "upsert", request: { key: "five", value: given(5) } },
      { operation: "upsert", request: stale },
    ]),
  );
  seen.left = [];
  for (const key of ["one", "two", "four", "five"]) seen.left.push(await state.get(STORE, key));

  if (QUERIES) {
    const people = [
      { key: "ann", value: { name: "Ann", age: 30 }, metadata: JSON_VALUE },
      { key: "bob", value: { name: "Bob", age: 40 }, metadata: JSON_VALUE },
      { key: "cid", value: { name: "Cid", age: 50 }, metadata: JSON_VALUE },
    ];
    await state.save(STORE, people);
    const found = await state.query(STORE, {
      filter: { OR: [{ EQ: { name: "Ann" } }, { EQ: { age: 50 } }] },
      sort: [{ key: "age", order: "DESC" }],
      page: { limit: 10 },
    });
    seen.found = found.results.map((each) => valueOf(each.data).name);
    seen.nobody = await state.query(STORE, { filter: { EQ: { name: "Dan" } }, sort: [], page: { limit: 10 } });
  }
  console.log(JSON.stringify(seen));
  process.exit(0);
}

main().catch((error) => {
  console.error(error);
  process.exit(1);
});
