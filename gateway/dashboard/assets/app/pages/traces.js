// Traces: those that pass now, each as a waterfall; where spans are sent; links to where they are kept.
import { html, useMemo, useRef, useState } from "../dom.js";
import { useMesh, useSights } from "../live.js";
import { links } from "../router.js";
import { AppField, Problems, chosenApps, useOfApps } from "../each.js";
import { failedSight, traceAddress, tracesOf, tracingLines } from "../traces.js";
import { Small, Waterfall, saidOf } from "../waterfall.js";
import { Badge, Button, Code, Dialog, Empty, Field, Loading, Page, Problem, Section, Table, ms, time } from "../ui.js";

const CONFIGURATION = `apiVersion: dapr.io/v1alpha1
kind: Configuration
metadata:
  name: tracing
spec:
  tracing:
    samplingRate: "1"
    zipkin:
      endpointAddress: http://localhost:9411/api/v2/spans`;

export default function Traces({ query }) {
  const mesh = useMesh();
  const [app, setApp] = useState(query.get("app") ?? "");
  const [paused, setPaused] = useState(false);
  const [bad, setBad] = useState(false);
  const [open, setOpen] = useState(query.get("trace"));
  const seen = useSights(app ? { app } : {}, { paused });
  const traces = useMemo(() => tracesOf(seen.sights), [seen.sights]);
  const rows = bad ? traces.filter((each) => each.failed) : traces;
  const held = useRef(null); // It stays open when newer ones have taken its place.
  held.current = traces.find((each) => each.trace === open) ?? (held.current?.trace === open ? held.current : null);
  const columns = useMemo(() => columnsOf(setOpen, mesh?.tracesURL), [mesh?.tracesURL]);
  return html`<${Page} title="Traces" lead="What belongs together: a request with all that it led to. These are put together from what passes while this page is open."
    actions=${html`<${Button} icon=${paused ? "play" : "pause"} onClick=${() => setPaused(!paused)}>${paused ? "Go on" : "Pause"}<//>`}>
    <div class="fields">
      <${AppField} mesh=${mesh} value=${app} onChange=${setApp} label="Seen at" />
      <${Field} label="Only those that failed" type="check" value=${bad} onChange=${setBad} />
    </div>
    ${seen.error && html`<${Problem} error=${seen.error} />`}
    ${seen.dropped > 0 && html`<p class="note">More passes than is told: ${seen.dropped} were left out, so traces may have gaps. Choose an application above.</p>`}
    <${Section} title="Traces that passed" note=${paused ? "paused" : undefined} flush>
      <${Table} caption="Traces" search=${traces.length > 8 ? "Find a trace" : undefined} noun="trace" rows=${rows} keyOf=${(row) => row.trace} columns=${columns} onRow=${(row) => setOpen(row.trace)} current=${open}
        empty=${html`<${None} bad=${bad && traces.length > 0} seen=${seen} />`} />
    <//>
    ${held.current && html`<${Trace} trace=${held.current} template=${mesh?.tracesURL} onClose=${() => setOpen(null)} />`}
    <${Sending} mesh=${mesh} app=${app} />
  <//>`;
}

function None({ bad, seen }) {
  if (bad) return html`<${Empty} icon="ok" title="None of them failed" />`;
  if (seen.sights.length) return html`<${Empty} icon="traces" title="What passes is in no trace">The applications' <code>samplingRate</code> is <code>"0"</code>: see below how to have traces.<//>`;
  if (seen.refused.length) return html`<${Empty} icon="traces" title="Nothing is told that passes">${seen.refused[0].reason}<//>`;
  return html`<${Empty} icon="traces" title="Nothing has passed yet">As soon as something is called or published, its trace is here. <a href="#/try">Try it out</a><//>`;
}

const columnsOf = (open, template) => [
  { key: "trace", label: "Trace", value: (row) => row.trace, render: (row) => html`<button type="button" class="link-button mono short-id" onClick=${() => open(row.trace)}>${row.trace.slice(0, 10)}…</button>` },
  { key: "first", label: "Began with", value: (row) => saidOf(row.spans[0]), wide: true },
  { key: "picture", label: "Steps in time", render: (row) => html`<${Small} trace=${row} />` },
  { key: "apps", label: "Applications", value: (row) => row.apps.join(", ") },
  { key: "spans", label: "Steps", end: true, value: (row) => row.spans.length },
  { key: "failed", label: "Failed", end: true, value: (row) => row.failed, render: (row) => (row.failed ? html`<${Badge} kind="bad">${row.failed}<//>` : "0") },
  { key: "took", label: "Took", end: true, value: (row) => row.until - row.since, render: (row) => ms(row.until - row.since) },
  { key: "at", label: "At", end: true, value: (row) => row.since, render: (row) => html`<time datetime=${new Date(row.since * 1000).toISOString()}>${time(row.since)}</time>` },
  ...(template ? [{ key: "out", label: "Elsewhere", hideLabel: true, end: true, render: (row) => html`<${Out} template=${template} trace=${row.trace} short />` }] : []),
];

