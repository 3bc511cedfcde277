"""The order processor of a quickstart of workflows, as it is written for `dapr run`."""

import json
import logging
import time
from dataclasses import dataclass
from datetime import timedelta

import dapr.ext.workflow as wf
from dapr.clients import DaprClient

STORE = "statestore"
APPROVED_FROM = 50_000

logging.basicConfig(level=logging.INFO, format="%(message)s")
runtime = wf.WorkflowRuntime()


@dataclass
class Order:
    """What is bought."""

    item: str
    quantity: int
    total: int


@dataclass
class Reservation:
    """Whether there is enough of it."""

    success: bool
    left: int


@runtime.workflow(name="order_processing_workflow")
def process(context: wf.DaprWorkflowContext, order: Order):
    """Check the inventory, ask for an approval of what is expensive, take the payment, and send it."""
    yield context.call_activity(notify, input=f"received {order.quantity} {order.item} at {order.total}")
    reserved: Reservation = yield context.call_activity(verify_inventory, input=order)
    if not reserved.success:
        yield context.call_activity(notify, input=f"there are only {reserved.left} {order.item}")
        return {"processed": False}
    if order.total >= APPROVED_FROM:
        yield context.call_activity(request_approval, input=order)
        approval = context.wait_for_external_event("manager_approval")
        winner = yield wf.when_any([approval, context.create_timer(timedelta(seconds=200))])
        if winner != approval or not approval.get_result()["approval"]:
            yield context.call_activity(notify, input="the payment was not approved")
            return {"processed": False}
    yield context.call_activity(process_payment, input=order)
    try:
        yield context.call_activity(update_inventory, input=order)
    except wf.TaskFailedError as error:
        yield context.call_activity(notify, input=f"the order has failed: {error}")
        return {"processed": False}
    yield context.call_activity(notify, input="the order has completed")
    return {"processed": True}


@runtime.activity(name="notify_activity")
def notify(_context: wf.WorkflowActivityContext, message: str):
    """Say something."""
    logging.getLogger("notify").info(message)


@runtime.activity(name="verify_inventory_activity")
def verify_inventory(_context: wf.WorkflowActivityContext, order: Order) -> Reservation:
    """See how many there are."""
    with DaprClient() as client:
        left = client.get_state(STORE, order.item).json()["quantity"]
    return Reservation(left >= order.quantity, left)


@runtime.activity(name="request_approval_activity")
def request_approval(_context: wf.WorkflowActivityContext, order: Order):
    """Ask the manager."""
    logging.getLogger("approval").info("asking for the approval of %d", order.total)


@runtime.activity(name="process_payment_activity")
def process_payment(_context: wf.WorkflowActivityContext, order: Order):
    """Take the money."""
    logging.getLogger("payment").info("paid %d", order.total)


@runtime.activity(name="update_inventory_activity")
def update_inventory(_context: wf.WorkflowActivityContext, order: Order):
    """Take the items."""
    with DaprClient() as client:
        found = client.get_state(STORE, order.item)
        left = found.json()["quantity"] - order.quantity
        if left < 0:
            raise ValueError("insufficient inventory")
        client.save_state(STORE, order.item, json.dumps({"quantity": left}), etag=found.etag)
    logging.getLogger("inventory").info("there are now %d %s left in stock", left, order.item)


runtime.start()
with DaprClient() as store:
    store.save_state(STORE, "cars", json.dumps({"quantity": 100}))
client = wf.DaprWorkflowClient()
for quantity in (10, 1000):
    number = client.schedule_new_workflow(process, input=Order("cars", quantity, quantity * 15_000))
    client.wait_for_workflow_start(number, timeout_in_seconds=60)
    if quantity == 10:
        time.sleep(0.2)
        client.raise_workflow_event(number, "manager_approval", data={"approval": True})
    state = client.wait_for_workflow_completion(number, timeout_in_seconds=60)
    print(f"workflow of {quantity} {state.runtime_status.name}: {state.serialized_output}", flush=True)
runtime.shutdown()
