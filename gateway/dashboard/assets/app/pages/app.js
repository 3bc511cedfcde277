// One application: its instances, what it subscribes to and answers, resources, logs and configuration.
import { html, useEffect, useMemo, useRef, useState } from "../dom.js";
import { get, ofApp, ofNode, useEach, useGet } from "../api.js";
import { useMesh, useRates } from "../live.js";
import { FlowsOf } from "../map/flows.js";
import { links, setQuery, to } from "../router.js";
import { Asked, Badge, Button, Code, Empty, Facts, Field, Figures, Loading, Page as Frame, Problem, Section, Table, Tabs, Thing, bytes, count, lasting, many, ms, percent, perSecond, time } from "../ui.js";
import { START, Standing } from "./apps.js";

const KEPT_LINES = 1000;
const LEVELS = [["debug", "all"], ["info", "info and worse"], ["warning", "warnings and worse"], ["error", "errors"]];

const listens = (told) =>
  told === undefined || Array.isArray(told) ? (told ?? []).join(", ") : ["http", "grpc", "metrics"].filter((each) => told[each]).map((each) => `${each} ${told[each]}`).join(", ") || (told.addresses ?? []).join(", ");

const INSTANCES = [
  { key: "node", label: "Node", value: (row) => row.node, render: (row) => html`<span class="mono">${row.node}</span>` },
  { key: "ready", label: "State", value: (row) => String(row.ready), render: (row) => (row.error ? html`<${Badge} kind="warn">does not answer<//>` : row.ready ? html`<${Badge} kind="ok">ready<//>` : html`<${Badge} kind="bad">not ready<//>`) },
  { key: "host", label: "Machine", value: (row) => row.data?.hostname ?? row.data?.hostName },
  { key: "pid", label: "Process", end: true, value: (row) => row.data?.pid, render: (row) => row.data?.pid ?? "–" },
  { key: "cpu", label: "CPU", end: true, value: (row) => row.cpu, render: (row) => (row.cpu === null ? "–" : percent(row.cpu)) },
  { key: "memory", label: "Memory", end: true, value: (row) => row.data?.rssBytes, render: (row) => bytes(row.data?.rssBytes) },
  { key: "since", label: "Up", end: true, value: (row) => row.data?.since, render: (row) => (row.data ? lasting(Date.now() / 1000 - row.data.since) : "–") },
  { key: "listens", label: "Listens", wide: true, value: (row) => listens(row.data?.listens), render: (row) => html`<span class="mono">${listens(row.data?.listens) || "–"}</span>` },
];

function Instances({ app }) {
  const answers = useEach(app.instances.map((each) => ofNode(each.node, "mesh", "node")), { every: 3 });
  const before = useRef(new Map());
  const rows = useMemo(() => {
    const now = performance.now() / 1000;
    return app.instances.map((each, at) => {
      const { data, error } = answers[at] ?? {};
      const last = before.current.get(each.node);
      const cpu = data && last && now - last.at > 0.5 ? Math.max(0, (data.cpuSeconds - last.cpuSeconds) / (now - last.at)) : (last?.cpu ?? null);
      if (data && (!last || now - last.at > 0.5)) before.current.set(each.node, { at: now, cpuSeconds: data.cpuSeconds, cpu });
      return { ...each, data, error, cpu };
    });
  }, [app, answers]);
  const refused = rows.find((each) => each.error);
  return html`<${Section} title="Instances" note="the gateway process of each" flush>
    ${refused && html`<${Problem} error=${refused.error} what=${refused.node} />`}
    <${Table} caption="Instances of the application" columns=${INSTANCES} rows=${rows} keyOf=${(row) => row.node} noun="instance" />
  <//>`;
}

