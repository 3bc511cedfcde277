// Counts what was ordered, and looks after the orders that nobody could pack.
'use strict';

const http = require('node:http');

const port = Number(process.env.APP_PORT ?? 6002);
let turnover = 0;

const routes = {
  '/count': (event) => {
    turnover += event.data.total;
    console.log(`Order ${event.data.orderId}: turnover is now ${turnover}`);
  },
  '/rejected': (event) => {
    console.log(`Order ${event.data.orderId}: writing to the customer that there is no ${event.data.item}`);
  },
};

async function json(request) {
  const chunks = [];
  for await (const chunk of request) chunks.push(chunk);
  return JSON.parse(Buffer.concat(chunks).toString());
}

const server = http.createServer(async (request, response) => {
  const route = request.method === 'POST' ? routes[request.url] : undefined;
  if (route === undefined) {
    // The gateway asks for /dapr/config and /dapr/subscribe; the subscriptions stand in a file.
    response.writeHead(404).end();
    return;
  }
  try {
    const event = await json(request);
    if (event.data?.orderId === undefined) {
      console.log('An event that is no order');
      response.writeHead(200, { 'Content-Type': 'application/json' }).end('{"status":"DROP"}');
      return;
    }
    route(event);
    response.writeHead(200, { 'Content-Type': 'application/json' }).end('{"status":"SUCCESS"}');
  } catch (error) {
    console.error(error.message);
    response.writeHead(500).end();
  }
});

server.listen(port, '127.0.0.1', () => console.log(`Office listening on port ${port}`));

for (const signal of ['SIGINT', 'SIGTERM']) {
  process.on(signal, () => {
    server.close(() => process.exit(0));
    server.closeIdleConnections();
  });
}
