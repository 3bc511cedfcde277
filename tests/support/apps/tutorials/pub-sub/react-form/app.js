// Publishes what a form would send.
const { call, serve } = require("web");

serve({
  "POST /publish": async ({ messageType, message }) => {
    await call(`/v1.0/publish/pubsub/${messageType}`, { message });
    return "OK";
  },
});
