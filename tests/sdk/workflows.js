// Workflows on the official Node SDK: a worker, and a client over the gateway of another application's own worker;
// prints what it saw as one line of JSON.
const { DaprWorkflowClient, WorkflowRuntime } = require("@dapr/dapr");

const WIDE = 1000;
const PATIENCE = 120;
const STATUS = { 0: "RUNNING", 1: "COMPLETED", 3: "FAILED", 5: "TERMINATED", 6: "PENDING", 7: "SUSPENDED" };
const where = { daprHost: "127.0.0.1", daprPort: process.env.SHOP_GRPC_PORT };
const client = new DaprWorkflowClient(where);
const runtime = new WorkflowRuntime(where);

const double = async (_context, number) => 2 * number;
const nothing = (_context) => undefined;
const fail = (_context, name) => {
  throw new Error(`${name} is closed`);
};

async function* sequence(context, number) {
  for (let step = 0; step < 3; step++) {
    number = yield context.callActivity(double, number);
    context.setCustomStatus(`at ${number}`);
  }
  return [number, (yield context.callActivity(nothing)) ?? null];
}

async function* fan(context, count) {
  const found = yield context.whenAll(Array.from({ length: count }, (_, number) => context.callActivity(double, number)));
  return found.reduce((sum, each) => sum + each, 0);
}

async function* race(context, seconds) {
  const event = context.waitForExternalEvent("go");
  const won = yield context.whenAny([event, context.createTimer(seconds)]);
  return won === event ? event.getResult() : "late";
}

async function* timers(context) {
  yield context.createTimer(0.001);
  yield context.createTimer(new Date("2001-01-01"));
  const short = context.createTimer(0.01);
  return (yield context.whenAny([context.createTimer(new Date("2200-01-01")), short])) === short;
}

async function* failing(context, name) {
  yield context.callActivity(fail, name);
}

async function* parent(context, text) {
  const named = yield context.callChildWorkflow(sequence, 1, `${context.getWorkflowInstanceId()}-named`);
  const unnamed = yield context.callChildWorkflow(sequence, 2);
  try {
    yield context.callChildWorkflow(failing, text);
  } catch (error) {
    return [named[0], unnamed[0], error.message];
  }
}

async function* again(context, given) {
  const kept = [...given.kept, yield context.waitForExternalEvent("item")];
  if (kept.length === given.until) return kept;
  context.continueAsNew({ ...given, kept }, true);
}

async function* waits(context) {
  const first = yield context.waitForExternalEvent("one");
  return [first, yield context.waitForExternalEvent("two")];
}

async function* waitsForChild(context, name) {
  yield context.callChildWorkflow(waits, null, `${name}-child`);
}

for (const each of [double, nothing, fail]) runtime.registerActivity(each);
for (const each of [sequence, fan, race, timers, failing, parent, again, waits, waitsForChild]) runtime.registerWorkflow(each);

const start = (workflow, given, name = workflow.name, at) => client.scheduleNewWorkflow(workflow, given, name, at);

async function ended(name) {
  const state = await client.waitForWorkflowCompletion(name, true, PATIENCE);
  return [STATUS[state.runtimeStatus], state.serializedOutput ? JSON.parse(state.serializedOutput) : null];
}

async function status(name) {
  const state = await client.getWorkflowState(name, false);
  return state === undefined ? null : STATUS[state.runtimeStatus];
}

async function refused(doing) {
  try {
    await doing();
    return "?";
  } catch (error) {
    return error.code ?? error.message;
  }
}

async function until(check) {
  const end = Date.now() + PATIENCE * 1000;
  while (!(await check())) {
    if (Date.now() > end) throw new Error("it did not come about");
    await new Promise((done) => setTimeout(done, 10));
  }
}

async function ends() {
  await start(sequence, 1);
  await start(fan, WIDE);
  await start(race, 0.005, "race-timer");
  await start(race, 3600, "race-event");
  await start(timers);
  await start(failing, "it");
  await start(parent, "child");
  await start(again, { until: 3, kept: [] });
  for (const item of ["a", "b", "c"]) await client.raiseEvent("again", "item", item);
  const at = new Date(Date.now() + 300);
  await start(sequence, 5, "scheduled", at);
  const found = { pending: await status("scheduled") };
  await client.raiseEvent("race-event", "GO", { by: "ü" });
  const names = ["sequence", "fan", "race-timer", "race-event", "timers", "parent", "again", "scheduled"];
  const told = await Promise.all(names.map(ended));
  names.forEach((name, index) => (found[name] = told[index]));
  const scheduled = await client.getWorkflowState("scheduled", true);
  found.notEarly = scheduled.lastUpdatedAt >= at;
  const failed = await client.waitForWorkflowCompletion("failing", true, PATIENCE);
  found.failing = [STATUS[failed.runtimeStatus], failed.workflowFailureDetails.getErrorMessage()];
  const state = await client.getWorkflowState("sequence", true);
  found.state = [state.name, state.serializedInput, state.customStatus];
  return found;
}

async function managed() {
  await start(waits, null, "held");
  await client.waitForWorkflowStart("held", false, PATIENCE);
  await client.suspendWorkflow("held");
  const found = { paused: await status("held") };
  await client.raiseEvent("held", "one", 1);
  await client.raiseEvent("held", "two", 2);
  found.still = await status("held");
  await client.resumeWorkflow("held");
  found.held = await ended("held");
  await start(waitsForChild, "tree", "tree");
  await until(async () => (await status("tree-child")) === "RUNNING");
  found.taken = await refused(() => start(waits, null, "tree"));
  await client.terminateWorkflow("tree", { why: "late" });
  found.terminated = [await ended("tree"), (await status("tree-child")) !== null];
  found.purged = [await client.purgeWorkflow("tree"), await status("tree")];
  found.again = [await start(sequence, 3, "held"), await ended("held")];
  found.nobody = [await status("nobody"), await refused(() => client.raiseEvent("nobody", "one"))];
  return found;
}

async function main() {
  await runtime.start();
  const seen = { ends: await ends(), managed: await managed() };
  await runtime.stop();
  await client.stop();
  console.log(JSON.stringify(seen));
  process.exit();
}

main().catch((error) => {
  console.error(error);
  process.exit(1);
});
