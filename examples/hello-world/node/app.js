// Takes orders and keeps the last one in the state store, by plain HTTP to its gateway.
'use strict';

const http = require('node:http');

const port = Number(process.env.APP_PORT ?? 3000);
const store = `http://127.0.0.1:${process.env.DAPR_HTTP_PORT ?? 3500}/v1.0/state/statestore`;

async function text(request) {
  const chunks = [];
  for await (const chunk of request) chunks.push(chunk);
  return Buffer.concat(chunks).toString();
}

async function newOrder(request, response) {
  let order;
  try {
    order = JSON.parse(await text(request)).data;
    if (order?.orderId === undefined) throw new Error('data.orderId is missing');
  } catch (error) {
    response.writeHead(400).end(`not an order: ${error.message}\n`);
    return;
  }
  console.log(`Got a new order! Order ID: ${order.orderId}`);
  const saved = await fetch(store, {
    method: 'POST',
    headers: { 'Content-Type': 'application/json' },
    body: JSON.stringify([{ key: 'order', value: order }]),
  });
  if (!saved.ok) throw new Error(`the state store answered ${saved.status}: ${await saved.text()}`);
  response.writeHead(200).end();
}

async function order(request, response) {
  const found = await fetch(`${store}/order`);
  if (!found.ok) throw new Error(`the state store answered ${found.status}: ${await found.text()}`);
  if (found.status === 204) {
    response.writeHead(404).end('there is no order yet\n');
    return;
  }
  response.writeHead(200, { 'Content-Type': 'application/json' }).end(await found.text());
}

const routes = { 'POST /neworder': newOrder, 'GET /order': order };

const server = http.createServer(async (request, response) => {
  const route = routes[`${request.method} ${request.url.split('?')[0]}`];
  if (route === undefined) {
    response.writeHead(404).end();
    return;
  }
  try {
    await route(request, response);
  } catch (error) {
    console.error(error.message);
    response.writeHead(500).end(`${error.message}\n`);
  }
});

server.listen(port, '127.0.0.1', () => console.log(`Node app listening on port ${port}`));

for (const signal of ['SIGINT', 'SIGTERM']) {
  process.on(signal, () => {
    server.close(() => process.exit(0));
    server.closeIdleConnections();
  });
}
