// The order processor of a quickstart of workflows, as it is written for `dapr run`.
const { CommunicationProtocolEnum, DaprClient, DaprWorkflowClient, WorkflowRuntime } = require("@dapr/dapr");

const STORE = "statestore";
const store = new DaprClient({
  daprHost: "127.0.0.1",
  daprPort: process.env.DAPR_GRPC_PORT,
  communicationProtocol: CommunicationProtocolEnum.GRPC,
});

const notifyActivity = async (_context, message) => console.log(message);

const verifyInventoryActivity = async (_context, order) => {
  const item = await store.state.get(STORE, order.item);
  return { success: Boolean(item) && item.quantity >= order.quantity };
};

const requestApprovalActivity = async (_context, order) => console.log(`asking for the approval of ${order.total}`);

const processPaymentActivity = async (_context, order) => order.total > 0;

const updateInventoryActivity = async (_context, order) => {
  const item = await store.state.get(STORE, order.item);
  const quantity = item.quantity - order.quantity;
  await store.state.save(STORE, [{ key: order.item, value: { quantity } }]);
  console.log(`there are now ${quantity} ${order.item} left in stock`);
  return { success: true };
};

async function* orderProcessingWorkflow(context, order) {
  yield context.callActivity(notifyActivity, `received order ${context.getWorkflowInstanceId()}`);
  const reserved = yield context.callActivity(verifyInventoryActivity, order);
  if (!reserved.success) return { processed: false };
  if (order.total >= 5000) {
    yield context.callActivity(requestApprovalActivity, order);
    const approval = context.waitForExternalEvent("approval_event");
    const timeout = context.createTimer(30);
    if ((yield context.whenAny([approval, timeout])) === timeout || !approval.getResult()) return { processed: false };
  }
  if (!(yield context.callActivity(processPaymentActivity, order))) return { processed: false };
  const updated = yield context.callActivity(updateInventoryActivity, order);
  yield context.callActivity(notifyActivity, "order processed successfully");
  return { processed: updated.success };
}

async function main() {
  const client = new DaprWorkflowClient();
  const runtime = new WorkflowRuntime()
    .registerWorkflow(orderProcessingWorkflow)
    .registerActivity(notifyActivity)
    .registerActivity(verifyInventoryActivity)
    .registerActivity(requestApprovalActivity)
    .registerActivity(processPaymentActivity)
    .registerActivity(updateInventoryActivity);
  await store.state.save(STORE, [{ key: "item1", value: { quantity: 100 } }]);
  await runtime.start();
  for (const quantity of [10, 60, 1000]) {
    const id = await client.scheduleNewWorkflow(orderProcessingWorkflow, { item: "item1", quantity, total: 100 * quantity });
    if (quantity === 60) await client.raiseEvent(id, "approval_event", true);
    const state = await client.waitForWorkflowCompletion(id, undefined, 60);
    console.log(`orchestration of ${quantity} completed: ${state.serializedOutput}`);
  }
  await runtime.stop();
  await client.stop();
  await store.stop();
  process.exit(0);
}

main().catch((error) => {
  console.error(error);
  process.exit(1);
});
