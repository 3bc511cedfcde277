// Event hubs of two partitions over AMQP 1.0 without TLS, by Microsoft's "AMQP 1.0 in Azure Event Hubs: protocol guide":
// tokens by $cbs, senders to a hub or a partition, readers of a partition from where their filter says, $management.
// Every name that does not begin with "none" is a hub, or a consumer group. A hub that begins with "grows" has one
// partition until it has an event. Owner levels are kept.
// What it has is kept in a file.
// Usage: node eventhubs.js PORT KEY FILE

const crypto = require("crypto");
const fs = require("fs");
const { answer, messages, path, rhea, serve, types, whenLost } = require("./amqp.js");

const [port, key, kept] = [Number(process.argv[2]), process.argv[3], process.argv[4]];
const PARTITIONS = ["0", "1"];
const STEP = 100; // Offsets are not numbers in a row.
const LARGEST = 1048576;
const made = Date.now();
const hubs = new Map();
const reading = new Map();

function hub(name) {
  if (!hubs.has(name)) hubs.set(name, { turn: 0, partitions: new Map(PARTITIONS.map((each) => [each, []])) });
  return hubs.get(name);
}

function add({ own, at, enqueued }, sent) {
  const events = hub(own).partitions.get(at);
  events.push({ sent, number: events.length, enqueued });
}

function partitionsOf(name) {
  const events = Array.from(hub(name).partitions.values()).flat();
  return name.startsWith("grows") && events.length === 0 ? PARTITIONS.slice(0, 1) : PARTITIONS;
}

// HUB/ConsumerGroups/GROUP/Partitions/ID to read, HUB or HUB/Partitions/ID to send.
function place(name) {
  const parts = name.split("/");
  const at = parts.findIndex((each) => each.toLowerCase() === "partitions");
  return { of: hub(parts[0]), group: at > 1 ? parts[at - 1] : undefined, partition: at < 0 ? undefined : parts[at + 1] };
}

function begin(link, events) {
  const filter = Object.values(link.source.filter || {})[0];
  const text = String(filter && filter.value !== undefined ? filter.value : filter || "");
  const found = /x-opt-(offset|sequence-number|enqueued-time) (>=?) '(.*)'/.exec(text);
  if (!found) return 0;
  const [, name, operator, value] = found;
  if (value === "@latest") return events.length;
  const told = { offset: (each) => each.number * STEP, "sequence-number": (each) => each.number, "enqueued-time": (each) => each.enqueued }[name];
  const at = events.findIndex((each) => told(each) > Number(value) || (operator === ">=" && told(each) === Number(value)));
  return at < 0 ? events.length : at;
}

function dispatch(link) {
  const state = reading.get(link);
  while (state && state.next < state.events.length && state.given < link.delivery_count + link.credit) {
    const each = state.events[state.next];
    state.next += 1;
    state.given += 1;
    const annotations = {
      ...each.sent.message_annotations,
      "x-opt-sequence-number": types.wrap_long(each.number),
      "x-opt-offset": String(each.number * STEP),
      "x-opt-enqueued-time": types.wrap_timestamp(each.enqueued),
    };
    link.send({ ...each.sent, message_annotations: annotations });
  }
}

// A reader with an owner level keeps out those of a lower level, or of none, and those of the same one that came before.
function alone(sender, events, group) {
  const level = (link) => Number((link.properties || {})["com.microsoft:epoch"] ?? -1);
  const stolen = { condition: "amqp:link:stolen", description: "there is a reader with an owner level" };
  for (const [link, state] of reading) {
    if (state.events !== events || state.group !== group || Math.max(level(link), level(sender)) < 0) continue;
    if (level(link) > level(sender)) {
      sender.close(stolen);
      return false;
    }
    reading.delete(link);
    link.close(stolen);
  }
  return true;
}

function put(context, name) {
  const { of, partition } = place(name);
  const batch = messages(context);
  const wanted = (context.message.message_annotations || {})["x-opt-partition-key"];
  of.turn += 1;
  const hashed = wanted === undefined ? of.turn : crypto.createHash("md5").update(String(wanted)).digest()[0];
  const names = partitionsOf(path(name).split("/")[0]);
  const at = partition || names[hashed % names.length];
  const own = path(name).split("/")[0];
  for (const sent of batch) {
    const line = { own, at, enqueued: Date.now(), sent: rhea.message.encode(sent).toString("base64") };
    fs.appendFileSync(kept, `${JSON.stringify(line)}\n`);
    add(line, sent);
  }
  for (const link of reading.keys()) dispatch(link);
}

function manage(context) {
  const asked = context.message.application_properties;
  const fail = (code, text) => answer(context, { application_properties: { "status-code": types.wrap_int(code), "status-description": text }, body: "" });
  if (!context.connection.known) return fail(401, "Unauthorized");
  if (asked.operation !== "READ" || asked.name.startsWith("none")) return fail(404, `The messaging entity '${asked.name}' could not be found.`);
  const body = { name: asked.name, type: asked.type };
  if (asked.type === "com.microsoft:eventhub") {
    Object.assign(body, { created_at: types.wrap_timestamp(made), partition_count: types.wrap_int(partitionsOf(asked.name).length), partition_ids: types.wrap_array(partitionsOf(asked.name), 0xa1) });
  } else {
    const events = hub(asked.name).partitions.get(asked.partition);
    if (!events) return fail(404, "there is no such partition");
    const last = events[events.length - 1];
    Object.assign(body, {
      partition: asked.partition,
      begin_sequence_number: types.wrap_long(0),
      last_enqueued_sequence_number: types.wrap_long(last ? last.number : -1),
      last_enqueued_offset: last ? String(last.number * STEP) : "-1",
      last_enqueued_time_utc: types.wrap_timestamp(last ? last.enqueued : 0),
      is_partition_empty: !last,
    });
  }
  return answer(context, { application_properties: { "status-code": types.wrap_int(200), "status-description": "OK" }, body });
}

for (const text of fs.existsSync(kept) ? fs.readFileSync(kept, "utf8").split("\n") : []) {
  // A line that was not written whole was not confirmed.
  if (text.endsWith("}")) add(JSON.parse(text), rhea.message.decode(Buffer.from(JSON.parse(text).sent, "base64")));
}

const container = serve("eventhubs", port, key, {
  manage,
  put,
  largest: LARGEST,
  opened: (sender, name) => {
    const { of, group, partition } = place(name);
    if (group && group.startsWith("none")) return sender.close({ condition: "amqp:not-found", description: `The messaging entity '${group}' could not be found.` });
    const events = of.partitions.get(partition);
    if (!events) return sender.close({ condition: "amqp:not-found", description: "there is no such partition" });
    if (!alone(sender, events, group)) return undefined;
    sender.local.attach.snd_settle_mode = 1; // Readers settle nothing.
    return reading.set(sender, { events, group, next: begin(sender, events), given: sender.delivery_count });
  },
});
container.on("sendable", ({ sender }) => dispatch(sender));
whenLost(container, () => {
  for (const link of reading.keys()) if (!link.is_open()) reading.delete(link);
});
