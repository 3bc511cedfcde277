// An application in plain Node: it keeps orders in the state store, hears of them by events, and calls out.
// POST /neworder stores {"data": {"orderId": …}}; GET /order gives the last one; POST /events/orders is a
// delivery, answered by publishing to "processed"; POST /ask calls the other application's /echo.
"use strict";

const fs = require("node:fs");
const http = require("node:http");

const gateway = `http://127.0.0.1:${process.env.DAPR_HTTP_PORT}/v1.0`;
const record = (kind, id) => fs.appendFileSync(process.env.APP_RECORDS, `${kind} ${id} ${process.pid}\n`);

const json = (body) => ({ method: "POST", headers: { "content-type": "application/json" }, body: JSON.stringify(body) });

async function call(path, options) {
  const response = await fetch(gateway + path, options);
  if (!response.ok) throw new Error(`${path}: ${response.status} ${await response.text()}`);
  return response;
}

const routes = {
  "GET /ready": async () => ({}),
  "GET /dapr/subscribe": async () => JSON.parse(process.env.APP_SUBSCRIPTIONS),
  "POST /neworder": async (body) => {
    await call("/state/statestore", json([{ key: "order", value: body.data }]));
    record("order", body.data.orderId);
    return { stored: body.data.orderId };
  },
  "GET /order": async () => (await call("/state/statestore/order")).json(),
  "POST /events/orders": async (event) => {
    await call("/publish/pubsub/processed", json({ id: event.data.id, by: "node" }));
    record("orders", event.data.id);
    return { status: "SUCCESS" };
  },
  "POST /ask": async (body) => (await call(`/invoke/${body.app}/method/echo?from=node`, json(body))).json(),
};

async function body(request) {
  let text = "";
  for await (const chunk of request) text += chunk;
  return text === "" ? undefined : JSON.parse(text);
}

http
  .createServer(async (request, response) => {
    try {
      const route = routes[`${request.method} ${request.url}`];
      const answer = route && (await route(await body(request)));
      response.writeHead(route ? 200 : 404, { "content-type": "application/json" });
      response.end(JSON.stringify(answer ?? null));
    } catch (error) {
      console.error(error);
      response.writeHead(500).end();
    }
  })
  .listen(Number(process.env.APP_PORT), "127.0.0.1");

for (const name of ["SIGTERM", "SIGINT"]) process.on(name, () => process.exit(0));
