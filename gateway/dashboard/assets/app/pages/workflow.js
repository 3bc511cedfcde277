// One instance: where it stands, its time line, its history, what it waits for, and what can be done to it.
import { html, useEffect, useMemo, useRef, useState } from "../dom.js";
import { get, useGet } from "../api.js";
import { go, links, to } from "../router.js";
import { tableOf, waitsOf } from "../history.js";
import { Timeline } from "../timeline.js";
import { ENDED, Raise, Rerun, Tell, Terminate, kindOf, purge, route } from "../workflow_actions.js";
import { Ago, Badge, Button, Code, Dialog, Empty, Facts, Field, Json, Loading, Page, Problem, Section, Table, date, ms } from "../ui.js";

const PAGE = 1000;
const MOST = 20_000;

export default function Workflow({ params: { app, id } }) {
  const [over, setOver] = useState(false);
  const of = useGet(route(app, id), { every: over ? 0 : 2 });
  const told = of.data;
  useEffect(() => {
    if (told) setOver(ENDED.has(told.runtimeStatus));
  }, [told?.runtimeStatus]);
  const history = useHistory(app, id, told);
  const [open, setOpen] = useState({ what: "" });
  const crumbs = [["Workflows", "#/workflows"], [app, to(["workflows"], { app })]];
  if (!told) {
    return html`<${Page} title=${id} kind="workflow" crumbs=${crumbs}>
      ${of.error?.status === 404
        ? html`<${Empty} icon="workflows" title=${`${app} has no workflow ${id}`}>It may have been deleted. <a href=${to(["workflows"], { app })}>All workflows of ${app}</a><//>`
        : of.error
          ? html`<${Problem} error=${of.error} retry=${of.reload} />`
          : html`<${Loading} what="Asking for it" />`}
    <//>`;
  }
  const close = () => setOpen({ what: "" });
  const again = () => {
    setOver(false);
    of.reload();
  };
  const begins = history.events.filter((each) => ["scheduled", "child", "timer"].includes(each.event));
  return html`<${Page} title=${id} kind="workflow" crumbs=${crumbs}
    lead=${html`<${Badge} kind=${kindOf(told.runtimeStatus)}>${told.runtimeStatus.toLowerCase()}<//> ${told.workflowName} of <a href=${links.app(app)}>${app}</a>`}
    actions=${html`<${Actions} told=${told} open=${setOpen} onPurge=${async () => (await purge(app, id)) && go(to(["workflows"], { app }))} />`}>
    ${of.error && html`<${Problem} error=${of.error} retry=${of.reload} />`}
    ${told.stalled && html`<p class="note">${typeof told.stalled === "string" ? told.stalled : `It is stalled: ${JSON.stringify(told.stalled)}`}</p>`}
    <${Failure} failure=${told.failure} />
    <${Waits} told=${told} app=${app} onRaise=${(name) => setOpen({ what: "raise", name })} />
    <${Past} told=${told} history=${history} app=${app} onRerun=${over ? (task) => setOpen({ what: "rerun", task }) : null} />
    <div class="cards">
      <${Values} told=${told} />
      <${About} told=${told} />
    </div>
    ${open.what === "raise" && html`<${Raise} app=${app} id=${id} name=${open.name} onClose=${close} onDone=${again} />`}
    ${(open.what === "suspend" || open.what === "resume") && html`<${Tell} app=${app} id=${id} what=${open.what} onClose=${close} onDone=${again} />`}
    ${open.what === "terminate" && html`<${Terminate} app=${app} id=${id} onClose=${close} onDone=${again} />`}
    ${open.what === "rerun" && html`<${Rerun} app=${app} id=${id} events=${begins} from=${open.task ?? ""} onClose=${close} onDone=${(made) => go(links.workflow(app, made))} />`}
  <//>`;
}

/** Its events, page by page; only new ones are asked for as it goes on: {events, total, error, loading}. */
function useHistory(app, id, told) {
  const [state, setState] = useState({ events: [], error: null, loading: true, execution: "" });
  const held = useRef(state);
  const put = (next) => setState((held.current = next));
  useEffect(() => {
    if (!told) return undefined;
    const leaving = new AbortController();
    const load = async () => {
      // One that begins anew has another history.
      let { events } = held.current.execution === told.executionID ? held.current : { events: [] };
      if (events.length >= told.events) {
        if (held.current.loading) put({ events, error: null, loading: false, execution: told.executionID });
        return;
      }
      try {
        for (let more = true; more && events.length < MOST; ) {
          const page = await get(route(app, id, "history"), { after: events.length, limit: PAGE }, leaving.signal);
          events = [...events, ...page.events];
          more = page.after !== undefined;
          put({ events, error: null, loading: more, execution: told.executionID });
        }
      } catch (error) {
        if (error.name !== "AbortError") put({ ...held.current, error, loading: false });
      }
    };
    load();
    return () => leaving.abort();
  }, [app, id, told?.executionID, told?.events]);
  return state;
}

