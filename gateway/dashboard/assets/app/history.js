// What has happened to a workflow, as rows of a picture: a bar for each thing that took time, a mark for what did not.

const BEGINS = { scheduled: "activity", child: "child", timer: "timer" };
const ENDS = {
  completed: "done", failed: "failed", childCompleted: "done", childFailed: "failed", fired: "done",
};
const SAYS = {
  child: "child started", childCompleted: "completed", childFailed: "failed", timer: "timer set",
  raised: "event raised", sent: "event sent", detached: "started, apart",
};
const MARKS = { raised: "raised", sent: "sent", detached: "sent", stalled: "stalled", terminated: "failed" };

export const seconds = (text) => Date.parse(text) / 1000;

const nameOf = (event) => event.activity ?? event.workflow ?? event.name ?? (event.event === "timer" ? "timer" : "");

/**
 * Lay a history out.
 *
 * @param told What `mesh/workflows/{id}` and its `history` tell, as one: `events`, `waitsForEvents`, `endedAt`, …
 * @returns `{since, until, rows, moments}`; each row has `kind`, `label`, `bars: [{from, to, state}]` (`to` null = it is
 *   open) and `marks: [{at, state, text}]`. Times are Unix times in seconds; `moments` are all of them, in order.
 */
export function layOut(told) {
  const { events } = told;
  const since = Math.min(...events.map((each) => seconds(each.at))); // A turn may stand before the start.
  const ended = events.findLast((each) => each.event === "ended" || each.event === "terminated");
  const over = told.endedAt ? seconds(told.endedAt) : ended ? seconds(ended.at) : null;
  const whole = { kind: "workflow", label: told.workflowName, bars: [], marks: [], from: since };
  const rows = [whole];
  const tasks = new Map();
  const named = new Map();
  const rowOf = (name) => {
    if (!named.has(name)) {
      named.set(name, { kind: "event", label: `event ${name}`, bars: [], marks: [] });
      rows.push(named.get(name));
    }
    return named.get(name);
  };
  let paused = null;
  for (const event of events) {
    const at = seconds(event.at);
    const { event: kind, task } = event;
    if (BEGINS[kind]) {
      const row = { kind: BEGINS[kind], label: nameOf(event), task, bars: [{ from: at, to: null, state: "open" }], marks: [] };
      if (kind === "child") row.child = { id: event.instanceID, app: event.appID };
      tasks.set(task, row);
      rows.push(row);
    } else if (ENDS[kind] && tasks.has(task)) {
      const bar = tasks.get(task).bars.at(-1);
      bar.to = Math.max(at, bar.from);
      bar.state = ENDS[kind];
    } else if (kind === "retrying" && tasks.has(task)) {
      tasks.get(task).marks.push({ at, state: "failed", text: `attempt ${event.attempt - 1} failed` });
    } else if (kind === "suspended") {
      paused ??= at;
    } else if (kind === "resumed" && paused !== null) {
      whole.bars.push({ from: paused, to: at, state: "paused" });
      paused = null;
    } else if (kind === "turn") {
      whole.marks.push({ at, state: "turn", text: "turn" });
    } else if (MARKS[kind]) {
      const row = kind === "raised" ? rowOf(event.name) : whole;
      row.marks.push({ at, state: MARKS[kind], text: `${SAYS[kind] ?? kind} ${nameOf(event)}`.trim() });
    }
  }
  if (paused !== null) whole.bars.push({ from: paused, to: over, state: "paused" });
  for (const each of told.waitsForEvents ?? []) {
    rowOf(each.name).bars.push({ from: seconds(each.since), to: null, state: "open" });
  }
  const how = { COMPLETED: "done", FAILED: "failed", TERMINATED: "failed" };
  whole.bars.unshift({ from: since, to: over, state: how[told.runtimeStatus] ?? "open" });
  if (over !== null) {
    for (const row of rows) {
      for (const bar of row.bars) if (bar.to === null) Object.assign(bar, { to: over, state: "dropped" });
    }
  }
  const moments = [...new Set(rows.flatMap((row) => [
    ...row.bars.flatMap((bar) => (bar.to === null ? [bar.from] : [bar.from, bar.to])),
    ...row.marks.filter((each) => each.state !== "turn").map((each) => each.at),
  ]))].sort((one, other) => one - other);
  const until = over ?? Math.max(moments.at(-1) ?? since, since + 0.001);
  return { since, until, rows, moments, open: over === null };
}

