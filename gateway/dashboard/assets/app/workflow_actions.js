// What is done to workflows: asked for in a window, confirmed where it cannot be taken back.
import { html, useState } from "./dom.js";
import { ofApp, post, send } from "./api.js";
import { AppField } from "./each.js";
import { Button, Dialog, Field, Problem, confirm, toast } from "./ui.js";

export const ENDED = new Set(["COMPLETED", "FAILED", "TERMINATED"]);
const KINDS = { COMPLETED: "ok", FAILED: "bad", TERMINATED: "bad", RUNNING: "info", STALLED: "warn", SUSPENDED: "warn", PENDING: "mute" };
export const STATUSES = Object.keys(KINDS);
export const kindOf = (status) => KINDS[status] ?? "mute";

export const route = (app, id, ...more) => ofApp(app, "mesh", "workflows", id, ...more);

/** Check a text that is to be JSON; "" is none at all. Answers {is: whether it is fine, problem}. */
export function checkJson(text) {
  if (!text.trim()) return { is: true, problem: "" };
  try {
    JSON.parse(text);
    return { is: true, problem: "" };
  } catch (error) {
    return { is: false, problem: `This is no JSON (${error.message}). A text has quotes: "…"` };
  }
}

/** Members as JSON, `texts` being some already: no number of a value loses a digit. */
function written(members, texts) {
  const parts = Object.entries(members).filter(([, value]) => value !== undefined && value !== "").map(([name, value]) => `${JSON.stringify(name)}: ${JSON.stringify(value)}`);
  for (const [name, text] of Object.entries(texts)) if (text?.trim()) parts.push(`${JSON.stringify(name)}: ${text}`);
  return `{${parts.join(", ")}}`;
}

const postText = (path, text) => send(path, { verb: "POST", body: text, headers: { "content-type": "application/json" } });

/** A window with fields: `what(values)` does it; a failure is shown, and the window stays. */
function Ask({ title, action, danger, initial, ready = () => true, what, onClose, children }) {
  const [values, setValues] = useState(initial);
  const [state, setState] = useState({ error: null, busy: false });
  const set = (name) => (value) => setValues((was) => ({ ...was, [name]: value }));
  const go = async (event) => {
    event.preventDefault();
    setState({ error: null, busy: true });
    try {
      await what(values);
      onClose();
    } catch (error) {
      setState({ error, busy: false });
    }
  };
  return html`<${Dialog} title=${title} onClose=${onClose}>
    <form class="stack" onSubmit=${go}>
      ${children(values, set)}
      ${state.error && html`<${Problem} error=${state.error} />`}
      <div class="dialog-do">
        <${Button} onClick=${onClose}>Cancel<//>
        <button type="submit" class=${`button ${danger ? "danger" : "main"}`} disabled=${state.busy || !ready(values)}><span>${action}</span></button>
      </div>
    </form>
  <//>`;
}

const JsonField = ({ label, value, onChange, hint }) => html`<${Field} label=${label} type="area" rows="5" value=${value} onChange=${onChange} hint=${hint} error=${checkJson(value).problem} />`;

export function Start({ mesh, app, names, onClose, onStarted }) {
  return html`<${Ask} title="Start a workflow" action="Start it" onClose=${onClose}
    initial=${{ app, name: "", id: "", input: "", version: "", at: "" }}
    ready=${(of) => of.app && of.name && checkJson(of.input).is}
    what=${async (of) => {
      const body = written({ name: of.name, instanceID: of.id, version: of.version, startTime: of.at && new Date(of.at).toISOString() }, { input: of.input });
      const { json } = await postText(ofApp(of.app, "mesh", "workflows"), body);
      toast(`Workflow ${json.instanceID} is started`);
      onStarted(of.app, json.instanceID);
    }}
  >${(of, set) => html`
    <${AppField} mesh=${mesh} value=${of.app} onChange=${set("app")} must />
    <${Field} label="Workflow" value=${of.name} onChange=${set("name")} required list="workflow-names" hint="The name by which its code is registered" />
    <datalist id="workflow-names">${names.map((name) => html`<option key=${name} value=${name} />`)}</datalist>
    <${JsonField} label="Input (JSON)" value=${of.input} onChange=${set("input")} />
    <details><summary>More</summary><div class="stack part-top">
      <${Field} label="Id" value=${of.id} onChange=${set("id")} hint="Up to 64 letters, digits, _ and -; empty = one is made" maxlength="64" />
      <${Field} label="Not before" type="datetime-local" value=${of.at} onChange=${set("at")} hint="Empty = now" />
      <${Field} label="Version" value=${of.version} onChange=${set("version")} />
    </div></details>
  `}<//>`;
}

export function Raise({ app, id, name = "", onClose, onDone }) {
  return html`<${Ask} title=${`Raise an event of ${id}`} action="Raise it" onClose=${onClose}
    initial=${{ name, data: "" }} ready=${(of) => of.name && checkJson(of.data).is}
    what=${async (of) => {
      const path = ofApp(app, "workflows", "dapr", id, "raiseEvent", of.name);
      await (of.data.trim() ? postText(path, of.data) : post(path));
      toast(`Event ${of.name} of ${id} is raised`);
      onDone();
    }}
  >${(of, set) => html`
    <${Field} label="Event" value=${of.name} onChange=${set("name")} required />
    <${JsonField} label="Data (JSON)" value=${of.data} onChange=${set("data")} hint="What the code is given; empty = nothing" />
  `}<//>`;
}

