// Answers each greeting with its own.
'use strict';

const http = require('node:http');

const server = http.createServer(async (request, response) => {
  if (request.url === '/dapr/subscribe') {
    response.end(JSON.stringify([{ pubsubname: 'greetings', topic: 'names', route: '/names' }]));
    return;
  }
  const chunks = [];
  for await (const chunk of request) chunks.push(chunk);
  if (request.url === '/names') {
    const { name, greeting } = JSON.parse(Buffer.concat(chunks)).data ?? {};
    if (name === undefined) {
      response.end('{"status":"DROP"}');
      return;
    }
    console.log(`${greeting}, ${name}! ${process.env.GREETING}!`);
  }
  response.end();
});

server.listen(Number(process.env.APP_PORT), '127.0.0.1');
