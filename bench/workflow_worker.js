// A worker on the official Node SDK: activities that give back what they are given.
const { createRequire } = require("node:module");
const sdk = createRequire(`${__dirname}/../tests/sdk/`);
const { WorkflowRuntime } = sdk("@dapr/dapr");

const echo = (_context, given) => given;

async function* chain(context, given) {
  for (let number = 0; number < given; number++) {
    yield context.callActivity(echo, number);
  }
  return given;
}

async function* fan(context, given) {
  yield context.whenAll(Array.from({ length: given }, (_, number) => context.callActivity(echo, number)));
  return given;
}

async function* wait(context, given) {
  yield context.waitForExternalEvent("go");
  return given;
}

const runtime = new WorkflowRuntime({ daprHost: "127.0.0.1", daprPort: process.argv[2] });
runtime.registerActivity(echo).registerWorkflow(chain).registerWorkflow(fan).registerWorkflow(wait);
runtime.start();
process.stdin.resume().on("end", () => process.exit());