function Actions({ told, open, onPurge }) {
  const ended = ENDED.has(told.runtimeStatus);
  if (ended) {
    return html`<${Button} icon="replay" onClick=${() => open({ what: "rerun" })}>Run again…<//>
      <${Button} icon="trash" onClick=${onPurge}>Delete…<//>`;
  }
  const suspended = told.runtimeStatus === "SUSPENDED";
  return html`<${Button} icon="send" onClick=${() => open({ what: "raise", name: told.waitsForEvents?.[0]?.name ?? "" })}>Raise an event…<//>
    <${Button} icon=${suspended ? "play" : "pause"} onClick=${() => open({ what: suspended ? "resume" : "suspend" })}>${suspended ? "Resume…" : "Suspend…"}<//>
    <${Button} icon="close" onClick=${() => open({ what: "terminate" })}>Terminate…<//>`;
}

const Failure = ({ failure }) => failure && html`<${Problem} error=${{ message: failure.message, next: "The history below has where it happened. Once the code is mended, run it again from there.", code: failure.type }} what="It failed" />`;

function Waits({ told, app, onRaise }) {
  if (ENDED.has(told.runtimeStatus)) return null;
  const rows = waitsOf(told, app).map((each, number) => ({ ...each, number }));
  const raised = told.raised ?? [];
  return html`<${Section} title="What it waits for" flush>
    <${Table} caption="What it waits for" noun="thing" rows=${rows} keyOf=${(row) => row.number} columns=${waitColumns(onRaise, app)}
      empty=${html`<${Empty} icon="workflows" title=${Object.keys(told.workers ?? {}).length ? "Nothing that is known here" : "A worker"}>${Object.keys(told.workers ?? {}).length ? "Its next turn is about to run, or its code waits for an event that its SDK does not name." : `No worker of ${app} is connected: start the application that has the code.`}<//>`} />
    ${raised.length > 0 && html`<p class="note info part-gap">Events that came and that its code has not taken: ${raised.map((each) => each.name).join(", ")}.</p>`}
  <//>`;
}

function waitColumns(onRaise, app) {
  return [
    { key: "what", label: "Kind", value: (row) => row.what },
    { key: "text", label: "What", value: (row) => row.text, wide: true, render: (row) => (row.child ? html`<a href=${links.workflow(row.child.app ?? app, row.child.id)}>${row.text}</a>` : row.text) },
    { key: "since", label: "Since", value: (row) => row.since, render: (row) => html`<${Ago} at=${row.since} />` },
    { key: "due", label: "Due", value: (row) => row.due, render: (row) => (row.due ? html`<${Ago} at=${row.due} />` : "–") },
    { key: "do", label: "Actions", hideLabel: true, end: true, render: (row) => row.raise !== undefined && html`<${Button} class="small" onClick=${() => onRaise(row.raise)}>Raise ${row.raise}…<//>` },
  ];
}

