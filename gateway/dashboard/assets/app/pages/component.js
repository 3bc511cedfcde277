// One component: who has it, how it is, what passes it, and of a state store its keys.
import { html, useMemo } from "../dom.js";
import { useMesh, useRates, useStatus } from "../live.js";
import { links } from "../router.js";
import { MANY_APPS, Problems, useOfApps } from "../each.js";
import { blockOf, ofComponent } from "../flows.js";
import { Keys } from "../keys.js";
import { Badge, Button, Empty, Figures, Loading, Page, Section, Spark, Table, Thing, count, ms, percent, perSecond } from "../ui.js";

export default function Component({ params: { name } }) {
  const mesh = useMesh();
  const crumbs = [["Components", "#/components"]];
  if (!mesh) return html`<${Page} title=${name} kind="component" crumbs=${crumbs}><${Loading} /><//>`;
  const all = mesh.components.filter((each) => each.name === name);
  if (!all.length) {
    return html`<${Page} title=${name} kind="component" crumbs=${crumbs}>
      <${Empty} icon="components" title="No application has a component of this name now"><p>It may be gone, or its application may have stopped. <a href="#/components">All components</a></p><//>
    <//>`;
  }
  const types = [...new Set(all.map((each) => each.type))];
  const apps = [...new Set(all.flatMap((each) => each.apps))];
  const blocks = [...new Set(types.map(blockOf))];
  const lead = html`<code>${types.join(", ")}</code>${types.length > 1 ? ": applications have it by different types." : ""}`;
  return html`<${Page} title=${name} kind="component" crumbs=${crumbs} lead=${lead}
    actions=${html`<${Button} icon="events" href=${links.events({ where: `event.data.target == ${JSON.stringify(name)} || event.data.target.startsWith(${JSON.stringify(`${name}/`)})` })}>Watch what passes<//>`}>
    <${Now} name=${name} />
    <${Hosts} name=${name} apps=${apps} />
    ${blocks.includes("pubsub") && html`<${Topics} of=${mesh.topics.filter((each) => each.component === name)} />`}
    ${blocks.includes("state") && html`<${Keys} name=${name} apps=${apps} />`}
  <//>`;
}

function Now({ name }) {
  const { rates, tick } = useRates();
  const { refused } = useStatus();
  const [all, rows] = useMemo(() => {
    const edges = rates.where(ofComponent(name));
    const groups = Map.groupBy(edges, (edge) => `${edge.seen === "arrived" ? edge.app : edge.from}\n${edge.seen}\n${edge.target}`);
    const made = [...groups].map(([key, some]) => {
      const [app, seen, target] = key.split("\n");
      return { key, app, seen, target, now: rates.figures(some), series: rates.series(some), bad: rates.series(some, "errors") };
    });
    return [edges, made];
  }, [tick, name]);
  const now = rates.figures(all);
  return html`
    <${Figures} of=${[
      { label: "Operations now", value: perSecond(now.rate), spark: rates.series(all), marks: rates.series(all, "errors") },
      { label: "Failing", value: percent(now.failing), kind: now.failing ? "bad" : "", note: now.errors ? `${count(now.errors)} in 10 s` : "" },
      { label: "Half of them within", value: ms(now.p50) },
      { label: "95 % within", value: ms(now.p95), note: now.longest ? `longest ${ms(now.longest)}` : "" },
    ]} />
    <${Section} title="Operations" note="of the last minute" flush>
      <${Table} caption=${`What passes ${name}`} rows=${rows} keyOf=${(row) => row.key} sortBy="rate" descending columns=${OPERATIONS} noun="line"
        empty=${html`<${Empty} icon="events" title="Nothing was seen to pass it in the last minute">${refused.length ? `Not all tell: ${refused[0].reason}` : html`As soon as an application uses it, what passes stands here. <a href="#/try">Try it out</a>`}<//>`} />
    <//>
  `;
}

const OPERATIONS = [
  { key: "app", label: "Application", value: (row) => row.app, render: (row) => (row.app ? html`<${Thing} kind="app" name=${row.app} href=${links.app(row.app)} />` : "–") },
  { key: "seen", label: "Direction", value: (row) => row.seen, render: (row) => (row.seen === "arrived" ? "came to it" : "asked by it") },
  { key: "target", label: "Of", value: (row) => row.target, render: (row) => (row.target.includes("/") ? html`<a href=${links.topic(...split(row.target))}>${split(row.target)[1]}</a>` : row.target) },
  { key: "rate", label: "Now", end: true, value: (row) => row.now.rate, render: (row) => perSecond(row.now.rate) },
  { key: "failing", label: "Failing", end: true, value: (row) => row.now.failing, render: (row) => (row.now.failing ? html`<${Badge} kind="bad">${percent(row.now.failing)}<//>` : percent(0)) },
  { key: "p95", label: "p95", end: true, value: (row) => row.now.p95, render: (row) => ms(row.now.p95) },
  { key: "minute", label: "In a minute", value: (row) => row.now.total, render: (row) => html`<${Spark} values=${row.series} marks=${row.bad} label=${`${count(row.now.total)} in the last minute`} />`, wide: true },
];

