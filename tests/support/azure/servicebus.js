// Queues and topics of Azure Service Bus over AMQP 1.0 without TLS, by Microsoft's "AMQP 1.0 in Azure Service Bus: protocol guide":
// tokens by $cbs, messages that are locked by whom they were sent to, settled by their outcome, renewed by $management.
// Every name that does not begin with "none" is a queue. TOPIC/Subscriptions/NAME is a subscription from when it is first
// read, and what is sent to its topic goes to all; what is rejected or not taken is in NAME/$DeadLetterQueue.
// Of a name that begins with "sessions", messages are read session by session: each is locked by who reads it.
// Of one that begins with "sessionshurried", nobody is let wait for a session.
// Usage: node servicebus.js PORT KEY LOCK_MILLISECONDS

const crypto = require("crypto");
const { answer, messages, path, rhea, serve, types, whenLost } = require("./amqp.js");

const [port, key, lockTime] = [Number(process.argv[2]), process.argv[3], Number(process.argv[4])];
const MOST_DELIVERIES = 10;
const SESSION_FILTER = "com.microsoft:session-filter";
const YEAR_ONE = -62135596800000; // Of .NET's ticks, in milliseconds.
const queues = new Map();

function queue(given) {
  const name = given.toLowerCase();
  if (!queues.has(name)) queues.set(name, { name, waiting: [], locked: new Map(), links: new Set(), number: 0, sessions: new Map(), asking: new Set() });
  return queues.get(name);
}

function targets(name) {
  const subscription = new RegExp(`^${name.toLowerCase().replace(/[.*+?^${}()|[\]\\]/g, "\\$&")}/subscriptions/[^/]+$`);
  const found = Array.from(queues.values()).filter((each) => subscription.test(each.name));
  return found.length ? found : [queue(name)];
}

function late(message) {
  return message.ttl && Date.now() > message.enqueued + message.ttl;
}

function dispatch(of) {
  of.waiting = of.waiting.filter((each) => !late(each));
  accept(of);
  for (const link of of.links) {
    // Its credit falls only when what was sent goes out; what is sent without credit would hold up the whole session.
    while (link.given < link.delivery_count + link.credit) {
      const at = of.waiting.findIndex((each) => link.reads === undefined || each.sent.group_id === link.reads);
      if (at < 0) break;
      const [message] = of.waiting.splice(at, 1);
      link.given += 1;
      lock(of, link, message);
    }
  }
}

function lock(of, link, message) {
  const tag = crypto.randomBytes(16);
  const until = Date.now() + lockTime;
  const held = { message, link, tag };
  if (link.reads === undefined) held.timer = setTimeout(() => unlock(of, tag, true), lockTime);
  of.locked.set(tag.toString("hex"), held);
  const given = (message.sent.message_annotations || {})["x-opt-partition-key"];
  const annotations = {
    ...(given && { "x-opt-partition-key": given }),
    "x-opt-sequence-number": types.wrap_long(message.number),
    "x-opt-enqueued-time": types.wrap_timestamp(message.enqueued),
    "x-opt-locked-until": types.wrap_timestamp(until),
  };
  link.send({ ...message.sent, message_annotations: annotations, delivery_count: message.deliveries }, tag);
}

function taken(of, tag) {
  const held = of.locked.get(tag.toString("hex"));
  if (held) {
    clearTimeout(held.timer);
    of.locked.delete(tag.toString("hex"));
  }
  return held && held.message;
}

function unlock(of, tag, failed) {
  const message = taken(of, tag);
  if (!message) return;
  message.deliveries += failed ? 1 : 0;
  if (message.deliveries >= MOST_DELIVERIES) {
    console.error(`${of.name}: message ${message.number} is given up: it was delivered ${message.deliveries} times`);
    bury(of, message, { DeadLetterReason: "MaxDeliveryCountExceeded", DeadLetterErrorDescription: `It was delivered ${message.deliveries} times.` });
    return;
  }
  const at = of.waiting.findIndex((each) => each.number > message.number);
  of.waiting.splice(at < 0 ? of.waiting.length : at, 0, message);
  dispatch(of);
}

function bury(of, message, why) {
  if (message && !of.name.endsWith("/$deadletterqueue")) {
    put(queue(`${of.name}/$deadletterqueue`), { ...message.sent, application_properties: { ...message.sent.application_properties, ...why } });
  }
}

function put(of, sent) {
  of.number += 1;
  const message = { sent, number: of.number, enqueued: Date.now(), ttl: sent.ttl, deliveries: 0 };
  const at = (sent.message_annotations || {})["x-opt-scheduled-enqueue-time"];
  const enter = () => {
    of.waiting.push(message);
    dispatch(of);
  };
  if (at > Date.now()) setTimeout(enter, at - Date.now());
  else enter();
}

// Whoever reads sessions gets no answer to its attach until there is one that nobody reads.
function ask(of, link, wanted) {
  Object.assign(link.state, { local_open: false, open_requests: 0 });
  const asked = { link, wanted };
  const patience = of.name.startsWith("sessionshurried") ? 0 : (link.properties || {})["com.microsoft:timeout"] || 60000;
  asked.timer = setTimeout(() => refuse(of, asked, "com.microsoft:timeout", "No session came in time."), patience);
  of.asking.add(asked);
  dispatch(of);
}

function refuse(of, asked, condition, description) {
  clearTimeout(asked.timer);
  of.asking.delete(asked);
  asked.link.local.attach.source = null; // As AMQP 1.0 says it of a link that will not be.
  asked.link.open();
  asked.link.close({ condition, description });
}

