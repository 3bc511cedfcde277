// What the namespaces of Service Bus and Event Hubs have in common over AMQP 1.0 without TLS: tokens by $cbs, links that
// need one, answers of $management. Every name that begins with "none" is not there.

const crypto = require("crypto");
const types = require("rhea/lib/types.js");

// The libraries of Azure want all fields of a frame, where rhea leaves out those at its end that are null.
const { define_composite: define } = types;
types.define_composite = (def) => {
  const made = define(def);
  made.prototype.described = function described() {
    const all = Array.from(def.fields, (_, at) => (this.value[at] === undefined ? null : this.value[at]));
    if (def.name === "begin" && all[4] === null) all[4] = types.wrap_uint(255); // The most links.
    return types.described_nc(types.wrap_ulong(made.descriptor.numeric), types.wrap_list(all));
  };
  return made;
};
const rhea = require("rhea");

const BATCH = 0x80013700;

// An address may be a whole URL.
function path(address) {
  return address.replace(/^amqps?:\/\/[^/]+\//, "");
}

function mayAsk(key, token) {
  const parts = new URLSearchParams(token.replace(/^SharedAccessSignature /, ""));
  const signed = `${encodeURIComponent(parts.get("sr"))}\n${parts.get("se")}`;
  const options = [signed, signed.replace(/%[0-9A-F]{2}/g, (each) => each.toLowerCase())];
  const good = options.map((each) => crypto.createHmac("sha256", key).update(each).digest("base64"));
  return good.includes(parts.get("sig")) && Number(parts.get("se")) > Date.now() / 1000;
}

function answer(context, fields) {
  const { message, connection } = context;
  const link = connection.replies.get(message.reply_to) || connection.replies.get(context.receiver.target.address);
  if (link) link.send({ correlation_id: message.message_id, to: message.reply_to, ...fields });
}

function putToken(context, key) {
  const good = mayAsk(key, String(context.message.body));
  context.connection.known = context.connection.known || good;
  const code = types.wrap_int(good ? 202 : 401);
  answer(context, { application_properties: { "status-code": code, "status-description": good ? "Accepted" : "InvalidSignature: The token has an invalid signature." }, body: "" });
}

function allowed(context, link, name) {
  if (!context.connection.known) link.close({ condition: "amqp:unauthorized-access", description: "there is no token" });
  else if (name.startsWith("none")) link.close({ condition: "amqp:not-found", description: `The messaging entity '${name}' could not be found.` });
  else return true;
  return false;
}

// What serves differs in `manage(context, name)`, `put(context, name)`, `opened(sender, name)`, and the largest message.
function serve(id, port, key, { manage, put, opened, largest }) {
  const container = rhea.create_container({ id });
  const managing = (name) => name.endsWith("$management");
  container.sasl_server_mechanisms.enable_anonymous();
  container.on("connection_open", ({ connection }) => {
    connection.replies = connection.replies || new Map();
  });
  container.on("sender_open", (context) => {
    const { sender, connection } = context;
    const name = path(sender.source.address);
    connection.replies = connection.replies || new Map();
    sender.set_source(sender.source);
    sender.set_target(sender.target);
    if (name === "$cbs" || managing(name)) {
      sender.local.attach.snd_settle_mode = 1; // Nobody settles an answer.
      connection.replies.set(name, sender);
      connection.replies.set(sender.target.address, sender);
    } else if (allowed(context, sender, name)) opened(sender, name);
  });
  container.on("receiver_open", (context) => {
    const { receiver } = context;
    const name = path(receiver.target.address);
    receiver.set_source(receiver.source);
    receiver.set_target(receiver.target);
    if (largest) receiver.local.attach.max_message_size = largest;
    if (name !== "$cbs" && !managing(name)) allowed(context, receiver, name);
  });
  container.on("message", (context) => {
    if (context.delivery.format === BATCH) context.message = rhea.message.decode(context.message); // Of others it does so itself.
    const name = path(context.receiver.target.address);
    if (name === "$cbs") putToken(context, key);
    else if (managing(name)) manage(context, name.replace(/\/?\$management$/, ""));
    else put(context, name);
  });
  for (const failed of ["error", "connection_error", "session_error", "sender_error", "receiver_error"]) container.on(failed, (context) => console.error(failed, context.error || context));
  container.listen({ port, host: "127.0.0.1", max_frame_size: 65536 });
  return container;
}

// A batch is a message with one encoded message in each of its sections.
function messages({ message, delivery }) {
  return delivery.format === BATCH ? [].concat(message.body.content).map((each) => rhea.message.decode(each)) : [message];
}

function whenLost(container, done) {
  for (const end of ["sender_close", "disconnected", "connection_close", "session_close"]) container.on(end, done);
}

module.exports = { answer, messages, path, rhea, serve, types, whenLost };
