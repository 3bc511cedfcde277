// One topic: what waits, what passes, what lies there, what failed and can be replayed, and a form to publish.
import { html, useEffect, useMemo, useRef, useState } from "../dom.js";
import { get, ofApp, post, useEach } from "../api.js";
import { PublishForm } from "../forms.js";
import { useMesh, useRates } from "../live.js";
import { FlowsOf } from "../map/flows.js";
import { arrived, published } from "../rates.js";
import { links, setQuery } from "../router.js";
import { Ago, Badge, Button, Empty, Facts, Field, Figures, Json, Loading, Page as Frame, Problem, Section, Table, Tabs, Thing, announce, bytes, confirm, count, lasting, many, ms, perSecond, percent, toast } from "../ui.js";

const ASKED = 12; // Subscribers that are asked how far they are.

const path = (app, component, topic, ...rest) => ofApp(app, "mesh", "topics", component, topic, ...rest);

const SUBSCRIBERS = [
  { key: "app", label: "Application", value: (row) => row.app, render: (row) => html`<${Thing} kind="app" name=${row.app} href=${links.app(row.app)} />` },
  { key: "waiting", label: "Waiting", end: true, value: (row) => row.data?.waiting, render: (row) => count(row.data?.waiting) },
  { key: "taken", label: "Being worked on", end: true, value: (row) => row.data?.taken, render: (row) => count(row.data?.taken) },
  { key: "oldest", label: "Lag", end: true, value: (row) => row.data?.oldestSeconds, render: (row) => (row.data?.oldestSeconds ? lasting(row.data.oldestSeconds) : "–") },
  { key: "rate", label: "Rate", end: true, value: (row) => row.now.rate, render: (row) => perSecond(row.now.rate) },
  { key: "p95", label: "p95", end: true, value: (row) => row.now.p95, render: (row) => ms(row.now.p95) },
  { key: "attempts", label: "Attempts", value: (row) => row.data?.attempts?.retry, render: (row) => html`<${Attempts} of=${row.data?.attempts} error=${row.error} />`, wide: true },
  { key: "routes", label: "Routes", value: (row) => row.data?.routes?.map((each) => each.path).join(" "), render: (row) => html`<span class="chips">${row.data?.routes?.map((each) => html`<code class="chip" title=${each.match ?? "all others"}>${each.path}</code>`)}</span>`, wide: true },
];

function Attempts({ of, error }) {
  if (error) return html`<span class="dim">${error.message}</span>`;
  if (!of) return "–";
  return html`<span class="chips"><${Badge} kind="ok">${count(of.success)} taken<//>${of.retry > 0 && html`<${Badge} kind="warn">${count(of.retry)} failed<//>`}${of.drop > 0 && html`<${Badge} kind="bad">${count(of.drop)} dropped<//>`}</span>`;
}

const preview = (event) => {
  const said = typeof event === "string" ? event : JSON.stringify(event?.data ?? event?.data_base64 ?? event);
  return said === undefined ? "" : said.slice(0, 160);
};

/** Pages of what lies in a topic: {rows, of, error, busy, more, reload}. */
function usePages(asked, newest) {
  const [state, setState] = useState({ rows: [], busy: true });
  const [turn, setTurn] = useState(0);
  const mine = useRef(null);
  const load = async (after, before) => {
    const { signal } = mine.current;
    setState((was) => ({ ...was, busy: true, error: null }));
    try {
      const of = await get(asked, { limit: 50, after, newest: newest ? "true" : undefined }, signal);
      if (!signal.aborted) setState({ rows: [...before, ...of.events], of, busy: false });
    } catch (error) {
      if (!signal.aborted) setState({ rows: before, error, busy: false });
    }
  };
  useEffect(() => {
    mine.current = new AbortController();
    load(undefined, []);
    return () => mine.current.abort();
  }, [asked, newest, turn]);
  return { ...state, more: !newest && state.of?.after && state.rows.length < state.of.count ? () => load(state.of.after, state.rows) : null, reload: () => setTurn(turn + 1) };
}

function Opened({ row, onClose, onDraft, children }) {
  return html`<${Section} title=${`Event ${row.id}`} actions=${html`${children}${onDraft && typeof row.event === "object" && html`<${Button} class="small" icon="send" onClick=${() => onDraft(row)}>Use as a draft<//>`}<${Button} quiet icon="close" label="Close the event" onClick=${onClose} />`}>
    <div class="stack"><${Facts} rows=${[["Stored", html`<${Ago} at=${row.stored} />`], ["Size", bytes(row.size)], ["From topic", row.topic], ["Attempts", row.attempts], ["Reason", row.reason]]} />
    ${typeof row.event === "string" ? html`<pre class="plain">${row.event}</pre>` : html`<${Json} value=${row.event} label=${`Event ${row.id} as JSON`} />`}
    ${row.truncated && html`<p class="dim">Its data is longer than what is shown.</p>`}</div>
  <//>`;
}

