// Keeps the last order in the state store.
const { call, serve } = require("web");

serve({
  "POST /neworder": async (order) => {
    await call("/v1.0/state/statestore", [{ key: "order", value: order.data }]);
    console.log(`order ${order.data.orderId} is kept`);
    return {};
  },
  "GET /order": () => call("/v1.0/state/statestore/order"),
});
