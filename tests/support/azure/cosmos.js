// Cosmos DB as cosmosdb-server has it, and what it lacks, by Microsoft's documentation of the REST interface:
// transactional batches are all or nothing, items expire where the container has a defaultTtl, one that is missing
// is answered with 404, and a query is of the partition that it names.
// Usage: node cosmos.js PORT

const handlers = "@vercel/cosmosdb-server/lib/handler/";
const operations = require(handlers + "_document-operations");
const readJSON = require("@vercel/cosmosdb-server/lib/json").default;
const MOST = 100;
const expiring = [];

function expire(collection) {
  const lasts = (collection.read() || {}).defaultTtl;
  const now = Date.now() / 1000;
  for (let i = expiring.length - 1; i >= 0; i -= 1) {
    const { of, id, partition } = expiring[i];
    if (of !== collection) continue;
    const found = collection.document(id, partition).read();
    const ttl = found && found.ttl;
    if (ttl && lasts && found._ts + ttl > now) continue;
    if (ttl && lasts) collection.documents.delete(id, partition);
    expiring.splice(i, 1);
  }
}

function note(collection, item) {
  if (item && item.ttl > 0) expiring.push({ of: collection, id: item.id, partition: item.partitionKey });
}

function wrapped(handler) {
  return async (account, req, res, params) => {
    const collection = account.database(params.dbId).collection(params.collId);
    const known = collection.read();
    if (known) expire(collection);
    const answer = await handler(account, req, res, params);
    if (!known || res.statusCode >= 300) return answer;
    note(collection, answer);
    const partition = req.headers["x-ms-documentdb-partitionkey"];
    if (answer && answer.Documents && partition) {
      const [key] = JSON.parse(partition);
      return { ...answer, Documents: answer.Documents.filter(each => each.partitionKey === key) };
    }
    return answer;
  };
}

async function batch(account, req, res, { dbId, collId }) {
  const asked = await readJSON(req);
  const collection = account.database(dbId).collection(collId);
  const partition = req.headers["x-ms-documentdb-partitionkey"];
  const [key] = JSON.parse(partition);
  if (!Array.isArray(asked) || asked.length > MOST) {
    res.statusCode = 400;
    return { message: `Batch request has more operations than what is supported: ${MOST}.` };
  }
  const wrong = asked.find(each => each.resourceBody && each.resourceBody.partitionKey !== key);
  if (wrong) {
    res.statusCode = 400;
    return { message: "PartitionKey extracted from document doesn't match the one specified in the header" };
  }
  const before = new Map();
  const results = [];
  let failed = false;
  for (const each of asked) {
    const id = each.id || each.resourceBody.id;
    if (!before.has(id)) before.set(id, collection.document(id, key).read());
    const run = operations[`${each.operationType.toLowerCase()}Operation`];
    const result = failed ? { statusCode: 424 } : run(collection, { ...each, partitionKey: partition });
    failed = failed || result.statusCode >= 400;
    results.push({ statusCode: result.statusCode, requestCharge: 1, eTag: (result.body || {})._etag });
  }
  if (failed) {
    for (const [id, was] of before) {
      if (collection.document(id, key).read()) collection.documents.delete(id, key);
      if (was) collection.documents._set(was);
    }
    res.statusCode = 207;
    return results.map(each => (each.statusCode >= 400 ? each : { ...each, statusCode: 424 }));
  }
  asked.forEach(each => note(collection, each.resourceBody));
  return results;
}

function read(account, req, res, { dbId, collId, docId }) {
  const collection = account.database(dbId).collection(collId);
  const partitionKey = req.headers["x-ms-documentdb-partitionkey"];
  const result = operations.readOperation(collection, { partitionKey, id: docId });
  res.statusCode = result.statusCode;
  return result.body;
}

require(handlers + "batch-documents").default = batch;
require(handlers + "read-document").default = read;
for (const name of ["batch", "create", "delete", "query", "read", "replace", "upsert"]) {
  const file = name === "batch" || name === "query" ? `${name}-documents` : `${name}-document`;
  const handler = require(handlers + file);
  handler.default = wrapped(handler.default);
}
require("@vercel/cosmosdb-server").createHttpServer({ keepAlive: true }).listen(Number(process.argv[2]), "127.0.0.1");