const EVENTS = [
  { key: "id", label: "Position", value: (row) => row.id, render: (row) => html`<span class="mono">${row.id}</span>` },
  { key: "stored", label: "Stored", value: (row) => row.stored, render: (row) => html`<${Ago} at=${row.stored} />` },
  { key: "type", label: "Type", value: (row) => row.event?.type ?? "", render: (row) => row.event?.type ?? "–" },
  { key: "data", label: "Data", wide: true, value: (row) => preview(row.event), render: (row) => html`<code class="preview">${preview(row.event)}</code>` },
  { key: "size", label: "Size", end: true, value: (row) => row.size, render: (row) => bytes(row.size) },
];

const opener = (setShown) => ({ key: "open", label: "Show", hideLabel: true, sort: false, render: (row) => html`<${Button} class="small" label=${`Show event ${row.id}`} onClick=${() => setShown(row)}>Show<//>` });

function Events({ app, component, topic, onDraft }) {
  const [newest, setNewest] = useState(true);
  const [shown, setShown] = useState(null);
  const pages = usePages(path(app, component, topic, "events"), newest);
  const columns = useMemo(() => [...EVENTS, opener(setShown)], []);
  if (pages.error?.status === 501) return html`<${Empty} icon="topics" title="This broker keeps no events that could be looked at">Watch them as they pass instead: <a href=${links.events({ topic: `${component}/${topic}` })}>live</a>.<//>`;
  return html`
    ${pages.error && html`<${Problem} error=${pages.error} retry=${pages.reload} />`}
    ${shown && html`<${Opened} row=${shown} onClose=${() => setShown(null)} onDraft=${onDraft} />`}
    <${Section} title="What lies there" note=${pages.of ? `${count(pages.of.count)} in all; looking takes none away` : ""} flush actions=${html`
      <${Field} label="Order" type="select" class="inline" value=${newest ? "new" : "old"} onChange=${(value) => setNewest(value === "new")} options=${[["new", "newest first"], ["old", "oldest first"]]} />
      <${Button} icon="refresh" onClick=${pages.reload} disabled=${pages.busy}>Look again<//>`}>
      ${pages.busy && !pages.rows.length ? html`<${Loading} />` : html`<${Table} caption="Events that lie in the topic" columns=${columns} rows=${pages.rows} keyOf=${(row) => row.id} noun="event" onRow=${setShown} current=${shown?.id} empty=${!pages.error && html`<${Empty} icon="topics" title="No events lie here">Either nothing was published yet, or all of it was taken.<//>`} />`}
      ${pages.more && html`<p class="pager"><${Button} onClick=${pages.more} disabled=${pages.busy}>More<//></p>`}
    <//>`;
}

const LETTERS = [
  { key: "id", label: "Position", value: (row) => row.id, render: (row) => html`<span class="mono">${row.id}</span>` },
  { key: "reason", label: "Why it failed", wide: true, value: (row) => row.reason, render: (row) => row.reason ?? "–" },
  { key: "data", label: "Data", wide: true, value: (row) => preview(row.event), render: (row) => html`<code class="preview">${preview(row.event)}</code>` },
  { key: "topic", label: "From topic", value: (row) => row.topic },
  { key: "attempts", label: "Attempts", end: true, value: (row) => row.attempts },
  { key: "stored", label: "Stored", value: (row) => row.stored, render: (row) => html`<${Ago} at=${row.stored} />` },
];

function Done({ of }) {
  const went = of.replayed === undefined ? `Deleted ${many(of.purged, "dead letter")}` : `Sent back ${many(of.replayed, "dead letter")}`;
  const to = Object.entries(of.to ?? {}).map(([topic, number]) => `${count(number)} to ${topic}`).join(", ");
  const why = Object.entries({ ...of.why, ...of.unjudged });
  return html`<div class=${of.left ? "note" : "note info"} role="status">
    <p><b>${went}${to && `: ${to}`}.</b> ${of.left > 0 && `${count(of.left)} stay.`}</p>
    ${why.length > 0 && html`<ul>${why.map(([text, number]) => html`<li key=${text}>${text}: ${String(number)}</li>`)}</ul>`}
  </div>`;
}

function DeadLetters({ keepers, component, topic }) {
  const [app, setApp] = useState(keepers[0]);
  // Of another application everything is another: nothing that was chosen or shown may be done to its dead letters.
  return html`
    ${keepers.length > 1 && html`<${Field} label="Dead letters of" class="inline" type="select" value=${app} onChange=${setApp} options=${keepers} />`}
    <${Letters} key=${app} base=${path(app, component, topic, "dead-letters")} />`;
}

function Letters({ base }) {
  const [chosen, setChosen] = useState(new Set());
  const [shown, setShown] = useState(null);
  const [state, setState] = useState({});
  const pages = usePages(base, false);
  const columns = useMemo(() => [...LETTERS, opener(setShown)], []);
  const act = async (what, which) => {
    const number = which.all ? (pages.of?.count ?? "all") : which.ids.length;
    const several = number === 1 ? "this dead letter" : which.all ? `all ${number} dead letters` : `${number} dead letters`;
    const sure = await confirm(
      what === "replay"
        ? { title: "Send back?", text: `This publishes ${several} again to where ${number === 1 ? "it" : "they"} came from; every subscriber there gets ${number === 1 ? "it" : "them"} once more.`, action: "Send back" }
        : { title: "Delete?", text: `This deletes ${several} for good.`, action: "Delete", danger: true },
    );
    if (!sure) return;
    setState({ busy: true });
    try {
      const done = (await post(`${base}/${what}`, which)).json;
      setState({ done });
      toast(what === "replay" ? `Sent back ${done.replayed}` : `Deleted ${done.purged}`);
      setShown(null);
      setChosen(new Set());
      pages.reload();
    } catch (error) {
      setState({ error });
      announce(error.message);
    }
  };
  const some = [...chosen];
  const none = !pages.rows.length || state.busy;
  return html`
    ${pages.error && html`<${Problem} error=${pages.error} retry=${pages.reload} />`}
    ${state.error && html`<${Problem} error=${state.error} />`}
    ${state.done && html`<${Done} of=${state.done} />`}
    ${shown && html`<${Opened} row=${shown} onClose=${() => setShown(null)}><${Button} kind="main" icon="replay" disabled=${state.busy} onClick=${() => act("replay", { ids: [shown.id] })}>Send this one back<//><${Button} icon="trash" disabled=${state.busy} onClick=${() => act("purge", { ids: [shown.id] })}>Delete this one<//><//>`}
    <${Section} title="Dead letters" note=${pages.of ? `in ${pages.of.topic}` : ""} flush actions=${html`
      <${Button} kind=${some.length ? "main" : ""} icon="replay" disabled=${none || !some.length} onClick=${() => act("replay", { ids: some })}>Send back ${some.length || ""} chosen<//>
      <${Button} icon="replay" disabled=${none} onClick=${() => act("replay", { all: true })}>Send back all<//>
      <${Button} icon="trash" disabled=${none} onClick=${() => act("purge", some.length ? { ids: some } : { all: true })}>Delete ${some.length ? `${some.length} chosen` : "all"}<//>
      <${Button} quiet icon="refresh" label="Look again" onClick=${pages.reload} />`}>
      ${pages.busy && !pages.rows.length ? html`<${Loading} />` : html`<${Table} caption="Dead letters" columns=${columns} rows=${pages.rows} keyOf=${(row) => row.id} noun="dead letter" chosen=${chosen} onChosen=${setChosen} onRow=${setShown} current=${shown?.id} empty=${!pages.error && html`<${Empty} icon="ok" title="No dead letters">Whatever fails for good will lie here, and can be sent back.<//>`} />`}
      ${pages.more && html`<p class="pager"><${Button} onClick=${pages.more} disabled=${pages.busy}>More<//></p>`}
    <//>`;
}

/** Who can tell of it: {askers: those that use it, keepers: those whose dead letters concern it}. */
function whoKnows(mesh, told, component, topic) {
  const askers = [...new Set([...told.subscribers, ...told.publishers])];
  const keepers = [];
  for (const app of mesh.apps) {
    for (const each of app.subscriptions) {
      if (each.component !== component || !each.deadLetterTopic) continue;
      if (each.topic === topic || each.deadLetterTopic === topic) keepers.push(app.id);
    }
  }
  if (!askers.length) askers.push(...keepers, ...(mesh.components.find((each) => each.name === component)?.apps ?? []));
  return { askers: askers.length ? askers : [""], keepers: [...new Set(keepers)] };
}

export default function Page({ params, query }) {
  const { component, topic } = params;
  const name = `${component}/${topic}`;
  const mesh = useMesh();
  const { rates } = useRates();
  const [tab, setTab] = useState(query.get("tab") ?? "flow");
  const [draft, setDraft] = useState(null);
  useEffect(() => setQuery({ tab: tab === "flow" ? "" : tab }), [tab]);
  const told = mesh?.topics.find((each) => each.component === component && each.topic === topic) ?? { publishers: [], subscribers: [], deadLetterOf: [] };
  const { askers, keepers } = useMemo(() => (mesh ? whoKnows(mesh, told, component, topic) : { askers: [], keepers: [] }), [mesh, name]);
  const apps = told.subscribers.length ? told.subscribers.slice(0, ASKED) : askers.slice(0, 1);
  const answers = useEach(mesh ? apps.map((app) => path(app, component, topic)) : [], { every: 3 });
  if (!mesh) return html`<${Frame} title=${topic} kind="topic"><${Loading} /><//>`;
  const views = apps.map((app, at) => ({ app, ...answers[at] }));
  const rows = views.filter(({ app }) => told.subscribers.includes(app)).map((each) => ({ ...each, now: rates.figures(rates.where((edge) => arrived(edge) && edge.target === name && edge.app === each.app)) }));
  const [into, out] = [published, arrived].map((is) => rates.where((edge) => is(edge) && edge.target === name));
  const [came, went] = [rates.figures(into), rates.figures(out)];
  const known = views.filter((each) => each.data).map((each) => each.data);
  const sum = (field) => (known.some((each) => each[field] !== null && each[field] !== undefined) ? known.reduce((all, each) => all + (each[field] ?? 0), 0) : null);
  const lag = Math.max(0, ...known.map((each) => each.oldestSeconds ?? 0));
  const kept = known.find((each) => typeof each.kept === "number")?.kept;
  const letters = sum("deadLetters");
  const failed = views.find((each) => each.error);
  const tabs = [{ id: "flow", label: "Flow" }, { id: "events", label: "Events", count: kept }, ...(keepers.length ? [{ id: "dead", label: "Dead letters" }] : []), { id: "publish", label: "Publish" }];
  const at = tabs.some((each) => each.id === tab) ? tab : "flow";
  const asDraft = (row) => {
    setDraft(JSON.stringify(row.event.data ?? null, null, 2));
    setTab("publish");
  };
  return html`<${Frame} title=${topic} kind="topic" crumbs=${[["Topics", "#/topics"]]} lead=${html`A topic of <a href=${links.component(component)}>${component}</a>${told.deadLetterOf.length > 0 && html`; dead letters of ${told.deadLetterOf.map((each) => html`<a href=${links.topic(each.component, each.topic)}>${each.topic}</a> `)}`}`}
    actions=${html`<${Button} icon="events" href=${links.events({ topic: name })}>Watch live<//>`}>
    <${Figures} of=${[
      { label: "Published", value: perSecond(came.rate), spark: rates.series(into) },
      { label: "Delivered", value: perSecond(went.rate), note: `p95 ${ms(went.p95)}`, spark: rates.series(out), marks: rates.series(out, "errors") },
      { label: "Waiting", value: count(sum("waiting")), note: sum("taken") ? `${count(sum("taken"))} being worked on` : "" },
      { label: "Lag", value: lag ? lasting(lag) : "–", note: "age of the oldest" },
      { label: "Failing", value: percent(went.failing), kind: went.errors ? "bad" : "" },
      keepers.length > 0 && { label: "Dead letters since start", value: count(letters), kind: letters ? "bad" : "" },
    ]} />
    <${Tabs} label=${`Of the topic ${topic}`} tabs=${tabs} at=${at} onChange=${setTab}>
      ${at === "flow" &&
      html`
        ${failed && !rows.length && html`<${Problem} error=${failed.error} what=${failed.app} />`}
        <${Section} title="Subscribers" flush>
          <${Table} caption="Subscribers, and how far they are" columns=${SUBSCRIBERS} rows=${rows} keyOf=${(row) => row.app} sortBy="app" noun="subscriber" empty=${html`<${Empty} icon="topics" title="Nobody subscribes">Events that are published here are delivered to no application.<//>`} />
          ${told.subscribers.length > ASKED && html`<p class="dim pager">${count(told.subscribers.length - ASKED)} more are not asked.</p>`}
        <//>
        <${Section} title="What flows" flush><${FlowsOf} id=${`topic:${name}`} empty=${html`<${Empty} icon="events" title="Nothing passed within the last minute">Publish a first event from the tab “Publish”.<//>`} /><//>`}
      ${at === "events" && html`<${Events} app=${askers[0]} component=${component} topic=${topic} onDraft=${asDraft} />`}
      ${at === "dead" && html`<${DeadLetters} keepers=${keepers} component=${component} topic=${topic} />`}
      ${at === "publish" && html`<${Section} title=${`Publish to ${topic}`}><${PublishForm} key=${draft} component=${component} topic=${topic} data=${draft ?? undefined} as=${draft === null ? undefined : (told.publishers[0] ?? "")} /><//>`}
    <//>
  <//>`;
}
