// Hears of A and B.
const { serve } = require("web");

const heard = (event) => {
  console.log(`node heard ${event.topic}: ${event.data.message}`);
  return {};
};

serve({
  "GET /dapr/subscribe": () => ["A", "B"].map((topic) => ({ pubsubname: "pubsub", topic, route: topic })),
  "POST /A": heard,
  "POST /B": heard,
});
