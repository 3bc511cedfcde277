// A worker on the Node SDK: what each activity does is a line `effect <instance>/<task> <pid>`.
const { appendFileSync } = require("node:fs");
const { WorkflowRuntime } = require("@dapr/dapr");

const step = (context, given) => {
  const done = `${context.getWorkflowInstanceId()}/${context.getWorkflowActivityId()}`;
  appendFileSync(process.env.APP_RECORDS, `effect ${done} ${process.pid}\n`);
  return given + 1;
};

async function* leg(context, given) {
  return yield context.callActivity(step, 2 * given);
}

async function* order(context, given) {
  const first = yield context.callActivity(step, given);
  yield context.createTimer(0.05);
  const many = yield context.whenAll([0, 1, 2].map((each) => context.callActivity(step, given + each)));
  const child = yield context.callChildWorkflow(leg, given);
  const told = yield context.waitForExternalEvent("go");
  const sum = many.reduce((all, each) => all + each, 0);
  return [first, sum, child, told, yield context.callActivity(step, 1)];
}

// Its worker ends when its first connection fails, and another one is then the application's affair.
process.on("unhandledRejection", () => process.exit(1));
const runtime = new WorkflowRuntime();
runtime.registerActivity(step).registerWorkflow(order).registerWorkflow(leg);
runtime.start();
