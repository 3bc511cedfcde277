// A worker on the official Node SDK: it gives back what it is given. It says what it has done when a line comes in, and
// ends when no more can.
const { createRequire } = require("node:module");
const { createInterface } = require("node:readline");
const { WorkflowRuntime } = createRequire(`${__dirname}/../tests/sdk/`)("@dapr/dapr");

let tasks = 0;
let ended = 0;
let turns = 0;

const echo = (_context, given) => {
  tasks++;
  return given;
};

async function* chain(context, given) {
  turns++;
  for (let number = 0; number < given; number++) {
    yield context.callActivity(echo, number);
  }
  ended++;
  return given;
}

async function* fan(context, given) {
  turns++;
  yield context.whenAll(Array.from({ length: given }, (_, number) => context.callActivity(echo, number)));
  ended++;
  return given;
}

const say = (told) => process.stdout.write(`${JSON.stringify(told)}\n`);
console.log = console.info = console.debug = console.error; // What the SDK says is no answer.
const runtime = new WorkflowRuntime({ daprHost: "127.0.0.1", daprPort: process.argv[2] });
runtime.registerActivity(echo).registerWorkflow(chain).registerWorkflow(fan);
runtime.start().then(() => say({ port: 0 }));
const lines = createInterface({ input: process.stdin });
lines.on("line", () => say({ tasks, ended, turns }));
lines.on("close", () => process.exit());
