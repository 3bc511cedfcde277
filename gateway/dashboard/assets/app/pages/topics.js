// All topics: who publishes, who subscribes, and what passes.
import { html, useMemo } from "../dom.js";
import { arrived, published } from "../rates.js";
import { useMesh, useRates } from "../live.js";
import { links } from "../router.js";
import { Badge, Empty, Loading, Page as Frame, Section, Table, Thing, ms, perSecond, percent } from "../ui.js";

const apps = (ids) =>
  ids.length > 3
    ? html`${ids.slice(0, 3).map((id) => html`<${Thing} key=${id} kind="app" name=${id} href=${links.app(id)} /> `)}<span class="dim">and ${ids.length - 3} more</span>`
    : ids.length
      ? ids.map((id) => html`<${Thing} key=${id} kind="app" name=${id} href=${links.app(id)} /> `)
      : html`<span class="dim">none</span>`;

const COLUMNS = [
  {
    key: "topic",
    label: "Topic",
    value: (row) => `${row.component}/${row.topic}`,
    render: (row) => html`<${Thing} kind="topic" name=${row.topic} note=${row.component} href=${links.topic(row.component, row.topic)} /> ${row.deadLetterOf.length > 0 && html`<${Badge} kind="warn">dead letters<//>`}`,
  },
  { key: "publishers", label: "Published by", value: (row) => row.publishers.join(" "), render: (row) => apps(row.publishers), wide: true },
  { key: "subscribers", label: "Delivered to", value: (row) => row.subscribers.join(" "), render: (row) => apps(row.subscribers), wide: true },
  { key: "in", label: "In", end: true, value: (row) => row.in, render: (row) => perSecond(row.in) },
  { key: "out", label: "Out", end: true, value: (row) => row.out, render: (row) => perSecond(row.out) },
  { key: "p95", label: "p95", end: true, value: (row) => row.p95, render: (row) => ms(row.p95) },
  {
    key: "failing",
    label: "Failing",
    end: true,
    value: (row) => row.failing,
    render: (row) => (row.failing ? html`<${Badge} kind="bad">${percent(row.failing)}<//>` : html`<span class="dim">–</span>`),
  },
];

export default function Page() {
  const mesh = useMesh();
  const { tick, rates } = useRates();
  const rows = useMemo(() => {
    if (!mesh) return [];
    const into = rates.grouped((edge) => (published(edge) ? edge.target : null));
    const out = rates.grouped((edge) => (arrived(edge) ? edge.target : null));
    return mesh.topics.map((each) => {
      const name = `${each.component}/${each.topic}`;
      const came = into.has(name) ? rates.figures(into.get(name)) : null;
      const went = out.has(name) ? rates.figures(out.get(name)) : null;
      return { ...each, name, in: came?.rate ?? 0, out: went?.rate ?? 0, p95: went?.p95 ?? null, failing: went?.failing ?? 0 };
    });
  }, [mesh, tick]);
  return html`<${Frame} title="Topics" lead="Where events go through: who sends them, who gets them, and how that goes just now.">
    ${mesh
      ? html`<${Section} title="All topics" flush>
          <${Table}
            caption="Topics, with the applications that publish and subscribe, and rates"
            columns=${COLUMNS} rows=${rows} keyOf=${(row) => row.name} search="Search topics" sortBy="topic" noun="topic"
            empty=${html`<${Empty} icon="topics" title="No topics yet" command="mesh publish -a APP -p pubsub -t orders -d '{}'">A topic appears when an application subscribes to it or publishes to it. Publish a first event:<//>`}
          />
        <//>`
      : html`<${Loading} />`}
  <//>`;
}
