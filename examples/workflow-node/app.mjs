// A worker over HTTP: an order is paid with retries, approved by an event within a time, and packed all at once.

import http from 'node:http';
import { text } from 'node:stream/consumers';

function* order(ask, { total, items, patience = '1h' }) {
  const payment = yield ask({ activity: 'charge', input: total, retry: { attempts: 4, first: '100ms' } });
  try {
    if (total > 1000) {
      const approved = yield firstOf(ask({ wait: 'approve' }), ask({ timer: patience }));
      if (!approved) throw new Error('not approved'); // A timer gives nothing.
    }
    const parcels = items.map((item) => ask({ activity: 'pack', input: item })); // All are asked for at once,
    for (const number of parcels.keys()) parcels[number] = yield parcels[number]; // and then each is waited for.
    return { state: 'sent', payment, parcels };
  } catch (failure) {
    yield ask({ operation: 'publish', pubsub: 'pubsub', topic: 'refunds', data: payment });
    return { state: 'refused', reason: failure.message };
  }
}

function charge(total, headers) {
  if (headers['mesh-workflow-attempt'] === '1') throw new Error('the bank is away');
  return `payment of ${total}`;
}

// Runs a workflow from its beginning over its history; gives all that it has asked for, and how it ended.
function run(code, { input, history }) {
  const actions = [];
  const came = new Map();
  for (const [at, { event, task, name, result, data, error }] of history.entries()) {
    if (!['completed', 'failed', 'fired', 'raised'].includes(event)) continue;
    came.set(task ?? name, [...(came.get(task ?? name) ?? []), { at, error, result: result ?? data }]);
  }
  const ask = (action) => {
    actions.push(action);
    return came.get(action.wait ?? actions.length)?.shift(); // What has come of it; undefined if nothing has.
  };
  try {
    const steps = code(ask, input);
    let { done, value } = steps.next();
    // It goes on for as long as what it waits for has come.
    while (!done && value)
      ({ done, value } = value.error ? steps.throw(Object.assign(new Error(), value.error)) : steps.next(value.result));
    return done ? { actions, complete: value ?? null } : { actions };
  } catch (error) {
    return { actions, fail: { type: error.type ?? error.name, message: error.message } };
  }
}

const firstOf = (...tasks) => tasks.filter(Boolean).sort((one, other) => one.at - other.at)[0];

const answers = {
  '/dapr/config': () => ({ workflows: ['order'], activities: ['charge', 'pack'] }),
  '/workflow/run/order': (turn) => run(order, turn),
  '/workflow/activity/charge': charge,
  '/workflow/activity/pack': (item) => `a box with a ${item}`,
};

const server = http.createServer(async (request, response) => {
  try {
    const body = await text(request);
    const answer = answers[request.url];
    if (!answer) response.writeHead(404).end();
    else response.end(JSON.stringify(await answer(body ? JSON.parse(body) : null, request.headers)));
  } catch (error) {
    response.writeHead(500).end(JSON.stringify({ type: error.name, message: error.message }));
  }
});
server.listen(Number(process.env.APP_PORT ?? 3000), '127.0.0.1');
