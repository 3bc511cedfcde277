// Accounts as actors, with Node alone: a balance, a reminder that pays interest once, and a job for the application.
'use strict';

const http = require('node:http');

const gateway = `http://127.0.0.1:${process.env.DAPR_HTTP_PORT ?? 3500}/v1.0`;
const port = Number(process.env.APP_PORT ?? 3000);

async function ask(method, path, value) {
  const answer = await fetch(gateway + path, { method, body: value && JSON.stringify(value) });
  const text = await answer.text();
  if (!answer.ok) throw new Error(`${method} ${path}: ${answer.status} ${text}`);
  return text ? JSON.parse(text) : null;
}

const balance = async (id) => (await ask('GET', `/actors/account/${id}/state/balance`)) ?? 0;

// Nobody else does anything with this account meanwhile: there is no lock, and none is needed.
async function change(id, by) {
  const value = (await balance(id)) + by;
  await ask('POST', `/actors/account/${id}/state`, [{ operation: 'upsert', request: { key: 'balance', value } }]);
  return value;
}

const methods = {
  balance,
  deposit: change,
  save: (id) => ask('POST', `/actors/account/${id}/reminders/interest`, { dueTime: '1s', data: 7 }),
  async remind(id, reminder, name) {
    console.log(`Account ${id} has ${await change(id, reminder.data)} after its ${name}`);
  },
};

async function body(request) {
  const chunks = [];
  for await (const chunk of request) chunks.push(chunk);
  return chunks.length ? JSON.parse(Buffer.concat(chunks)) : undefined;
}

// What is undefined is 404, and null is an empty answer.
async function handle(request) {
  const given = await body(request);
  const [first, ...path] = request.url.slice(1).split('/');
  if (request.url === '/dapr/config') return { entities: ['account'], actorIdleTimeout: '10m' };
  if (first === 'job') {
    console.log(`Job ${path[0]}: ${given}`);
    return null;
  }
  if (first !== 'actors') return undefined;
  if (request.method === 'DELETE') return null;
  const [, id, , method, ...more] = path;
  return Object.hasOwn(methods, method) ? ((await methods[method](id, given, ...more)) ?? null) : undefined;
}

const server = http.createServer(async (request, response) => {
  try {
    const answer = await handle(request);
    response.writeHead(answer === undefined ? 404 : 200).end(answer == null ? '' : JSON.stringify(answer));
  } catch (error) {
    console.log(error.message);
    response.writeHead(500).end();
  }
});

server.listen(port, '127.0.0.1', async () => {
  console.log(`Bank listening on port ${port}`);
  try {
    await ask('POST', '/jobs/audit', { dueTime: '1s', data: 'count everything', overwrite: true });
  } catch (error) {
    console.log(error.message);
  }
});
