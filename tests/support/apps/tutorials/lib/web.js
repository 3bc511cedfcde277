// What the applications of the tutorials share: an HTTP server of a few routes, and calls to their gateway.
"use strict";

const http = require("node:http");

const gateway = `http://localhost:${process.env.DAPR_HTTP_PORT || 3500}`;

// POST data as JSON, or GET without any; give what was answered.
async function call(path, data, headers = {}) {
  const given = { "content-type": "application/json", ...headers };
  const options = data === undefined ? {} : { method: "POST", body: JSON.stringify(data), headers: given };
  const response = await fetch(gateway + path, options);
  const text = await response.text();
  if (!response.ok) throw new Error(`${path}: ${response.status} ${text}`);
  return text ? JSON.parse(text) : null;
}

// Answer "VERB /path" with what a function makes of the body, until told to end.
function serve(routes) {
  const server = http.createServer(async (request, response) => {
    const chunks = [];
    for await (const chunk of request) chunks.push(chunk);
    const text = Buffer.concat(chunks).toString();
    const route = routes[`${request.method} ${request.url}`];
    if (!route) return response.writeHead(404).end();
    try {
      const answer = await route(text ? JSON.parse(text) : null);
      response.writeHead(200, { "content-type": "application/json" }).end(JSON.stringify(answer));
    } catch (error) {
      response.writeHead(500).end(String(error));
    }
  });
  server.listen(Number(process.env.APP_PORT), "127.0.0.1");
  process.on("SIGTERM", () => process.exit(0));
}

module.exports = { call, serve };