const split = (target) => [target.slice(0, target.indexOf("/")), target.slice(target.indexOf("/") + 1)];

const HEALTH = { ok: "ok", failing: "bad", absent: "bad", unknown: "mute" };
const PLACES = { local: "in each gateway", nearest: "at the nearest node", backbone: "in the backbone", elsewhere: "at other nodes" };

function Hosts({ name, apps }) {
  const asked = apps.slice(0, MANY_APPS);
  const of = useOfApps(asked, ["mesh", "components"], { rowsOf: (told) => told.components.filter((each) => each.name === name), every: 10 });
  return html`<${Section} title="Where it is" note=${apps.length > asked.length ? `${asked.length} of ${apps.length} applications were asked` : undefined} flush>
    <${Problems} errors=${of.errors} retry=${of.reload} what="Components" />
    ${of.loading && !of.rows.length
      ? html`<${Loading} what="Asking the applications" />`
      : html`<${Table} caption=${`Applications that have ${name}`} rows=${of.rows} keyOf=${(row) => row.app} sortBy="app" columns=${HOSTS} noun="application" empty=${of.errors.length ? html`<span></span>` : undefined} />`}
  <//>`;
}

const HOSTS = [
  { key: "app", label: "Application", value: (row) => row.app, render: (row) => html`<${Thing} kind="app" name=${row.app} href=${links.app(row.app)} />` },
  { key: "health", label: "Health", value: (row) => row.health, render: (row) => html`<${Badge} kind=${HEALTH[row.health] ?? "warn"}>${row.health}<//> ${row.reason}`, wide: true },
  { key: "runs", label: "Runs", value: (row) => row.placement, render: (row) => html`${PLACES[row.placement] ?? "nowhere"}${row.hosts.length > 0 && html` <span class="dim">(${row.hosts.join(", ")})</span>`}` },
  { key: "version", label: "Version", value: (row) => row.version },
  { key: "capabilities", label: "Can", value: (row) => row.capabilities.join(" "), render: (row) => html`<span class="chips">${row.capabilities.map((each) => html`<span key=${each} class="chip">${each.toLowerCase().replaceAll("_", " ")}</span>`)}</span>`, wide: true },
  { key: "file", label: "File", value: (row) => row.file, render: (row) => (row.file ? html`<a href=${`#/resources?app=${encodeURIComponent(row.app)}&kind=Component&name=${encodeURIComponent(row.name)}`}><code>${row.file.split("/").at(-1)}</code></a>` : "–") },
];

function Topics({ of }) {
  return html`<${Section} title="Topics" flush>
    <${Table} caption="Topics" search=${of.length > 8 ? "Find a topic" : undefined} noun="topic" rows=${of} keyOf=${(row) => row.topic} sortBy="topic"
      columns=${[
        { key: "topic", label: "Topic", value: (row) => row.topic, render: (row) => html`<${Thing} kind="topic" name=${row.topic} href=${links.topic(row.component, row.topic)} />` },
        { key: "publishers", label: "Published by", value: (row) => row.publishers.join(", ") || null },
        { key: "subscribers", label: "Subscribed by", value: (row) => row.subscribers.join(", ") || null },
      ]}
      empty=${html`<${Empty} icon="topics" title="No topics yet">An application that subscribes to one, or publishes to it, makes it appear.<//>`} />
  <//>`;
}

