// Hands each operation to the application for it, and keeps the total.
const { call, serve } = require("web");

const apps = { add: "addapp", subtract: "subtractapp", divide: "divideapp", multiply: "multiplyapp" };
const operations = Object.entries(apps).map(([operation, app]) => [
  `POST /calculate/${operation}`,
  (two) => call(`/v1.0/invoke/${app}/method/${operation}`, two),
]);

serve({
  ...Object.fromEntries(operations),
  "GET /state": () => call("/v1.0/state/statestore/calculatorState"),
  "POST /persist": (state) => call("/v1.0/state/statestore", state),
});