function Out({ template, trace, short }) {
  const address = traceAddress(template, trace);
  if (!address) return null;
  return html`<${Button} icon="out" href=${address} target="_blank" rel="noreferrer" label=${short ? `Open trace ${trace.slice(0, 12)} where it is kept` : undefined} quiet=${short}>${short ? undefined : "Open where it is kept"}<//>`;
}

function Trace({ trace, template, onClose }) {
  return html`<${Dialog} title=${html`Trace <code>${trace.trace}</code>`} wide onClose=${onClose}
    actions=${html`<${Button} href=${links.events({ where: `event.traceparent.contains("${trace.trace}")` })} icon="events">Watch for more of it<//><${Out} template=${template} trace=${trace.trace} />`}>
    <${Waterfall} trace=${trace} />
    <${Table} caption=${`Steps of trace ${trace.trace}`} noun="step" rows=${trace.spans} keyOf=${(row) => row.event.id} columns=${STEPS} />
  <//>`;
}

const STEPS = [
  { key: "what", label: "What", value: (row) => saidOf(row) },
  { key: "seen", label: "Seen", value: (row) => row.data.seen },
  { key: "app", label: "At", value: (row) => row.data.app, render: (row) => html`<a href=${links.app(row.data.app)}>${row.data.app}</a>` },
  { key: "outcome", label: "Outcome", value: (row) => row.data.outcome, render: (row) => html`<${Badge} kind=${failedSight(row.data) ? "bad" : "ok"}>${row.data.outcome}<//>` },
  { key: "from", label: "Began", end: true, value: (row) => row.from, render: (row) => time(row.from) },
  { key: "took", label: "Took", end: true, value: (row) => row.data.seconds, render: (row) => ms(row.data.seconds) },
];

/** Where spans are sent: what each application's Configuration says, and where a trace is looked at. */
function Sending({ mesh, app }) {
  const apps = chosenApps(mesh, app);
  const of = useOfApps(apps, ["mesh", "resources"], { rowsOf: (told) => told.resources.filter((each) => each.kind === "Configuration") });
  const said = useMemo(() => {
    const groups = new Map();
    for (const each of of.rows) {
      const lines = tracingLines(each.yaml ?? "");
      if (!lines) continue;
      if (!groups.has(lines)) groups.set(lines, { lines, name: each.name, apps: new Set() });
      groups.get(lines).apps.add(each.app);
    }
    return [...groups.values()];
  }, [of.rows]);
  return html`<${Section} title="Where traces are sent">
    <${Problems} errors=${of.errors} retry=${of.reload} what="Configurations" />
    ${of.loading && !of.rows.length && html`<${Loading} what="Asking for configurations" />`}
    ${said.map((each) => html`<div key=${each.lines} class="stack part-gap"><p>${[...each.apps].join(", ")}, by Configuration <code>${each.name}</code>:</p><${Code} text=${each.lines} label=${`Tracing of ${[...each.apps].join(", ")}`} /></div>`)}
    ${!apps.length && mesh?.apps.length > 0 && html`<p>Choose an application above: there are too many to ask all of them.</p>`}
    ${apps.length > 0 && !of.loading && !said.length && !of.errors.length && html`<div class="stack"><p>No application sends its spans anywhere. To send them to Zipkin, Jaeger or Tempo, give this with <code>--config tracing.yaml</code>, or put it in the resources folder:</p><${Code} text=${CONFIGURATION} label="A Configuration" /></div>`}
    ${mesh?.tracesURL
      ? html`<p class="part-top">Traces are looked at by <code>${mesh.tracesURL}</code>.</p>`
      : html`<div class="stack part-top"><p>Say where traces are looked at, and each of them has a link to it:</p><${Code} text="mesh dashboard --traces-url 'http://localhost:9411/zipkin/traces/{traceId}'" label="A command" /></div>`}
  <//>`;
}
