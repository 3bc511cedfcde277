// Node without a framework: says what it subscribes to, takes events, answers calls.
'use strict';

const http = require('node:http');

const port = Number(process.env.APP_PORT ?? 3000);
const subscriptions = [{ pubsubname: 'pubsub', topic: 'orders', route: '/orders' }];
let last = null;

async function body(request) {
  const chunks = [];
  for await (const chunk of request) chunks.push(chunk);
  return JSON.parse(Buffer.concat(chunks));
}

const routes = {
  'GET /dapr/subscribe': () => subscriptions,
  'GET /last': () => last,
  'POST /orders': async (request) => {
    const { data } = await body(request);
    if (data?.orderId === undefined) {
      console.log('Dropped an event that is no order');
      return { status: 'DROP' };
    }
    last = data;
    console.log(`Got order ${last.orderId}`);
    return { status: 'SUCCESS' };
  },
};

const server = http.createServer(async (request, response) => {
  const route = routes[`${request.method} ${request.url}`];
  if (route === undefined) {
    response.writeHead(404).end();
    return;
  }
  const answer = JSON.stringify(await route(request));
  response.writeHead(200, { 'Content-Type': 'application/json' }).end(answer);
});

server.listen(port, '127.0.0.1', () => console.log(`Node listening on port ${port}`));
