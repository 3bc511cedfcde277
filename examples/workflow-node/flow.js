// Workflows over HTTP with Node alone: a worker. What is asked and answered is in docs/workflow-http.md.
'use strict';

const http = require('node:http');

// Something that a workflow asks for; `yield` gives its result once it is there.
const task = (action) => ({ action, number: 0, done: Boolean(action.send || action.start) }); // Nothing comes back of these.
const activity = (name, input, more) => task({ activity: name, input, ...more });
const timer = (when) => task({ timer: when });
const event = (name) => task({ wait: name });
const workflow = (name, input, more) => task({ workflow: name, input, ...more });
const allOf = (...tasks) => ({
  tasks,
  ready: () => tasks.every(({ done }) => done),
  error: () => tasks.find(({ error }) => error)?.error,
  result: () => tasks.map(({ result }) => result),
});
const anyOf = (...tasks) => ({
  tasks,
  ready: () => tasks.some(({ done }) => done),
  error: () => undefined,
  result: () => tasks.find(({ done }) => done),
});
const one = (given) => (given.tasks ? given : { ...allOf(given), result: () => given.result });

// Runs a workflow from its beginning, over all that has happened; gives all that it asks for, and how it ended.
function run(code, history) {
  const asked = [];
  const raised = [];
  let waits = { tasks: [], ready: () => true, error: () => undefined, result: () => undefined };
  const end = (answer) => ({ actions: asked.map(({ action }) => action), ...answer });
  const settle = (done, outcome) => done && !done.done && Object.assign(done, { done: true, ...outcome });

  function matchEvents() { // Each wait takes the first event of its name that is left.
    if (!raised.length) return;
    for (const each of asked.filter(({ done, action }) => !done && action.wait)) {
      const index = raised.findIndex(({ name }) => name === each.action.wait);
      if (index >= 0) settle(each, { result: raised.splice(index, 1)[0].data });
    }
  }

  function goOn() {
    while (waits.ready()) {
      const error = waits.error();
      const failure = error && Object.assign(new Error(error.message), { name: error.type });
      const { done, value } = error ? code.throw(failure) : code.next(waits.result());
      if (done) return { complete: value ?? null };
      waits = one(value);
      for (const each of waits.tasks) if (!each.number) each.number = asked.push(each);
      matchEvents();
    }
    return undefined;
  }

  try {
    let ended = goOn();
    for (const happened of ended ? [] : history) {
      const which = asked[(happened.task ?? 0) - 1];
      if (happened.event === 'completed') settle(which, { result: happened.result });
      if (happened.event === 'failed') settle(which, { error: happened.error });
      if (happened.event === 'fired') settle(which, {});
      if (happened.event === 'raised') raised.push(happened);
      matchEvents();
      ended = goOn();
      if (ended) break;
    }
    return end(ended);
  } catch (error) {
    return end({ fail: { type: error.name, message: error.message } });
  }
}

async function body(request) {
  const chunks = [];
  for await (const chunk of request) chunks.push(chunk);
  return chunks.length ? JSON.parse(Buffer.concat(chunks)) : undefined;
}

// Serves functions by their names until the program ends.
function serve(workflows, activities) {
  const config = { workflows: Object.keys(workflows), activities: Object.keys(activities) };

  async function handle(request) { // What is undefined is 404.
    const given = await body(request);
    if (request.url === '/dapr/config') return config;
    const [, , kind, name] = decodeURIComponent(request.url).split('/');
    if (kind === 'run' && Object.hasOwn(workflows, name)) return run(workflows[name](given.input), given.history);
    if (kind !== 'activity' || !Object.hasOwn(activities, name)) return undefined;
    return (await activities[name](given, request.headers)) ?? null;
  }

  const server = http.createServer(async (request, response) => {
    try {
      const answer = await handle(request);
      response.writeHead(answer === undefined ? 404 : 200).end(JSON.stringify(answer));
    } catch (error) {
      response.writeHead(500).end(JSON.stringify({ type: error.name, message: error.message }));
    }
  });
  const port = Number(process.env.APP_PORT ?? 3000);
  server.listen(port, '127.0.0.1', () => console.log(`Worker listening on port ${port}`));
}

module.exports = { task, activity, timer, event, workflow, allOf, anyOf, serve };