const SUBSCRIPTIONS = [
  { key: "topic", label: "Topic", value: (row) => `${row.component}/${row.topic}`, render: (row) => html`<${Thing} kind="topic" name=${row.topic} note=${row.component} href=${links.topic(row.component, row.topic)} />` },
  { key: "routes", label: "Routes", wide: true, value: (row) => row.routes.map((each) => each.path).join(" "), render: (row) => html`<span class="chips">${row.routes.map((each) => html`<code class="chip" title=${each.match || "all others"}>${each.path}</code>`)}</span>` },
  { key: "dead", label: "Dead letters go to", value: (row) => row.deadLetterTopic, render: (row) => (row.deadLetterTopic ? html`<a href=${`${links.topic(row.component, row.topic)}?tab=dead`}>${row.deadLetterTopic}</a>` : html`<span class="dim">nowhere</span>`) },
  { key: "waiting", label: "Waiting", end: true, value: (row) => row.waiting, render: (row) => count(row.waiting) },
  { key: "rate", label: "Rate", end: true, value: (row) => row.now.rate, render: (row) => perSecond(row.now.rate) },
  { key: "p95", label: "p95", end: true, value: (row) => row.now.p95, render: (row) => ms(row.now.p95) },
  { key: "failing", label: "Failing", end: true, value: (row) => row.now.failing, render: (row) => (row.now.errors ? html`<${Badge} kind="bad">${percent(row.now.failing)}<//>` : html`<span class="dim">–</span>`) },
];

function Overview({ app, metadata }) {
  const { tick, rates } = useRates();
  const topics = useGet(ofApp(app.id, "mesh", "topics"), { every: 5 });
  const rows = useMemo(
    () =>
      app.subscriptions.map((each) => {
        const told = metadata.data?.subscriptions?.find((one) => one.pubsubname === each.component && one.topic === each.topic);
        const waits = topics.data?.topics?.find((one) => one.component === each.component && one.topic === each.topic);
        const now = rates.figures(rates.where((edge) => edge.seen === "arrived" && edge.block === "pubsub" && edge.app === app.id && edge.target === `${each.component}/${each.topic}`));
        return { ...each, routes: told?.rules ?? [], waiting: waits?.waiting ?? null, now };
      }),
    [app, metadata.data, topics.data, tick],
  );
  return html`
    <${Instances} app=${app} />
    <${Section} title="Subscriptions" flush>
      <${Table} caption="Topics that the application subscribes to" columns=${SUBSCRIPTIONS} rows=${rows} keyOf=${(row) => `${row.component}/${row.topic}`} sortBy="topic" noun="subscription" empty=${html`<${Empty} icon="topics" title="It subscribes to nothing" />`} />
    <//>
    <div class="cards">
      <${Section} title="Publishes to">
        ${app.published.length ? html`<ul class="chips">${app.published.map((each) => html`<li class="chip" key=${`${each.component}/${each.topic}`}><${Thing} kind="topic" name=${each.topic} note=${each.component} href=${links.topic(each.component, each.topic)} /></li>`)}</ul>` : html`<p class="dim">Nothing since it started.</p>`}
      <//>
      <${Section} title="Methods" note="that others may call" actions=${html`<${Button} class="small" icon="try" href=${links.tryOut({ do: "invoke", app: app.id })}>Call one<//>`}>
        ${app.methods?.length ? html`<ul class="chips">${app.methods.map((each) => html`<li key=${each}><a class="chip" href=${links.tryOut({ do: "invoke", app: app.id, path: each })}><code>${each}</code></a></li>`)}</ul>` : html`<p class="dim">${app.methods ? "None." : "It does not say which; any path can be called."}</p>`}
      <//>
      <${Section} title="Components">
        ${app.components.length ? html`<ul class="chips">${app.components.map((each) => html`<li class="chip" key=${each}><${Thing} kind="component" name=${each} href=${links.component(each)} /></li>`)}</ul>` : html`<p class="dim">None.</p>`}
      <//>
      <${Section} title="Actors">
        ${app.actors.length ? html`<ul class="chips">${app.actors.map((each) => html`<li class="chip" key=${each.type}><${Thing} kind="actor" name=${each.type} note=${`${count(each.count)} active`} href=${to(["actors"], { type: each.type })} /></li>`)}</ul>` : html`<p class="dim">It hosts none.</p>`}
      <//>
    </div>
    <${Section} title="What flows" flush><${FlowsOf} id=${`app:${app.id}`} empty=${html`<${Empty} icon="events" title="Nothing passed within the last minute" />`} /><//>`;
}