function accept(of) {
  for (const asked of of.asking) {
    const { link, wanted, timer } = asked;
    const id = wanted === null ? of.waiting.map((each) => each.sent.group_id).find((each) => each && !of.sessions.has(each)) : wanted;
    if (id === undefined) continue;
    if (of.sessions.has(id)) {
      refuse(of, asked, "com.microsoft:session-cannot-be-locked", `The session '${id}' is read by another.`);
      continue;
    }
    clearTimeout(timer);
    of.asking.delete(asked);
    of.sessions.set(id, { link, timer: setTimeout(() => lose(of, id), lockTime) });
    of.links.add(link);
    link.reads = id;
    link.set_source({ address: link.source.address, filter: { [SESSION_FILTER]: id } });
    link.local.attach.properties = { "com.microsoft:locked-until-utc": types.wrap_long((Date.now() + lockTime - YEAR_ONE) * 10000) };
    link.open();
  }
}

function lose(of, id) {
  const { link } = of.sessions.get(id);
  leave(of, link);
  link.close({ condition: "com.microsoft:session-lock-lost", description: `The lock of the session '${id}' is over.` });
}

function leave(of, link) {
  of.links.delete(link);
  const session = of.sessions.get(link.reads);
  if (!session || session.link !== link) return;
  clearTimeout(session.timer);
  for (const each of of.locked.values()) if (each.link === link) unlock(of, each.tag, true); // Still locked, nobody reads it meanwhile.
  of.sessions.delete(link.reads);
  dispatch(of);
}

// A lock token is a GUID: as a tag its first three parts are the other way round.
function asTag(uuid) {
  const bytes = Buffer.from(uuid);
  return Buffer.concat([bytes.subarray(0, 4).reverse(), bytes.subarray(4, 6).reverse(), bytes.subarray(6, 8).reverse(), bytes.subarray(8)]);
}

function manage(context, of) {
  const asked = context.message;
  if (asked.application_properties.operation === "com.microsoft:renew-session-lock") {
    const id = asked.body["session-id"];
    const session = of.sessions.get(id);
    if (session) {
      clearTimeout(session.timer);
      session.timer = setTimeout(() => lose(of, id), lockTime);
    }
    told(context, !session, "com.microsoft:session-lock-lost", { expiration: types.wrap_timestamp(Date.now() + lockTime) });
    return;
  }
  if (asked.application_properties.operation !== "com.microsoft:renew-lock") throw new Error("not there");
  const held = asked.body["lock-tokens"].map((token) => [asTag(token), of.locked.get(asTag(token).toString("hex"))]);
  const lost = held.some(([, each]) => !each);
  const until = new Date(Date.now() + lockTime);
  for (const [tag, each] of lost ? [] : held) {
    clearTimeout(each.timer);
    each.timer = setTimeout(() => unlock(of, tag, true), lockTime);
  }
  told(context, lost, "com.microsoft:message-lock-lost", { expirations: types.wrap_array(held.map(() => until), 0x83) });
}

function told(context, lost, condition, body) {
  const properties = { statusCode: types.wrap_int(lost ? 410 : 200), statusDescription: lost ? "lost" : "OK" };
  if (lost) properties.errorCondition = types.wrap_symbol(condition);
  answer(context, { application_properties: properties, body: lost ? "" : body });
}

const container = serve("servicebus", port, key, {
  manage: (context, name) => manage(context, queue(name)),
  put: (context, name) => messages(context).forEach((message) => targets(name).forEach((each) => put(each, message))),
  opened: (sender, name) => {
    sender.given = sender.delivery_count;
    const of = queue(name);
    const filter = (sender.source.filter || {})[SESSION_FILTER];
    if ((filter !== undefined) !== name.startsWith("sessions")) {
      sender.close({ condition: "amqp:not-allowed", description: filter === undefined ? "It is not possible for an entity that requires sessions to create a non-sessionful message receiver." : "A sessionful message receiver cannot be created on an entity that does not require sessions." });
    } else if (filter !== undefined) ask(of, sender, filter);
    else of.links.add(sender);
  },
});
container.on("sendable", ({ sender }) => {
  const of = queues.get(path(sender.source.address).toLowerCase());
  if (of) dispatch(of);
});
for (const [outcome, what] of [
  ["accepted", (of, tag) => taken(of, tag)],
  ["rejected", (of, tag, { error }) => bury(of, taken(of, tag), (error && error.info) || {})],
  ["released", (of, tag) => unlock(of, tag, false)],
  ["modified", (of, tag) => unlock(of, tag, true)],
]) {
  container.on(outcome, ({ sender, delivery }) => {
    if (delivery.remote_state.constructor.composite_type !== outcome) return; // What is modified is told of as released, too.
    const of = queues.get(path(sender.source.address).toLowerCase());
    const state = rhea.message[outcome](outcome === "modified" ? { delivery_failed: true } : {});
    delivery.update(true, state.described()); // Whoever settles waits for what came of it.
    if (of) what(of, delivery.tag, delivery.remote_state);
  });
}
whenLost(container, () => {
  for (const of of queues.values()) {
    for (const asked of of.asking) {
      if (asked.link.is_remote_open()) continue;
      clearTimeout(asked.timer);
      of.asking.delete(asked);
    }
    for (const link of of.links) if (!link.is_open()) leave(of, link);
  }
});