/**
 * Give where a moment stands between 0 and 1.
 *
 * @param laid What `layOut` gave.
 * @param even Whether each moment is as far from the next as any other, in place of to scale.
 */
export function scaleOf({ since, until, moments, open }, even) {
  const room = open ? 0.92 : 1; // What has not ended is seen to go on.
  if (!even || moments.length < 3) {
    const length = until - since || 1;
    return (at) => (at === null ? 1 : (Math.min(Math.max((at - since) / length, 0), 1)) * room);
  }
  return (at) => {
    if (at === null) return 1;
    let low = 0;
    let high = moments.length - 1;
    while (low < high) { // The last moment that is not later.
      const middle = (low + high + 1) >> 1;
      if (moments[middle] <= at) low = middle;
      else high = middle - 1;
    }
    return (low / (moments.length - 1)) * room;
  };
}

/** Say whether a picture to scale would show little but one long wait. */
export function isUneven({ since, until, moments }) {
  let longest = 0;
  for (let at = 1; at < moments.length; at++) longest = Math.max(longest, moments[at] - moments[at - 1]);
  return moments.length > 6 && longest > 0.85 * (until - since);
}

/** Write a history as rows of a table: `{number, event, at, after, task, subject, what, took, value, bad}`. */
export function tableOf(events) {
  const since = Math.min(...events.map((each) => seconds(each.at)));
  const names = new Map();
  const begun = new Map();
  return events.map((event, number) => {
    const at = seconds(event.at);
    const { event: kind, task } = event;
    if (BEGINS[kind]) {
      names.set(task, nameOf(event));
      begun.set(task, at);
    }
    const what = kind === "ended" ? event.runtimeStatus : kind === "retrying" ? `attempt ${event.attempt - 1} failed` : SAYS[kind] ?? kind;
    return {
      number,
      event,
      after: at - since,
      at: event.at,
      task,
      subject: names.has(task) ? `${names.get(task)} #${task}` : nameOf(event),
      what,
      took: ENDS[kind] && begun.has(task) ? at - begun.get(task) : null,
      value: valueOf(event),
      bad: ["failed", "childFailed", "terminated", "retrying", "stalled"].includes(kind) || (kind === "ended" && what !== "COMPLETED"),
    };
  });
}

function valueOf(event) {
  if (event.error) return `${event.error.type}: ${event.error.message}`;
  if (event.event === "turn") return (event.patches ?? []).join(", ");
  if (event.event === "inherited") return event.workflows.map((each) => `${each.workflow} ${each.instanceID}`).join(", ");
  const name = ["input", "data", "result", "output", "fireAt", "why", "reason"].find((each) => event[each] !== undefined);
  const found = name && event[name];
  return found === undefined || found === "" ? "" : typeof found === "string" ? found : JSON.stringify(found);
}

/** Say what an instance waits for: `[{what, text, since, due, link}]`, the same words as `mesh workflow show`. */
export function waitsOf(told, own) {
  const of = (each) => (each.appID && each.appID !== own ? ` of ${each.appID}` : "");
  const tasks = (told.tasks ?? []).map((each) => {
    const attempt = each.attempt === 1 ? "" : `, attempt ${each.attempt}`;
    const worker = each.worker ? ` (${each.worker})` : "";
    const how = each.running ? `runs at ${each.node}${worker}` : each.due ? "is tried again" : "waits for a worker";
    return { what: "activity", text: `${each.activity} #${each.task}${of(each)}${attempt}: ${how}`, since: each.since, due: each.due };
  });
  const events = (told.waitsForEvents ?? []).map((each) => ({
    what: "event", text: `${each.name}${each.count ? `, ${each.count} times` : ""}`, since: each.since, raise: each.name,
  }));
  const timers = (told.timers ?? []).map((each) => ({
    what: "timer", text: `#${each.task}${each.event ? `: the limit of event ${each.event}` : each.retries ? ": a retry" : ""}`, since: each.since, due: each.due,
  }));
  const children = (told.children ?? []).map((each) => ({
    what: "child", text: `${each.workflow} ${each.instanceID} #${each.task}${of(each)}`, since: each.since, child: { id: each.instanceID, app: each.appID },
  }));
  const start = told.runtimeStatus === "PENDING" && told.startTime ? [{ what: "time", text: "when it is to begin", since: told.createdAt, due: told.startTime }] : [];
  return [...start, ...tasks, ...events, ...timers, ...children];
}