/** The last lines of a node's log, and those that come: {lines, error, missed}. */
function useLog(node, level, follow) {
  const [state, setState] = useState({ lines: null });
  useEffect(() => {
    const mine = new AbortController();
    let after;
    let timer = 0;
    setState({ lines: null });
    const ask = async () => {
      try {
        if (!document.hidden) {
          const told = await get(ofNode(node, "mesh", "logs"), { after, level, limit: after === undefined ? 300 : 1000 }, mine.signal);
          after = told.next;
          setState(({ lines }) => ({ lines: told.lines.length ? [...(lines ?? []), ...told.lines].slice(-KEPT_LINES) : (lines ?? []), missed: told.missed }));
        }
      } catch (error) {
        if (mine.signal.aborted) return;
        setState((was) => ({ ...was, error }));
        if (error.status && error.status < 500) return;
      }
      if (follow) timer = setTimeout(ask, 1000);
    };
    ask();
    return () => {
      mine.abort();
      clearTimeout(timer);
    };
  }, [node, level, follow]);
  return state;
}

function Logs({ app }) {
  const [node, setNode] = useState(app.instances[0]?.node ?? "");
  const [level, setLevel] = useState("debug");
  const [sought, setSought] = useState("");
  const [follow, setFollow] = useState(true);
  const frame = useRef(null);
  const { lines, error, missed } = useLog(node, level, follow);
  useEffect(() => {
    if (follow && frame.current) frame.current.scrollTop = frame.current.scrollHeight;
  }, [lines, follow]);
  const words = sought.toLowerCase();
  const shown = (lines ?? []).filter((each) => !words || `${each.scope} ${each.message}`.toLowerCase().includes(words));
  return html`<${Section} title="Log of its gateway" note="its last 1,000 lines; with the application's own: mesh logs" flush>
    <div class="table-tools">
      ${app.instances.length > 1 && html`<${Field} label="Instance" class="inline" type="select" value=${node} onChange=${setNode} options=${app.instances.map((each) => each.node)} />`}
      <${Field} label="Level" class="inline" type="select" value=${level} onChange=${setLevel} options=${LEVELS} />
      <${Field} label="Contains" class="inline" value=${sought} onChange=${setSought} />
      <${Field} label="Follow" type="check" value=${follow} onChange=${setFollow} />
      <span class="dim table-count">${many(shown.length, "line")}${missed ? `, ${count(missed)} no longer kept` : ""}</span>
    </div>
    ${error && html`<${Problem} error=${error} />`}
    ${lines === null && !error && html`<${Loading} />`}
    ${lines !== null &&
    html`<div class="log" ref=${frame} role="log" aria-live="off" aria-label="Lines of the log" tabindex="0">
      ${shown.map((each) => html`<p key=${each.n} class=${`log-line ${each.level}`}><time class="dim">${time(each.time)}</time> <b>${each.level}</b> <span class="dim">${each.scope}</span> ${each.message}</p>`)}
      ${!shown.length && html`<${Empty} icon="events" title=${sought ? "No line has that" : "No lines of this level"} />`}
    </div>`}
  <//>`;
}

/** A resource file's YAML with its problems. */
function Resource({ of }) {
  const problems = of.problems ?? [];
  return html`<details class="resource" open=${problems.length > 0}>
    <summary><b>${of.kind || "File"}</b> ${of.name} ${problems.length > 0 && html`<${Badge} kind="bad">${many(problems.length, "problem")}<//>`} <span class="dim mono">${of.file ? `${of.file}:${of.line}` : "built in"}</span></summary>
    ${problems.map((each, at) => html`<p class="note" key=${at}>${typeof each === "string" ? each : html`<b>${each.path}</b> ${each.message} <span class="dim mono">${each.line ? `line ${each.line}` : ""}</span>`}</p>`)}
    ${of.yaml && html`<${Code} text=${of.yaml} label=${`YAML of ${of.name}`} />`}
  </details>`;
}

function Resources({ app, only, none }) {
  const asked = useGet(ofApp(app.id, "mesh", "resources"));
  return html`<${Asked} of=${asked} what="Reading its resources">${(told) => {
    const all = (told.resources ?? told).filter((each) => only.includes(each.kind) === (only[0] !== "!"));
    return all.length ? html`<div class="stack">${all.map((each, at) => html`<${Resource} key=${`${each.kind} ${each.name} ${at}`} of=${each} />`)}</div>` : html`<${Empty} icon="resources" title=${none} />`;
  }}<//>`;
}

const SETTINGS = ["Configuration", "Resiliency", "HTTPEndpoint"];

