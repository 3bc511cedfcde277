// What passes components: which edges are theirs, and how they do.

// Blocks whose target is no component.
const OTHERS = new Set(["invocation", "durable", "actors", "workflows", "jobs"]);

/** Whether an edge is of a component: of one for events also those of its topics. Seen where it was asked, or came in. */
export const ofComponent = (name) => (edge) =>
  (edge.seen === "asked" || edge.seen === "arrived") && componentOf(edge) === name;

/** The component that an edge goes to or comes from; null = it is of none. */
export function componentOf({ block, target }) {
  if (OTHERS.has(block)) return null;
  const end = block === "pubsub" ? target.indexOf("/") : -1;
  return end < 0 ? target : target.slice(0, end);
}

/** The building block of a component's type: `state` of `state.redis`. */
export const blockOf = (type) => type.split(".", 1)[0];