export function Tell({ app, id, what, onClose, onDone }) {
  const suspend = what === "suspend";
  return html`<${Ask} title=${`${suspend ? "Suspend" : "Resume"} ${id}`} action=${suspend ? "Suspend it" : "Resume it"} onClose=${onClose} initial=${{ reason: "" }}
    what=${async (of) => {
      await post(route(app, id, what), of.reason ? { reason: of.reason } : {});
      toast(`Workflow ${id} is ${suspend ? "suspended" : "resumed"}`);
      onDone();
    }}
  >${(of, set) => html`
    <p>${suspend ? "No turn of its code begins until it is resumed. Activities and timers go on, and what comes is kept." : "Its code goes on with what has come meanwhile."}</p>
    <${Field} label="Reason" value=${of.reason} onChange=${set("reason")} hint="Kept in its history" />
  `}<//>`;
}

export function Terminate({ app, id, onClose, onDone }) {
  return html`<${Ask} title=${`Terminate ${id}?`} action="Terminate it" danger onClose=${onClose} initial=${{ output: "", recursive: true }} ready=${(of) => checkJson(of.output).is}
    what=${async (of) => {
      await postText(route(app, id, "terminate"), written({ recursive: of.recursive }, { output: of.output }));
      toast(`Workflow ${id} is terminated`);
      onDone();
    }}
  >${(of, set) => html`
    <p>It ends where it is, and cannot go on. Activities that run are not stopped; what comes of them is dropped.</p>
    <${Field} label="Its children too" type="check" value=${of.recursive} onChange=${set("recursive")} />
    <${JsonField} label="Output (JSON)" value=${of.output} onChange=${set("output")} />
  `}<//>`;
}

/** Run an ended one again; `events` are those of its history that it can begin from. */
export function Rerun({ app, id, events, from = "", onClose, onDone }) {
  const options = [["", "the first one"], ...events.map((each) => [String(each.task), `#${each.task} ${each.activity ?? each.workflow ?? "timer"}`])];
  const kind = (of) => events.find((each) => String(each.task) === of.event)?.event ?? "";
  return html`<${Ask} title=${`Run ${id} again`} action="Run it again" onClose=${onClose}
    initial=${{ event: String(from), input: "", id: "" }} ready=${(of) => checkJson(of.input).is}
    what=${async (of) => {
      const body = written({ event: of.event === "" ? undefined : Number(of.event), newInstanceID: of.id }, kind(of) === "timer" ? {} : { input: of.input });
      const { json } = await postText(route(app, id, "rerun"), body);
      toast(`It runs again as ${json.instanceID}`);
      onDone(json.instanceID);
    }}
  >${(of, set) => html`
    <p>A new instance takes over what had come of the steps before this one, and goes on from there with the code as it is now. What these steps did outside is done again.</p>
    <${Field} label="From" type="select" value=${of.event} options=${options} onChange=${set("event")} />
    ${kind(of) !== "timer" && html`<${JsonField} label="Another input for it (JSON)" value=${of.input} onChange=${set("input")} hint="Empty = the same as before" />`}
    <${Field} label="Id of the new instance" value=${of.id} onChange=${set("id")} hint="Empty = one is made" maxlength="64" />
  `}<//>`;
}

/** Forget one for good, once that is confirmed; answers whether it was. */
export async function purge(app, id) {
  const sure = await confirm({ title: `Delete ${id} for good?`, text: "Its history, input and output are deleted, and those of its children. Nothing brings them back.", action: "Delete it", danger: true });
  if (!sure) return false;
  try {
    const { json } = await post(route(app, id, "purge"), {});
    if (!json.complete) throw new Error("not all of it goes now, try again");
    toast(`Workflow ${id} is deleted`);
    return true;
  } catch (error) {
    toast(`Workflow ${id} is still there: ${error.message}`, "bad");
    return false;
  }
}

/** Forget many that have ended long enough ago. */
export function PurgeMany({ mesh, app, onClose, onDone }) {
  return html`<${Ask} title="Delete ended workflows" action="Delete them" danger onClose=${onClose} initial=${{ app, older: "168h", status: "" }} ready=${(of) => of.app && of.older}
    what=${async (of) => {
      let count = 0;
      for (;;) {
        const { json } = await post(ofApp(of.app, "mesh", "workflows", "purge"), { olderThan: of.older, ...(of.status ? { statuses: [of.status] } : {}) });
        count += json.purged;
        if (json.complete) break;
        if (!json.purged) throw new Error(`${count} are deleted; the others do not go now, try again`);
      }
      toast(`${count} ${count === 1 ? "workflow is" : "workflows are"} deleted`);
      onDone();
    }}
  >${(of, set) => html`
    <p>History, input and output of each are deleted. Nothing brings them back.</p>
    <${AppField} mesh=${mesh} value=${of.app} onChange=${set("app")} must />
    <${Field} label="Ended longer ago than" value=${of.older} onChange=${set("older")} hint="A length of time, as 30m, 24h or 168h" required />
    <${Field} label="Status" type="select" value=${of.status} options=${[["", "any that is an end"], ...ENDED]} onChange=${set("status")} />
  `}<//>`;
}