function Configuration({ app, metadata }) {
  return html`
    <${Section} title="As its gateway runs">
      <${Asked} of=${metadata} what="Asking its gateway">${(told) => html`<${Facts} rows=${[
        ["Application", told.appConnectionProperties?.port ? `${told.appConnectionProperties.protocol ?? "http"} on port ${told.appConnectionProperties.port}` : "none: it is only a client"],
        ["Calls at a time", told.appConnectionProperties?.maxConcurrency > 0 ? told.appConnectionProperties.maxConcurrency : "no limit"],
        ["Health is asked", told.appConnectionProperties?.health && JSON.stringify(told.appConnectionProperties.health)],
        ["Version", told.runtimeVersion],
        ["Features", told.enabledFeatures?.join(", ")],
        ["Actors", told.actorRuntime?.runtimeStatus?.toLowerCase()],
        ...Object.entries(told.extended ?? {}).map(([name, value]) => [name, html`<span class="mono">${String(value)}</span>`]),
      ]} />`}<//>
    <//>
    <${Section} title="What it is configured with"><${Resources} app=${app} only=${SETTINGS} none="No Configuration or Resiliency: the defaults apply" /><//>`;
}

export default function Page({ params, query }) {
  const mesh = useMesh();
  const { rates } = useRates();
  const [tab, setTab] = useState(query.get("tab") ?? "overview");
  const app = mesh?.apps.find((each) => each.id === params.id);
  const metadata = useGet(app ? ofApp(app.id, "metadata") : null, { every: 15 });
  useEffect(() => setQuery({ tab: tab === "overview" ? "" : tab }), [tab]);
  const crumbs = [["Applications", "#/apps"]];
  if (!mesh) return html`<${Frame} title=${params.id} kind="app" crumbs=${crumbs}><${Loading} /><//>`;
  if (!app) {
    return html`<${Frame} title=${params.id} kind="app" crumbs=${crumbs}><div class="card"><${Empty} icon="apps" title=${`${params.id} is not on the mesh`} command=${START.replace("hello", params.id)}>It may have stopped, or never been started. It appears here as soon as it is there.<//></div><//>`;
  }
  const problems = mesh.problems.filter((each) => each.app === app.id);
  const into = rates.where((edge) => edge.app === app.id && edge.seen !== "asked" && edge.seen !== "hosted");
  const out = rates.where((edge) => edge.app === app.id && edge.seen === "asked");
  const [came, went] = [rates.figures(into), rates.figures(out)];
  const tabs = [{ id: "overview", label: "Overview" }, { id: "logs", label: "Logs" }, { id: "resources", label: "Resources" }, { id: "configuration", label: "Configuration" }];
  return html`<${Frame} title=${app.id} kind="app" crumbs=${crumbs} lead=${html`<${Standing} app=${app} problems=${problems} />`}
    actions=${html`<${Button} icon="map" href=${to([""], { q: app.id })}>On the map<//><${Button} icon="events" href=${links.events({ app: app.id })}>Watch live<//>`}>
    ${problems.map((each) => html`<p class="note" key=${`${each.node} ${each.target}`}><b>${each.target}</b> is ${each.state} at <span class="mono">${each.node}</span></p>`)}
    <${Figures} of=${[
      { label: "Reaches it", value: perSecond(came.rate), note: `p95 ${ms(came.p95)}`, spark: rates.series(into), marks: rates.series(into, "errors") },
      { label: "Fails in it", value: percent(came.failing), kind: came.errors ? "bad" : "" },
      { label: "It asks of others", value: perSecond(went.rate), note: `p95 ${ms(went.p95)}`, spark: rates.series(out), marks: rates.series(out, "errors") },
      { label: "Of that fails", value: percent(went.failing), kind: went.errors ? "bad" : "" },
    ]} />
    <${Tabs} label=${`Of the application ${app.id}`} tabs=${tabs} at=${tabs.some((each) => each.id === tab) ? tab : "overview"} onChange=${setTab}>
      ${tab === "logs"
        ? html`<${Logs} app=${app} />`
        : tab === "resources"
          ? html`<${Section} title="Its resources" note="as files have them now, without secrets"><${Resources} app=${app} only=${["!", ...SETTINGS]} none="No resources but the built-in ones" /><//>`
          : tab === "configuration"
            ? html`<${Configuration} app=${app} metadata=${metadata} />`
            : html`<${Overview} app=${app} metadata=${metadata} />`}
    <//>
  <//>`;
}