function Past({ told, history, app, onRerun }) {
  const [chosen, setChosen] = useState(null);
  const [open, setOpen] = useState(null);
  const { events } = history;
  const whole = useMemo(() => ({ ...told, events }), [told, events]);
  const rows = useMemo(() => tableOf(events), [events]);
  const columns = useMemo(() => columnsOf(setOpen), []);
  const [turns, setTurns] = useState(false);
  const few = useMemo(() => rows.filter((row) => (chosen === null ? turns || row.event.event !== "turn" : row.task === chosen)), [rows, chosen, turns]);
  return html`
    <${Section} title="Time line">
      ${history.error && html`<${Problem} error=${history.error} what="History" />`}
      ${events.length > 0 ? html`<${Timeline} told=${whole} chosen=${chosen} onChoose=${(task) => setChosen(task === chosen ? null : task)} />` : history.loading ? html`<${Loading} what="Reading its history" />` : !history.error && html`<${Empty} icon="workflows" title="It has not begun">Nothing has happened to it yet.<//>`}
    <//>
    <${Section} title="History" note=${told.events > events.length ? `${events.length} of ${told.events} events are here` : undefined} flush
      actions=${chosen === null ? html`<${Field} label="Turns of the code too" type="check" value=${turns} onChange=${setTurns} />` : html`<${Button} class="small" onClick=${() => setChosen(null)}>All steps, not only #${chosen}<//>`}>
      <${Table} caption="History" search=${events.length > 20 ? "Find in the history" : undefined} noun="event" rows=${few} keyOf=${(row) => row.number} columns=${columns} onRow=${setOpen} />
    <//>
    ${open && html`<${Event} row=${open} app=${app} onRerun=${onRerun} onClose=${() => setOpen(null)} />`}
  `;
}

const short = (text) => (text.length > 120 ? `${text.slice(0, 119)}…` : text);

const columnsOf = (open) => [
  { key: "after", label: "After", value: (row) => row.number, render: (row) => html`<time datetime=${row.at} title=${row.at}>+${row.after.toFixed(3)} s</time>` },
  { key: "subject", label: "Step", value: (row) => row.subject || null },
  { key: "what", label: "What happened", value: (row) => row.what, render: (row) => html`<button type="button" class=${row.bad ? "link-button bad" : "link-button"} onClick=${() => open(row)}>${row.bad ? "✕ " : ""}${row.what}</button>` },
  { key: "took", label: "Took", end: true, value: (row) => row.took, render: (row) => (row.took === null ? null : ms(row.took)) },
  { key: "value", label: "Value", value: (row) => row.value, wide: true, render: (row) => (row.value ? html`<code class="cut">${short(row.value)}</code>` : null) },
];

function Event({ row, app, onRerun, onClose }) {
  const { event, task } = row;
  const can = onRerun && ["scheduled", "child", "timer"].includes(event.event);
  return html`<${Dialog} title=${`${row.subject || row.what}${row.subject ? `: ${row.what}` : ""}`} wide onClose=${onClose}
    actions=${html`${event.event === "child" && html`<${Button} href=${links.workflow(event.appID ?? app, event.instanceID)} icon="workflows">Go to the child<//>`}
      ${can && html`<${Button} icon="replay" onClick=${() => { onClose(); onRerun(task); }}>Run again from here…<//>`}`}>
    <${Facts} rows=${[["At", date(event.at)], ["After", `${row.after.toFixed(3)} s`], ["Took", row.took !== null && ms(row.took)]]} />
    <${Json} value=${event} label="Event" tall />
  <//>`;
}

const Value = ({ value, label }) => (typeof value === "string" && value.length > 200 ? html`<${Code} text=${value} label=${label} />` : html`<${Json} value=${value} label=${label} />`);

function Values({ told }) {
  const shown = [["Input", told.input], ["Output", told.output], ["Custom status", told.customStatus]].filter(([, value]) => value !== undefined);
  return html`<${Section} title="Input and output">
    ${shown.length ? shown.map(([label, value]) => html`<h3>${label}</h3><${Value} value=${value} label=${label} />`) : html`<p class="dim">It was given nothing, and has said nothing yet.</p>`}
  <//>`;
}

function About({ told }) {
  const { parent } = told;
  return html`<${Section} title="About it"><${Facts} rows=${[
    ["Started", html`<${Ago} at=${told.createdAt} />`],
    ["To begin", told.startTime && html`<${Ago} at=${told.startTime} />`],
    ["Last change", html`<${Ago} at=${told.lastUpdatedAt} />`],
    ["Ended", told.endedAt && html`<${Ago} at=${told.endedAt} />, after ${ms((Date.parse(told.endedAt) - Date.parse(told.createdAt)) / 1000)}`],
    ["Child of", parent && html`<a href=${links.workflow(parent.appID, parent.instanceID)}>${parent.instanceID}</a>`],
    ["Version", told.version],
    ["Tags", told.tags && JSON.stringify(told.tags)],
    ["Events, turns", `${told.events}, ${told.turns}`],
    ["Workers", told.workers && Object.entries(told.workers).map(([kind, number]) => `${number} by ${kind}`).join(", ")],
    ["Kept by node", told.owner && html`<code>${told.owner}</code>, partition ${told.partition}`],
    ["Execution", html`<code>${told.executionID}</code>`],
  ]} /><//>`;
}
