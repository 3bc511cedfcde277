// What there is on the mesh and what flows on it, as nodes and arrows.
import { links, to } from "../router.js";

/** An arrow's id: who sends, to whom. */
const arrow = (from, target) => `${from}\n${target}`;

// Blocks that call applications; durable calls lie at the broker until their answer is there.
const CALLS = new Set(["invocation", "durable"]);

/** Of an actor as `type/id` its type, of a workflow as `name/instance` its name; rates have these alone. */
const kindOf = (target) => target.split("/", 1)[0];

/**
 * The arrow that something seen belongs to; null = none, as what a host does for another node, which is counted where it
 * was asked. `seen` is an edge of rates.js or the data of a sight.
 */
export function arrowOf(seen) {
  const asker = `app:${seen.from || seen.app}`;
  if (seen.seen === "hosted" || seen.target === "(other)") return null;
  // Who called may be untold where it arrived; whoever called tells it.
  if (CALLS.has(seen.block) && seen.seen === "arrived" && !seen.from) return null;
  if (CALLS.has(seen.block)) return arrow(asker, `app:${seen.seen === "arrived" ? seen.app : seen.target.split(".", 1)[0]}`);
  const ends = {
    pubsub: `topic:${seen.target}`,
    actors: `actor:${kindOf(seen.target)}`,
    workflows: `workflow:${kindOf(seen.target)}`,
    jobs: `job:${seen.target}`,
  };
  const end = ends[seen.block] ?? `component:${seen.target}`;
  return seen.seen === "asked" ? arrow(asker, end) : arrow(end, `app:${seen.app}`);
}

/** Edges of rates.js by arrow. A call is counted where it was asked, and where it arrived only if nobody tells that. */
export function byArrow(rates) {
  const groups = rates.grouped(arrowOf);
  for (const [key, edges] of groups) {
    const asked = edges.filter((edge) => edge.seen === "asked");
    if (asked.length && asked.length < edges.length && CALLS.has(edges[0].block)) groups.set(key, asked);
  }
  return groups;
}

const ADDRESSES = {
  app: links.app,
  topic: (name) => {
    const [component, ...rest] = name.split("/");
    return links.topic(component, rest.join("/"));
  },
  component: links.component,
  actor: (type) => to(["actors"], { type }),
  workflow: () => to(["workflows"]),
  job: () => to(["jobs"]),
};

export const KINDS = { app: "application", topic: "topic", component: "component", actor: "actor type", workflow: "workflow", job: "job" };

/** Read a node's id: {id, kind, name, href}. */
export function nodeOf(id) {
  const kind = id.slice(0, id.indexOf(":"));
  const name = id.slice(kind.length + 1);
  return { id, kind, name, label: kind === "topic" ? name.slice(name.indexOf("/") + 1) : name, href: ADDRESSES[kind]?.(name) ?? "#/" };
}

/** What an arrow says is done. */
export const verb = (from, target) =>
  from.startsWith("app:")
    ? { app: "calls", topic: "publishes to", component: "uses", actor: "calls", workflow: "runs", job: "schedules" }[target.slice(0, target.indexOf(":"))]
    : { topic: target.startsWith("topic:") ? "sends what fails to" : "is delivered to", actor: "lives in", workflow: "runs in", component: "calls", job: "triggers" }[from.slice(0, from.indexOf(":"))];

const FEW = 3;

/**
 * Nodes and arrows: what is declared, and what was seen. Each application may use most components; only of those that few
 * have, arrows are there before something passed.
 * Answers {nodes: Map of id to {id, kind, name, label, href, note}, arrows: Map of id to {id, from, target, verb, failed}}.
 */
export function graph(mesh, flows) {
  const nodes = new Map();
  const arrows = new Map();
  const node = (id, note = "") => {
    const known = nodes.get(id);
    if (known) known.note ||= note;
    else nodes.set(id, { ...nodeOf(id), note });
    return id;
  };
  const join = (from, target, deadLetters = false) => {
    const id = arrow(from, target);
    if (!arrows.has(id)) arrows.set(id, { id, from, target, verb: verb(from, target), deadLetters });
  };
  const pubsubs = new Set(mesh.components.filter((each) => each.type.startsWith("pubsub.")).map((each) => each.name));
  for (const app of mesh.apps) {
    const me = node(`app:${app.id}`, app.instances.length > 1 ? `${app.instances.length} instances` : "");
    for (const { component, topic } of app.published) join(me, node(`topic:${component}/${topic}`, component));
    for (const { component, topic, deadLetterTopic } of app.subscriptions) {
      const from = node(`topic:${component}/${topic}`, component);
      join(from, me);
      if (deadLetterTopic) join(from, node(`topic:${component}/${deadLetterTopic}`, "dead letters"), true);
    }
    for (const { type } of app.actors) join(node(`actor:${type}`, "actors"), me);
  }
  for (const topic of mesh.topics) {
    const me = node(`topic:${topic.component}/${topic.topic}`, topic.component);
    for (const app of topic.publishers) join(node(`app:${app}`), me);
    for (const app of topic.subscribers) join(me, node(`app:${app}`));
    for (const each of topic.deadLetterOf) join(node(`topic:${each.component}/${each.topic}`, each.component), me, true);
  }
  for (const component of mesh.components) {
    if (pubsubs.has(component.name)) continue;
    const me = node(`component:${component.name}`, component.type);
    if (component.apps.length > FEW) continue;
    for (const app of component.apps) if (nodes.has(`app:${app}`)) join(`app:${app}`, me);
  }
  for (const id of flows) {
    if (arrows.has(id)) continue;
    const [from, target] = id.split("\n");
    for (const end of [from, target]) {
      if (!nodes.has(end)) node(end, end.startsWith("app:") ? "not on the mesh" : end.startsWith("workflow:") ? "workflow" : "");
    }
    join(from, target);
  }
  return { nodes, arrows };
}

/** The part of a graph that a picture can hold: what is sought and its neighbours, else the busiest. */
export function part({ nodes, arrows }, sought, rateOf, most) {
  const words = sought.trim().toLowerCase();
  const kept = new Set();
  if (words) {
    const found = [...nodes.values()].filter((each) => each.name.toLowerCase().includes(words)).slice(0, most);
    const core = new Set(found.map((each) => each.id));
    for (const id of core) kept.add(id);
    for (const { from, target } of arrows.values()) {
      if (kept.size >= most) break;
      if (core.has(from)) kept.add(target);
      else if (core.has(target)) kept.add(from);
    }
  } else if (nodes.size <= most) return { nodes, arrows };
  else {
    const busiest = [...arrows.values()].map((each) => [rateOf(each.id), each]).sort(([one], [other]) => other - one);
    for (const [, { from, target }] of busiest) {
      if (kept.size + 2 > most) break;
      kept.add(from);
      kept.add(target);
    }
  }
  return {
    nodes: new Map([...nodes].filter(([id]) => kept.has(id))),
    arrows: new Map([...arrows].filter(([, { from, target }]) => kept.has(from) && kept.has(target))),
  };
}
