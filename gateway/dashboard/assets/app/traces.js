// Sights of one trace as a waterfall: what lies within the time of another is drawn below it.

const FINE = new Set(["ok", "success", "ack"]);

/** How an outcome is: "ok", "warn" (it comes again), "mute" (given up by whoever asked) or "bad". */
export function health(outcome) {
  if (FINE.has(outcome)) return "ok";
  if (outcome === "retry") return "warn";
  return outcome === "CANCELLED" ? "mute" : "bad";
}

const TRACEPARENT = /^[0-9a-f]{2}-([0-9a-f]{32})-([0-9a-f]{16})-[0-9a-f]{2}$/;

/** The trace and the span of a `traceparent`; null for one that is none. */
export function traceOf(traceparent) {
  const found = TRACEPARENT.exec(traceparent ?? "");
  return found && { trace: found[1], span: found[2] };
}

/** Whether it went wrong: it failed, or comes again. */
export const failedSight = ({ outcome }) => ["bad", "warn"].includes(health(outcome));

/**
 * Group sights by their traces, the one that was last over first.
 *
 * @param events Sights as CloudEvents, in any order.
 * @returns `[{trace, since, until, failed, apps, spans: [{event, data, from, to, depth}]}]`, times in Unix seconds.
 */
export function tracesOf(events) {
  const found = new Map();
  for (const event of events) {
    const told = traceOf(event.traceparent);
    if (!told || !event.data) continue;
    const to = Date.parse(event.time) / 1000;
    const span = { event, data: event.data, span: told.span, from: to - event.data.seconds, to, depth: 0 };
    if (!found.has(told.trace)) found.set(told.trace, []);
    found.get(told.trace).push(span);
  }
  return [...found].map(([trace, spans]) => waterfall(trace, spans)).sort((one, other) => other.until - one.until);
}

function waterfall(trace, spans) {
  spans.sort((one, other) => one.from - other.from || other.to - one.to);
  const open = [];
  for (const span of spans) {
    while (open.length && open.at(-1).to < span.to) open.pop();
    span.depth = open.length;
    open.push(span);
  }
  return {
    trace,
    spans,
    since: spans[0].from,
    until: Math.max(...spans.map((each) => each.to)),
    failed: spans.filter((each) => failedSight(each.data)).length,
    apps: [...new Set(spans.flatMap((each) => [each.data.from, each.data.app]).filter(Boolean))],
  };
}

/** Give the address of a trace by a template with `{traceId}`; null where there is none, or it would not be one of the web. */
export function traceAddress(template, trace) {
  if (!template || !/^https?:\/\//.test(template)) return null;
  return template.includes("{traceId}") ? template.replaceAll("{traceId}", trace) : null;
}

/** The lines of `spec.tracing` in a Configuration's YAML, less its indent; "" where it has none. */
export function tracingLines(yaml) {
  const lines = yaml.split("\n");
  const at = lines.findIndex((line) => /^ +tracing:/.test(line));
  if (at < 0) return "";
  const indent = lines[at].search(/\S/);
  const rest = lines.slice(at + 1);
  const end = rest.findIndex((line) => line.trim() && line.search(/\S/) <= indent);
  return [lines[at], ...(end < 0 ? rest : rest.slice(0, end))].map((line) => line.slice(indent)).join("\n").trimEnd();
}
