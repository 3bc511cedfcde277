// All applications: how many instances, what they do, and what passes.
import { html, useMemo } from "../dom.js";
import { useMesh, useSlowRates } from "../live.js";
import { links } from "../router.js";
import { Badge, Empty, Loading, Page as Frame, Section, Table, Thing, many, ms, percent, perSecond } from "../ui.js";

export const START = "mesh run --app-id hello --app-port 3000 -- python3 app.py";

/** How an application is: badge of its instances and of what is not as it should be. */
export function Standing({ app, problems }) {
  const ready = app.instances.filter((each) => each.ready).length;
  if (problems.length) return html`<${Badge} kind="bad">${problems.map((each) => `${each.target} ${each.state}`).join(", ").slice(0, 80)}<//>`;
  if (!ready) return html`<${Badge} kind="bad">not ready<//>`;
  return html`<${Badge} kind=${ready < app.instances.length ? "warn" : "ok"}>${ready < app.instances.length ? `${ready} of ${app.instances.length} ready` : "ready"}<//>`;
}

const COLUMNS = [
  { key: "id", label: "Application", value: (row) => row.id, render: (row) => html`<${Thing} kind="app" name=${row.id} href=${links.app(row.id)} />` },
  { key: "state", label: "State", value: (row) => row.problems.length, render: (row) => html`<${Standing} app=${row} problems=${row.problems} />` },
  { key: "instances", label: "Instances", end: true, value: (row) => row.instances.length },
  { key: "does", label: "Does", wide: true, value: (row) => row.does, render: (row) => html`<span class="dim">${row.does}</span>` },
  { key: "in", label: "In", end: true, value: (row) => row.in.rate, render: (row) => perSecond(row.in.rate) },
  { key: "out", label: "Out", end: true, value: (row) => row.out.rate, render: (row) => perSecond(row.out.rate) },
  { key: "p95", label: "p95 in", end: true, value: (row) => row.in.p95, render: (row) => ms(row.in.p95) },
  { key: "failing", label: "Failing", end: true, value: (row) => row.failing, render: (row) => (row.failing ? html`<${Badge} kind="bad">${percent(row.failing)}<//>` : html`<span class="dim">–</span>`) },
];

const does = (app) =>
  [
    app.subscriptions.length && `subscribes to ${many(app.subscriptions.length, "topic")}`,
    app.published.length && `publishes to ${many(app.published.length, "topic")}`,
    app.actors.length && `hosts ${many(app.actors.length, "actor type")}`,
    app.methods?.length && `answers ${many(app.methods.length, "method")}`,
  ].filter(Boolean).join(", ");

export default function Page() {
  const mesh = useMesh();
  const { tick, rates } = useSlowRates(1);
  const rows = useMemo(() => {
    if (!mesh) return [];
    const into = rates.grouped((edge) => (edge.seen === "arrived" || edge.seen === "turn" || edge.seen === "step" ? edge.app : null));
    const out = rates.grouped((edge) => (edge.seen === "asked" ? edge.app : null));
    const problems = new Map();
    for (const each of mesh.problems) problems.set(each.app, [...(problems.get(each.app) ?? []), each]);
    return mesh.apps.map((app) => {
      const [came, went] = [rates.figures(into.get(app.id) ?? []), rates.figures(out.get(app.id) ?? [])];
      const all = came.count + went.count;
      return { ...app, does: does(app), problems: problems.get(app.id) ?? [], in: came, out: went, failing: all ? (came.errors + went.errors) / all : 0 };
    });
  }, [mesh, tick]);
  return html`<${Frame} title="Applications" lead="Who is on the mesh. In: what reaches an application; out: what it asks of others.">
    ${mesh
      ? html`<${Section} title="All applications" flush>
          <${Table} caption="Applications, with their state and rates" columns=${COLUMNS} rows=${rows} keyOf=${(row) => row.id} search="Search applications" sortBy="id" noun="application" empty=${html`<${Empty} icon="apps" title="No applications yet. Start one:" command=${START}>It appears here as soon as its gateway is on the mesh.<//>`} />
        <//>`
      : html`<${Loading} />`}
  <//>`;
}
